"""What is open while a run of matching goes on: invoices, money on account, and what may still be returned."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from p2pgrid.settlement.payments.decisions import Booking, Decision, OpenInvoice
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.reference import normalised
from p2pgrid.settlement.payments.tellings import (
    MAX_DAYS_APART,
    are_told_apart,
    likeness,
    may_be_a_part,
    may_be_one,
    sort_of,
)


class Books:
    """The invoices' open sums, moved by each decision that is applied."""

    def __init__(self, invoices: Iterable[OpenInvoice], earlier: Iterable[Decision]) -> None:
        """`earlier` are decisions that were booked; the invoices' `paid_cents` have them in already."""
        self.invoices: dict[str, OpenInvoice] = {}
        for invoice in invoices:
            if self.invoices.setdefault(invoice.number, invoice) is not invoice:
                raise ValueError(f"the invoice number {invoice.number} is there twice")
        self._open = {number: invoice.open_cents for number, invoice in self.invoices.items()}
        self._booked: dict[str, Decision] = {}
        self._alike: dict[tuple[object, ...], dict[tuple[object, ...], list[BookedEntry]]] = {}
        """By likeness and day, and then by `sort_of`: one of a sort tells whether it need be looked through."""
        self._of_name: dict[tuple[bool, str], list[BookedEntry]] = {}
        """Collective ones, and others, by invoice number or account."""
        self._undone_by: dict[str, list[Decision]] = {}
        self._by_mark: dict[tuple[str, str], dict[str, Decision]] = {}
        self._on_account: dict[str, int] = {}
        for decision in earlier:
            if decision.is_booked and decision.entry.key not in self._booked:
                self._remember(decision)

    def open_of(self, number: str) -> int:
        """Cents still open: above zero, to us."""
        return self._open[number]

    def on_account_of(self, name: str) -> int:
        """Cents that stand on the account known by this invoice number or prepaid account."""
        return self._on_account.get(name, 0)

    def booked(self, key: str) -> Decision | None:
        """The decision by which an entry with this key was booked."""
        return self._booked.get(key)

    def lookalike(self, entry: BookedEntry, names: Iterable[str], told_with: Collection[str]) -> BookedEntry | None:
        """An entry booked under another key that may be the same movement, or its batch, or a part of it.

        `names` are the invoices and accounts that the entry has to do with; `told_with` the keys of all entries of the
        entry's own statement, none of which is the same movement.
        """
        day = entry.booking_date.toordinal()
        for near in (day, *range(day - MAX_DAYS_APART, day), *range(day + 1, day + MAX_DAYS_APART + 1)):
            for others in self._alike.get((near, *likeness(entry)), {}).values():
                if not are_told_apart(entry, others[0]):
                    for other in others:
                        if other.key not in told_with and may_be_one(entry, other):
                            return other
        for name in names:
            for other in self._of_name.get((not entry.is_collective, name), ()):
                if other.key not in told_with and may_be_a_part(entry, other):
                    return other
        return None

    def left_of(self, key: str) -> int:
        """How many cents (above zero) of a booked entry were not returned. A return that was undone itself counts for
        nothing."""
        undone = sum(self.left_of(one.entry.key) for one in self._undone_by.get(key, ()))
        return abs(self._booked[key].entry.amount_cents) - undone

    def returnable(self, entry: BookedEntry, named: Iterable[str]) -> list[tuple[Decision, int]]:
        """Booked decisions about money that moved the other way and share an id, the account, or a name of `named` with
        the entry, and how many cents of each were not returned yet; the latest first."""
        found: dict[str, Decision] = {}
        for mark in _marks(entry, named):
            found |= self._by_mark.get(mark, {})
        ordered = sorted(found.values(), key=lambda d: (d.entry.booking_date, d.entry.key), reverse=True)
        opposite = [one for one in ordered if one.entry.amount_cents * entry.amount_cents < 0 and not one.undoes]
        return [(one, left) for one in opposite if (left := self.left_of(one.entry.key)) > 0]

    def apply(self, decision: Decision) -> None:
        """Move the open sums by a booked decision. A return may be of an invoice that was settled long ago and is not
        among those given."""
        for booking in decision.bookings:
            if booking.invoice_number in self._open:
                self._open[booking.invoice_number] -= booking.amount_cents
        self._remember(decision)

    def undone(self, decision: Decision, cents: int) -> tuple[tuple[Booking, ...], int]:
        """How so many cents (above zero) of a decision are taken back: first what stood on account, then the invoices
        from the last to the first. Bookings and the change on account."""
        sign = 1 if decision.entry.amount_cents > 0 else -1
        before = abs(decision.entry.amount_cents) - self.left_of(decision.entry.key)
        parts = [("", sign * decision.on_account_cents)]
        parts += [(one.invoice_number, sign * one.amount_cents) for one in reversed(decision.bookings)]
        bookings: list[Booking] = []
        on_account = 0
        for number, whole in parts:
            gone = min(before, whole)
            before -= gone
            taken = min(cents, whole - gone)
            cents -= taken
            if taken and number:
                bookings.append(Booking(number, -sign * taken))
            elif taken:
                on_account = -sign * taken
        return tuple(bookings), on_account

    def _remember(self, decision: Decision) -> None:
        entry = decision.entry
        self._booked[entry.key] = decision
        alike = self._alike.setdefault((entry.booking_date.toordinal(), *likeness(entry)), {})
        alike.setdefault(sort_of(entry), []).append(entry)
        for name in decision.names:
            self._of_name.setdefault((entry.is_collective, name), []).append(entry)
        for mark in _marks(entry, decision.names):
            self._by_mark.setdefault(mark, {})[entry.key] = decision
        if decision.undoes:
            self._undone_by.setdefault(decision.undoes, []).append(decision)
        if decision.on_account_of:
            self._on_account[decision.on_account_of] = (
                self._on_account.get(decision.on_account_of, 0) + decision.on_account_cents
            )


def _marks(entry: BookedEntry, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    """By what a return may be known to be of an entry."""
    ids = (
        ("instruction", entry.instruction_id),
        ("end-to-end", normalised(entry.end_to_end_id)),
        ("account", entry.counterparty_iban),
    )
    return [mark for mark in (*ids, *(("name", name) for name in names)) if mark[1]]
