"""One channel's records, sorted for judgement: every slot with the record that counts in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.proto.codes import Party
from p2pgrid.proto.elided import ElidedOrders
from p2pgrid.proto.evidence import Held, M, by_slot
from p2pgrid.proto.findings import Docket, Draft
from p2pgrid.proto.messages import Channel, Meter, Order, Receipt, Voucher
from p2pgrid.proto.record import Role


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
    rivals: set[bytes] = field(default_factory=set)
    """Ids of records that share a slot with another: they have their finding, and nothing else is made of them."""
    bundles: tuple[int, ...] = ()
    """Every bundle that holds a record of the channel."""
    elided: ElidedOrders = field(default_factory=ElidedOrders)
    """What was judged before, and is not here."""

    @property
    def id(self) -> bytes:
        return self.channel.message.channel

    def held(self) -> Iterator[Held[Any]]:
        """Every record, receipts first, then by order; the channel last."""
        for number in sorted(self.receipts):
            yield self.receipts[number]
        for orders in (self.orders[n] for n in sorted(self.orders)):
            yield from (orders[i] for i in sorted(orders))
        yield from _by_tick(self.meters)
        yield from _by_tick(self.vouchers)
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
) -> Book:
    """Sort a channel's admitted records; report `two-records-one-slot`."""
    book = Book(channel, elided=elided or ElidedOrders())
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
    bundles = {p.bundle for h in (*book.held(), *meters, *receipts, *vouchers) for p in h.places}
    book.bundles = tuple(sorted(bundles | book.elided.bundles))
    return book


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
