"""What is to be paid, ordered once, and whether the bank has done it."""
