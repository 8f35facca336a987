"""Spans of calendar days, and the fiscal years that they are in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from p2pgrid.errors import UsageError


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
