"""One channel's records, sorted for judgement: every slot with the record that counts in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.proto.codes import Party
from p2pgrid.proto.contested import Contest
from p2pgrid.proto.cycle import Leg
from p2pgrid.proto.dispute import Answer, Dispute, Opening
from p2pgrid.proto.elided import ElidedOrders
from p2pgrid.proto.evidence import Held, M, by_slot
from p2pgrid.proto.findings import Docket, Draft
from p2pgrid.proto.messages import Channel, Meter, Order, Receipt, Voucher
from p2pgrid.proto.record import Message, Role
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import TakenOff
from p2pgrid.proto.statement import Invoice, Payment, Statement


@dataclass(slots=True)
class Book:
    """The records of one channel, by number."""

    channel: Held[Channel]
    receipts: dict[int, Held[Receipt]] = field(default_factory=dict)
    orders: dict[int, dict[bytes, Held[Order]]] = field(default_factory=lambda: defaultdict(dict))
    """By number and id: a receipt may name either of two orders with one number."""
    meters: dict[int, dict[int, Held[Meter]]] = field(default_factory=lambda: defaultdict(dict))
    """By order number and tick."""
    meters_by_id: dict[bytes, Held[Meter]] = field(default_factory=dict)
    vouchers: dict[int, dict[int, Held[Voucher]]] = field(default_factory=lambda: defaultdict(dict))
    all_receipts: list[Held[Receipt]] = field(default_factory=list)
    """Those too that share a slot and do not stand."""
    disputes: dict[bytes, Held[Dispute]] = field(default_factory=dict)
    """By id, one for each receipt and side; likewise answers, one for each dispute."""
    answers: dict[bytes, Held[Answer]] = field(default_factory=dict)
    answered: dict[bytes, Held[Answer]] = field(default_factory=dict)
    """Answers by the id of the dispute."""
    openings: list[Held[Opening]] = field(default_factory=list)
    statements: dict[int, Held[Statement]] = field(default_factory=dict)
    all_statements: list[Held[Statement]] = field(default_factory=list)
    invoices: list[Held[Invoice]] = field(default_factory=list)
    payments: list[Held[Payment]] = field(default_factory=list)
    set_offs: list[Held[SetOff]] = field(default_factory=list)
    """Those that take something off what is owed in this channel; each is in the book of another channel, too."""
    legs: list[Held[Leg]] = field(default_factory=list)
    taken_off: list[TakenOff] = field(default_factory=list)
    """What set-offs and cycles in force take off. Filled when they are judged."""
    contests: list[Contest] = field(default_factory=list)
    """Disputes with force. Filled when disputes are judged, as are the next two."""
    credited_pico: int = 0
    """What accepted ones take off."""
    disputed_pico: int = 0
    """Contested, and neither accepted nor too late."""
    choices: dict[int, int] = field(default_factory=dict)
    """How many answers an order asked for, where its request was opened."""
    rivals: set[bytes] = field(default_factory=set)
    """Ids of records that share a slot with another: they have their finding, and nothing else is made of them."""
    bundles: tuple[int, ...] = ()
    """Every bundle that holds a record of the channel."""
    elided: ElidedOrders = field(default_factory=ElidedOrders)
    """What was judged before, and is not here."""

    @property
    def id(self) -> bytes:
        return self.channel.message.channel

    @property
    def chained(self) -> list[Held[Any]]:
        """What another channel can go on from: the channel and its receipts."""
        return [self.channel, *self.all_receipts]

    @property
    def latest_ms(self) -> int:
        """The latest time that a receipt, or what comes after receipts, shows; 0 if there is none."""
        times = [h.message.issued_ms for h in self.all_receipts]
        times += [h.message.issued_ms for h in self.invoices]
        times += [h.message.disputed_ms for h in self.disputes.values()]
        times += [h.message.answered_ms for h in self.answers.values()]
        times += [h.message.stated_ms for h in self.all_statements]
        times += [h.message.booked_ms for h in self.payments]
        times += [h.message.agreed_ms for h in self.set_offs]
        return max(times, default=0)

    def held(self) -> Iterator[Held[Any]]:
        """Every record, receipts first, then by order; the channel last. Not set-offs, which are of two channels."""
        for number in sorted(self.receipts):
            yield self.receipts[number]
        for orders in (self.orders[n] for n in sorted(self.orders)):
            yield from (orders[i] for i in sorted(orders))
        yield from _by_tick(self.meters)
        yield from _by_tick(self.vouchers)
        yield from self.disputes.values()
        yield from self.answers.values()
        yield from (self.statements[n] for n in sorted(self.statements))
        yield from self.invoices
        yield from self.payments
        yield from self.legs
        yield self.channel

    def order_numbers(self) -> list[int]:
        """Every order number that some record names."""
        billed = {h.message.order_number for h in self.receipts.values()}
        return sorted(billed.union(self.orders, self.meters, self.vouchers))


def open_book(
    channel: Held[Channel],
    orders: list[Held[Order]],
    meters: list[Held[Meter]],
    vouchers: list[Held[Voucher]],
    receipts: list[Held[Receipt]],
    docket: Docket,
    elided: ElidedOrders | None = None,
    others: Mapping[type[Message], list[Held[Any]]] | None = None,
) -> Book:
    """Sort a channel's admitted records; report `two-records-one-slot`. `others`: those beside orders, by type."""
    book = Book(channel, elided=elided or ElidedOrders())
    book.all_receipts = receipts
    named = {h.message.previous for h in receipts}
    for receipt in _one_a_slot(receipts, named, book, docket):
        book.receipts[receipt.message.receipt_number] = receipt
    _one_a_slot(orders, (), book, docket)
    for order in orders:
        book.orders[order.message.order_number][order.record_id] = order
    vouched = {h.message.meter for h in vouchers}
    book.meters_by_id = {h.record_id: h for h in meters}
    for meter in _one_a_slot(meters, vouched, book, docket):
        book.meters[meter.message.order_number][meter.message.tick] = meter
    for voucher in _one_a_slot(vouchers, (), book, docket):
        book.vouchers[voucher.message.order_number][voucher.message.tick] = voucher
    _add_others(book, others or {}, {mention for h in receipts for mention in h.message.mentions}, docket)
    bundles = {p.bundle for h in (*book.held(), *book.openings, *meters, *receipts, *vouchers) for p in h.places}
    book.bundles = tuple(sorted(bundles | book.elided.bundles))
    return book


def _add_others(
    book: Book, others: Mapping[type[Message], list[Held[Any]]], mentioned: set[bytes], docket: Docket
) -> None:
    by_type = {t: sorted(others.get(t, ()), key=lambda h: h.record_id) for t in _OTHERS}
    named = mentioned | {h.message.dispute for h in by_type[Answer]}
    book.disputes = {h.record_id: h for h in _one_a_slot(by_type[Dispute], named, book, docket)}
    book.answers = {h.record_id: h for h in _one_a_slot(by_type[Answer], mentioned, book, docket)}
    book.answered = {h.message.dispute: h for h in book.answers.values()}
    book.all_statements = by_type[Statement]
    named = {h.message.previous for h in by_type[Statement]} | {h.message.statement for h in by_type[Invoice]}
    for statement in _one_a_slot(by_type[Statement], named, book, docket):
        book.statements[statement.message.statement_number] = statement
    book.invoices = _one_a_slot(by_type[Invoice], (), book, docket)
    book.openings, book.payments = by_type[Opening], by_type[Payment]
    book.set_offs, book.legs = by_type[SetOff], by_type[Leg]


_OTHERS: tuple[type[Message], ...] = (Dispute, Answer, Opening, Statement, Invoice, Payment, SetOff, Leg)


def report_rivals(rivals: list[Held[M]], docket: Docket, *, code: str, channel: bytes) -> None:
    """Report records that share a slot, against whoever signed them all."""
    first = rivals[0]
    roles = set(first.signers).intersection(*(r.signers for r in rivals[1:]))
    party = Party.BOTH if len(roles) > 1 else Party(next(iter(roles))) if roles else Party.UNCLEAR
    sentence = f"There are {len(rivals)} different records for {first}, all signed by {' and '.join(sorted(roles))}."
    signers = {role: first.signers[role] for role in sorted(roles, reverse=True)}
    places = [r.places[0] for r in rivals]
    docket.add(Draft(code, sentence, tuple(places), party, first.record_id, channel, signers))


def _one_a_slot(held: list[Held[M]], named: Collection[bytes], book: Book, docket: Docket) -> list[Held[M]]:
    """For each slot the record that others build on, else the one with most signatures, else the lowest id."""
    chosen = []
    for rivals in by_slot(held).values():
        rivals.sort(key=lambda h: (h.record_id not in named, -len(h.signers), h.record_id))
        if len(rivals) > 1:
            book.rivals.update(h.record_id for h in rivals)
            report_rivals(rivals, docket, code="two-records-one-slot", channel=book.id)
        chosen.append(rivals[0])
    return chosen


def _by_tick(records: dict[int, dict[int, Held[M]]]) -> Iterator[Held[M]]:
    for number in sorted(records):
        yield from (records[number][tick] for tick in sorted(records[number]))


def roles_of(channel: Channel) -> dict[Role, bytes]:
    """Both parties' keys by role."""
    return {Role.PROVIDER: channel.provider, Role.CLIENT: channel.client}
