"""Tariff times usage, exactly; the refund rule."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord, Refused
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.messages import Status, Tariff, Usage
from p2pgrid.proto.pricing import amount_owed, is_billed_by_voucher, most_owed, owes_nothing, price_of, usage_of
from p2pgrid.units import MAX_AMOUNT_PICO, MAX_PRICE_UPM, MAX_TOKENS
from tests.proto.simulation import TARIFF, final_events, first_event, make_offer, usage


@pytest.mark.parametrize(
    ("counts", "amount"),
    [
        (usage(0, 0), 0),
        (usage(1, 0), 200_000),
        (usage(1_000_000, 0), 200_000_000_000),  # 0.20 EUR for a million
        (usage(0, 1_000_000), 600_000_000_000),
        (usage(1000, 10, 900), 100 * 200_000 + 900 * 50_000 + 10 * 600_000),
        (usage(1000, 0, 1000), 1000 * 50_000),
    ],
)
def test_prices(counts: Usage, amount: int) -> None:
    assert price_of(TARIFF, counts) == amount


counts = st.integers(0, MAX_TOKENS)
prices = st.integers(0, MAX_PRICE_UPM)


@given(counts, counts, counts, prices, prices, prices)
def test_a_price_is_exact_or_refused(prompt: int, cached: int, output: int, a: int, b: int, c: int) -> None:
    tariff = Tariff(input_upm=a, cached_input_upm=b, output_upm=c)
    in_eur = (
        Fraction(prompt - cached) * Fraction(a, 10**12)
        + Fraction(cached) * Fraction(b, 10**12)
        + Fraction(output) * Fraction(c, 10**12)
    )
    try:
        amount = price_of(tariff, Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output))
    except InvalidRecord as invalid:
        assert invalid.code == "out-of-range"
        assert cached > prompt or in_eur * 10**12 > MAX_AMOUNT_PICO
    else:
        assert Fraction(amount, 10**12) == in_eur
        assert 0 <= amount <= MAX_AMOUNT_PICO


@given(counts, counts, counts, counts, st.sampled_from(Status))
def test_more_tokens_never_cost_less(
    prompt: int, output: int, more_prompt: int, more_output: int, status: Status
) -> None:
    less = usage(min(prompt, more_prompt), min(output, more_output))
    more = usage(max(prompt, more_prompt), max(output, more_output))
    assert 0 <= amount_owed(TARIFF, less, status) <= amount_owed(TARIFF, more, status)


def test_refund_rule() -> None:
    bill = usage(10, 20)
    billed = {s for s in Status if amount_owed(TARIFF, bill, s)}
    assert billed == {Status.COMPLETED, Status.CANCELLED, Status.INTERRUPTED, Status.UNACKNOWLEDGED}
    assert billed.isdisjoint({s for s in Status if owes_nothing(s)})
    assert {s for s in Status if is_billed_by_voucher(s)} == {Status.INTERRUPTED, Status.UNACKNOWLEDGED}


def test_beyond_63_bits_is_beyond_any_credit() -> None:
    entry = make_offer().message.models[0]
    assert most_owed(entry.tariff, max_prompt_tokens=10, max_output_tokens=10) == 10 * 200_000 + 10 * 600_000
    with pytest.raises(Refused) as refused:
        most_owed(entry.tariff, max_prompt_tokens=10**14, max_output_tokens=0)
    assert refused.value.code == "credit-exhausted"


def test_cached_beyond_the_prompt_is_cut() -> None:
    counter = TokenCounter()
    for event in [first_event(5), *final_events(5, 0, cached=9)]:
        counter.feed(event)
    assert usage_of(counter) == usage(5, 0, 5)
