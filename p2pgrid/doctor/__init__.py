"""`p2pgrid doctor`: is all well with this node, and if not, what mends it? Changes nothing on disk."""
