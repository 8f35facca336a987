"""What time it is, and which day that is somewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from p2pgrid.errors import UsageError

Days = Callable[[int], date]
"""The calendar day of a moment (Unix milliseconds) at the provider's."""


def unix_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def days_in(zone: tzinfo) -> Days:
    """Days by a zone's clock, its summer time included."""
    return lambda time_ms: datetime.fromtimestamp(time_ms // 1000, UTC).astimezone(zone).date()


def days_of_zone(name: str) -> Days:
    """Days by the clock of an IANA zone (`provider.time-zone`). Raises UsageError for one that is none."""
    try:
        return days_in(ZoneInfo(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            f"the time zone {name[:60]!r} is not known.", hint='Write an IANA name like "Europe/Vilnius".'
        ) from None
