"""p2pgrid: peers sell and buy inference, and both sides sign what was used."""

__version__ = "0.1.0"
