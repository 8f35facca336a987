"""Which day it is at a moment, by the clock of a zone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from p2pgrid.errors import UsageError
from p2pgrid.settlement.statements.days import LocalDays

Days = Callable[[int], date]
"""The calendar day of a moment (Unix milliseconds) at the provider's."""


def days_of_zone(name: str) -> Days:
    """Days by the clock of an IANA zone (`provider.time-zone`), its summer time included.

    Raises UsageError for one that is none.
    """
    try:
        return LocalDays(ZoneInfo(name)).of
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            f"the time zone {name[:60]!r} is not known.", hint='Write an IANA name like "Europe/Vilnius".'
        ) from None
