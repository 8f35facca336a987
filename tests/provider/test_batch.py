"""Batch orders at the provider's end: what clients may do to it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from p2pgrid.errors import P2pgridError
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.proto.actions import Actions, EndStream, Send
from p2pgrid.proto.batch_buyer import BuyerBatch, Need
from p2pgrid.proto.messages import BatchTerms, Receipt, Status
from p2pgrid.proto.order_states import BuyerState
from p2pgrid.proto.placement import place_batch
from p2pgrid.proto.request import metered_body, parse_request
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import BatchOpening, OrderOpening
from tests.provider.rig import CHAT, MODEL, Buyer, Rig, limits, provider, until

BATCH = BatchTerms(batch_requests=4, batch_ms=50)


class Batch(StreamHandler):
    """A batch order on its stream, from a client in the test's hands."""

    def __init__(self, buyer: Buyer, *, takes_bytes: bool = True) -> None:
        self.buyer = buyer
        self.takes_bytes = takes_bytes
        self.over = ""
        self.machine: BuyerBatch
        body = _body()
        self.machine, actions = place_batch(
            buyer.books,
            buyer.rig.offer,
            parse_request(CHAT, body),
            CHAT,
            Need(1500, 2000),
            key=buyer.key,
            commitment_key=secrets.token_bytes(32),
            now_ms=buyer.now_ms(),
            first_token_timeout_ms=10_000,
        )
        self.opening = next(one.payload for one in actions if isinstance(one, Send))
        self.stream = buyer.link.open_stream(self)
        self.run(actions)

    def ask(self, **fields: Any) -> Batch:
        body = _body(**fields)
        asked = self.machine.ask(parse_request(CHAT, body), CHAT, body, Need(1500, 2000))
        assert asked is not None
        self.run(asked[1])
        return self

    def close(self) -> Batch:
        self.run(self.machine.close())
        return self

    async def receipt(self) -> Receipt:
        await until(lambda: self.machine.state is BuyerState.SETTLED or self.over)
        assert self.machine.receipt is not None, (self.machine.state, self.over, self.machine.refusal)
        return self.machine.receipt.message

    async def cut(self) -> str:
        await until(lambda: self.over)
        return self.over

    def run(self, actions: Actions) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.stream.send(action.kind, action.payload)
            elif isinstance(action, EndStream):
                self.stream.end()

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if kind >= 128 and self.takes_bytes:
            stream.consume(len(payload))
        self.run(self.machine.message(kind, payload, self.buyer.now_ms()))

    def writable(self, stream: Stream) -> None:
        pass

    def ended(self, stream: Stream) -> None:
        pass

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self.machine.link_lost()
        self.over = message or "reset"

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self.machine.link_lost()
        self.over = error.message


def _body(**fields: Any) -> bytes:
    program = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 2000}
    return metered_body(program | fields)


@contextlib.asynccontextmanager
async def selling(**more: Any) -> AsyncIterator[tuple[Rig, Buyer]]:
    async with provider(batch=BATCH, **more) as rig:
        yield rig, await Buyer.connect(rig)


async def test_requests_are_served_side_by_side() -> None:
    async with selling() as (rig, buyer):
        batch = Batch(buyer).ask(fake={"gather": 2, "tokens": 3}).ask(fake={"gather": 2, "tokens": 4}).close()
        receipt = await batch.receipt()
        assert [line.usage.output_tokens for line in receipt.requests] == [3, 4]
        await until(lambda: not rig.live)
        assert rig.tally.receipts["completed"] == 1


async def test_the_slots_of_the_model_hold_for_each_request() -> None:
    async with selling(concurrency=2) as (rig, buyer):
        batch = Batch(buyer)
        for _ in range(3):
            batch.ask(fake={"gather": 2, "tokens": 2})
        receipt = await batch.close().receipt()
        assert len(receipt.requests) == 2 and rig.tally.refusals["busy"] == 1
        refusal = batch.machine.asked[2].refusal
        assert refusal is not None and (refusal.code, refusal.retry_after_ms) == ("busy", 1000)
        assert rig.engines.models[MODEL].running == 0


async def test_a_client_that_takes_no_bytes_is_interrupted() -> None:
    async with selling(window_tokens=65_536, limits=limits(slow_reader_timeout_s=0.2)) as (rig, buyer):
        batch = Batch(buyer, takes_bytes=False)
        for _ in range(4):
            batch.ask(fake={"tokens": 2000})
        receipt = await batch.close().receipt()
        assert (receipt.status, receipt.amount_pico, receipt.requests) == (Status.INTERRUPTED, 0, ())
        assert rig.engines.models[MODEL].running == 0


async def test_a_client_that_leaves_it_open_is_closed_upon() -> None:
    async with selling() as (rig, buyer):
        batch = Batch(buyer).ask(fake={"tokens": 2})
        await until(lambda: batch.machine.asked[0].counter.done)
        rig.pass_time(2_000)
        assert len((await batch.receipt()).requests) == 1


async def test_a_client_that_never_signs_loses_its_link() -> None:
    async with selling() as (rig, buyer):
        batch = Batch(buyer)
        batch.run = lambda actions: None  # type: ignore[method-assign]
        batch.stream.send(Kind.REQUEST, _body(fake={"tokens": 2}))
        batch.stream.send(Kind.BATCH_CLOSE, b"")
        assert "countersignature" in await batch.cut()
        assert rig.engines.models[MODEL].running == 0


async def test_a_lost_stream_suspends_it() -> None:
    async with selling() as (rig, buyer):
        batch = Batch(buyer).ask(fake={"tokens": 500, "pace_ms": 5})
        await until(lambda: rig.fake.running == 1)
        batch.stream.reset(1, "gone")
        await until(lambda: rig.fake.aborted == 1 and not rig.live)
        assert rig.engines.models[MODEL].running == 0


async def test_a_node_that_stops_bills_what_is_whole() -> None:
    async with selling() as (rig, buyer):
        batch = Batch(buyer).ask(fake={"tokens": 3}).ask(fake={"tokens": 500, "pace_ms": 5})
        await until(lambda: batch.machine.asked[0].counter.done)
        for order in rig.live:
            order.fail()
        receipt = await batch.receipt()
        assert [line.status for line in receipt.requests] == [Status.COMPLETED, Status.FAILED]


HOSTILE = [
    ("a BODY", [(Kind.BODY, b"{}")]),
    ("CANCEL", [(Kind.CANCEL, b"")]),
    ("a request cancelled that never came", [(Kind.REQUEST_CANCEL, b"\x91\x00")]),
    ("a request after the close", [(Kind.BATCH_CLOSE, b""), (Kind.REQUEST, _body())]),
    ("five requests of four", [(Kind.REQUEST, b"{}")] * 5),
    ("a request of 16385 bytes", [(Kind.REQUEST, b" " * 16_385)]),
]


@pytest.mark.parametrize(("_", "messages"), HOSTILE, ids=[name for name, _ in HOSTILE])
async def test_what_no_honest_client_sends_cuts_the_stream(_: str, messages: list[tuple[Kind, bytes]]) -> None:
    async with selling() as (rig, buyer):
        batch = Batch(buyer)
        for kind, payload in messages:
            batch.stream.send(kind, payload)
        await batch.cut()
        await until(lambda: rig.tally.faults == 1 and not rig.live)


async def test_an_order_goes_by_its_own_message() -> None:
    """A batch order sent as ORDER, an order of one request sent as BATCH, and what a stream may not begin with."""
    async with selling() as (rig, buyer):
        batch = Batch(buyer)
        opening = parse_frame(batch.opening, BatchOpening)
        as_order = OrderOpening(order=opening.order, commitment_key=opening.commitment_key, body_bytes=2)
        placed = buyer.order(max_tokens=4)
        single = parse_frame(next(a.payload for a in placed.actions if isinstance(a, Send)), OrderOpening)
        as_batch = BatchOpening(order=single.order, commitment_key=single.commitment_key)
        for kind, payload in (
            (Kind.ORDER, as_order.to_bytes()),
            (Kind.BATCH, as_batch.to_bytes()),
            (Kind.REQUEST, _body()),
        ):
            stream, reader = buyer.stream()
            stream.send(kind, payload)
            with pytest.raises(P2pgridError):
                async with asyncio.timeout(5):
                    await reader.receive()
        assert rig.tally.faults == 3
