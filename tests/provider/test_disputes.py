"""What the provider's exchanges about disputes do with clients that keep to no rule, and after a crash."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from p2pgrid.clock import unix_ms
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.net.stream import Stream
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.disputing import sign_dispute
from p2pgrid.proto.record import Message, Signed
from p2pgrid.proto.wire.base import MAX_NUMBER, parse_frame
from p2pgrid.proto.wire.disputes import DisputesCompared, DisputesHeld, DisputesNews, HeldDispute
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.limits import ProviderLimits
from tests.factories import CLIENT
from tests.provider.rig import QUICK, Buyer, Rig, provider, until


@asynccontextmanager
async def sold(
    ledger: MemoryLedger | None = None, limits: ProviderLimits = QUICK
) -> AsyncIterator[tuple[Rig, Buyer, MemoryLedger]]:
    """A client with one receipt."""
    ledger = ledger or MemoryLedger()
    async with provider(ledger, limits=limits) as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order().send().to_end()
        await until(lambda: rig.tally.receipts)
        yield rig, buyer, ledger


def dispute(buyer: Buyer, ledger: MemoryLedger, reason: str = "quality", statement: str = "") -> Signed[Dispute]:
    receipt = ledger.receipt(buyer.books.id, 1)
    assert receipt is not None
    return sign_dispute(
        receipt,
        buyer.channel.message,
        reason=reason,
        statement=statement,
        owed_pico=0,
        key=CLIENT,
        now_ms=unix_ms(),
    )


async def begin(buyer: Buyer, *held: Signed[Message]) -> tuple[Stream, StreamReader, DisputesCompared]:
    stream, reader = buyer.stream()
    listed = tuple(HeldDispute(receipt_number=1, id=one.id) for one in held)
    frame = DisputesHeld(channel=buyer.books.id, after=0, until=MAX_NUMBER, held=listed)
    stream.send(Kind.DISPUTES, frame.to_bytes())
    received = await reader.receive()
    assert received is not None and received.kind == Kind.DISPUTES_COMPARED
    return stream, reader, parse_frame(received.payload, DisputesCompared)


async def test_the_plain_exchange() -> None:
    async with sold() as (rig, buyer, ledger):
        made = dispute(buyer, ledger)
        stream, reader, compared = await begin(buyer, made)
        assert (compared.lacks, compared.records) == ((made.id,), 0)
        stream.send(Kind.DISPUTES_TAKEN, b"")
        stream.send(Kind.RECORD, made.record.to_bytes())
        received = await reader.receive()
        assert received is not None and received.kind == Kind.DISPUTES_TAKEN
        assert [row.dispute.id for row in ledger.disputes()] == [made.id]
        stream.end()
        assert await reader.receive() is None
        assert rig.tally.faults == 0 and rig.tally.disputes == 1


@pytest.mark.parametrize("fault", ["another record", "twice taken", "a body", "too early", "no record", "oversize"])
async def test_what_breaks_the_rules_resets_the_stream_and_keeps_nothing(fault: str) -> None:
    async with sold() as (rig, buyer, ledger):
        made, other = dispute(buyer, ledger), dispute(buyer, ledger, statement="Another.")
        stream, _, _ = await begin(buyer, made)
        if fault != "too early":
            stream.send(Kind.DISPUTES_TAKEN, b"x" if fault == "a body" else b"")
        if fault == "twice taken":
            stream.send(Kind.DISPUTES_TAKEN, b"")
        payload = {"no record": b"x", "oversize": bytes(5000), "another record": other.record.to_bytes()}
        stream.send(Kind.RECORD, payload.get(fault, made.record.to_bytes()))
        await until(lambda: rig.tally.faults == 1)
        assert ledger.disputes() == []


async def test_a_client_that_says_no_more_is_not_waited_for() -> None:
    async with sold() as (rig, buyer, ledger):
        stream, _, _ = await begin(buyer, dispute(buyer, ledger))
        await until(lambda: not stream.is_open)
        assert ledger.disputes() == [] and rig.tally.faults == 0


async def test_a_ledger_that_fails_says_nothing_was_taken() -> None:
    async with sold() as (rig, buyer, ledger):
        made = dispute(buyer, ledger)
        stream, _, _ = await begin(buyer, made)
        ledger.fail_append()
        stream.send(Kind.DISPUTES_TAKEN, b"")
        stream.send(Kind.RECORD, made.record.to_bytes())
        await until(lambda: not stream.is_open)
        assert ledger.disputes() == [] and rig.tally.ledger_failures == 1
        # And once more, when it is back.
        stream, reader, _ = await begin(buyer, made)
        stream.send(Kind.DISPUTES_TAKEN, b"")
        stream.send(Kind.RECORD, made.record.to_bytes())
        assert (await reader.receive()) is not None
        assert len(ledger.disputes()) == 1


async def test_news_goes_to_the_last_stream_that_asked_for_it() -> None:
    async with sold() as (rig, buyer, ledger):
        first, first_reader = buyer.stream()
        first.send(Kind.DISPUTES_WATCH, b"")
        second, reader = buyer.stream()
        second.send(Kind.DISPUTES_WATCH, b"")
        assert await first_reader.receive() is None  # ended
        made = dispute(buyer, ledger)
        await ledger.append(made)
        rig.shop.disputes.taken(made)
        received = await reader.receive()
        assert received is not None and received.kind == Kind.DISPUTES_NEWS
        assert parse_frame(received.payload, DisputesNews).channel == buyer.books.id
        second.end()
        assert await reader.receive() is None
        rig.shop.disputes.taken(made)  # nobody listens


async def test_a_watch_says_nothing_more() -> None:
    async with sold() as (rig, buyer, _):
        stream, _ = buyer.stream()
        stream.send(Kind.DISPUTES_WATCH, b"")
        stream.send(Kind.DISPUTES_WATCH, b"")
        await until(lambda: rig.tally.faults == 1)


async def test_what_a_crash_left_unanswered_is_answered_at_the_next_start() -> None:
    async with sold() as (_, buyer, ledger):
        clear = dispute(buyer, ledger, reason="over-caps")
        await ledger.append(clear)
    async with provider(ledger) as rig:
        assert rig.shop.disputes.review() == 0
        await until(lambda: ledger.disputes()[0].answer is not None)
        assert rig.shop.disputes.review() == 0


async def test_what_only_a_person_can_decide_waits() -> None:
    async with sold() as (_, buyer, ledger):
        await ledger.append(dispute(buyer, ledger))
    async with provider(ledger) as rig:
        assert rig.shop.disputes.review() == 1
        assert ledger.disputes()[0].answer is None


async def test_who_compares_disputes_without_end_is_refused() -> None:
    limits = dataclasses.replace(QUICK, settlement_burst=2, settlement_per_s=0.001)
    async with sold(limits=limits) as (rig, buyer, _):
        frame = DisputesHeld(channel=buyer.books.id, after=0, until=MAX_NUMBER, held=()).to_bytes()
        kinds = [(await buyer.ask(Kind.DISPUTES, frame))[0] for _ in range(9)]
        assert kinds == [Kind.DISPUTES_COMPARED] * 8 + [Kind.REFUSAL]
        assert rig.tally.faults == 0
