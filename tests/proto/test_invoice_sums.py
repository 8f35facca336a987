"""From pico to cents: rounding, components, VAT."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.invoice_sums import (
    PICO_PER_CENT,
    ComponentKind,
    allowance_of,
    cents_of,
    line_components,
    net_of,
    vat_of,
)

NETS = st.integers(-(10**15), 10**15)


@pytest.mark.parametrize(
    ("pico", "cents"),
    [
        (0, 0),
        (4_999_999_999, 0),
        (5_000_000_000, 1),
        (14_999_999_999, 1),
        (15_000_000_000, 2),
        (-4_999_999_999, 0),
        (-5_000_000_000, -1),
        (-15_000_000_000, -2),
        (2**63 - 1, 922_337_204),
    ],
)
def test_pico_are_rounded_half_up_by_magnitude(pico: int, cents: int) -> None:
    assert cents_of(pico) == cents


@pytest.mark.parametrize(
    ("net", "rate_bp", "vat"),
    [(10_000, 2100, 2100), (50, 1900, 10), (-50, 1900, -10), (26, 1900, 5), (24, 1900, 5), (23, 1900, 4), (7, 0, 0)],
)
def test_vat_is_rounded_half_up_by_magnitude(net: int, rate_bp: int, vat: int) -> None:
    assert vat_of(net, rate_bp) == vat


@given(NETS, st.integers(0, 10_000))
def test_vat_is_the_nearest_cent_and_a_credit_note_takes_it_back_whole(net: int, rate_bp: int) -> None:
    assert abs(vat_of(net, rate_bp) - Fraction(net * rate_bp, 10_000)) <= Fraction(1, 2)
    assert vat_of(-net, rate_bp) == -vat_of(net, rate_bp)


@given(st.integers(-(2**70), 2**70))
def test_a_rounded_amount_is_the_nearest_cent(pico: int) -> None:
    assert abs(cents_of(pico) - Fraction(pico, PICO_PER_CENT)) <= Fraction(1, 2)
    assert cents_of(-pico) == -cents_of(pico)


COUNTS = st.tuples(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
PRICES = st.tuples(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))


@given(COUNTS, PRICES, st.integers(-(10**12), 10**12))
def test_components_come_to_the_amount_exactly(
    counts: tuple[int, int, int], prices: tuple[int, int, int], difference: int
) -> None:
    uncached, cached, output = counts
    amount = sum(c * p for c, p in zip(counts, prices, strict=True)) + difference
    components = line_components(
        prompt_tokens=uncached + cached,
        cached_tokens=cached,
        output_tokens=output,
        input_upm=prices[0],
        cached_input_upm=prices[1],
        output_upm=prices[2],
        amount_pico=amount,
    )
    assert sum(c.amount_pico for c in components) == amount
    assert [c.tokens for c in components[:3]] == list(counts)
    assert [c.kind for c in components] == list(ComponentKind)[: 4 if difference else 3]
    assert all(c.amount_pico == c.tokens * c.price_upm for c in components[:3])
    assert abs(sum(c.net_cents for c in components) - Fraction(amount, PICO_PER_CENT)) <= Fraction(len(components), 2)


def test_each_component_is_rounded_by_itself() -> None:
    half = 5_000_000_000
    components = line_components(
        prompt_tokens=2,
        cached_tokens=1,
        output_tokens=1,
        input_upm=half,
        cached_input_upm=half,
        output_upm=half,
        amount_pico=3 * half,
    )
    assert [c.net_cents for c in components] == [1, 1, 1]
    assert net_of(components, credits_pico=half, held_pico=0, held_before_pico=0) == 2


def test_what_was_held_comes_back_and_what_is_credited_does_not() -> None:
    held = 123_456_789_012
    assert net_of((), credits_pico=0, held_pico=held, held_before_pico=0) == -12
    assert net_of((), credits_pico=0, held_pico=0, held_before_pico=held) == 12
    assert allowance_of(credits_pico=held, held_pico=0, held_before_pico=held) == 0
