"""What is to be paid to whom: open items of the channels in which we buy, less what was ordered already. Pure.

    open 20.00, credit note -5.00, ordered 10.00 and not confirmed yet  ->  to pay 5.00

An order counts from the moment it is written down until the provider's Payment confirms it; what our own bank shows as
returned, or a person withdrew, counts no more. A provider's word that money went back, or that it was another's, does
not make us pay again: our own bank's does, or a person. And no more is paid of an invoice than it says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from p2pgrid.proto.billing_rules import faults_of_invoices
from p2pgrid.proto.record import PARTIES
from p2pgrid.proto.statement import Payment, PaymentKind
from p2pgrid.settlement.bank.stored import Target
from p2pgrid.settlement.bank.view import Side
from p2pgrid.settlement.open_items import AHEAD, OpenItem, Place, cover
from p2pgrid.settlement.paying.carried_out import CarriedOut
from p2pgrid.settlement.payments.reference import make_reference


@dataclass(frozen=True, kw_only=True)
class Due:
    """What is to be paid of one statement, in one transfer."""

    side: Side
    items: tuple[tuple[OpenItem, int], ...]
    """Its invoices, and how many cents of each."""
    credited_cents: int
    """What credit notes and money ahead took off."""

    @property
    def amount_cents(self) -> int:
        return sum(cents for _, cents in self.items)

    @property
    def due_ms(self) -> int:
        return min(item.due_ms for item, _ in self.items)

    @property
    def statement_id(self) -> bytes:
        return self.items[0][0].invoice.statement

    @property
    def numbers(self) -> tuple[str, ...]:
        return tuple(item.number for item, _ in self.items)


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """An open invoice that is not paid, and why."""

    side: Side
    item: OpenItem
    why: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is open of what we bought."""

    due: tuple[Due, ...]
    """By due day, then by number."""
    unfit: tuple[Unfit, ...]
    waiting: Mapping[tuple[bytes, bytes], int]
    """By channel and statement (empty: ahead): cents that were ordered and that no Payment confirms."""


def plan(sides: Iterable[Side], carried: CarriedOut, refused: Mapping[bytes, str] = MappingProxyType({})) -> Plan:
    """What is to be paid now or later. Raises nothing: what does not fit is named, with the reason.

    `refused`: Invoice records (ids) whose document does not fit, and why.
    """
    due: list[Due] = []
    unfit: list[Unfit] = []
    waiting: dict[tuple[bytes, bytes], int] = {}
    for side in sides:
        if side.is_purchase:
            faults = {
                item.place: why
                for item in side.found.items
                if (why := fault_of(item, side) or refused.get(item.invoice_id, ""))
            }
            unfit += [
                Unfit(side=side, item=item, why=faults[item.place])
                for item in side.found.items
                if item.open_cents > 0 and item.place in faults
            ]
            fit = [item for item in side.found.items if item.place not in faults]
            on_the_way = unconfirmed(side, carried)
            waiting |= {(side.id, statement): cents for statement, cents in on_the_way.items()}
            due += _due(side, fit, on_the_way)
    due.sort(key=lambda one: (one.due_ms, one.numbers))
    return Plan(due=tuple(due), unfit=tuple(unfit), waiting=waiting)


def fault_of(item: OpenItem, side: Side) -> str:
    """Why an invoice cannot be paid; empty if it can."""
    if item.statement is None:
        return "the statement that it names is not on record"
    if not set(PARTIES) <= set(item.statement.signers):
        return f"statement {item.statement_number} has not been signed by both"
    if item.currency != "EUR":
        return f"it is in {item.currency}; SEPA pays euros"
    of_it = [one.invoice for one in side.found.items if one.invoice.statement == item.invoice.statement]
    faults = faults_of_invoices(of_it, statement=item.statement.message)
    return faults[0].sentence.rstrip(".") if faults else ""


def unconfirmed(side: Side, carried: CarriedOut) -> dict[bytes, int]:
    """Cents that were ordered, by statement (empty: ahead), and that the provider's Payments do not show yet.

    What had arrived before an order was made is not that order's; and of what our bank shows without an order, what
    has not arrived is on its way, too.
    """
    ordered: Counter[bytes] = Counter()
    before: dict[bytes, int] = {}
    for fate in carried.fates.values():
        share = fate.order.shares[0]
        if share.is_purchase and fate.order.channel == side.id and fate.active_cents:
            ordered[share.target.place[0]] += fate.active_cents
            before.setdefault(share.target.place[0], fate.order.arrived_before_cents)
    sent = Counter(ordered)
    for target, cents in carried.outside.items():
        if target.is_purchase and target.channel == side.id:
            sent[target.place[0]] += cents
    arrived = arrivals(side, sent)
    left = {}
    for statement, cents in sent.items():
        since = max(arrived[statement] - before.get(statement, 0), 0)
        left[statement] = max(cents - max(arrived[statement], 0), ordered[statement] - since)
    return {statement: cents for statement, cents in left.items() if cents > 0}


def arrivals(side: Side, statements: Iterable[bytes]) -> Counter[bytes]:
    """What the provider says came from us and did not go back, by statement. What was over is booked ahead, under the
    invoice's reference: where that is of one of `statements`, it is its own.

    A refund counts where an invoice was paid: only credit notes and money ahead are paid back. What is moved within the
    channel has arrived; what is moved out of it has not, and what is moved into it has.
    """
    of_reference = {make_reference(statement): statement for statement in statements if statement}
    invoices = {item.place for item in side.found.items if item.gross_cents > 0}
    arrived: Counter[bytes] = Counter()
    moves: dict[tuple[bytes, int], list[Payment]] = {}
    for payment in side.payments:
        is_of_invoice = (payment.statement, payment.invoice_number) in invoices
        if payment.kind is PaymentKind.REALLOCATED:
            moves.setdefault((payment.entry, payment.booked_ms), []).append(payment)
        elif payment.kind is not PaymentKind.REFUNDED or is_of_invoice:
            arrived[payment.statement or of_reference.get(payment.reference, b"")] += payment.amount_cents
    for together in moves.values():
        across = sum(one.amount_cents for one in together)
        for one in together:
            if one.amount_cents * across > 0:
                part = min(one.amount_cents, across) if across > 0 else max(one.amount_cents, across)
                arrived[one.statement] += part
                across -= part
    return arrived


def _due(side: Side, items: Sequence[OpenItem], on_the_way: Mapping[bytes, int]) -> list[Due]:
    open_cents: dict[Place, int] = {item.place: _payable(item) for item in items}
    ahead = side.found.ahead_cents + on_the_way.get(b"", 0)
    for statement, sent in on_the_way.items():
        left = sent
        for place in (place for place in open_cents if statement and place[0] == statement):
            part = min(max(open_cents[place], 0), left)
            open_cents[place] -= part
            left -= part
        ahead += left if statement else 0
    before = dict(open_cents)
    for one in cover(open_cents, ahead):
        if one.target != AHEAD:
            open_cents[one.target] -= one.cents
    by_statement: dict[bytes, list[OpenItem]] = {}
    for item in items:
        if open_cents[item.place] > 0:
            by_statement.setdefault(item.invoice.statement, []).append(item)
    return [
        Due(
            side=side,
            items=tuple((item, open_cents[item.place]) for item in of_it),
            credited_cents=sum(before[item.place] - open_cents[item.place] for item in of_it),
        )
        for of_it in by_statement.values()
    ]


def _payable(item: OpenItem) -> int:
    """What is open of it, and no more than it says itself, whatever is said to have gone back; of a credit note, not
    above zero."""
    return min(item.open_cents, max(item.gross_cents - item.set_off_cents, 0))


def ahead_ordered(carried: CarriedOut) -> dict[bytes, int]:
    """By channel, what was ordered to be paid ahead and has not come back."""
    found: Counter[bytes] = Counter()
    for fate in carried.fates.values():
        share = fate.order.shares[0]
        if share.is_purchase and not share.number:
            found[fate.order.channel] += fate.active_cents
    return dict(found)


def reserved(carried: CarriedOut) -> dict[bytes, dict[Place, int]]:
    """By channel in which we sell, what is on its way back to the client: ordered, and not shown by our bank yet."""
    found: dict[bytes, dict[Place, int]] = {}
    for fate in carried.fates.values():
        share = fate.order.shares[0]
        if not share.is_purchase and fate.entry is None and fate.active_cents:
            target: Target = share.target
            places = found.setdefault(target.channel, {})
            places[target.place] = places.get(target.place, 0) + fate.active_cents
    return found
