"""The networks that a node is in, from what its owner wrote: config.toml, and what `p2pgrid network` keeps."""
