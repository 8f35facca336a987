"""What others say of clients: claims of default, histories of what was paid (docs/settlement/credit.md)."""
