"""The provider's local days: where one begins, and which one a moment is in. No clock is read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Final

from p2pgrid.proto.statement import Statement

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
        """The day of a moment, Unix milliseconds. At the end of all calendars it is their last one."""
        try:
            return (_EPOCH + time_ms * _MS).astimezone(self._zone).date()
        except OverflowError:
            return date.max

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


def may_be_days(from_ms: int, until_ms: int, first: date, last: date, offsets: Collection[int]) -> bool:
    """Can a provider whose offers are at one of these offsets call these the period's first and last day?

    Its clock may be an hour ahead or behind at either end: summer time.
    """
    return any(_may_be_days(from_ms, until_ms, first, last, offset) for offset in offsets)


def _may_be_days(from_ms: int, until_ms: int, first: date, last: date, offset: int) -> bool:
    near = _near(offset)
    return any(one.of(from_ms) == first for one in near) and any(one.of(until_ms - 1) == last for one in near)


@dataclass(frozen=True, slots=True)
class StatementDays:
    """A statement's days as people say them."""

    first: date
    last: date
    due: date

    @classmethod
    def of(cls, statement: Statement, offset_minutes: int | None) -> StatementDays:
        """As the provider's offer lets them be told: so many minutes ahead of UTC, or an hour more or less where a
        period, or the time to pay, ends as a day does. `offset_minutes`: None if no offer is known; then the time to
        pay says where its last day ends.
        """
        if offset_minutes is None:
            offset_minutes = _offset_of_midnight(statement.due_ms + 1)
        return cls(
            _begun(statement.from_ms, offset_minutes),
            _ended(statement.until_ms - 1, offset_minutes),
            _ended(statement.due_ms, offset_minutes),
        )


def _begun(time_ms: int, offset_minutes: int) -> date:
    """The day which begins then, or which that moment is in."""
    near = _near(offset_minutes)
    found = [one.of(time_ms) for one in near if one.begin_ms(one.of(time_ms)) == time_ms]
    return (found or [near[0].of(time_ms)])[0]


def _ended(time_ms: int, offset_minutes: int) -> date:
    """The day whose last millisecond that is, or which it is in."""
    near = _near(offset_minutes)
    found = [one.of(time_ms) for one in near if one.of(time_ms + 1) != one.of(time_ms)]
    return (found or [near[0].of(time_ms)])[0]


def _offset_of_midnight(time_ms: int) -> int:
    """How far ahead of UTC it is midnight then, from -719 to 720 minutes; 0 if a day begins so nowhere."""
    minutes, rest_ms = divmod(-time_ms, 60_000)
    return (minutes + 719) % 1440 - 719 if not rest_ms else 0


def _near(offset_minutes: int) -> list[LocalDays]:
    offsets = (offset_minutes, offset_minutes + 60, offset_minutes - 60)
    return [LocalDays.at_offset(one) for one in offsets if abs(one) < 1440]
