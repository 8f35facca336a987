"""What a person decides of an entry that matching left open, or booked wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import UsageError
from p2pgrid.proto.statement import Payment
from p2pgrid.settlement.allocation import move
from p2pgrid.settlement.bank.booking import entry_digest
from p2pgrid.settlement.bank.books import Books
from p2pgrid.settlement.bank.store import Known
from p2pgrid.settlement.bank.stored import NOT_OURS, StoredBooking, StoredDecision, Target, to_store
from p2pgrid.settlement.open_items import AHEAD
from p2pgrid.settlement.payments.books import Books as OpenBooks
from p2pgrid.settlement.payments.by_hand import book_by_hand, undo_by_hand
from p2pgrid.settlement.payments.decisions import Decision, Evidence, Kind, OpenInvoice
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.units import format_cents

_SHORTEST: Final = 4
_REASON: Final = "A person booked it so."


@dataclass(frozen=True, kw_only=True)
class ByPerson:
    """What is to be written: the decision, and where the entry was booked before, what takes that back."""

    entry: BookedEntry
    decision: StoredDecision
    moved: tuple[Payment, ...] = ()


def find_entry(books: Books, prefix: str) -> Known:
    """The entry whose key begins so. Raises UsageError."""
    wanted = prefix.strip().upper()
    found = [known[0] for key, known in books.known.items() if len(wanted) >= _SHORTEST and key.startswith(wanted)]
    if len(found) != 1:
        what = "more than one entry's" if found else "no entry's"
        raise UsageError(
            f"{what} key begins with {prefix[:40]!r}.", hint="`p2pgrid bank list --all` shows keys; give more of it."
        )
    return found[0]


def put_aside(known: Known, now_ms: int) -> ByPerson:
    """It is none of ours, or was booked otherwise. Raises UsageError if it is booked."""
    _refuse_booked(known, "put aside")
    return ByPerson(
        entry=known.entry,
        decision=StoredDecision(kind=NOT_OURS, reason="A person put it aside.", decided_ms=now_ms, is_by_person=True),
    )


def assign(books: Books, known: Known, targets: Sequence[Target], now_ms: int) -> ByPerson:
    """Book an entry on these invoices, in order, as much as each has open, and the rest ahead; or, where the only
    target is money ahead, all of it there. What was booked elsewhere is moved. Raises UsageError."""
    entry, targets = known.entry, tuple(dict.fromkeys(targets))
    invoices = {one.number: one for one in books.names.invoices}
    if known.decision.is_booked:
        return _moved(books, known, targets, invoices, now_ms)
    if entry.amount_cents < 0 and targets[0].number and not targets[0].is_purchase:
        undone = _undoing(books, entry, targets[0])
        if undone is not None:
            return ByPerson(entry=entry, decision=to_store(undone, books.names.target_of, now_ms))
    decision = book_by_hand(
        entry,
        _shares(books, entry.amount_cents, targets, invoices),
        books.names.invoices,
        earlier=books.earlier,
        reason=_REASON,
        on_account_of=books.names.name_of(targets[0].ahead),
    )
    return ByPerson(entry=entry, decision=to_store(decision, books.names.target_of, now_ms))


def _shares(books: Books, cents: int, targets: Sequence[Target], invoices: dict[str, OpenInvoice]) -> dict[str, int]:
    sign, left = (1 if cents > 0 else -1), abs(cents)
    shares = {}
    for target in targets:
        name = books.names.name_of(target)
        invoice = invoices.get(name) if target.number else None
        part = min(left, max(sign * invoice.open_cents, 0)) if invoice is not None else 0
        if part:
            shares[name] = sign * part
        left -= part
    if not shares and targets[0].number:
        raise UsageError(
            f"nothing is open of {', '.join(target.number for target in targets)} in that direction.",
            hint="--ahead PEER books money that pays no invoice.",
        )
    return shares


def _undoing(books: Books, entry: BookedEntry, target: Target) -> Decision | None:
    """Money that left, assigned to an invoice: it undoes the last payment of it of which so much is left."""
    earlier = books.earlier
    paid = [
        one[0]
        for one in books.known.values()
        if one[0].decision.is_booked
        and any(booking.target == target and booking.cents > 0 for booking in one[0].decision.bookings)
    ]
    open_books = OpenBooks((), earlier)
    for one in sorted(paid, key=lambda known: known.entry.booking_date, reverse=True):
        if open_books.left_of(one.entry.key) >= -entry.amount_cents:
            return undo_by_hand(entry, one.entry.key, earlier=earlier, reason="A person says that it undoes a payment.")
    return None


def _moved(
    books: Books, known: Known, targets: Sequence[Target], invoices: dict[str, OpenInvoice], now_ms: int
) -> ByPerson:
    """Book what was booked already elsewhere: Payments that move no money take it from there and put it here."""
    entry, before = known.entry, known.decision
    if any(one.is_purchase for one in before.bookings) or any(target.is_purchase for target in targets):
        raise UsageError("what we paid ourselves is not moved.", hint="Its seller says what it paid.")
    if before.undoes or entry.amount_cents < 0:
        raise UsageError("a return or refund that is booked cannot be moved.")
    if any(one.undoes == entry.key for one in (tellings[0].decision for tellings in books.known.values())):
        raise UsageError("the entry came back, in part or whole; what came back cannot be moved.")
    freed = {one.target: one.cents for one in before.bookings}
    left = entry.amount_cents
    after: list[StoredBooking] = []
    for target in targets:
        if target.number:
            invoice = invoices[books.names.name_of(target)]
            part = min(left, max(invoice.open_cents + freed.get(target, 0), 0))
            if part:
                after.append(StoredBooking.of(target, part))
            left -= part
    if not after and targets[0].number:
        raise UsageError(f"nothing is open of {targets[0].number}.")
    if left:
        after.append(StoredBooking.of(Target(targets[0].channel, AHEAD), left))
    changes = {target: -cents for target, cents in freed.items()}
    for one in after:
        changes[one.target] = changes.get(one.target, 0) + one.cents
    moved = tuple(
        move(
            target.channel,
            target.place,
            cents,
            at_ms=now_ms,
            currency=entry.currency,
            entry=entry_digest(entry.key),
        )
        for target, cents in changes.items()
        if cents
    )
    if not moved:
        raise UsageError(f"the {format_cents(entry.amount_cents)} {entry.currency} are booked so already.")
    decision = StoredDecision(
        kind=(Kind.COMBINED if len(after) > 1 else Kind.EXACT if after[0].number else Kind.PREPAYMENT).value,
        reason=_REASON,
        decided_ms=now_ms,
        is_by_person=True,
        evidence=Evidence.PERSON.value,
        bookings=tuple(after),
        findings=before.findings,
    )
    return ByPerson(entry=entry, decision=decision, moved=moved)


def _refuse_booked(known: Known, what: str) -> None:
    if known.decision.is_booked:
        raise UsageError(
            f"the entry is booked ({known.decision.kind}), and cannot be {what}.",
            hint="`p2pgrid bank assign ENTRY INVOICE` moves it to another invoice.",
        )
