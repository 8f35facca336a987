"""What an owner has done about records: disputes, answers, erasures, payments. In a node, or on the ledger alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from p2pgrid.desk.asks import (
    BookPayments,
    DeskAsk,
    Erase,
    Erased,
    EraseExpired,
    GiveAnswer,
    KeepSetOffs,
    KeptSetOffs,
    MakeDispute,
    PaymentsBooked,
)
from p2pgrid.desk.bookings import book_payments
from p2pgrid.desk.disputes import Recorded, make_answer, make_dispute, view_of
from p2pgrid.desk.find import find_receipt
from p2pgrid.desk.set_offs import keep_set_offs
from p2pgrid.errors import UsageError
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.dispute_exchange import Said
from p2pgrid.proto.keys import SecretKey
from p2pgrid.settlement.books.retention import plan_keys, plan_salts

Deliver = Callable[[Said], Awaitable[bool]]
"""Tell the other side of what was just recorded; True if that has it on record now."""
_AT_ONCE: Final = 1000
"""Keys that are destroyed in one transaction."""
EraseSalts = Callable[[Sequence[bytes]], Awaitable[int]]
"""Destroy the salts of records in this node's logs; how many entries there were."""


async def nobody_told(_: Said) -> bool:
    """Without a node: it is sent when the node runs and has a link."""
    return False


class RecordsDesk:
    """Works on a ledger that this process writes."""

    def __init__(
        self,
        ledger: Ledger,
        keys: Sequence[SecretKey],
        now_ms: Callable[[], int],
        *,
        erase_salts: EraseSalts,
        deliver: Deliver = nobody_told,
    ) -> None:
        """`keys`: the node's own, and those it had before."""
        self._ledger: Final = ledger
        self._keys: Final = tuple(keys)
        self._now_ms: Final = now_ms
        self._erase_salts: Final = erase_salts
        self._deliver: Final = deliver
        self._one_at_a_time: Final = asyncio.Lock()

    async def perform(self, ask: DeskAsk) -> Recorded | Erased | PaymentsBooked | KeptSetOffs:
        """Do what was asked; it is durable when this returns. Raises P2pgridError."""
        match ask:
            case MakeDispute():
                return await self._record(make_dispute(self._ledger, self._keys, ask, self._now_ms()))
            case GiveAnswer():
                return await self._record(make_answer(self._ledger, self._keys, ask, self._now_ms()))
            case Erase():
                return await self._erase(ask)
            case BookPayments():
                return await book_payments(self._ledger, self._keys, ask, now_ms=self._now_ms())
            case EraseExpired():
                return await self._erase_expired(ask)
            case KeepSetOffs():
                async with self._one_at_a_time:  # each is held against what those before have promised
                    return await keep_set_offs(self._ledger, self._keys, ask, self._now_ms())

    async def _record(self, signed: Said) -> Recorded:
        ledger = self._ledger
        await ledger.append(signed)
        is_sent = await self._deliver(signed)
        row = ledger.dispute(signed.id)
        message = signed.message
        receipt = ledger.receipt(message.channel, message.receipt_number)
        channel = next(c.message for c in ledger.channels() if c.message.channel == message.channel)
        assert row is not None and receipt is not None
        ours = [key.public_key for key in self._keys]
        return Recorded(dispute=view_of(row, channel, receipt.message, ours, self._now_ms()), is_sent=is_sent)

    async def _erase_expired(self, ask: EraseExpired) -> Erased:
        """In a thread, for a ledger may be long; what comes meanwhile is too young to be meant."""
        now_ms = self._now_ms()
        records = await asyncio.to_thread(plan_salts, self._ledger, now_ms) if ask.salts else ()
        salts = await self._erase_salts(records) if records else 0
        plan = await asyncio.to_thread(plan_keys, self._ledger, now_ms)
        for at in range(0, len(plan.orders), _AT_ONCE):
            await self._ledger.erase_request_keys(plan.orders[at : at + _AT_ONCE])
        return Erased(request_keys=len(plan.orders), log_salts=salts)

    async def _erase(self, ask: Erase) -> Erased:
        if bool(ask.receipt) is bool(ask.before_ms):
            raise UsageError("either a receipt or a time was expected.", hint="Name a receipt, or give --before.")
        ledger = self._ledger
        if ask.receipt:
            receipt, _ = find_receipt(ledger, ask.receipt)
            message = receipt.message
            about = ledger.dispute_ids(message.channel, after=message.receipt_number - 1)
            records = [receipt.id, *(i for number, i in about if number == message.receipt_number)]
            orders = [(message.channel, message.order_number)]
        else:
            records, orders = ledger.receipts_before(ask.before_ms), ledger.request_keys_before(ask.before_ms)
        kept = [one for one in orders if ledger.request_key(*one) is not None]
        # The keys go last: as long as one is there, the same command finds all the rest again.
        salts = await self._erase_salts(records) if records else 0
        if kept:
            await ledger.erase_request_keys(kept)
        return Erased(request_keys=len(kept), log_salts=salts)
