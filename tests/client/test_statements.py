"""Statements between a purchaser and a provider over real links: both sign the same, or name what differs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from p2pgrid.client.clock import unix_ms
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.client.statement_exchange import ChannelSettled
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.record import PARTIES, Role, Signed
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.verdict import Bundle, audit_records
from p2pgrid.settlement.wiring import Buying, Selling
from tests.client.test_disputes import buy, session
from tests.client.test_with_provider import buying
from tests.provider.rig import Rig, provider, until
from tests.settlement.statements.parts import Issuer, Receiver, own_details


@dataclass
class Deal:
    """Both sides of one channel."""

    rig: Rig
    purchaser: Purchaser
    bought: MemoryLedger
    sold: MemoryLedger
    issuer: Issuer
    receiver: Receiver

    async def settle(self, *, is_wanted: bool = True, until_day: int = 0) -> ChannelSettled:
        (channel,) = self.bought.channels()
        link = await session(self.purchaser).ready(5.0)
        done: ChannelSettled = await session(self.purchaser).statements.settle(
            link, channel, is_wanted=is_wanted, until_day=until_day
        )
        return done

    def statements(self) -> list[Signed[Statement]]:
        (channel,) = self.bought.channels()
        ours, theirs = (one.settlement(Statement, channel.message.channel) for one in (self.bought, self.sold))
        assert [one.id for one in ours] == [one.id for one in theirs]
        assert all(set(one.signers) == set(PARTIES) for one in (*ours, *theirs))
        return ours


@contextlib.asynccontextmanager
async def deal(
    receipts: int = 1,
    *,
    bought: MemoryLedger | None = None,
    sold: MemoryLedger | None = None,
    selling: Selling | None = None,
    settles_with: Buying | None = None,
) -> AsyncIterator[Deal]:
    bought, sold = bought or MemoryLedger(), sold or MemoryLedger()
    issuer, receiver = Issuer(sold), Receiver()
    selling = selling or Selling(details=own_details(Role.PROVIDER), hooks=issuer)
    settles_with = settles_with or Buying(details=own_details(Role.CLIENT), hooks=receiver)
    async with (
        provider(sold, selling=selling) as rig,
        buying(rig, bought, settles_with=settles_with) as (purchaser, _),
    ):
        for _ in range(receipts):
            await buy(purchaser, bought, sold)
        yield Deal(rig, purchaser, bought, sold, issuer, receiver)


def clean(bought: Ledger, sold: Ledger) -> bool:
    sides = ((bought, Role.CLIENT), (sold, Role.PROVIDER))
    verdict = audit_records(
        (Bundle(side, enumerate(ledger.records(), 1), side) for ledger, side in sides), now_ms=unix_ms()
    )
    assert not verdict.findings, verdict.findings
    return True


async def test_both_sign_the_same_and_the_invoice_comes_over() -> None:
    async with deal(3) as d:
        done = await d.settle()
        assert not done.differences and done.nothing is not None and done.nothing.code == "stated-already"
        (signed,) = d.statements()
        assert (signed.message.first_receipt, signed.message.last_receipt) == (1, 3)
        assert signed.message.total_pico == d.bought.head(signed.message.channel).total_pico
        assert [one.id for one in d.receiver.stated] == [signed.id]
        await until(lambda: [one.id for one in d.issuer.stated] == [signed.id])
        assert clean(d.bought, d.sold)


async def test_what_is_not_due_is_not_stated_and_what_nothing_is_of_is_on_request() -> None:
    async with deal(1) as d:
        done = await d.settle(is_wanted=False)
        assert done.nothing is not None and done.nothing.code == "not-due"
        await d.settle()
        done = await d.settle(is_wanted=False)
        assert done.nothing is not None and done.nothing.code == "nothing-happened"
        await d.settle()
        first, second = d.statements()
        assert (second.message.first_receipt, second.message.last_receipt) == (2, 1)
        assert second.message.from_ms == first.message.until_ms
        assert clean(d.bought, d.sold)
