"""The transparency log: kept and served for oneself, checked and witnessed for others (docs/spec/log.md)."""
