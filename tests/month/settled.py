"""The same month in memory: stated, signed, invoiced and paid by the real code, with no process and no link between.

Whoever wants a fault takes copies of the ledgers (`Deal.copy`), and lies in one of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from p2pgrid.data_folder import DataFolder
from p2pgrid.desk.asks import BookPayments
from p2pgrid.desk.bookings import book_payments
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.card import PeerKey
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Record, Role, Signed, sign_message
from p2pgrid.proto.settle_check import Taken, check_taken
from p2pgrid.proto.settle_listing import Listing
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.verdict import Verdict, audit_records
from p2pgrid.settlement.bank.runs import Report, Runs, file_digest
from p2pgrid.settlement.bank.store import BankStore
from p2pgrid.settlement.bank.view import Side, look
from p2pgrid.settlement.billing import draft_details
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.issuing import Issuer
from p2pgrid.settlement.open_items import ChannelItems
from p2pgrid.settlement.paying.orders_book import OrdersBook
from p2pgrid.settlement.payments.camt053 import read_camt
from p2pgrid.settlement.payments.reference import make_creditor_reference, make_reference
from p2pgrid.settlement.set_off.parties import AllBooks, Operator
from p2pgrid.settlement.set_off.propose import propose
from p2pgrid.settlement.set_offs import set_off_shares
from p2pgrid.settlement.statements.drafting import Draft, draft
from p2pgrid.settlement.statements.judging import Judged, judge
from tests.factories import digest, make_card, secret_key, signed_by_names
from tests.month.bank import Transfer, booked
from tests.month.past import UTC_OFFSET_MINUTES, Past
from tests.month.scene import CLIENTS, OPERATORS, RECEIPTS, TARTU, VILNIUS, Company, Scene, spend
from tests.proto.chains import DAY_MS
from tests.settlement.issuing.test_crashes import unchecked
from tests.settlement.statements.parts import DictDetails

FROM_MS = 1_795_000_000_000 // DAY_MS * DAY_MS - UTC_OFFSET_MINUTES * 60_000
"""A midnight in Vilnius, in November 2026."""
UNTIL_MS = FROM_MS + 30 * DAY_MS
STATED_MS = UNTIL_MS + 3_600_000
PAID_ON = date(2026, 12, 22)
LATER_MS = STATED_MS + 3 * DAY_MS
"""After the bank's day; nothing is overdue."""


@dataclass
class Deal:
    """One channel, from both sides."""

    seller: Company
    buyer: Company
    past: Past
    provider: MemoryLedger
    client: MemoryLedger
    details: DictDetails
    """Of both."""
    folder: Path
    """The seller's."""

    @property
    def id(self) -> bytes:
        return self.past.channel.message.channel

    @property
    def statement(self) -> Signed[Statement]:
        """The month's."""
        return self.provider.settlement(Statement, self.id)[0]

    @property
    def invoice(self) -> Signed[Invoice]:
        """The month's."""
        return self.provider.settlement(Invoice, self.id)[0]

    @property
    def gross_cents(self) -> int:
        return self.statement.message.gross_cents

    @property
    def document(self) -> bytes:
        """The invoice's file, as XML."""
        (file,) = self.folder.rglob(f"{self.invoice.message.invoice_number}.cii.xml")
        return file.read_bytes()

    def copy(self) -> Deal:
        """Whose ledgers may be written to."""
        return replace(self, provider=self.provider.crashed(), client=self.client.crashed())

    def signed(self, message: Any, *, by: str = "provider") -> Signed[Any]:
        """By the provider, or by both."""
        one = sign_message(message, Role.PROVIDER, self.past.provider)
        return one.countersigned(Role.CLIENT, self.past.client) if by == "both" else one

    def changed(self, one: Signed[Any], *, by: str = "provider", **changes: Any) -> Signed[Any]:
        """The record with other words, signed anew by the provider, or by both."""
        return self.signed(msgspec.structs.replace(one.message, **changes), by=by)

    async def draft(self, now_ms: int = STATED_MS) -> Draft:
        """What the provider would state."""
        until_ms = UNTIL_MS if now_ms == STATED_MS else 0
        return await draft(
            self.provider, self.past.channel, self.details, now_ms=now_ms, is_wanted=True, until_ms=until_ms
        )

    async def judge(self, made: Draft, **lies: Any) -> Judged:
        """What the client's node says of it; `lies` are what the provider changes in it."""
        theirs = msgspec.structs.replace(made.statement, **lies)
        days = (made.first_day, made.last_day)
        channel, now_ms = self.past.channel, made.statement.stated_ms
        return await judge(self.client, channel, self.details, theirs, days, now_ms=now_ms)

    def taken(self, *sent: Signed[Any], now_ms: int = LATER_MS) -> Taken:
        """What the client's node makes of records that the provider sends."""
        held = held_by(self.client, self.id, now_ms)
        records = [one.record for one in sent]
        return check_taken(records, held, self.past.channel.message, Role.CLIENT, now_ms=now_ms)

    def audit(self, *, now_ms: int = LATER_MS) -> Verdict:
        """Of what both sides export, held together; this channel alone."""
        return audit_of([(self.client, Role.CLIENT), (self.provider, Role.PROVIDER)], [self.id], now_ms=now_ms)

    async def pass_on(self, now_ms: int = LATER_MS) -> None:
        """The client takes in what the provider has of settlement."""
        held = {one.id for one in held_by(self.client, self.id, now_ms)}
        theirs = held_by(self.provider, self.id, now_ms)
        taken = self.taken(*(one for one in theirs if one.id not in held), now_ms=now_ms)
        assert not taken.conflicting and not taken.waiting
        if taken.keep:
            await self.client.append(*taken.keep)

    def transfer(self, cents: int | None = None, **changes: Any) -> Transfer:
        """What the client's bank sends for the month's invoice."""
        reference, number = make_reference(self.statement.id), self.invoice.message.invoice_number
        fields: dict[str, Any] = {
            "cents": self.gross_cents if cents is None else cents,
            "payer": self.buyer.name,
            "payer_iban": self.buyer.iban,
            "payee_iban": self.seller.iban,
            "end_to_end_id": reference,
            "text": f"{number} {make_creditor_reference(self.statement.id)}",
        }
        return Transfer(**{**fields, **changes})


def held_by(ledger: Any, channel: bytes, now_ms: int) -> list[Signed[Any]]:
    """All that a side holds of a channel's settlement."""
    listing = Listing(ledger, channel, (), now_ms=now_ms)
    return list(listing.read(listing.places))


def audit_of(
    sides: Iterable[tuple[MemoryLedger, Role]],
    channels: Sequence[bytes | None] = (None,),
    *,
    now_ms: int,
    besides: Sequence[Record] = (),
) -> Verdict:
    """What an audit of these exports says. `channels`: of these alone; `besides`: records that stand in each."""
    exports = [
        ([*besides, *(one for channel in channels for one in ledger.records(channel=channel))], side)
        for ledger, side in sides
    ]
    return audit_records([Bundle(side, enumerate(export, 1), side) for export, side in exports], now_ms=now_ms)


@dataclass
class BankRoom:
    """What the seller's `p2pgrid bank import` does, on the ledger of a deal."""

    deal: Deal
    now_ms: int = LATER_MS
    connection: sqlite3.Connection = field(default_factory=lambda: sqlite3.connect(":memory:", isolation_level=None))

    def __post_init__(self) -> None:
        self.connection.execute("CREATE TABLE rooms (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT")

    async def read(self, *transfers: Transfer, shape: str = "plain", day: date = PAID_ON) -> Report:
        """A file of the bank's with these."""
        return await self.read_file(booked(transfers, self.deal.seller.iban, day, shape))

    async def read_file(self, data: bytes) -> Report:
        """A file as it is. Raises P2pgridError."""
        file = read_camt(BytesIO(data), "bank.xml")
        orders = OrdersBook(self.connection)
        runs = Runs(BankStore(self.connection), orders, self._look, self._book, lambda: self.now_ms)
        return await runs.take([(file, file_digest(data))])

    @property
    def payments(self) -> list[Payment]:
        """Booked in the deal's channel."""
        return [one.message for one in self.deal.provider.settlement(Payment, self.deal.id)]

    @property
    def items(self) -> ChannelItems:
        """What is open there."""
        (side,) = self._look()
        return side.found

    def _look(self) -> tuple[Side, ...]:
        key = self.deal.past.provider.public_key.raw
        return look(self.deal.provider, [key], self.deal.details, set_off_shares)

    async def _book(self, groups: Sequence[tuple[Payment, ...]]) -> Sequence[str]:
        ask = BookPayments(groups=tuple(groups))
        done = await book_payments(self.deal.provider, [self.deal.past.provider], ask, now_ms=self.now_ms)
        return done.refused


class Month:
    """All of it: eight channels, stated and invoiced."""

    def __init__(self, root: Path) -> None:
        self.scene = Scene(root, "http://127.0.0.1:9")
        self.deals: list[Deal] = []

    async def make(self) -> Month:
        for company in (*OPERATORS, *CLIENTS):
            self.scene.make_folder(company)
        for company in OPERATORS:
            self.scene.make_folder(company, buying=True)
        pairs = [(seller, buyer) for seller in OPERATORS for buyer in CLIENTS]
        pairs += [(VILNIUS, TARTU), (TARTU, VILNIUS)]
        for seller, buyer in pairs:
            await self._deal(seller, buyer, RECEIPTS // len(pairs))
        for seller in OPERATORS:
            await self._issue(seller)
        for deal in self.deals:
            await deal.pass_on()
        return self

    def deal(self, seller: Company, buyer: Company) -> Deal:
        """A copy, to be spoilt."""
        return next(one for one in self.deals if (one.seller, one.buyer) == (seller, buyer)).copy()

    def audit(self) -> Verdict:
        """Of what both sides of every channel export."""
        sides = [(one.provider, Role.PROVIDER) for one in self.deals] + [
            (one.client, Role.CLIENT) for one in self.deals
        ]
        return audit_of(sides, now_ms=LATER_MS)

    async def _deal(self, seller: Company, buyer: Company, receipts: int) -> None:
        sells, buys = self.scene.data(seller), self.scene.data(buyer, buying=True)
        keys = self.scene.key(sells), self.scene.key(buys)
        past = Past(seller.name, buyer.name, *keys, from_ms=FROM_MS, seed=1)
        spend(past, receipts, until_ms=UNTIL_MS - 3_600_000)
        provider, client = MemoryLedger(), MemoryLedger()
        await provider.append(*past.provider_has)
        await client.append(*past.client_has)
        details = DictDetails(own_details(sells, keys[0], Role.PROVIDER), own_details(buys, keys[1], Role.CLIENT))
        deal = Deal(seller, buyer, past, provider, client, details, sells)
        made = await deal.draft()
        judged = await deal.judge(made)
        assert not judged.differences
        both = deal.signed(made.statement, by="both")
        for ledger in (provider, client):
            await ledger.append(both)
        self.deals.append(deal)

    async def _issue(self, seller: Company) -> None:
        data = DataFolder(self.scene.data(seller))
        with closing(open_database(data.path / FILE_NAME)) as connection:
            book = DetailsBook(connection, lambda: STATED_MS)
            of_seller = [one for one in self.deals if one.seller is seller]
            for deal in of_seller:
                known = deal.details.of(deal.past.channel.message.client, Role.CLIENT)
                assert known is not None
                book.keep(known)
        ledger = MemoryLedger()
        for deal in of_seller:
            await ledger.append(*deal.past.provider_has, deal.statement)
        keys = [self.scene.key(data.path)]
        issuer = Issuer(data, ledger, keys, now_ms=lambda: STATED_MS + 1000, renderer=unchecked)
        try:
            report = await issuer.issue_pending()
        finally:
            await issuer.aclose()
        assert len(report.issued) == len(of_seller) and not report.refused
        for deal in of_seller:
            await deal.provider.append(*ledger.settlement(Invoice, deal.id))


def own_details(folder: Path, key: SecretKey, by: Role) -> Signed[BillingDetails]:
    """What [billing] of that folder says."""
    billing = DataFolder(folder).load_config().billing
    return sign_message(draft_details(billing, party=key.public_key, by=by, stated_ms=FROM_MS), by, key)


class Mutual:
    """Vilnius and Tartu sell to one another, and set off."""

    def __init__(self, month: Month) -> None:
        self.vilnius, self.tartu = month.deal(VILNIUS, TARTU), month.deal(TARTU, VILNIUS)
        term = {"valid_from_ms": 0, "valid_until_ms": LATER_MS + 300 * DAY_MS}
        self.operators = []
        for name, sells, buys in (("V", self.vilnius, self.tartu), ("T", self.tartu, self.vilnius)):
            keys = [sells.past.provider.public_key.raw, buys.past.client.public_key.raw]
            peers = tuple(PeerKey(key=one, **term) for one in keys)
            card = make_card(secret_key(name), peers=peers, legal_name=sells.seller.name, **term)
            self.operators.append(Operator.of(keys, [[card]]))
        self.keys = [self.vilnius.past.provider, self.tartu.past.provider]

    def books(self, index: int) -> AllBooks:
        ledgers = [self.vilnius.provider, self.tartu.client], [self.tartu.provider, self.vilnius.client]
        return AllBooks(ledgers[index])

    def propose(self, nonce: str) -> Signed[Any]:
        """By Vilnius, and signed by it, as its books are."""
        us, them = self.operators
        books = self.books(0)
        owed, owing = (
            books.claims_between(one.keys, other.keys, at_ms=LATER_MS, ours=us.keys)
            for one, other in ((us, them), (them, us))
        )
        (made,) = propose(
            owed, owing, us=us, them=them, now_ms=LATER_MS, until_ms=LATER_MS + DAY_MS, make_nonce=lambda: digest(nonce)
        )
        return signed_by_names(made, self.keys[:1])

    async def put(self, *records: Signed[Any]) -> None:
        for deal in (self.vilnius, self.tartu):
            for ledger in (deal.provider, deal.client):
                await ledger.append(*records)

    def audit(self, now_ms: int = LATER_MS) -> Verdict:
        cards = [chain[0].record for one in self.operators for chain in one.chains]
        return audit_of(
            [
                (side, role)
                for deal in (self.vilnius, self.tartu)
                for side, role in ((deal.provider, Role.PROVIDER), (deal.client, Role.CLIENT))
            ],
            [self.vilnius.id, self.tartu.id],
            now_ms=now_ms,
            besides=cards,
        )
