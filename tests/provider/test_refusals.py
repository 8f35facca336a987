"""What a provider refuses, with which code; and what it takes as an attack."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from p2pgrid.proto.actions import Send
from p2pgrid.proto.record import Role, sign_message
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.channels import ChannelRequest
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import OrderOpening
from p2pgrid.proto.withdrawal import verify_withdrawal, withdraws
from tests.factories import PROVIDER, make_channel, secret_key
from tests.provider.rig import Buyer, Placed, limits, provider, until

STRANGER = secret_key("stranger")


def reopened(placed: Placed, **changes: Any) -> Placed:
    """The placed order with its opening changed."""
    opening = parse_frame(placed.actions[1].payload, OrderOpening)
    placed.actions[1] = Send(Kind.ORDER, msgspec.structs.replace(opening, **changes).to_bytes())
    return placed


def resigned(placed: Placed, key: Any = None, **changes: Any) -> Placed:
    """The placed order with its message changed, and signed again."""
    message = msgspec.structs.replace(placed.machine.order.message, **changes)
    signed = sign_message(message, Role.CLIENT, key or placed.buyer.key)
    return reopened(placed, order=signed.record.to_bytes())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda placed: resigned(placed, channel=make_channel(name="unknown").message.channel), "unknown-channel"),
        (lambda placed: resigned(placed, offer=bytes(32)), "unknown-offer"),
        (lambda placed: resigned(placed, model="other"), "unknown-model"),
        (lambda placed: resigned(placed, endpoint="/v1/embeddings"), "unknown-endpoint"),
        (lambda placed: resigned(placed, max_output_tokens=1), "order-caps"),
        (lambda placed: resigned(placed, max_amount_pico=10**12 + 1), "credit-exhausted"),
        (lambda placed: resigned(placed, ordered_ms=placed.buyer.now_ms() - 600_000), "clock-skew"),
        (lambda placed: resigned(placed, ordered_ms=placed.buyer.now_ms() + 600_000), "clock-skew"),
        (lambda placed: reopened(placed, commitment_key=bytes(32)), "commitment"),
    ],
)
async def test_an_order_that_does_not_fit_is_refused_and_owes_nothing(change: Any, code: str) -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        refusal = await change(buyer.order()).send().refused()
        assert refusal.code == code
        assert rig.shop.ledger.counts()["/p2pgrid/order/1"] == 0
        assert rig.fake.request_ids == []
        assert rig.tally.refusals[code] == 1
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda placed: resigned(placed, STRANGER),
        lambda placed: reopened(placed, order=parse_frame(placed.actions[1].payload, OrderOpening).order[:-1]),
        lambda placed: reopened(placed, body_bytes=parse_frame(placed.actions[1].payload, OrderOpening).body_bytes - 1),
        lambda placed: placed.actions.__setitem__(1, Send(Kind.ORDER, b"\xc1")) or placed,
        lambda placed: placed.actions.__setitem__(1, Send(Kind.BODY, b"{}")) or placed,
        lambda placed: placed.actions.insert(1, placed.actions[1]) or placed,
    ],
    ids=["forged", "truncated", "more body than announced", "no opening", "body first", "two orders"],
)
async def test_what_no_honest_client_sends_resets_the_stream_and_nothing_else(change: Any) -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = change(buyer.order(max_tokens=4))
        await placed.send().cut()
        assert rig.tally.faults == 1
        assert rig.fake.request_ids == []
        buyer.forget_orders()
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 1


async def test_repeated_faults_cost_the_link() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        for _ in range(4):
            stream, _ = buyer.stream()
            stream.send(Kind.RECEIPT, b"?")
        await until(buyer.link.closed.done)


async def test_another_clients_channel_is_unknown() -> None:
    async with provider() as rig:
        owner = await Buyer.connect(rig)
        thief = await Buyer.connect(rig, STRANGER)
        kind, payload = await thief.ask(Kind.ORDER, owner.order().actions[1].payload)
        assert (kind, parse_frame(payload, Refusal).code) == (Kind.REFUSAL, "unknown-channel")
        stream, reader = thief.stream()
        stream.send(Kind.RESUME, owner.resume_frame())
        with pytest.raises(Exception, match="another key"):
            await reader.receive()
        owner.forget_orders()
        assert (await owner.order(max_tokens=4).send().to_end()).receipt_number == 1


async def test_an_order_number_is_used_once() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = buyer.order(max_tokens=4)
        again = dataclasses.replace(placed, actions=list(placed.actions))
        await placed.send().to_end()
        assert await buyer_refusal(again) == "order-number"
        assert rig.fake.completed == 1


async def buyer_refusal(placed: Placed) -> str:
    """The refusal of an order whose machine is settled already."""
    stream, reader = placed.buyer.stream()
    for action in placed.actions:
        if isinstance(action, Send):
            stream.send(action.kind, action.payload)
    received = await reader.receive()
    assert received is not None and received.kind == Kind.REFUSAL
    return parse_frame(received.payload, Refusal).code


async def test_an_expired_offer_is_not_honoured_and_a_replaced_one_is() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        newer = await rig.shop.offers.publish(rig.engines.entries, ["/ip4/127.0.0.1/tcp/1/tls"])
        assert newer.message.sequence > rig.offer.message.sequence
        await buyer.order(max_tokens=4).send().to_end()  # names the older one
        rig.clock.ahead_ms = 3_600_001
        buyer.clock_ahead_ms = 3_500_000  # close enough to the provider's clock, and the offer looks valid from here
        refusal = await buyer.order(max_tokens=4).send().refused()
        assert refusal.code == "offer-expired"


async def test_busy_says_when_to_come_back() -> None:
    async with provider(concurrency=1) as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=4).send().to_end()
        running = buyer.order(max_tokens=100, fake={"fault": "hang"}).send()
        await running.until_kind(Kind.CHUNK)
        refusal = await buyer.order(max_tokens=4).send().refused()
        assert (refusal.code, refusal.retry_after_ms) == ("busy", 1000)
        running.cancel()
        await running.to_end()
        await until(lambda: rig.engines.models["fake"].running == 0)
        await buyer.order(max_tokens=4).send().to_end()


async def test_a_client_that_never_signs_has_one_order_to_take() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        rig.shop.channels.find(buyer.books.id, buyer.key.public_key).books.countersigned_pico = 0
        await buyer.order(max_tokens=8).muted(Kind.COUNTERSIGNATURE).send().until_kind(Kind.RECEIPT)
        refusal = await buyer.order(max_tokens=4).send().refused()
        assert (refusal.code, refusal.retry_after_ms) == ("too-many-open-orders", 1000)


async def test_a_draining_provider_and_a_dead_engine_refuse() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        rig.engines.models["fake"].is_up = False
        assert (await buyer.order().send().refused()).code == "engine-unavailable"
        rig.engines.models["fake"].is_up = True
        rig.shop.admission.is_draining = True
        assert (await buyer.order().send().refused()).code == "withdrawn"
        request = ChannelRequest(client_nonce=bytes(32), offer=rig.offer.id, now_ms=buyer.now_ms())
        kind, payload = await buyer.ask(Kind.CHANNEL_REQUEST, request.to_bytes())
        assert (kind, parse_frame(payload, Refusal).code) == (Kind.REFUSAL, "withdrawn")


async def test_a_body_must_arrive_and_those_behind_it_do_not_wait_for_ever() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=4).send().to_end()
        slow = buyer.order(max_tokens=4)
        slow.actions = slow.actions[:2]
        slow.send()
        quick = buyer.order(max_tokens=4).send()
        assert (await slow.refused()).code == "timeout"
        assert (await quick.to_end()).order_number == 3
        assert rig.shop.admission._body_bytes == 0


async def test_bodies_have_room_for_so_many_bytes() -> None:
    async with provider(limits=limits(body_bytes_per_client=10)) as rig:
        buyer = await Buyer.connect(rig)
        assert (await buyer.order().send().refused()).code == "busy"


async def test_channels_have_caps_and_clocks() -> None:
    async with provider(limits=limits(channels_per_client=2)) as rig:
        buyer = await Buyer.connect(rig)
        await buyer.open_channel()
        with pytest.raises(AssertionError, match="too-many-channels"):
            await buyer.open_channel()
        request = ChannelRequest(client_nonce=bytes(32), offer=rig.offer.id, now_ms=buyer.now_ms() - 600_000)
        _, payload = await buyer.ask(Kind.CHANNEL_REQUEST, request.to_bytes())
        assert parse_frame(payload, Refusal).code == "clock-skew"
        request = ChannelRequest(client_nonce=bytes(32), offer=bytes(32), now_ms=buyer.now_ms())
        _, payload = await buyer.ask(Kind.CHANNEL_REQUEST, request.to_bytes())
        assert parse_frame(payload, Refusal).code == "unknown-offer"


async def test_the_offer_is_shown_to_whoever_asks() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        kind, payload = await buyer.ask(Kind.OFFER_REQUEST, b"")
        assert (kind, payload) == (Kind.OFFER, rig.offer.record.to_bytes())
        rig.shop.offers.withdraw()
        kind, payload = await buyer.ask(Kind.OFFER_REQUEST, b"")
        assert kind == Kind.WITHDRAWAL
        withdrawal = verify_withdrawal(payload, PROVIDER.public_key.peer_id, buyer.now_ms())
        assert withdraws(withdrawal.message, rig.offer.message)


async def test_nothing_to_show_is_a_refusal() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        rig.shop.offers._current = None  # type: ignore[attr-defined]
        kind, payload = await buyer.ask(Kind.OFFER_REQUEST, b"")
        assert (kind, parse_frame(payload, Refusal).code) == (Kind.REFUSAL, "withdrawn")


async def test_a_silent_stream_is_cut() -> None:
    async with provider(limits=limits(control_timeout_s=0.05)) as rig:
        buyer = await Buyer.connect(rig)
        _, reader = buyer.stream()
        with pytest.raises(Exception, match="no message"):
            await reader.receive()


async def test_a_fifth_link_costs_the_client_its_first() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        first = buyer.link
        for _ in range(4):
            await buyer.reconnect()
            await buyer.ask(Kind.OFFER_REQUEST, b"")
        await until(first.closed.done)
        assert not buyer.link.closed.done()
