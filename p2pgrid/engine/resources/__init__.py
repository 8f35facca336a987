"""Files that run or are read inside the engine's own environment; nothing here is imported by the node."""
