"""What the bank says, and what is made of it: read, matched, kept, and booked as Payments in the ledger, once."""
