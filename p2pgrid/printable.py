"""Text of others on one line of a terminal, a log or a message."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with `?` for every character that could move a cursor or begin a line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
