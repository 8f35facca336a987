"""Channels and their books."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2pgrid.errors import InvalidRecord, Refused
from p2pgrid.proto.books import ChannelBooks, risk_pico
from p2pgrid.proto.channel import (
    CLOCK_TOLERANCE_MS,
    ChannelHead,
    accept_channel,
    check_clock,
    propose_channel,
    verify_channel,
)
from p2pgrid.proto.messages import Channel, Order, Tariff, channel_id
from p2pgrid.proto.record import Role, Signed, sign_message
from tests.proto.simulation import (
    CLIENT,
    NOW_MS,
    PROVIDER,
    STRANGER,
    Grid,
    answer,
    make_books,
    make_channel,
    make_offer,
    receipts,
    script,
)

NONCE = bytes([1] * 32)


def proposed(**changes: Any) -> Signed[Channel]:
    """The provider's half, with lies in it."""
    message = propose_channel(
        make_offer(),
        client=CLIENT.public_key,
        client_nonce=NONCE,
        provider_nonce=bytes([2] * 32),
        key=PROVIDER,
        now_ms=NOW_MS,
    ).message
    message = msgspec.structs.replace(message, **changes)
    derived = channel_id(message.provider, message.client, message.provider_nonce, message.client_nonce)
    return sign_message(msgspec.structs.replace(message, channel=derived), Role.PROVIDER, PROVIDER)


def accept(record: Any, **changes: Any) -> Signed[Channel]:
    arguments = {"key": CLIENT, "client_nonce": NONCE, "now_ms": NOW_MS, **changes}
    return accept_channel(record, make_offer(), **arguments)


def test_a_channel_is_opened() -> None:
    signed = accept(proposed().record)
    assert (
        verify_channel(signed.record, provider=PROVIDER.public_key, client=CLIENT.public_key).message == signed.message
    )
    assert signed.message.expires_ms - signed.message.opened_ms == 90 * 86_400_000


def test_a_channel_goes_on_from_the_head_that_both_hold() -> None:
    head = bytes([9] * 32)
    assert accept(proposed(continues=head).record, continues=head).message.continues == head
    for other in (b"", bytes(32)):
        with pytest.raises(InvalidRecord) as error:
            accept(proposed(continues=other).record, continues=head)
        assert error.value.code == "wrong-channel"


@pytest.mark.parametrize(
    "changes",
    [
        {"client": STRANGER.public_key.raw},
        {"client_nonce": bytes(32)},
        {"currency": "USD"},
        {"continues": bytes([9] * 32)},
        {"window_tokens": 512},
        {"max_open_orders": 1},
        {"dispute_days": 1},
        {"expires_ms": NOW_MS + 1000},
    ],
)
def test_a_channel_on_other_terms_is_not_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord) as invalid:
        accept(proposed(**changes).record)
    assert invalid.value.code == "wrong-channel"


def test_a_provider_may_grant_less_credit() -> None:
    assert accept(proposed(credit_limit_pico=1).record).message.credit_limit_pico == 1


@pytest.mark.parametrize("apart_ms", [CLOCK_TOLERANCE_MS + 1, -CLOCK_TOLERANCE_MS - 1, 600_000])
def test_clocks_too_far_apart(apart_ms: int) -> None:
    with pytest.raises(Refused) as refused:
        accept(proposed().record, now_ms=NOW_MS + apart_ms)
    assert refused.value.code == "clock-skew"
    assert "behind" in str(refused.value) if apart_ms > 0 else "ahead" in str(refused.value)
    check_clock(NOW_MS, NOW_MS + CLOCK_TOLERANCE_MS, "the peer")


def test_a_channel_needs_both_signatures_of_its_own_parties() -> None:
    half = proposed()
    with pytest.raises(InvalidRecord) as invalid:
        verify_channel(half.record, provider=PROVIDER.public_key, client=CLIENT.public_key)
    assert invalid.value.code == "signature-missing"
    other = half.countersigned(Role.CLIENT, STRANGER)
    with pytest.raises(InvalidRecord) as invalid:
        verify_channel(other.record, provider=PROVIDER.public_key, client=STRANGER.public_key)
    assert invalid.value.code == "wrong-channel"


TARIFF = Tariff(input_upm=100, cached_input_upm=100, output_upm=1000)


def order(number: int, *, prompt: int = 10, output: int = 1000, most: int = 10**9) -> Order:
    return Order(
        channel=bytes(32),
        order_number=number,
        offer=bytes(32),
        model="m",
        endpoint="/v1/chat/completions",
        request_commitment=bytes(32),
        max_prompt_tokens=prompt,
        max_output_tokens=output,
        max_amount_pico=most,
        ordered_ms=NOW_MS,
        first_token_deadline_ms=NOW_MS + 1,
    )


@pytest.mark.parametrize(
    ("one", "risk"),
    [
        (order(1), 10 * 100 + 16 * 1000),
        (order(1, output=3), 10 * 100 + 3 * 1000),
        (order(1, prompt=0), 16 * 1000),
        (order(1, most=7), 7),
        (order(1, prompt=2**40, most=7), 7),
    ],
)
def test_the_risk_of_an_order(one: Order, risk: int) -> None:
    assert risk_pico(one, TARIFF, 16) == risk


def test_what_is_at_risk_is_covered_but_for_the_dearest_order() -> None:
    channel = make_channel(make_offer(max_open_orders=3))
    books = ChannelBooks(channel, ChannelHead(0, 0, channel.id, 0, 0, countersigned_pico=1000))
    assert books.may_open(10**12)
    books.open_order(order(1, most=5000), TARIFF)
    assert books.may_open(1000) and not books.may_open(1001)
    books.open_order(order(2, most=600), TARIFF)
    assert books.may_open(400) and not books.may_open(401)
    books.open_order(order(3, most=0), TARIFF)
    with pytest.raises(Refused) as refused:
        books.check_may_open(0, 0)
    assert refused.value.code == "too-many-open-orders"
    books.close_order(3)
    books.close_order(1)
    assert books.may_open(1000)


def test_a_disputed_order_stays_at_risk_until_the_dispute_is_accepted() -> None:
    grid = Grid()
    grid.ordered(script(answer(5, [1])))
    grid.settle()
    (receipt,) = [one.message for one in receipts(grid.client_ledger)]
    channel = make_channel(make_offer())
    books = ChannelBooks(channel, ChannelHead(0, 0, channel.id, 0, 0))
    books.open_order(order(receipt.order_number, most=5000), TARIFF)
    books.note_disputed(receipt, 0)
    assert books.open_orders == 0 and books.reserved_pico == 0
    assert books.may_open(0) and not books.may_open(1)
    books.note_accepted(receipt.receipt_number)
    assert books.may_open(10**12)


def test_books_after_a_restart() -> None:
    channel = make_channel(make_offer())
    books = ChannelBooks(channel, ChannelHead(7, 5, bytes(32), 1000, 4))
    assert (books.last_order_number, books.last_receipt_number, books.total_pico) == (7, 5, 1000)
    assert books.credit_left_pico() == channel.message.credit_limit_pico - 1000
    books.open_order(order(6), TARIFF)
    for _ in range(2):
        books.close_order(6)
        assert books.open_orders == 0


def test_order_numbers_only_rise() -> None:
    books = make_books(make_channel(make_offer()))
    books.claim_order_number(3)
    for number in (1, 2, 3):
        with pytest.raises(Refused):
            books.claim_order_number(number)
    books.claim_order_number(4)


def test_expiry() -> None:
    books = make_books(make_channel(make_offer()))
    assert not books.is_expired(books.terms.expires_ms - 1)
    assert books.is_expired(books.terms.expires_ms)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"channel": bytes(32)}, "wrong-channel"),
        ({"receipt_number": 2}, "receipt-gap"),
        ({"previous": bytes(32)}, "broken-link"),
        ({"channel_total_pico": 0}, "wrong-total"),
    ],
)
def test_chain_fault(changes: dict[str, Any], code: str | None) -> None:
    grid = Grid()
    lane = grid.ordered(script(answer(5, [1])))
    grid.settle()
    receipt = msgspec.structs.replace(lane.settled[0].message, **changes)
    fault = make_books(grid.channel).chain_fault(receipt)
    assert (fault[0] if fault else None) == code
