"""The command line: a file a command, which parses, calls and prints."""
