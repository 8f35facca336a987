"""Durable before visible: every write of an order fails once, in both ways in which a disk can fail."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.messages import Receipt, Status
from p2pgrid.proto.record import Signed
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.channels import Resumed
from p2pgrid.proto.wire.kinds import Kind
from tests.provider.rig import Buyer, provider, until

# What an order of 20 tokens in windows of 16 writes: itself, a meter tick and a voucher for every 8 tokens,
# the receipt, and the receipt countersigned.
WRITES = range(7)


@pytest.mark.parametrize("persisted", [False, True], ids=["failed", "failed but persisted"])
@pytest.mark.parametrize("n", WRITES)
async def test_nothing_is_sent_after_a_write_that_failed_and_the_channel_comes_back(n: int, persisted: bool) -> None:
    ledger = MemoryLedger()
    async with provider(ledger) as rig:
        buyer = await Buyer.connect(rig)
        ledger.fail_append(after=n, persisted=persisted)
        placed = buyer.order(max_tokens=20, fake={"tokens": 20, "pace_ms": 1}).send()
        await placed.until(lambda: False)
        await until(lambda: rig.tally.ledger_failures == 1)
        assert "ledger-unavailable" in placed.over or placed.ended_by_provider
        shown = [kind for kind in placed.kinds if kind in (Kind.METER, Kind.RECEIPT)]
        await until(lambda: not rig.shop.channels.is_broken)
        stored = ledger.counts()
        assert len(shown) <= stored["/p2pgrid/meter/1"] + stored["/p2pgrid/receipt/1"]
        assert not rig.live and rig.engines.models["fake"].running == 0
        await until(lambda: rig.fake.running == 0)

        resumed, receipts = await settle(buyer)
        assert resumed.held.last_order_number == 1
        assert [r.message.status for r in receipts] in ([], [Status.INTERRUPTED], [Status.COMPLETED])
        assert (await buyer.order(max_tokens=4).send().to_end()).status is Status.COMPLETED
        assert ledger.proposals(buyer.books.id) == []


async def settle(buyer: Buyer) -> tuple[Resumed, list[Signed[Receipt]]]:
    """Resume as a client does that may have countersigned the receipt already."""
    _, receipts = await buyer.resume(sign=False)
    buyer.forget_orders()
    if receipts and buyer.books.last_receipt_number < receipts[0].message.receipt_number:
        return await buyer.resume()
    # Ours already: sign the same bytes again.
    buyer.books.last_receipt_number -= len(receipts)
    buyer.books.total_pico -= sum(r.message.amount_pico for r in receipts)
    buyer.books.last_receipt_id = receipts[0].message.previous if receipts else buyer.books.last_receipt_id
    return await buyer.resume()


@pytest.mark.parametrize("persisted", [False, True], ids=["failed", "failed but persisted"])
@pytest.mark.parametrize("n", WRITES)
async def test_after_a_crash_at_any_write_both_sides_agree(n: int, persisted: bool) -> None:
    ledger = MemoryLedger()
    async with provider(ledger) as rig:
        buyer = await Buyer.connect(rig)
        ledger.fail_append(after=n, persisted=persisted)
        placed = buyer.order(max_tokens=20, fake={"tokens": 20, "pace_ms": 1}).send()
        await placed.until(lambda: False)
        found = ledger.crashed()
    async with provider(found) as rig:
        await buyer.reconnect(rig)
        _, receipts = await settle(buyer)
        for receipt in receipts:
            if receipt.message.status is Status.INTERRUPTED:
                assert placed.machine.vouched.covers(receipt.message.usage)
        assert (await buyer.order(max_tokens=4).send().to_end()).status is Status.COMPLETED


async def test_while_the_ledger_fails_orders_are_refused_and_say_when_to_come_back() -> None:
    ledger = MemoryLedger()
    async with provider(ledger) as rig:
        buyer = await Buyer.connect(rig)
        other = await Buyer.connect(rig)
        for n in range(4):
            ledger.fail_append(after=n)
        await buyer.order(max_tokens=4).send().cut()
        refusal = await other.order(max_tokens=4).send().refused()
        assert (refusal.code, refusal.retry_after_ms) == ("ledger-unavailable", 5000)
        stream, reader = buyer.stream()
        stream.send(Kind.RESUME, buyer.resume_frame())
        received = await reader.receive()
        assert received is not None and parse_frame(received.payload, Refusal).code == "ledger-unavailable"
        await until(lambda: not rig.shop.channels.is_broken)
        await other.order(max_tokens=4).send().to_end()


async def test_nothing_leaves_before_it_is_durable() -> None:
    ledger = MemoryLedger()
    async with provider(ledger) as rig:
        buyer = await Buyer.connect(rig)
        ledger.hold()
        placed = buyer.order(max_tokens=20, fake={"tokens": 20}).send()
        await until(lambda: rig.fake.running or rig.fake.aborted or rig.fake.completed)
        await asyncio.sleep(0.05)  # nothing is to happen in this time
        assert placed.kinds == []
        ledger.release()
        assert (await placed.to_end()).status is Status.COMPLETED


async def test_a_channel_is_open_only_once_it_is_durable() -> None:
    ledger = MemoryLedger()
    async with provider(ledger) as rig:
        buyer = await Buyer.connect(rig)
        ledger.fail_append()
        with pytest.raises(Exception, match="ledger-unavailable"):
            await buyer.open_channel()
        assert len(rig.shop.channels) == 1
        assert await buyer.open_channel()
