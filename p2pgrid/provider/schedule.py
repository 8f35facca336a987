"""The operator's price schedule: from config.toml to the offer's periods, and its clock (docs/spec/messages.md).

An offer states one fixed offset from UTC. Where the time zone changes its own (summer time), an offer ends, and the
next one states the new offset: so a period never means two things under one offer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from p2pgrid.config import ModelConfig, PeriodConfig
from p2pgrid.errors import UsageError
from p2pgrid.proto.messages import Tariff, TariffPeriod
from p2pgrid.units import parse_price_eur

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_PERIODS: Final = 64
"""In an offer, for each model."""
_DAY_MINUTES: Final = 1440
_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 60 * _MINUTE_MS
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")


def parse_tariff(price_input: str, price_cached_input: str | None, price_output: str) -> Tariff:
    """Prices in EUR per million tokens; cached input costs what input costs if it is left out. Raises UsageError."""
    input_upm = parse_price_eur(price_input)
    cached_upm = input_upm if price_cached_input is None else parse_price_eur(price_cached_input)
    if cached_upm > input_upm:
        raise UsageError("cached input costs more than input.", hint="Lower price-cached-input-eur.")
    return Tariff(input_upm=input_upm, cached_input_upm=cached_upm, output_upm=parse_price_eur(price_output))


def schedule_of(model: ModelConfig) -> tuple[TariffPeriod, ...]:
    """The model's schedule as an offer states it. Raises UsageError that names the model and the entry."""
    periods: list[TariffPeriod] = []
    for number, entry in enumerate(model.schedule, 1):
        try:
            periods += _periods(entry)
        except UsageError as error:
            raise UsageError(
                f"the model {model.name!r}, entry {number} of its schedule: {error.message}", hint=error.hint
            ) from None
    if len(periods) > MAX_PERIODS:
        raise UsageError(
            f"the model {model.name!r}: its schedule has {len(periods)} periods; an offer holds {MAX_PERIODS}.",
            hint="A period over midnight counts as two.",
        )
    return tuple(periods)


def parse_days(days: Sequence[str]) -> int:
    """Weekdays (`mon`, `mon-fri`, `sat-mon`) as a bit mask, Monday 1 to Sunday 64. Raises UsageError."""
    mask = 0
    for text in days:
        first, dash, last = text.strip().lower().partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise UsageError(f"{text!r} is no weekday.", hint=f"Write {', '.join(DAYS)}, or a range like mon-fri.")
        begin = DAYS.index(first)
        length = (DAYS.index(last) - begin) % 7 + 1 if dash else 1
        for day in range(begin, begin + length):
            mask |= 1 << day % 7
    if not mask:
        raise UsageError("it names no day.", hint='Leave `days` out for every day, or write days = ["mon-fri"].')
    return mask


def time_zone(name: str) -> ZoneInfo:
    """The zone of an IANA name. Raises UsageError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            f"the time zone {name!r} is not known.",
            hint='Write an IANA name, like "Europe/Vilnius" or "UTC"; on a bare system `pip install tzdata`.',
        ) from None


def utc_offset_minutes(zone: tzinfo, time_ms: int) -> int:
    """How far the zone's clock is ahead of UTC at that time, in whole minutes."""
    offset = datetime.fromtimestamp(time_ms / 1000, UTC).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // timedelta(minutes=1)


def offset_change_ms(zone: tzinfo, from_ms: int, until_ms: int) -> int | None:
    """The first whole minute after `from_ms`, up to `until_ms`, at which the zone's offset is another, or None."""
    before = utc_offset_minutes(zone, from_ms)
    low = from_ms
    while low < until_ms:
        high = min(low + _HOUR_MS, until_ms)
        if utc_offset_minutes(zone, high) != before:
            low_minute, high_minute = low // _MINUTE_MS, -(-high // _MINUTE_MS)
            while high_minute - low_minute > 1:
                middle = (low_minute + high_minute) // 2
                if utc_offset_minutes(zone, middle * _MINUTE_MS) == before:
                    low_minute = middle
                else:
                    high_minute = middle
            return high_minute * _MINUTE_MS
        low = high
    return None


def _periods(entry: PeriodConfig) -> list[TariffPeriod]:
    tariff = parse_tariff(entry.price_input_eur, entry.price_cached_input_eur, entry.price_output_eur)
    weekdays, begin, end = parse_days(entry.days), _minute(entry.from_), _minute(entry.until)
    if begin == _DAY_MINUTES:
        raise UsageError("it begins at 24:00.", hint='Write from = "00:00" and name the next day.')
    if begin == end:
        raise UsageError(f"it begins and ends at {entry.until}.", hint="A whole day is from 00:00 until 24:00.")
    if begin < end:
        return [TariffPeriod(weekdays=weekdays, from_minute=begin, until_minute=end, tariff=tariff)]
    evening = TariffPeriod(weekdays=weekdays, from_minute=begin, until_minute=_DAY_MINUTES, tariff=tariff)
    if end == 0:
        return [evening]
    next_days = (weekdays << 1 | weekdays >> 6) & 127
    return [evening, TariffPeriod(weekdays=next_days, from_minute=0, until_minute=end, tariff=tariff)]


def _minute(text: str) -> int:
    found = _CLOCK.fullmatch(text)
    minute = int(found[1]) * 60 + int(found[2]) if found else _DAY_MINUTES + 1
    if minute > _DAY_MINUTES:
        raise UsageError(
            f"{text!r} is no time of day.", hint='Write hours and minutes, like "22:00"; a day ends at 24:00.'
        )
    return minute
