"""A provider's side in memory: a ledger, settlement.db, and runs that may end at any booking."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from p2pgrid.desk.asks import BookPayments
from p2pgrid.desk.bookings import book_payments
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.record import Signed
from p2pgrid.proto.statement import Payment
from p2pgrid.settlement.bank.runs import Report, Runs, file_digest
from p2pgrid.settlement.bank.store import BankStore
from p2pgrid.settlement.bank.view import look
from p2pgrid.settlement.open_items import ChannelItems
from p2pgrid.settlement.paying.orders_book import OrdersBook
from p2pgrid.settlement.payments.camt053 import read_camt
from tests.factories import NOW_MS, PROVIDER
from tests.settlement.payments.bank import Bank, Movement
from tests.settlement.records import Billed


class Killed(BaseException):
    """The process is gone."""


class World:
    def __init__(self, *billed: Billed) -> None:
        self.ledger = MemoryLedger()
        self.billed = billed
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.execute("CREATE TABLE rooms (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT")
        self.bookings_left = -1
        """After so many bookings the process is killed; -1: it is not."""
        self.is_told = True
        """False: the booking that kills is not made; True: it is made, and nobody is told."""
        self.now_ms = NOW_MS + 400 * 86_400_000
        self.put()

    def runs(self) -> Runs:
        """Of a process that has just begun."""
        self.now_ms += 1
        store, orders = BankStore(self.connection), OrdersBook(self.connection)
        return Runs(store, orders, lambda: look(self.ledger, [PROVIDER.public_key.raw]), self.book, lambda: self.now_ms)

    async def book(self, groups: Sequence[tuple[Payment, ...]]) -> Sequence[str]:
        refused: list[str] = []
        for group in groups:
            if self.bookings_left == 0 and not self.is_told:
                raise Killed
            refused += (
                await book_payments(self.ledger, [PROVIDER], BookPayments(groups=(group,)), now_ms=self.now_ms)
            ).refused
            if self.bookings_left == 0:
                raise Killed
            self.bookings_left -= self.bookings_left > 0
        return refused

    def put(self) -> None:
        """All that was billed so far is in the ledger."""

        async def write() -> None:
            for billed in self.billed:
                await self.ledger.append(billed.channel, *billed.statements, *billed.invoices)

        asyncio.run(write())

    def read(self, movements: Sequence[Movement], **bank: Any) -> Report:
        """Import a bank's file."""
        data = Bank(**bank).write(movements)
        file = read_camt(BytesIO(data), "bank.xml")
        return asyncio.run(self.runs().take([(file, file_digest(data))]))

    def payments(self) -> list[Signed[Payment]]:
        return [one for billed in self.billed for one in self.ledger.settlement(Payment, billed.id)]

    def items(self, billed: Billed) -> ChannelItems:
        return next(side.found for side in look(self.ledger, [PROVIDER.public_key.raw]) if side.id == billed.id)

    def by_entry(self) -> Counter[bytes]:
        """What was booked for each entry of the bank's, in cents, whatever was moved since."""
        sums: Counter[bytes] = Counter()
        for one in self.payments():
            if one.message.entry and one.message.kind != "reallocated":
                sums[one.message.entry] += one.message.amount_cents
        return sums
