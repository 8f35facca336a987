"""Many orders at once on one channel: a gateway on its port, a provider, a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from p2pgrid.client.gateway import SHUTDOWN_S, Gateway, serve
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.errors import Unreachable
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.messages import Status
from p2pgrid.proto.record import Role
from p2pgrid.proto.verdict import audit_records
from tests.client.seller import CHAT, until
from tests.client.test_with_provider import BODY, buying, signed_receipts
from tests.provider.rig import QUICK, Rig, provider

AT_ONCE = 64
PATIENT = replace(QUICK, slow_reader_timeout_s=30.0, countersignature_timeout_s=30.0)


@dataclass
class Market:
    """A gateway and the provider it buys from."""

    rig: Rig
    purchaser: Purchaser
    bought: SqliteLedger
    sold: SqliteLedger
    url: str
    http: aiohttp.ClientSession

    async def ask(self, **body: Any) -> int:
        """One whole answer; its output tokens."""
        async with self.http.post(self.url + "/chat/completions", json=BODY | body) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return int(answer["usage"]["completion_tokens"])

    async def earn_trust(self) -> int:
        """Sign so much that the channel's bound lets all orders be open at once; the number of receipts."""
        for _ in range(16):
            await self.ask(max_tokens=2000, fake={"tokens": 2000})
        await asyncio.gather(*(self.ask() for _ in range(AT_ONCE)))
        await until(lambda: len(signed_receipts(self.sold)) == 16 + AT_ONCE)
        return 16 + AT_ONCE

    async def agree(self, receipts: int) -> None:
        """Both ledgers come to hold the same chain, without a gap, and the audit finds nothing."""
        await until(lambda: len(signed_receipts(self.bought)) == len(signed_receipts(self.sold)) == receipts)
        chain = signed_receipts(self.sold)[::-1]
        assert [receipt.receipt_number for receipt in chain] == list(range(1, receipts + 1))
        assert signed_receipts(self.bought)[::-1] == chain
        sides = ((self.bought, Role.CLIENT), (self.sold, Role.PROVIDER))
        verdict = audit_records(Bundle(side, enumerate(ledger.records(), 1), side) for ledger, side in sides)
        assert verdict.clean, verdict.findings


@contextlib.asynccontextmanager
async def market(folder: Path) -> AsyncIterator[Market]:
    async with contextlib.AsyncExitStack() as stack:
        sold, bought = (SqliteLedger.open(folder / f"{side}.sqlite") for side in ("sold", "bought"))
        for ledger in (sold, bought):
            stack.push_async_callback(ledger.aclose)
        rig = await stack.enter_async_context(
            provider(sold, window_tokens=256, concurrency=2 * AT_ONCE, max_open_orders=AT_ONCE, limits=PATIENT)
        )
        purchaser, _ = await stack.enter_async_context(buying(rig, bought, queue_timeout_s=30.0))
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        server = await serve(Gateway(purchaser, network="test"), "127.0.0.1", 0)
        try:
            url = f"http://127.0.0.1:{server.addresses[0][1]}/v1"
            yield Market(rig, purchaser, bought, sold, url, http)
        finally:
            await server.aclose(SHUTDOWN_S)


async def test_sixty_four_orders_are_in_flight_at_once(tmp_path: Path) -> None:
    async with market(tmp_path) as one:
        before = await one.earn_trust()
        # The engine answers none of them before it has all.
        tokens = await asyncio.gather(*(one.ask(fake={"gather": AT_ONCE}) for _ in range(AT_ONCE)))
        assert tokens == [16] * AT_ONCE
        await one.agree(before + AT_ONCE)


async def test_a_stalled_reader_delays_nobody(tmp_path: Path) -> None:
    """One program reads nothing of a long answer; what others order meanwhile is answered, billed and signed."""
    async with market(tmp_path) as one:
        before = await one.earn_trust()
        long = BODY | {"max_tokens": 4000, "n": 2, "fake": {"tokens": 4000}}
        async with await one.purchaser.buy(CHAT, long) as stalled:
            # Every buffer on the way is full, and the provider has stopped reading its engine.
            await until(lambda: any(order._stuck_since_ms is not None for order in one.rig.live), timeout_s=20)
            (order,) = one.rig.live
            async with asyncio.timeout(10):
                await asyncio.gather(*(one.ask() for _ in range(AT_ONCE)))
            await until(lambda: len(signed_receipts(one.bought)) == before + AT_ONCE)
            await until(lambda: one.rig.live == [order])
            # The reader wakes up, and gets what it asked for.
            content = b"".join([data async for data in stalled])
            assert content.endswith(b"data: [DONE]\n\n")
        await one.agree(before + AT_ONCE + 1)
        last = signed_receipts(one.sold)[0]
        assert (last.status, last.usage.output_tokens) == (Status.COMPLETED, 8000)


class Tap:
    """A program's end that is shut until it is opened (`p2pgrid.client.pour.Flow`)."""

    def __init__(self) -> None:
        self.on_writable: Callable[[], None] | None = None
        self.is_writable = False

    def open(self) -> None:
        self.is_writable = True
        assert self.on_writable is not None
        self.on_writable()


async def test_what_is_poured_waits_for_the_program_and_nobody_waits_for_it(tmp_path: Path) -> None:
    async with market(tmp_path) as one:
        before = await one.earn_trust()
        long = BODY | {"max_tokens": 4000, "n": 2, "fake": {"tokens": 4000}}
        tap, content = Tap(), bytearray()
        async with await one.purchaser.buy(CHAT, long) as answer:
            pouring = asyncio.create_task(answer.pour(content.extend, tap))
            await until(lambda: any(order._stuck_since_ms is not None for order in one.rig.live), timeout_s=20)
            assert not content
            async with asyncio.timeout(10):
                await asyncio.gather(*(one.ask() for _ in range(8)))
            tap.open()
            await pouring
            assert content.endswith(b"data: [DONE]\n\n") and content.count(b"data: ") > 8000
        await one.agree(before + 9)


async def test_a_provider_that_stops_is_not_waited_for_but_a_slow_program_is(tmp_path: Path) -> None:
    async with market(tmp_path) as one:
        slow = BODY | {"fake": {"tokens": 60, "pace_ms": 50}}
        async with await one.purchaser.buy(CHAT, slow) as answer:
            answer._stall_timeout_s = 0.02
            with pytest.raises(Unreachable, match="sent nothing"):
                await answer.pour(lambda _: None)
        async with await one.purchaser.buy(CHAT, BODY) as answer:
            answer._stall_timeout_s = 0.02
            tap, content = Tap(), bytearray()
            pouring = asyncio.create_task(answer.pour(content.extend, tap))
            await until(lambda: answer._order.is_whole)
            done, _ = await asyncio.wait([pouring], timeout=0.2)
            assert not done
            tap.open()
            await pouring
            assert content.endswith(b"data: [DONE]\n\n")
