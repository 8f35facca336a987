"""Offers: what they say, that their numbers grow for ever, and that what was shown binds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.config import ModelConfig, TermsConfig
from p2pgrid.errors import LedgerError, UsageError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.messages import DataTerms, ModelOffer, Tariff
from p2pgrid.proto.record import Role
from p2pgrid.proto.withdrawal import withdraws
from p2pgrid.provider.offers import OfferBook, OfferTerms, tariff_of, terms_of
from tests.factories import MODEL, NOW_MS, PROVIDER, TARIFF

ENTRY = ModelOffer(model=MODEL, tariff=TARIFF, context_tokens=4096, concurrency=8, endpoints=("/v1/chat/completions",))
TERMS = OfferTerms(
    operator="Example GmbH",
    data_terms=DataTerms(country="DE"),
    terms=terms_of(TermsConfig()),
    gpus=("NVIDIA H100",),
    validity_ms=60_000,
)
ADDRESSES = ("/ip4/192.0.2.7/tcp/4801/tls",)


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


async def test_an_offer_is_shown_once_it_is_durable() -> None:
    ledger, clock = MemoryLedger(), Clock()
    book = OfferBook(ledger, PROVIDER, TERMS, clock)
    assert book.current is None
    ledger.hold()
    publishing = asyncio.create_task(book.publish([ENTRY], ADDRESSES))
    await asyncio.sleep(0)
    assert book.current is None
    ledger.release()
    offer = await publishing
    assert book.current is offer
    assert offer.signers == {Role.PROVIDER: PROVIDER.public_key}
    assert (offer.message.addresses, offer.message.gpus) == (ADDRESSES, ("NVIDIA H100",))
    assert offer.message.valid_from_ms < NOW_MS < offer.message.valid_until_ms == NOW_MS + 60_000
    assert book.renewal_ms == NOW_MS + 30_000
    assert ledger.offer(offer.id) is not None


async def test_a_write_that_fails_leaves_the_offer_before() -> None:
    ledger = MemoryLedger()
    book = OfferBook(ledger, PROVIDER, TERMS, Clock())
    first = await book.publish([ENTRY], ADDRESSES)
    ledger.fail_append()
    with pytest.raises(LedgerError):
        await book.publish([ENTRY], ADDRESSES)
    assert book.current is first
    third = await book.publish([ENTRY], ADDRESSES)
    assert third.message.sequence == first.message.sequence + 2, "a number that was signed is not used again"


async def test_numbers_grow_over_a_restart_and_over_a_clock_that_went_back() -> None:
    ledger, clock = MemoryLedger(), Clock()
    first = await OfferBook(ledger, PROVIDER, TERMS, clock).publish([ENTRY], ADDRESSES)
    assert first.message.sequence == NOW_MS // 1000
    clock.now_ms -= 86_400_000
    second = await OfferBook(ledger.crashed(), PROVIDER, TERMS, clock).publish([ENTRY], ADDRESSES)
    assert second.message.sequence == first.message.sequence + 1


async def test_what_was_shown_binds_after_withdrawal_and_restart_until_it_expires() -> None:
    ledger, clock = MemoryLedger(), Clock()
    book = OfferBook(ledger, PROVIDER, TERMS, clock)
    first = await book.publish([ENTRY], ADDRESSES)
    book.withdraw()
    assert book.current is None
    assert book.find(first.id) is first
    restarted = OfferBook(ledger, PROVIDER, TERMS, clock)
    found = restarted.find(first.id)
    assert found is not None and found.message == first.message
    assert restarted.current is None, "it is honoured, not shown"
    clock.now_ms += 60_001
    assert OfferBook(ledger, PROVIDER, TERMS, clock).find(first.id) is None
    await restarted.publish([ENTRY], ADDRESSES)
    assert restarted.find(first.id) is None
    assert restarted.find(bytes(32)) is None


async def test_a_withdrawal_is_shown_in_place_of_the_offer_and_is_about_no_later_one() -> None:
    book = OfferBook(MemoryLedger(), PROVIDER, TERMS, Clock())
    book.withdraw()
    assert book.withdrawal is None, "nothing was shown that could be withdrawn"
    first = await book.publish([ENTRY], ADDRESSES)
    assert book.withdrawal is None
    book.withdraw()
    withdrawal = book.withdrawal
    assert withdrawal is not None and withdrawal.signers == {Role.PROVIDER: PROVIDER.public_key}
    assert withdraws(withdrawal.message, first.message)
    book.withdraw()
    assert book.withdrawal is withdrawal, "a second one would say the same"
    second = await book.publish([ENTRY], ADDRESSES)
    assert book.withdrawal is None and not withdraws(withdrawal.message, second.message)


@given(st.lists(st.tuples(st.integers(-90_000_000, 90_000_000), st.booleans()), max_size=6))
def test_no_withdrawal_is_ever_about_a_later_offer(steps: list[tuple[int, bool]]) -> None:
    """However the clock jumps, over restarts."""

    async def live() -> None:
        ledger, clock = MemoryLedger(), Clock()
        book = OfferBook(ledger, PROVIDER, TERMS, clock)
        withdrawn = []
        for jump_ms, restarts in steps:
            offer = await book.publish([ENTRY], ADDRESSES)
            assert not any(withdraws(one.message, offer.message) for one in withdrawn)
            book.withdraw()
            assert book.withdrawal is not None and withdraws(book.withdrawal.message, offer.message)
            withdrawn.append(book.withdrawal)
            clock.now_ms += jump_ms
            if restarts:
                ledger = ledger.crashed()
                book = OfferBook(ledger, PROVIDER, TERMS, clock)

    asyncio.run(live())


async def test_an_expired_offer_is_not_shown() -> None:
    clock = Clock()
    book = OfferBook(MemoryLedger(), PROVIDER, TERMS, clock)
    await book.publish([ENTRY], ADDRESSES)
    clock.now_ms += 60_001
    assert book.current is None


async def test_an_offer_that_nobody_would_accept_is_not_signed() -> None:
    book = OfferBook(MemoryLedger(), PROVIDER, TERMS, Clock())
    with pytest.raises(UsageError, match="one model twice"):
        await book.publish([ENTRY, ENTRY], ADDRESSES)


def test_prices_and_terms_come_from_the_configuration() -> None:
    model = ModelConfig(name="m", price_input_eur="0.20", price_output_eur="0.80", price_cached_input_eur="0.05")
    assert tariff_of(model) == Tariff(input_upm=200_000, cached_input_upm=50_000, output_upm=800_000)
    uncached = ModelConfig(name="m", price_input_eur="0.20", price_output_eur="0.80")
    assert tariff_of(uncached).cached_input_upm == 200_000
    assert terms_of(TermsConfig(credit_limit_eur="2.50")).credit_limit_pico == 2_500_000_000_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"price_input_eur": "free"}, "no number"),
        ({"price_input_eur": "-1"}, "out of range"),
        ({"price_input_eur": "0.0000001"}, "finer"),
        ({"price_cached_input_eur": "0.30"}, "cached input costs more"),
    ],
)
def test_a_bad_price_names_its_model(changes: dict[str, Any], words: str) -> None:
    fields: dict[str, Any] = {"name": "m", "price_input_eur": "0.20", "price_output_eur": "0.80"}
    model = ModelConfig(**{**fields, **changes})
    with pytest.raises(UsageError, match=f"'m'.*{words}"):
        tariff_of(model)
