"""Text of others in tables that a spreadsheet opens."""

from __future__ import annotations

import re
from typing import Final

_FORMULA: Final = re.compile(r"(^|[,;|])([\s\"']*[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""What a spreadsheet would run: at the beginning; and behind a sign at which it may split a line, for which of them a
table is written with is a matter of the country."""


def harmless(text: str) -> str:
    """The text in one line, which no spreadsheet takes for a formula: an apostrophe stands before what it would run."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return _FORMULA.sub(r"\1'\2", plain)
