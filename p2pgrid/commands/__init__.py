"""How a command reaches a running node: a Unix socket in the data folder, for its owner alone."""
