"""One node in several processes: how they are started, what they say to one another, how they share a port."""
