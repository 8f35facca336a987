"""Which money covers which statement, cent by cent (docs/settlement/trace.md, section 2).

Pure, over a channel's statements, invoices and movements of money. What is open is what docs/spec/audit.md, rule 43b,
says; here it is said of every cent besides, where it came from and where it went:

1. Money that names a statement covers that statement, as a whole: no receipt of it is paid before another.
2. Within a statement (and among what names none) money that went back undoes money that came: first of the same entry
   of the bank, then with the same reference, else the latest that came before it.
3. What is left over (paid ahead, set off, paid too much, credited) covers what is open of the others, the oldest money
   first, the lowest statement first.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from p2pgrid.proto.record import Message
from p2pgrid.proto.set_off_rules import TakenOff
from p2pgrid.proto.statement import Invoice, Payment, Statement


class MoneyKind(StrEnum):
    """How money moved: `statement.PaymentKind`'s, and what needs no bank."""

    RECEIVED = "received"
    RETURNED = "returned"
    REFUNDED = "refunded"
    REALLOCATED = "reallocated"
    SET_OFF = "set_off"
    """Against what the provider owes the client elsewhere."""


class CoverKind(StrEnum):
    """By what right money covers a statement."""

    PAID = "paid"
    """It names the statement. Below zero: money that went back for a credit note."""
    AHEAD = "paid_ahead"
    """It came for no invoice."""
    OVER = "paid_over"
    """It named another statement, of which less was open."""
    CREDIT = "credit"
    """No money moved: another statement is below zero, and the provider owes what it comes to."""
    SET_OFF = "set_off"


@dataclass(frozen=True, slots=True)
class Movement:
    """Money of one record, for one statement or for none."""

    record_id: bytes
    kind: MoneyKind
    amount_cents: int
    """Above zero: the provider has more than before."""
    at_ms: int
    statement: bytes = b""
    """Empty: for whichever is open."""
    invoice_number: str = ""
    reference: str = ""
    entry: bytes = b""
    """The bank's entry; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Cover:
    """So many cents of a movement, or of a statement's credit, that count for a statement."""

    kind: CoverKind
    cents: int
    source: bytes
    """The record id of the movement; of a credit, the id of the statement that is below zero."""
    statement: bytes
    invoice_number: str = ""
    """Of the invoice that the movement names; empty where it names none of this statement."""


@dataclass(frozen=True, slots=True)
class Undone:
    """So many cents that came, and went back or elsewhere."""

    came: bytes
    """The record id of the movement above zero."""
    went: bytes
    """That of the one below zero."""
    cents: int
    """Above zero."""


@dataclass(slots=True)
class StatementMoney:
    """One statement, and every cent of it. `invoiced` is what covers come to, and open, less owed back and given on."""

    statement_id: bytes
    statement: Statement
    invoiced_cents: int | None
    """What its invoices come to; None where it has none yet. Then nothing is open of it."""
    covers: list[Cover] = field(default_factory=list)
    given: list[Cover] = field(default_factory=list)
    """What it gave to others: its credit. (What was paid too much for it is the movement's to give.)"""
    open_cents: int = 0
    owed_back_cents: int = 0
    """Of a credit: what the provider has neither paid back nor counted for another statement."""

    @property
    def covered_cents(self) -> int:
        """What came for it and what went back, whatever the right."""
        return sum(cover.cents for cover in self.covers)

    @property
    def given_cents(self) -> int:
        return sum(cover.cents for cover in self.given)

    @property
    def not_invoiced_cents(self) -> int:
        """Its gross, where no invoice has asked for it yet."""
        return self.statement.gross_cents if self.invoiced_cents is None else 0


@dataclass(slots=True)
class MovementMoney:
    """One movement, and every cent of it: with all that became of it."""

    movement: Movement
    covers: list[Cover] = field(default_factory=list)
    undone: list[Undone] = field(default_factory=list)
    """Where it is above zero what undid it; where below, what it undid."""
    unused_cents: int = 0
    """Covers nothing yet: the client has paid so much ahead."""
    astray_cents: int = 0
    """Names a statement or an invoice that is not there, or went back though it had not come."""

    @property
    def accounted_cents(self) -> int:
        """All of it: its amount."""
        undone = sum(one.cents for one in self.undone)
        sign = 1 if self.movement.amount_cents > 0 else -1
        return sum(c.cents for c in self.covers) + sign * undone + self.unused_cents + self.astray_cents


@dataclass(slots=True)
class ChannelMoney:
    """Every cent of a channel."""

    statements: dict[bytes, StatementMoney]
    """By id, in the order of their numbers."""
    movements: list[MovementMoney]
    """In time. One record may tell of several."""

    @property
    def open_cents(self) -> int:
        return sum(one.open_cents for one in self.statements.values())

    @property
    def paid_ahead_cents(self) -> int:
        return sum(one.unused_cents for one in self.movements)


MovementsOf = Callable[[bytes, Any], Iterable[Movement]]
"""From a record's id and message to the money that it says moved."""


def _of_payment(record_id: bytes, payment: Payment) -> Iterable[Movement]:
    yield Movement(
        record_id,
        MoneyKind(payment.kind.value),
        payment.amount_cents,
        payment.booked_ms,
        payment.statement,
        payment.invoice_number,
        payment.reference,
        payment.entry,
    )


MOVEMENTS: Final[dict[type[Message], MovementsOf]] = {Payment: _of_payment}
"""The records that say that money moved, or counts as if it had."""


def set_off_movements(taken: Iterable[TakenOff]) -> list[Movement]:
    """What set-offs and cycles in force take off: a claim names its invoice, a leg of a cycle none."""
    found = []
    for one in taken:
        for claim in one.claims:
            place = claim.statement, claim.invoice_number
            found.append(Movement(one.record_id, MoneyKind.SET_OFF, claim.cents, one.at_ms, *place))
        if not one.claims:
            found.append(Movement(one.record_id, MoneyKind.SET_OFF, one.cents, one.at_ms))
    return found


def stated_set_offs(statements: Iterable[tuple[bytes, Statement]], *, known_cents: int = 0) -> list[Movement]:
    """What statements set off, as money for none of them: it covers the oldest. `statements` with their ids.

    `known_cents`: how much of it, of the first of them, records of their own tell of, which are movements already.
    """
    found = []
    for statement_id, message in sorted(statements, key=lambda pair: (pair[1].statement_number, pair[0])):
        known = min(max(message.set_off_cents, 0), known_cents)
        known_cents -= known
        cents = message.set_off_cents - known
        if cents:
            found.append(Movement(statement_id, MoneyKind.SET_OFF, cents, message.stated_ms))
    return found


def movements_of(records: Iterable[tuple[bytes, Message]]) -> list[Movement]:
    """All money of these records, given with their ids. What says nothing of money is passed over."""
    return [
        movement
        for record_id, message in records
        for movement in MOVEMENTS.get(type(message), _no_money)(record_id, message)
    ]


def _no_money(_record_id: bytes, _message: Message) -> Iterable[Movement]:
    return ()


def allot(
    statements: Iterable[tuple[bytes, Statement]],
    invoices: Iterable[Invoice],
    movements: Iterable[Movement],
) -> ChannelMoney:
    """Every cent of a channel. Raises nothing, whatever the records say: what fits nowhere is `astray_cents`.

    `invoices` of other statements are passed over.
    """
    billed: dict[bytes, list[int]] = defaultdict(list)
    for invoice in invoices:
        billed[invoice.statement].append(invoice.gross_cents)
    money = ChannelMoney({}, [])
    for statement_id, message in sorted(statements, key=lambda pair: (pair[1].statement_number, pair[0])):
        owed = sum(billed[statement_id]) if statement_id in billed else None
        money.statements[statement_id] = StatementMoney(statement_id, message, owed)
    named: dict[bytes, list[MovementMoney]] = defaultdict(list)
    for movement in sorted(movements, key=_in_time):
        one = MovementMoney(movement)
        money.movements.append(one)
        statement = money.statements.get(movement.statement)
        if not movement.statement:
            named[b""].append(one)
        elif statement is None or statement.invoiced_cents is None:
            one.astray_cents = movement.amount_cents
        else:
            named[movement.statement].append(one)
    sources = [source for one in money.statements.values() for source in _cover_by_name(one, named[one.statement_id])]
    sources += _paid_ahead(named[b""], sources)
    _spread(money, sorted(sources, key=lambda source: (source.at_ms, source.record_id)))
    return money


@dataclass(slots=True)
class _Source:
    """What may cover others."""

    kind: CoverKind
    record_id: bytes
    at_ms: int
    cents: int
    movement: MovementMoney | None
    credit: StatementMoney | None = None


def _in_time(movement: Movement) -> tuple[int, bool, bytes]:
    return movement.at_ms, movement.amount_cents < 0, movement.record_id


def _cover_by_name(statement: StatementMoney, named: Sequence[MovementMoney]) -> list[_Source]:
    """Cover a statement with what names it; what it, or they, can give to others."""
    owed = statement.invoiced_cents or 0
    left = owed
    live = _undo(named)
    sources = []
    for one, cents in live:
        # Within what is owed, in its direction; of the rest the client can be paid back, or pay something else.
        taken = max(min(cents, left), 0) if cents > 0 else min(max(cents, left), 0)
        if taken:
            kind = CoverKind.SET_OFF if one.movement.kind is MoneyKind.SET_OFF else CoverKind.PAID
            cover = Cover(kind, taken, one.movement.record_id, statement.statement_id, _number_of(one))
            statement.covers.append(cover)
            one.covers.append(cover)
            left -= taken
        rest = cents - taken
        if rest > 0:
            sources.append(_Source(CoverKind.OVER, one.movement.record_id, one.movement.at_ms, rest, one))
        elif rest < 0:
            # More went back than came: it is open again, on top of what was owed.
            cover = Cover(CoverKind.PAID, rest, one.movement.record_id, statement.statement_id, _number_of(one))
            statement.covers.append(cover)
            one.covers.append(cover)
            left -= rest
    statement.open_cents = max(left, 0)
    if left < 0:
        statement.owed_back_cents = -left
        sources.append(
            _Source(CoverKind.CREDIT, statement.statement_id, statement.statement.stated_ms, -left, None, statement)
        )
    return sources


def _number_of(one: MovementMoney) -> str:
    return one.movement.invoice_number


def _paid_ahead(named: Sequence[MovementMoney], others: Sequence[_Source]) -> list[_Source]:
    """What names no statement. Where more went back than came, it is taken off `others`, the latest first."""
    sources = []
    latest = sorted(others, key=lambda source: (source.at_ms, source.record_id))
    for one, cents in _undo(named):
        if cents > 0:
            one.unused_cents = cents
            kind = CoverKind.SET_OFF if one.movement.kind is MoneyKind.SET_OFF else CoverKind.AHEAD
            sources.append(_Source(kind, one.movement.record_id, one.movement.at_ms, cents, one))
            continue
        left = -cents
        while left and latest:
            source = latest[-1]
            taken = min(source.cents, left)
            _take_back(source, one, taken)
            left -= taken
            if not source.cents:
                latest.pop()
        one.astray_cents = -left
    for source in others:
        if source.movement is not None:
            source.movement.unused_cents += source.cents
    return sources


def _take_back(source: _Source, one: MovementMoney, cents: int) -> None:
    source.cents -= cents
    if source.movement is not None:
        undone = Undone(source.record_id, one.movement.record_id, cents)
        source.movement.undone.append(undone)
        one.undone.append(undone)
    elif source.credit is not None:  # the provider paid a credit back, without saying which
        cover = Cover(CoverKind.PAID, -cents, one.movement.record_id, source.record_id)
        source.credit.covers.append(cover)
        source.credit.owed_back_cents -= cents
        one.covers.append(cover)


def _undo(named: Sequence[MovementMoney]) -> list[tuple[MovementMoney, int]]:
    """Let what went back undo what came. What is left, in time: all of it above zero, or all below.

    `named` is in time. A movement that comes after one below zero may be undone by it too, where none before is left.
    """
    left = {id(one): one.movement.amount_cents for one in named}
    came = [one for one in named if one.movement.amount_cents > 0]
    alike: dict[bytes | str, list[MovementMoney]] = defaultdict(list)
    """By entry and by reference."""
    before: list[MovementMoney] = []
    waiting: list[MovementMoney] = []
    for one in named:
        if one.movement.amount_cents > 0:
            before.append(one)
            for mark in (one.movement.entry, one.movement.reference):
                alike[mark].append(one)
            continue
        for mark in (one.movement.entry, one.movement.reference):
            if mark:
                _undo_by(one, alike[mark], left)
        _undo_by(one, before, left)
        if left[id(one)]:
            waiting.append(one)
    after = [one for one in reversed(came) if left[id(one)]]
    for one in waiting:
        _undo_by(one, after, left)
    return [(one, left[id(one)]) for one in named if left[id(one)]]


def _undo_by(went: MovementMoney, came: list[MovementMoney], left: dict[int, int]) -> None:
    """Take from the last of `came`, which is emptied of those of which nothing is left."""
    while came and left[id(went)]:
        one = came[-1]
        cents = min(left[id(one)], -left[id(went)])
        if cents:
            undone = Undone(one.movement.record_id, went.movement.record_id, cents)
            one.undone.append(undone)
            went.undone.append(undone)
            left[id(one)] -= cents
            left[id(went)] += cents
        if not left[id(one)]:
            came.pop()


def _spread(money: ChannelMoney, sources: Iterable[_Source]) -> None:
    """Cover what is open, the lowest statement first, by the oldest of what is left over."""
    waiting = deque(source for source in sources if source.cents)
    for statement in money.statements.values():
        while statement.open_cents and waiting:
            source = waiting[0]
            taken = min(statement.open_cents, source.cents)
            cover = Cover(source.kind, taken, source.record_id, statement.statement_id)
            statement.covers.append(cover)
            statement.open_cents -= taken
            source.cents -= taken
            if source.movement is not None:
                source.movement.covers.append(cover)
                source.movement.unused_cents -= taken
            elif source.credit is not None:
                source.credit.given.append(cover)
                source.credit.owed_back_cents -= taken
            if not source.cents:
                waiting.popleft()
