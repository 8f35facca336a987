"""A whole grid on one machine, in separate processes with separate data folders: what `p2pgrid demo` runs."""
