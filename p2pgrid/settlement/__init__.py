"""From receipts to euros in the bank: statements, invoices, payments (docs/settlement.md). No network I/O."""
