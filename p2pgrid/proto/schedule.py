"""When a price changes (docs/spec/messages.md, TariffPeriod). What it is at a moment says `Offer.tariff_at`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pgrid.proto.messages import ModelOffer, Offer, Tariff

_MINUTE_MS: Final = 60_000
_DAY_MINUTES: Final = 1440
_DAYS_AHEAD: Final = 8
"""Schedules repeat every week."""


@dataclass(frozen=True, slots=True)
class PriceChange:
    """From `at_ms` on, orders cost `tariff`."""

    at_ms: int
    tariff: Tariff


def next_price_change(offer: Offer, entry: ModelOffer, now_ms: int) -> PriceChange | None:
    """The first moment after `now_ms` at which `entry` costs something else than now; None if it never does.

    It goes by the offer's own clock, and may lie beyond the offer's end: a later offer can say otherwise.
    """
    tariff = offer.tariff_at(entry, now_ms)
    if all(other == tariff for other in entry.tariffs):
        return None
    edges = {0} | {minute for period in entry.schedule for minute in (period.from_minute, period.until_minute)}
    today = (now_ms // _MINUTE_MS + offer.utc_offset_minutes) // _DAY_MINUTES * _DAY_MINUTES
    for minute in sorted(today + day * _DAY_MINUTES + edge for day in range(_DAYS_AHEAD) for edge in edges):
        at_ms = (minute - offer.utc_offset_minutes) * _MINUTE_MS
        if at_ms > now_ms and (then := offer.tariff_at(entry, at_ms)) != tariff:
            return PriceChange(at_ms, then)
    return None
