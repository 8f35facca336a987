"""Strangers' words, made fit for a log or a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with `?` for every character that could move a cursor or begin a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)
