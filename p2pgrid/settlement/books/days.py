"""Calendar days and spans of them. A day is the provider's: its clock's offset from UTC is in the offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from p2pgrid.errors import UsageError


def day_of(time_ms: int, utc_offset_minutes: int) -> date:
    """The day of a time at a clock so many minutes ahead of UTC; the last there is for what comes after it."""
    return _day_at(time_ms, timezone(timedelta(minutes=utc_offset_minutes)))


def _day_at(time_ms: int, clock: tzinfo) -> date:
    try:
        return datetime.fromtimestamp(time_ms // 1000, UTC).astimezone(clock).date()
    except OverflowError:
        return date.max


def days_of_zone(name: str) -> Callable[[int], date]:
    """Days by the clock of an IANA zone, its summer time included. Raises UsageError for one that is none."""
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            f"the time zone {name[:60]!r} is not known.", hint='Write an IANA name like "Europe/Vilnius".'
        ) from None
    return lambda time_ms: _day_at(time_ms, zone)


@dataclass(frozen=True, slots=True)
class Span:
    """Days from the first to the last, both within."""

    first: date
    last: date

    def __contains__(self, day: date) -> bool:
        return self.first <= day <= self.last


def span_of(year: int | None, first: date | None, last: date | None) -> Span:
    """A calendar year, or from one day to another. Raises UsageError."""
    if year is not None:
        if first is not None or last is not None:
            raise UsageError("--year and --from or --to were given.", hint="Give a year, or two days.")
        return Span(date(year, 1, 1), date(year, 12, 31))
    if first is None or last is None:
        raise UsageError("no period was given.", hint="Give --year 2026, or --from 2026-01-01 --to 2026-03-31.")
    if last < first:
        raise UsageError(f"the period ends ({last}) before it begins ({first}).")
    return Span(first, last)


def fiscal_year_of(day: date, begins: tuple[int, int]) -> date:
    """The first day of the fiscal year that the day is in; `begins` is its month and day."""
    start = date(day.year, *begins)
    return start if start <= day else date(day.year - 1, *begins)


def year_closed_in(day: date, begins: tuple[int, int]) -> int:
    """The calendar year in which the day's fiscal year ends: what legal terms are counted from."""
    start = fiscal_year_of(day, begins)
    return date.max.year if start.year == date.max.year else (date(start.year + 1, *begins) - timedelta(days=1)).year
