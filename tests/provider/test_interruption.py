"""Links that are lost, providers that restart, and the channel resumed afterwards."""

from __future__ import annotations

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.countersigning import check_resumed
from p2pgrid.proto.messages import Status
from p2pgrid.proto.record import Role
from p2pgrid.proto.wire.channels import Records
from p2pgrid.proto.wire.kinds import Kind
from tests.provider.rig import Buyer, Placed, Rig, limits, provider, receive, until

SLOW = {"tokens": 200, "pace_ms": 3}


async def vouched(buyer: Buyer) -> Placed:
    """An order that runs, with at least one voucher sent."""
    placed = buyer.order(max_tokens=200, fake=SLOW).send()
    return await placed.until(lambda: placed.machine.vouched.output_tokens >= 8)


async def until_idle(rig: Rig) -> None:
    await until(lambda: not rig.live and rig.fake.running == 0)


async def test_a_lost_link_interrupts_and_the_receipt_waits_for_the_client() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = await vouched(buyer)
        buyer.link.abort()
        await until_idle(rig)
        assert rig.fake.aborted == 1
        await buyer.reconnect()
        resumed, (receipt,) = await buyer.resume(sign=False)
        assert (resumed.held.last_order_number, resumed.held.last_receipt_number) == (1, 0)
        assert receipt.message.status is Status.INTERRUPTED
        assert placed.machine.vouched.covers(receipt.message.usage)
        check_resumed(
            buyer.books,
            receipt.record,
            placed.machine.order,
            placed.machine.tariff,
            vouched=placed.machine.vouched,
            delivered=placed.machine.usage,
            key=buyer.key,
            now_ms=buyer.now_ms(),
        )


async def test_a_resumed_channel_goes_on() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = await vouched(buyer)
        buyer.link.abort()
        await placed.cut()
        await until_idle(rig)
        await buyer.reconnect()
        await buyer.resume()
        receipt = await buyer.order(max_tokens=20).send().to_end()
        assert (receipt.receipt_number, receipt.order_number, receipt.status) == (2, 2, Status.COMPLETED)
        assert (await buyer.resume())[1] == []
        channel = next(iter(rig.shop.channels))
        assert (channel.books.open_orders, channel.books.countersigned) == (0, 2)


async def test_a_lost_countersignature_is_asked_for_again() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = buyer.order(max_tokens=8).muted(Kind.COUNTERSIGNATURE).send()
        await placed.until_kind(Kind.RECEIPT)
        buyer.link.abort()
        await until_idle(rig)
        await buyer.reconnect()
        _, (receipt,) = await buyer.resume(sign=False)
        assert placed.machine.receipt is not None and receipt.id == placed.machine.receipt.id
        # The gap in this resume's answers is the client's fault; a second one, answered, closes the books.
        stream, reader = buyer.stream()
        stream.send(Kind.RESUME, buyer.resume_frame())
        assert (await receive(reader))[0] == Kind.RESUMED
        stream.send(Kind.RECORDS, Records(records=0, is_all=True).to_bytes())
        assert [(await receive(reader))[0] for _ in range(2)] == [Kind.PROPOSALS, Kind.RECEIPT]
        stream.send(Kind.COUNTERSIGNATURE, receipt.countersigned(Role.CLIENT, buyer.key).record.to_bytes())
        stream.end()
        assert await reader.receive() is None
        assert rig.shop.ledger.head(buyer.books.id).countersigned == 1


async def test_without_a_countersignature_the_link_goes() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = buyer.order(max_tokens=8).muted(Kind.COUNTERSIGNATURE).send()
        await placed.until_kind(Kind.RECEIPT)
        rig.pass_time(30_000)
        await until(buyer.link.closed.done)


async def test_a_reset_stream_takes_the_link_and_its_other_orders_with_it() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=4).send().to_end()
        first, second = await vouched(buyer), await vouched(buyer)
        first.stream.reset()
        await second.cut()
        await until_idle(rig)
        assert second.breach is None
        await buyer.reconnect()
        _, receipts = await buyer.resume()
        assert [(r.message.receipt_number, r.message.status) for r in receipts] == [
            (2, Status.INTERRUPTED),
            (3, Status.INTERRUPTED),
        ]


async def test_resuming_on_a_new_link_ends_what_runs_on_the_old_one() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        await vouched(buyer)
        old = buyer.link
        await buyer.reconnect()
        _, (receipt,) = await buyer.resume()
        assert receipt.message.status is Status.INTERRUPTED
        await until(old.closed.done)
        await until_idle(rig)


async def test_a_client_that_takes_no_bytes_loses_the_order_and_not_the_link() -> None:
    async with provider(window_tokens=65_536) as rig:
        buyer = await Buyer.connect(rig)
        placed = buyer.order(max_tokens=4000, fake={"tokens": 4000})
        placed.takes_bytes = False
        placed.send()
        await until(lambda: rig.live and rig.live[0]._stuck_since_ms is not None)
        rig.pass_time(500)
        receipt = await placed.to_end()
        assert receipt.status is Status.INTERRUPTED
        assert receipt.usage == placed.machine.vouched
        await until_idle(rig)
        assert rig.fake.aborted == 1
        assert len(placed.answer) < 300_000
        assert not buyer.link.closed.done()


async def test_bytes_that_nobody_takes_keep_no_later_receipt_waiting() -> None:
    """The engine is done, and the last of its bytes wait for credit: the chain goes on without that order."""
    async with provider(window_tokens=65_536, limits=limits(slow_reader_timeout_s=30.0)) as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=4).send().to_end()
        long_chunks = {"stream": True, "stream_options": {"continuous_usage_stats": True}}  # a little over the credit
        stalled = buyer.order(max_tokens=4000, fake={"tokens": 880}, **long_chunks)
        stalled.takes_bytes = False
        stalled.send()
        await until(lambda: rig.live and rig.fake.completed == 2 and rig.live[0]._stuck_since_ms is not None)
        for number in range(2, 12):
            assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == number
        stalled.stream.consume(len(stalled.answer))
        stalled.takes_bytes = True
        receipt = await stalled.to_end()
        assert (receipt.receipt_number, receipt.status) == (12, Status.COMPLETED)
        assert receipt.usage.output_tokens == 880


async def test_an_order_that_a_crash_left_open_is_suspended_until_the_client_resumes() -> None:
    ledger = MemoryLedger()
    async with provider(ledger) as rig:
        buyer = await Buyer.connect(rig)
        placed = await vouched(buyer)
        await until(lambda: ledger.open_orders(buyer.books.id)[0].voucher)
        vouched_at_crash = ledger.open_orders(buyer.books.id)[0].voucher
        found = ledger.crashed()
    assert vouched_at_crash is not None
    async with provider(found) as rig:
        assert found.proposals(buyer.books.id) == []
        assert next(iter(rig.shop.channels)).books.open_orders == 1
        await buyer.reconnect(rig)
        resumed, (receipt,) = await buyer.resume()
        assert resumed.held.last_order_number == 1
        assert receipt.message.usage == vouched_at_crash.message.usage
        assert placed.machine.vouched.covers(receipt.message.usage)
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 2


async def test_a_channel_that_a_crash_kept_from_the_ledger_is_adopted() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
    async with provider() as rig:  # another ledger: it never heard of the channel
        await buyer.reconnect(rig)
        resumed, receipts = await buyer.resume()
        assert (resumed.held.last_order_number, receipts) == (0, [])
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 1
