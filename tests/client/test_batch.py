"""Short requests that share orders: the purchaser against the provider's own exchanges and the fake vLLM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from p2pgrid.client.answer import Answer
from p2pgrid.client.batcher import SHORT_OUTPUT_TOKENS
from p2pgrid.client.openai_api import order_name
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.client.wishes import Wishes
from p2pgrid.errors import LedgerError, Refused, RemoteError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.messages import BatchTerms, Receipt, Status
from p2pgrid.proto.record import Role
from p2pgrid.proto.verdict import audit_records
from tests.client.seller import CHAT, until
from tests.client.test_with_provider import BODY, buying, signed_receipts
from tests.factories import PROVIDER
from tests.provider.rig import QUICK, Rig, provider

BATCH = BatchTerms(batch_requests=16, batch_ms=100)
SHORT = BODY | {"max_tokens": 16}


@dataclass
class Market:
    rig: Rig
    purchaser: Purchaser
    bought: MemoryLedger
    sold: MemoryLedger

    async def ask(self, **changes: Any) -> Answer:
        """One whole answer."""
        answer = await self.purchaser.buy(CHAT, SHORT | changes, whole=True)
        assert (await answer.assemble())["usage"]["completion_tokens"] == answer.usage.output_tokens
        return answer

    async def trust(self) -> int:
        """Receipts that cover what is at risk on several orders at once; how many there are."""
        for _ in range(2):
            answer = await self.purchaser.buy(CHAT, BODY | {"max_tokens": 4000, "fake": {"tokens": 4000}}, whole=True)
            answer.cancel()
        await until(lambda: len(signed_receipts(self.bought)) == 2)
        return 2

    async def new_receipts(self, before: int, requests: int) -> list[Receipt]:
        """The receipts above number `before`, once they list so many requests and both sides hold them."""

        def listed() -> int:
            return sum(max(len(one.requests), 1) for one in self._above(before))

        await until(lambda: listed() == requests and signed_receipts(self.sold) == signed_receipts(self.bought))
        return self._above(before)

    def _above(self, before: int) -> list[Receipt]:
        return [one for one in reversed(signed_receipts(self.bought)) if one.receipt_number > before]

    def audit(self) -> None:
        sides = ((self.bought, Role.CLIENT), (self.sold, Role.PROVIDER))
        verdict = audit_records(Bundle(side, enumerate(ledger.records(), 1), side) for ledger, side in sides)
        assert verdict.clean, verdict.findings


@contextlib.asynccontextmanager
async def market(
    *, batch: BatchTerms = BATCH, window_tokens: int = 256, shares_receipts: bool = True, **more: Any
) -> AsyncIterator[Market]:
    sold, bought = MemoryLedger(), MemoryLedger()
    limits = replace(QUICK, countersignature_timeout_s=10.0, slow_reader_timeout_s=10.0)
    async with (
        provider(sold, window_tokens=window_tokens, concurrency=64, batch=batch, limits=limits, **more) as rig,
        buying(rig, bought, queue_timeout_s=20.0, shares_receipts=shares_receipts) as (purchaser, _),
    ):
        yield Market(rig, purchaser, bought, sold)


async def test_requests_at_once_share_an_order() -> None:
    async with market() as one:
        before = await one.trust()
        # The engine answers none of them before it has all: they are under way together.
        answers = await asyncio.gather(*(one.ask(fake={"gather": 16, "tokens": n + 1}) for n in range(16)))
        receipts = await one.new_receipts(before, 16)
        assert [len(receipt.requests) for receipt in receipts] in ([0, 15], [15, 0])
        batch = max(receipts, key=lambda receipt: len(receipt.requests))
        assert batch.status is Status.COMPLETED
        shared = [answer for answer in answers if answer.request_index is not None]
        assert [line.usage for line in batch.requests] == [answer.usage for answer in shared]
        assert batch.amount_pico == sum(answer.cost_pico for answer in shared)
        names = {order_name(answer) for answer in shared}
        assert names == {f"{batch.channel.hex()}:{batch.order_number}/{index}" for index in range(15)}
        assert len(one.rig.fake.request_ids) == 16 + before
        one.audit()


async def test_a_request_that_is_alone_has_an_order_of_its_own() -> None:
    async with market() as one:
        for _ in range(3):
            answer = await one.ask()
            assert answer.request_index is None
            assert await answer.settled(2.0) is not None
        assert [receipt.requests for receipt in signed_receipts(one.bought)] == [()] * 3


async def test_an_answer_does_not_wait_for_the_receipt() -> None:
    async with market() as one:
        before = await one.trust()
        slow = asyncio.create_task(one.ask(max_tokens=400, fake={"tokens": 200, "pace_ms": 10}))
        await until(lambda: one.rig.fake.running == 1)
        kept = asyncio.create_task(one.ask(max_tokens=400, fake={"tokens": 200, "pace_ms": 10}))
        await until(lambda: one.rig.fake.running == 2)
        quick = await one.ask(fake={"tokens": 2})
        assert quick.request_index == 1 and not kept.done()
        assert await quick.settled(5.0) is None and quick.receipt is None
        assert not [receipt for receipt in signed_receipts(one.bought) if receipt.receipt_number > before]
        await asyncio.gather(slow, kept)
        await one.new_receipts(before, 3)
        one.audit()


async def test_vouchers_go_on_while_requests_share_a_small_window() -> None:
    async with market(window_tokens=16) as one:
        before = await one.trust()
        answers = await asyncio.gather(
            *(one.ask(max_tokens=40, fake={"gather": 12, "tokens": 40, "pace_ms": 1}) for _ in range(12))
        )
        assert all(answer.usage.output_tokens == 40 for answer in answers)
        await one.new_receipts(before, 12)
        one.audit()


async def test_a_full_order_is_closed_and_another_opened() -> None:
    async with market(batch=BatchTerms(batch_requests=4, batch_ms=100)) as one:
        before = await one.trust()
        await asyncio.gather(*(one.ask(fake={"gather": 9}) for _ in range(9)))
        receipts = await one.new_receipts(before, 9)
        assert sorted(len(receipt.requests) for receipt in receipts) == [0, 4, 4]
        one.audit()


async def test_an_order_is_closed_after_its_time() -> None:
    async with market(batch=BatchTerms(batch_requests=16, batch_ms=1)) as one:
        before = await one.trust()
        first = [asyncio.create_task(one.ask(fake={"gather": 3})) for _ in range(2)]
        await until(lambda: one.rig.fake.running == 2)
        batch = next(iter(one.purchaser.sessions.values()))._orders.batcher._open
        await until(lambda: all(order.batch.is_closed for order in batch.values()))
        last = await one.ask(fake={"gather": 3})
        assert last.request_index == 0
        await asyncio.gather(*first)
        assert len(await one.new_receipts(before, 3)) == 3


NOT_SHARED: list[dict[str, Any]] = [
    {"max_tokens": SHORT_OUTPUT_TOKENS + 1},
    {"max_tokens": None},
    {"n": SHORT_OUTPUT_TOKENS // 16 + 1},
    {"messages": [{"role": "user", "content": "x" * 17_000}]},
]


@pytest.mark.parametrize("changes", NOT_SHARED, ids=["long answer", "no limit", "many choices", "large body"])
async def test_what_is_not_short_is_ordered_alone(changes: dict[str, Any]) -> None:
    async with market() as one:
        await one.trust()
        slow = asyncio.create_task(one.ask(fake={"gather": 2}))
        await until(lambda: one.rig.fake.running == 1)
        answer = await one.purchaser.buy(CHAT, SHORT | changes | {"fake": {"gather": 2, "tokens": 4}}, whole=True)
        assert answer.request_index is None
        await slow


async def test_a_stream_is_ordered_alone() -> None:
    async with market() as one:
        await one.trust()
        slow = asyncio.create_task(one.ask(fake={"gather": 2}))
        await until(lambda: one.rig.fake.running == 1)
        async with await one.purchaser.buy(CHAT, SHORT | {"fake": {"gather": 2}}) as answer:
            assert answer.request_index is None and [data async for data in answer]
        await slow


@pytest.mark.parametrize(("client", "offer"), [(False, BATCH), (True, BatchTerms())], ids=["the client", "the offer"])
async def test_either_side_may_want_a_receipt_for_each(client: bool, offer: BatchTerms) -> None:
    async with market(batch=offer, shares_receipts=client) as one:
        before = await one.trust()
        await asyncio.gather(*(one.ask(fake={"gather": 8}) for _ in range(8)))
        assert len(await one.new_receipts(before, 8)) == 8


async def test_a_program_s_budget_holds_for_its_request_alone() -> None:
    """Sixteen requests may cost the order more than one program allows for its own."""
    async with market() as one:
        before = await one.trust()
        slow = asyncio.create_task(one.ask(fake={"gather": 3}))
        await until(lambda: one.rig.fake.running == 1)
        other = asyncio.create_task(one.ask(fake={"gather": 3}))
        await until(lambda: one.rig.fake.running == 2)
        wishes = Wishes(max_cost_pico=260_000_000)
        answer = await one.purchaser.buy(CHAT, SHORT | {"fake": {"gather": 3}}, wishes, whole=True)
        assert answer.request_index is not None and answer.cost_pico <= 260_000_000
        await asyncio.gather(slow, other)
        await one.new_receipts(before, 3)
        with pytest.raises(Refused) as refused:
            await one.purchaser.buy(CHAT, SHORT, Wishes(max_cost_pico=1), whole=True)
        assert refused.value.code == "over-budget"


FAULTS = [
    ("dies", Status.FAILED),
    ("error", Status.FAILED),
    ("garbage", Status.FAILED),
    ("wrong-usage", Status.FAILED),
    ("busy", Status.FAILED),
    ("empty", Status.EMPTY),
]


@pytest.mark.parametrize(("fault", "status"), FAULTS)
async def test_a_request_that_fails_takes_no_other_with_it(fault: str, status: Status) -> None:
    async with market() as one:
        before = await one.trust()
        held = {"gather": 4}
        good = [asyncio.create_task(one.ask(fake=held)) for _ in range(3)]
        await until(lambda: one.rig.fake.running == 3)
        control = {"fault": fault} if fault == "busy" else {"fault": fault, **held}
        failing = asyncio.create_task(one.purchaser.buy(CHAT, SHORT | {"fake": control}, whole=True))
        if fault == "busy":
            with pytest.raises(RemoteError):
                await failing
            last = asyncio.create_task(one.ask(fake=held))
            good.append(last)
        elif fault == "empty":
            assert (await failing).usage.output_tokens == 0
        else:
            with pytest.raises(RemoteError):
                await failing
        answers = await asyncio.gather(*good)
        assert all(answer.usage.output_tokens == 16 for answer in answers)
        await until(lambda: signed_receipts(one.sold) == signed_receipts(one.bought))
        await until(lambda: not one.rig.live)
        lines = [line for receipt in one._above(before) for line in receipt.requests]
        assert status in {line.status for line in lines}
        billed = sum(receipt.amount_pico for receipt in one._above(before))
        assert billed == sum(answer.cost_pico for answer in answers)
        one.audit()


async def test_a_program_that_leaves_stops_its_own_request() -> None:
    async with market() as one:
        before = await one.trust()
        first = asyncio.create_task(one.ask(fake={"gather": 3, "pace_ms": 5}))
        await until(lambda: one.rig.fake.running == 1)
        second = asyncio.create_task(one.ask(max_tokens=500, fake={"gather": 3, "tokens": 16, "pace_ms": 5}))
        leaving = asyncio.create_task(one.ask(max_tokens=500, fake={"gather": 3, "tokens": 500, "pace_ms": 20}))
        await asyncio.gather(first, second)
        leaving.cancel()
        await until(lambda: one.rig.fake.aborted == 1)
        (batch,) = [receipt for receipt in await one.new_receipts(before, 3) if receipt.requests]
        assert [line.status for line in batch.requests] == [Status.COMPLETED, Status.CANCELLED]
        one.audit()


async def test_a_lost_link_is_settled_on_the_next() -> None:
    """Whole answers stay with their programs; what is billed is what vouchers acknowledged."""
    async with market(window_tokens=16) as one:
        before = await one.trust()
        tasks = [
            asyncio.create_task(one.ask(max_tokens=500, fake={"gather": 3, "tokens": 500, "pace_ms": 5}))
            for _ in range(3)
        ]
        await until(lambda: len(one.rig.live) == 2 and any(len(order._answers) == 2 for order in _batches(one)))
        await until(lambda: all(order._machine.usage.output_tokens > 40 for order in _batches(one)))  # type: ignore[union-attr]
        one.rig.live[0].connection.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await one.purchaser.sessions.reconcile(PROVIDER.public_key, 10.0)
        await until(lambda: signed_receipts(one.sold) == signed_receipts(one.bought))
        by_voucher = [r for r in one._above(before) if r.status is Status.INTERRUPTED]
        assert len(by_voucher) == 2
        assert all(receipt.usage.output_tokens and not receipt.requests for receipt in by_voucher)
        one.audit()


def _batches(one: Market) -> list[Any]:
    return [order for order in one.rig.live if hasattr(order, "_answers")]


async def test_a_provider_that_closed_the_order_is_asked_again() -> None:
    """The provider's clock runs away: it takes no more requests, and the client orders anew."""
    async with market() as one:
        before = await one.trust()
        slow = [asyncio.create_task(one.ask(fake={"gather": 3})) for _ in range(2)]
        await until(lambda: one.rig.fake.running == 2)
        one.rig.pass_time(2_000)
        answer = await one.ask(fake={"gather": 3})
        assert answer.usage.output_tokens == 16
        await asyncio.gather(*slow)
        await one.new_receipts(before, 3)
        one.audit()


async def test_a_ledger_that_fails_settles_later() -> None:
    async with market() as one:
        await one.trust()
        slow = asyncio.create_task(one.ask(fake={"gather": 2, "pace_ms": 20}))
        await until(lambda: one.rig.fake.running == 1)
        one.sold.fail_append()
        with contextlib.suppress(RemoteError):
            await one.ask(fake={"gather": 2})
        with contextlib.suppress(RemoteError):
            await slow
        await until(lambda: not one.rig.shop.channels.is_broken)

        async with asyncio.timeout(10):
            while not any(receipt.status is Status.COMPLETED for receipt in signed_receipts(one.bought)[:1]):
                with contextlib.suppress(RemoteError):
                    await one.ask()
                await asyncio.sleep(0.05)
        await until(lambda: signed_receipts(one.sold) == signed_receipts(one.bought))
        one.audit()


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("persisted", [False, True], ids=["lost", "on disk"])
@pytest.mark.parametrize("side", [Role.CLIENT, Role.PROVIDER])
async def test_each_write_of_a_batch_may_fail(side: Role, persisted: bool, after: int) -> None:
    """Order, tick, voucher, receipt: whichever write fails, both sides come to one chain, and the audit is clean."""
    async with market(window_tokens=16) as one:
        await one.trust()
        control = {"tokens": 12, "pace_ms": 5}
        alone = asyncio.create_task(one.ask(fake=control))
        await until(lambda: one.rig.fake.running == 1)
        ledger = one.bought if side is Role.CLIENT else one.sold
        ledger.fail_append(after, persisted=persisted)
        shared = [asyncio.create_task(one.ask(fake=control)) for _ in range(3)]
        await asyncio.gather(alone, *shared, return_exceptions=True)
        await until(lambda: not one.rig.shop.channels.is_broken)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(RemoteError, LedgerError, TimeoutError):
                    await one.purchaser.sessions.reconcile(PROVIDER.public_key, 5.0)
                    channel = one.bought.channels()[-1].message.channel
                    open_orders = one.bought.open_orders(channel) or one.sold.open_orders(channel)
                    if not open_orders and signed_receipts(one.sold) == signed_receipts(one.bought):
                        break
                await asyncio.sleep(0.05)
        one.audit()
