"""Statements: when one is due, what it says, and whether the other side says the same (docs/spec/settlement.md)."""
