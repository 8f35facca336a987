"""Orders from the first byte to the countersignature, over real links, against the fake engine's own counters."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.proto.messages import Status, Usage
from p2pgrid.proto.metered_order import VOUCHER_TIMEOUT_MS
from p2pgrid.proto.order_states import SellerState
from p2pgrid.proto.wire.kinds import Kind
from tests.provider.rig import WINDOW, Buyer, provider, until


async def test_a_whole_order() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = buyer.order(max_tokens=40, fake={"tokens": 40}).send()
        receipt = await placed.to_end()
        assert receipt.status is Status.COMPLETED
        assert receipt.usage.output_tokens == 40
        assert receipt.amount_pico == receipt.usage.prompt_tokens * 200_000 + 40 * 800_000
        assert placed.answer.endswith(b"data: [DONE]\n\n")
        await until(lambda: rig.tally.earned_pico == receipt.amount_pico)
        assert rig.fake.request_ids == [placed.machine.order.id.hex()]
        assert rig.fake.running == 0
        assert rig.engines.models["fake"].running == 0
        assert rig.shop.ledger.head(buyer.books.id).countersigned == 1


async def test_without_vouchers_it_stops_at_the_window_and_bills_what_was_acknowledged() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = buyer.order(max_tokens=200, fake={"tokens": 200, "pace_ms": 1}).muted(Kind.VOUCHER).send()
        await until(lambda: rig.live and rig.live[0].state is SellerState.HELD)
        rig.pass_time(VOUCHER_TIMEOUT_MS)
        receipt = await placed.to_end()
        assert receipt.status is Status.UNACKNOWLEDGED
        assert receipt.usage == Usage()
        assert receipt.amount_pico == 0
        await until(lambda: rig.fake.aborted == 1 and rig.fake.running == 0)
        assert placed.machine.usage.output_tokens == WINDOW


async def test_cancel_aborts_the_engine_and_bills_what_was_delivered() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = buyer.order(max_tokens=200, fake={"tokens": 200, "pace_ms": 5}).send()
        await placed.until_kind(Kind.METER)
        placed.cancel()
        receipt = await placed.to_end()
        assert receipt.status is Status.CANCELLED
        assert receipt.usage == placed.machine.usage
        assert 0 < receipt.usage.output_tokens < 200
        await until(lambda: rig.fake.aborted == 1 and rig.fake.running == 0)


async def test_many_orders_at_once_settle_in_the_order_of_their_receipts() -> None:
    async with provider(concurrency=32) as rig:
        buyer = await Buyer.connect(rig)
        for _ in range(5):  # allowance grows with every countersignature
            await buyer.order(max_tokens=4).send().to_end()
        placed = [buyer.order(max_tokens=100, fake={"tokens": 20 + 17 * i % 60, "pace_ms": 1}).send() for i in range(5)]
        receipts = await asyncio.gather(*(one.to_end() for one in placed))
        assert sorted(r.receipt_number for r in receipts) == [6, 7, 8, 9, 10]
        assert all(one.breach is None for one in placed)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("dies", Status.FAILED),
        ("error", Status.FAILED),
        ("garbage", Status.FAILED),
        ("huge", Status.FAILED),
        ("busy", Status.FAILED),
        ("empty", Status.EMPTY),
    ],
)
async def test_an_engines_failure_costs_the_client_nothing(fault: str, status: Status) -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        receipt = await buyer.order(max_tokens=32, fake={"fault": fault, "tokens": 20}).send().to_end()
        assert (receipt.status, receipt.amount_pico) == (status, 0)
        await until(lambda: rig.fake.running == 0)
        assert rig.engines.models["fake"].running == 0


async def test_no_token_before_the_deadline_is_late_and_free() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = buyer.order(fake={"fault": "hang-head"})
        placed.send()
        await until(lambda: rig.fake.running == 1)
        rig.pass_time(10_000)
        receipt = await placed.to_end()
        assert (receipt.status, receipt.amount_pico) == (Status.LATE, 0)
        await until(lambda: rig.fake.running == 0 and rig.fake.aborted == 1)


async def test_a_large_body_is_not_overtaken_by_the_order_after_it() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=4).send().to_end()
        large = buyer.order(max_tokens=4, padding="x" * 900_000).send()
        small = buyer.order(max_tokens=4).send()
        assert large.waiting, "it needs more than one credit"
        receipts = await asyncio.gather(large.to_end(), small.to_end())
        assert [r.order_number for r in receipts] == [2, 3]


async def test_an_engine_that_makes_more_than_was_ordered_is_stopped_and_billed_by_voucher() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = buyer.order(max_tokens=32, fake={"fault": "endless"}).send()
        receipt = await placed.to_end()
        assert receipt.status is Status.INTERRUPTED
        assert placed.machine.vouched.covers(receipt.usage)
        assert placed.machine.usage.output_tokens <= 32
        await until(lambda: rig.fake.running == 0 and rig.fake.aborted == 1)
