"""What an invoice will come to: exact, rounded half away from zero, the same on both sides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.invoice_amounts import (
    PICO_PER_CENT,
    TokenKind,
    amounts_of,
    cents_of,
    invoice_amounts,
    token_lines,
    vat_of,
)
from p2pgrid.units import MAX_AMOUNT_PICO

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "invoice_amounts.json").read_text())


@dataclass(frozen=True)
class Line:
    model: str
    input_upm: int
    cached_input_upm: int
    output_upm: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


tokens = st.integers(0, 10**12)
prices = st.integers(0, 10**6)
lines = st.lists(
    st.builds(
        lambda a, b, c, prompt, cached, output: Line("m", a, b, c, prompt + cached, cached, output),
        prices, prices, prices, tokens, tokens, tokens,
    ),
    max_size=6,
)  # fmt: skip


def half_away(value: Fraction) -> int:
    """The definition, by another way."""
    return floor(value + Fraction(1, 2)) if value >= 0 else -floor(-value + Fraction(1, 2))


@pytest.mark.parametrize("vector", VECTORS["amounts"], ids=lambda v: v["name"])
def test_vectors(vector: dict) -> None:
    made = [Line(**one) for one in vector["lines"]]
    found = invoice_amounts(made, credits_pico=vector["credits_pico"], rate_bp=vector["rate_bp"])
    assert {"net": found.net_cents, "vat": found.vat_cents, "gross": found.gross_cents} == vector["cents"]
    assert [one.net_cents for one in token_lines(made)] == vector["line_cents"]


@pytest.mark.parametrize(
    ("pico", "cents"),
    [
        (0, 0),
        (PICO_PER_CENT // 2 - 1, 0),
        (PICO_PER_CENT // 2, 1),
        (-PICO_PER_CENT // 2, -1),
        (-PICO_PER_CENT // 2 + 1, 0),
        (PICO_PER_CENT * 3 // 2, 2),
        (MAX_AMOUNT_PICO, 922_337_204),
    ],
)
def test_cents(pico: int, cents: int) -> None:
    assert cents_of(pico) == cents


@given(st.integers(-MAX_AMOUNT_PICO, MAX_AMOUNT_PICO))
def test_cents_are_rounded_once_and_mirror(pico: int) -> None:
    assert cents_of(pico) == half_away(Fraction(pico, PICO_PER_CENT)) == -cents_of(-pico)


@given(st.integers(-(10**14), 10**14), st.integers(0, 10_000))
def test_vat_is_rounded_once_and_mirrors(net: int, rate: int) -> None:
    assert vat_of(net, rate) == half_away(Fraction(net * rate, 10_000)) == -vat_of(-net, rate)


@given(lines, st.integers(0, MAX_AMOUNT_PICO), st.integers(0, 3000))
def test_an_invoice_is_its_lines_less_its_credits(made: list[Line], credits_pico: int, rate: int) -> None:
    exact = [
        Fraction(count * price, PICO_PER_CENT)
        for one in made
        for count, price in (
            (one.prompt_tokens - one.cached_tokens, one.input_upm),
            (one.cached_tokens, one.cached_input_upm),
            (one.output_tokens, one.output_upm),
        )
    ]
    found = invoice_amounts(made, credits_pico=credits_pico, rate_bp=rate)
    assert found.net_cents == sum(map(half_away, exact)) - half_away(Fraction(credits_pico, PICO_PER_CENT))
    assert found.vat_cents == half_away(Fraction(found.net_cents * rate, 10_000))
    assert found.gross_cents == found.net_cents + found.vat_cents
    assert found == amounts_of(found.net_cents, rate)


@given(lines)
def test_every_token_stands_on_one_line(made: list[Line]) -> None:
    found = token_lines(made)
    assert all(one.tokens for one in found)
    for kind, count in (
        (TokenKind.CACHED_INPUT, sum(one.cached_tokens for one in made)),
        (TokenKind.OUTPUT, sum(one.output_tokens for one in made)),
        (TokenKind.INPUT, sum(one.prompt_tokens - one.cached_tokens for one in made)),
    ):
        assert sum(one.tokens for one in found if one.kind is kind) == count


@pytest.mark.parametrize(
    "bad",
    [
        Line("m", 1, 1, 1, 5, 6, 0),
        Line("m", -1, 1, 1, 5, 1, 0),
        Line("m", 1, 1, 1, 5, 1, -1),
        Line("m", 10**12, 1, 1, 2**62, 0, 0),
    ],
)
def test_what_has_no_amount_is_refused(bad: Line) -> None:
    with pytest.raises(InvalidRecord) as refused:
        token_lines([bad])
    assert refused.value.code == "out-of-range"


@pytest.mark.parametrize(("credits_pico", "rate_bp"), [(-1, 0), (MAX_AMOUNT_PICO + 1, 0), (0, -1), (0, 10_001)])
def test_credits_and_rates_have_bounds(credits_pico: int, rate_bp: int) -> None:
    with pytest.raises(InvalidRecord):
        invoice_amounts([], credits_pico=credits_pico, rate_bp=rate_bp)
