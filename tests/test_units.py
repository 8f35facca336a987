"""Money as people write it."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import UsageError
from p2pgrid.units import MAX_PRICE_UPM, format_amount_eur, format_price_eur, parse_price_eur


@pytest.mark.parametrize(
    ("text", "price_upm"),
    [
        ("0", 0),
        ("0.20", 200_000),
        ("1", 10**6),
        ("0.000001", 1),
        ("1000000", 10**12),
        ("007.5", 7_500_000),
        ("1.50000000000", 1_500_000),
    ],
)
def test_prices(text: str, price_upm: int) -> None:
    assert parse_price_eur(text) == price_upm


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "1,5",
        "-1",
        "-0",
        "+1",
        "1e3",
        "1E999999999",
        "1_0",
        "NaN",
        "Infinity",
        ".5",
        "5.",
        "0.0000001",
        "1000000.1",
        "1000001",
        "1.0000000000000000000000000000001",
        "\u0661",
        "1\n",
        "9" * 100,
        "0x1",
    ],
)
def test_what_is_no_price(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_price_eur(text)
    assert error.value.hint


@given(st.integers(0, MAX_PRICE_UPM))
def test_price_round_trip(price_upm: int) -> None:
    text = format_price_eur(price_upm)
    assert parse_price_eur(text) == price_upm
    assert Decimal(text) * 10**6 == price_upm


@given(st.integers(-(2**63), 2**63))
def test_amounts_are_exact(amount_pico: int) -> None:
    text = format_amount_eur(amount_pico)
    assert Decimal(text).scaleb(12) == amount_pico
    assert len(text.split(".")[1]) >= 2


@pytest.mark.parametrize(
    ("amount", "text"), [(12_340_000_000, "0.01234"), (0, "0.00"), (10**12, "1.00"), (-1, "-0.000000000001")]
)
def test_amounts(amount: int, text: str) -> None:
    assert format_amount_eur(amount) == text
