"""Price schedules: from config.toml to periods, and offers that end where summer time begins or ends."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.config import ModelConfig, PeriodConfig, parse_config
from p2pgrid.errors import UsageError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.provider.offers import OfferBook, OfferTerms
from p2pgrid.provider.schedule import DAYS, offset_change_ms, parse_days, schedule_of, time_zone, utc_offset_minutes
from tests.factories import PROVIDER
from tests.provider.test_offers import ADDRESSES, ENTRY, TERMS

VILNIUS = ZoneInfo("Europe/Vilnius")
SUMMER_MS = int(datetime(2027, 3, 28, 1, 0, tzinfo=UTC).timestamp() * 1000)
"""Summer time begins in Europe."""


def model(*periods: dict[str, Any]) -> ModelConfig:
    prices = {"price_input_eur": "0.05", "price_output_eur": "0.20"}
    made = tuple(PeriodConfig(**{"from_": "00:00", "until": "24:00", **prices, **period}) for period in periods)
    return ModelConfig(name="m", price_input_eur="0.10", price_output_eur="0.40", schedule=made)


def edges(*periods: dict[str, Any]) -> list[tuple[int, int, int]]:
    return [(p.weekdays, p.from_minute, p.until_minute) for p in schedule_of(model(*periods))]


@pytest.mark.parametrize(
    ("days", "mask"),
    [
        (["mon"], 1),
        (["sun"], 64),
        (["mon-fri"], 31),
        (["sat", "sun"], 96),
        (["sat-mon"], 97),
        (["mon-sun"], 127),
        ([" Mon-Tue"], 3),
    ],
)
def test_weekdays(days: list[str], mask: int) -> None:
    assert parse_days(days) == mask


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ({}, [(127, 0, 1440)]),
        ({"from_": "22:00", "until": "24:00", "days": ("mon-fri",)}, [(31, 1320, 1440)]),
        ({"from_": "22:00", "until": "06:30", "days": ("fri",)}, [(16, 1320, 1440), (32, 0, 390)]),
        ({"from_": "22:00", "until": "06:00", "days": ("sun",)}, [(64, 1320, 1440), (1, 0, 360)]),
        ({"from_": "22:00", "until": "00:00"}, [(127, 1320, 1440)]),
    ],
)
def test_a_period_over_midnight_is_two(period: dict[str, Any], expected: list[tuple[int, int, int]]) -> None:
    assert edges(period) == expected


@pytest.mark.parametrize(
    ("period", "words"),
    [
        ({"days": ("monday",)}, "'monday' is no weekday"),
        ({"days": ("mon-",)}, "'mon-' is no weekday"),
        ({"days": ()}, "names no day"),
        ({"from_": "22"}, "'22' is no time"),
        ({"from_": "24:01"}, "'24:01' is no time"),
        ({"from_": "24:00"}, "begins at 24:00"),
        ({"until": "25:00"}, "'25:00' is no time"),
        ({"from_": "08:00", "until": "08:00"}, "begins and ends at 08:00"),
        ({"price_input_eur": "cheap"}, "no number"),
        ({"price_cached_input_eur": "0.06"}, "cached input costs more"),
    ],
)
def test_errors_name_the_entry(period: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"the model 'm', entry 2 of its schedule: .*{words}"):
        schedule_of(model({}, period))


def test_more_periods_than_an_offer_holds() -> None:
    with pytest.raises(UsageError, match="66 periods"):
        schedule_of(model(*[{"from_": "22:00", "until": "06:00"}] * 33))


def test_the_file() -> None:
    text = """
    [provider]
    time-zone = "Europe/Vilnius"
    [[provider.models]]
    name = "m"
    price-input-eur = "0.10"
    price-output-eur = "0.40"
    most-tokens-per-s = 90
    [[provider.models.schedule]]
    days = ["mon-fri"]
    from = "22:00"
    until = "24:00"
    price-input-eur = "0.05"
    price-cached-input-eur = "0.01"
    price-output-eur = "0.20"
    """
    provider = parse_config(text, "it").provider
    (period,) = schedule_of(provider.models[0])
    assert (period.weekdays, period.from_minute, period.until_minute) == (31, 1320, 1440)
    assert (period.tariff.input_upm, period.tariff.cached_input_upm, period.tariff.output_upm) == (50000, 10000, 200000)
    assert time_zone(provider.time_zone) == VILNIUS
    assert provider.models[0].most_tokens_per_s == 90
    with pytest.raises(UsageError, match=r"form.*schedule\[0\]"):
        parse_config(text.replace("from =", "form ="), "it")


@pytest.mark.parametrize("name", ["Europe/Vilna", "", "../etc/passwd", "/etc/localtime"])
def test_what_is_no_time_zone(name: str) -> None:
    with pytest.raises(UsageError, match="is not known"):
        time_zone(name)


def test_where_the_offset_changes() -> None:
    assert (utc_offset_minutes(VILNIUS, SUMMER_MS - 1), utc_offset_minutes(VILNIUS, SUMMER_MS)) == (120, 180)
    day = 86_400_000
    assert offset_change_ms(VILNIUS, SUMMER_MS - day + 12_345, SUMMER_MS + day) == SUMMER_MS
    assert offset_change_ms(VILNIUS, SUMMER_MS - day, SUMMER_MS) == SUMMER_MS
    assert offset_change_ms(VILNIUS, SUMMER_MS - day, SUMMER_MS - 1) is None
    assert offset_change_ms(VILNIUS, SUMMER_MS, SUMMER_MS + day) is None
    assert offset_change_ms(ZoneInfo("Asia/Kolkata"), SUMMER_MS, SUMMER_MS + 300 * day) is None


@given(st.integers(SUMMER_MS - 10**7, SUMMER_MS + 10**7), st.integers(1, 10**7))
def test_an_offer_has_one_offset(now_ms: int, validity_ms: int) -> None:
    terms = OfferTerms(
        operator="", data_terms=TERMS.data_terms, terms=TERMS.terms, gpus=(), validity_ms=validity_ms, zone=VILNIUS
    )
    from_ms, until_ms = OfferBook(MemoryLedger(), PROVIDER, terms, lambda: now_ms)._term(now_ms)
    offsets = {utc_offset_minutes(VILNIUS, at) for at in (from_ms, now_ms, until_ms)}
    assert len(offsets) == 1 and from_ms <= now_ms <= until_ms <= now_ms + validity_ms


async def test_an_offer_ends_where_summer_time_begins_and_the_next_one_states_it() -> None:
    now_ms = SUMMER_MS - 20_000
    terms = OfferTerms(
        operator="",
        data_terms=TERMS.data_terms,
        terms=TERMS.terms,
        gpus=(),
        validity_ms=60_000,
        zone=VILNIUS,
    )
    book = OfferBook(MemoryLedger(), PROVIDER, terms, lambda: now_ms)
    winter = await book.publish([ENTRY], ADDRESSES)
    assert (winter.message.utc_offset_minutes, winter.message.valid_until_ms) == (120, SUMMER_MS - 1)
    assert book.renewal_ms == SUMMER_MS, "not again and again before"
    now_ms = book.renewal_ms
    assert book.current is None
    summer = await book.publish([ENTRY], ADDRESSES)
    assert (summer.message.utc_offset_minutes, summer.message.valid_from_ms) == (180, SUMMER_MS)
    assert summer.message.sequence > winter.message.sequence
    assert book.renewal_ms == now_ms + 30_000


def test_the_days_are_the_offers_bits() -> None:
    assert [parse_days([day]) for day in DAYS] == [1 << bit for bit in range(7)]
