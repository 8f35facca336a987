"""`Offer.tariff_at` against plain calendars, and the moment a price changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.messages import ENDPOINTS, ModelOffer, Offer, Tariff, TariffPeriod
from p2pgrid.proto.schedule import next_price_change
from tests.factories import make_offer

MINUTE_MS = 60_000
WEEK_MS = 7 * 86_400_000


def tariff(price: int) -> Tariff:
    return Tariff(input_upm=price, cached_input_upm=price, output_upm=price)


@st.composite
def periods(draw: st.DrawFn) -> TariffPeriod:
    from_minute = draw(st.integers(0, 1439))
    return TariffPeriod(
        weekdays=draw(st.integers(1, 127)),
        from_minute=from_minute,
        until_minute=draw(st.integers(from_minute + 1, 1440)),
        tariff=tariff(draw(st.integers(0, 3))),
    )


schedules = st.lists(periods(), max_size=6).map(tuple)
offsets = st.integers(-840, 840)
# Near minutes and midnights, and anywhere in the years that a record can state.
times = st.one_of(
    st.integers(0, 253_402_300_799_999),
    st.builds(lambda day, minute, ms: (day * 1440 + minute) * MINUTE_MS + ms, st.integers(0, 40_000),
              st.integers(0, 1439), st.integers(0, 59_999)),
)  # fmt: skip


def offer_of(schedule: tuple[TariffPeriod, ...], offset: int) -> tuple[Offer, ModelOffer]:
    entry = ModelOffer(
        model="m", tariff=tariff(9), context_tokens=64, concurrency=1, endpoints=ENDPOINTS, schedule=schedule
    )
    return make_offer(models=(entry,), utc_offset_minutes=offset).message, entry


def by_the_calendar(offer: Offer, entry: ModelOffer, time_ms: int) -> Tariff:
    """What anybody would write who has never seen a bit mask."""
    clock = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms, minutes=offer.utc_offset_minutes)
    for period in entry.schedule:
        days = [day for day in range(7) if period.weekdays & 2**day]
        begin = clock.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(minutes=period.from_minute)
        end = begin + timedelta(minutes=period.until_minute - period.from_minute)
        if clock.weekday() in days and begin <= clock < end:
            return period.tariff
    return entry.tariff


@given(schedules, offsets, times.filter(lambda ms: 10**9 < ms < 253_402_000_000_000))
def test_the_tariff_of_a_time_is_the_calendars(schedule: tuple[TariffPeriod, ...], offset: int, time_ms: int) -> None:
    offer, entry = offer_of(schedule, offset)
    assert offer.tariff_at(entry, time_ms) == by_the_calendar(offer, entry, time_ms)


@given(schedules, offsets, times, st.data())
def test_a_price_holds_until_it_changes(
    schedule: tuple[TariffPeriod, ...], offset: int, now_ms: int, data: st.DataObject
) -> None:
    offer, entry = offer_of(schedule, offset)
    now = offer.tariff_at(entry, now_ms)
    change = next_price_change(offer, entry, now_ms)
    if change is None:
        assert offer.tariff_at(entry, now_ms + data.draw(st.integers(0, WEEK_MS))) == now
    else:
        assert now_ms < change.at_ms <= now_ms + WEEK_MS
        assert change.tariff == offer.tariff_at(entry, change.at_ms) != now
        assert offer.tariff_at(entry, data.draw(st.integers(now_ms, change.at_ms - 1))) == now
