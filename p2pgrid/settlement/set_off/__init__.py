"""Set-off between operators: what may be set off, proposing, agreeing; cycles of three and more."""
