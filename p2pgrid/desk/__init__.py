"""What a person does with receipts: find one, dispute it, answer, open a commitment, erase. On a node or without."""
