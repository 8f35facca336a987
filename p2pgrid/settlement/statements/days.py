"""The provider's local days: where one begins, and which one a moment is in. No clock is read."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Final

DAY_MS: Final = 86_400_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


class LocalDays:
    """The days of a time zone."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone: Final = zone

    @classmethod
    def at_offset(cls, minutes: int) -> LocalDays:
        """So many minutes ahead of UTC, as an offer says it."""
        return cls(timezone(timedelta(minutes=minutes)))

    def of(self, time_ms: int) -> date:
        """The day of a moment, Unix milliseconds."""
        return (_EPOCH + time_ms * _MS).astimezone(self._zone).date()

    def begin_ms(self, day: date) -> int:
        """The day's first millisecond."""
        local = datetime.combine(day, time.min, self._zone)
        return (local.astimezone(UTC) - _EPOCH) // _MS

    def end_ms(self, day: date) -> int:
        """The first millisecond after it."""
        return self.begin_ms(day + timedelta(days=1))


def period_days(from_ms: int, until_ms: int, days: LocalDays) -> tuple[date, date]:
    """The first and the last day of a period, which has its first moment and not its last."""
    return days.of(from_ms), days.of(until_ms - 1)


def may_be_days(from_ms: int, until_ms: int, first: date, last: date, offset_minutes: int) -> bool:
    """Can a provider whose offers are at that offset call these the period's first and last day?

    Its clock may be an hour ahead or behind at either end: summer time.
    """
    near = [LocalDays.at_offset(offset_minutes + off) for off in (-60, 0, 60) if abs(offset_minutes + off) < 1440]
    return any(one.of(from_ms) == first for one in near) and any(one.of(until_ms - 1) == last for one in near)
