"""Buyer and seller as they are: the purchaser against the provider's own exchanges and the fake vLLM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.clock import unix_ms
from p2pgrid.errors import RemoteError
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import dial
from p2pgrid.net.peer_address import OnFound, PeerAddress
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import Receipt, Status
from p2pgrid.proto.record import Role
from p2pgrid.proto.verdict import audit_records
from p2pgrid.settlement.wiring import Buying
from tests.client.seller import CHAT, until
from tests.factories import CLIENT, PROVIDER
from tests.provider.rig import MODEL, Rig, provider

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 64}


class _NoNetwork:
    """Nobody is found here: the test adds the offer itself."""

    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        return []

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        raise AssertionError("the link is up")

    async def fetch_capacity(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        raise AssertionError("the link is up")


@contextlib.asynccontextmanager
async def buying(
    rig: Rig,
    ledger: Ledger | None = None,
    *,
    queue_timeout_s: float = 2.0,
    keeps_links: bool = True,
    shares_receipts: bool = True,
    settles_with: Buying | None = None,
) -> AsyncIterator[tuple[Purchaser, Ledger]]:
    """A purchaser that knows one provider."""

    async def dial_rig(_: Sequence[str], peer: PublicKey, key: SecretKey) -> LinkConnection:
        return await dial(*rig.address, peer, key)

    kept = ledger if ledger is not None else MemoryLedger()
    book = OfferBook(_NoNetwork(), now_ms=unix_ms)
    book.add(rig.offer.record.to_bytes(), PeerAddress(PROVIDER.public_key.peer_id, ()))
    limits = SessionLimits(link_timeout_s=2.0, queue_timeout_s=queue_timeout_s, shares_receipts=shares_receipts)
    async with Purchaser(
        CLIENT, kept, book, dial=dial_rig, limits=limits, keeps_links=keeps_links, buying=settles_with
    ) as purchaser:
        yield purchaser, kept


def signed_receipts(ledger: Ledger) -> list[Receipt]:
    return [row.receipt for row in ledger.receipts() if row.countersigned]


async def test_both_ledgers_agree_and_the_audit_is_clean() -> None:
    sold = MemoryLedger()
    async with provider(sold) as rig, buying(rig) as (purchaser, bought):
        for tokens in (1, 50):
            async with await purchaser.buy(CHAT, BODY | {"fake": {"tokens": tokens}}, whole=True) as answer:
                assert (await answer.assemble())["usage"]["completion_tokens"] == tokens
        answers = await asyncio.gather(*(purchaser.buy(CHAT, BODY, whole=True) for _ in range(10)))
        assert len(answers) == 10
        await until(lambda: len(signed_receipts(bought)) == len(signed_receipts(sold)) == 12)
    assert signed_receipts(bought) == signed_receipts(sold)
    assert {receipt.status for receipt in signed_receipts(sold)} == {Status.COMPLETED}
    sides = ((bought, Role.CLIENT), (sold, Role.PROVIDER))
    verdict = audit_records(Bundle(side, enumerate(ledger.records(), 1), side) for ledger, side in sides)
    assert verdict.clean, verdict.findings


@pytest.mark.parametrize("fault", ["dies", "error", "empty", "garbage", "no-ids"])
async def test_engines_that_fail(fault: str) -> None:
    async with provider() as rig, buying(rig) as (purchaser, ledger):
        with contextlib.suppress(RemoteError):
            async with await purchaser.buy(CHAT, BODY | {"fake": {"fault": fault}}) as answer:
                _ = [data async for data in answer]
        await until(lambda: signed_receipts(ledger))
        assert signed_receipts(ledger)[0].amount_pico == 0
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: len(signed_receipts(ledger)) >= 2)


async def test_leaving_stops_the_engine() -> None:
    async with provider() as rig, buying(rig) as (purchaser, ledger):
        async with await purchaser.buy(CHAT, BODY | {"fake": {"tokens": 60, "pace_ms": 20}}) as answer:
            await anext(answer)
        await until(lambda: rig.fake.aborted == 1 and signed_receipts(ledger))
        assert signed_receipts(ledger)[0].status is Status.CANCELLED


async def test_a_lost_link_is_settled_on_the_next() -> None:
    async with provider() as rig, buying(rig) as (purchaser, ledger):
        answer = await purchaser.buy(CHAT, BODY | {"fake": {"tokens": 60, "pace_ms": 10}})
        await until(lambda: answer.usage.output_tokens > 20)
        rig.live[0].connection.abort()
        with pytest.raises(RemoteError):
            _ = [data async for data in answer]
        await until(lambda: signed_receipts(ledger))
        assert signed_receipts(ledger)[0].status is Status.INTERRUPTED
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: len(signed_receipts(ledger)) == 2)


async def test_a_provider_whose_ledger_fails_is_resumed() -> None:
    sold = MemoryLedger()
    async with provider(sold) as rig, buying(rig) as (purchaser, ledger):
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: signed_receipts(ledger))
        sold.fail_append()
        with contextlib.suppress(RemoteError):
            await purchaser.buy(CHAT, BODY, whole=True)
        await until(lambda: not rig.shop.channels.is_broken)

        async with asyncio.timeout(10):
            while len(signed_receipts(ledger)) < 2:
                with contextlib.suppress(RemoteError):
                    (await purchaser.buy(CHAT, BODY, whole=True)).cancel()
                await asyncio.sleep(0.05)
        await until(lambda: len(signed_receipts(ledger)) >= 2)
