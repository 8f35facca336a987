"""Calendar days, as files write them."""

from __future__ import annotations

import re
from datetime import date
from typing import Final

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def day_of(text: str) -> date:
    """The day of "2026-11-27". Raises ValueError for any other form, and for days that there are not."""
    if not _DAY.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no date; expected one like 2026-11-27")
    return date.fromisoformat(text)
