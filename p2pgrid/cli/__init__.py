"""The command `p2pgrid`: a file a command, which parses, calls and prints."""
