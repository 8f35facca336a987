"""A person's decision about an entry that matching left open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from p2pgrid.errors import UsageError
from p2pgrid.settlement.payments.books import Books
from p2pgrid.settlement.payments.decisions import Booking, Decision, Evidence, Kind, OpenInvoice
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.units import format_cents


def book_by_hand(
    entry: BookedEntry,
    shares: Mapping[str, int],
    invoices: Iterable[OpenInvoice],
    *,
    earlier: Iterable[Decision],
    reason: str,
    on_account_of: str = "",
) -> Decision:
    """Book an entry as a person says: so many cents for each invoice, and the rest on an account.

    Cents have the entry's sign. Raises UsageError if the entry was booked already, a share is more than is open or of
    the other sign, or the shares are not the entry's amount and no account is named for the rest.
    """
    books = Books(invoices, earlier)
    if before := books.booked(entry.key):
        raise UsageError(f"the entry was booked already, as {before.kind.value}: {before.reason}")
    for number, cents in shares.items():
        if number not in books.invoices:
            raise UsageError(f"there is no invoice {number!r}.")
        if entry.currency != books.invoices[number].currency:
            raise UsageError(f"the entry is in {entry.currency}, the invoice {number} is not.")
        is_open = books.open_of(number)
        if cents * entry.amount_cents <= 0 or cents * is_open <= 0 or abs(cents) > abs(is_open):
            raise UsageError(
                f"{format_cents(cents)} cannot be booked on {number}, of which {format_cents(is_open)} is open."
            )
    rest = entry.amount_cents - sum(shares.values())
    if rest * entry.amount_cents < 0 or (rest and not on_account_of):
        raise UsageError(
            f"the shares come to {format_cents(entry.amount_cents - rest)}, the entry to "
            f"{format_cents(entry.amount_cents)}.",
            hint="Name the account on which the rest is to stand, or mend the shares.",
        )
    is_whole = all(cents == books.open_of(number) for number, cents in shares.items())
    kind = Kind.COMBINED if len(shares) > 1 else Kind.OVER if rest else Kind.EXACT if is_whole else Kind.PART
    return Decision(
        entry=entry,
        kind=kind,
        evidence=Evidence.PERSON,
        bookings=tuple(Booking(number, cents) for number, cents in shares.items()),
        on_account_cents=rest,
        on_account_of=on_account_of if rest else "",
        reason=reason,
    )


def undo_by_hand(entry: BookedEntry, key: str, *, earlier: Iterable[Decision], reason: str) -> Decision:
    """Book an entry as a person says: it undoes the earlier entry with this key, a payment or itself a return.

    Raises UsageError if the entry was booked already, the earlier one was not, money moved the same way or in another
    currency, or less is left of the earlier one.
    """
    books = Books((), earlier)
    if before := books.booked(entry.key):
        raise UsageError(f"the entry was booked already, as {before.kind.value}: {before.reason}")
    undone = books.booked(key)
    if undone is None:
        raise UsageError(f"no entry {key!r} was booked, so none can be undone.")
    if entry.currency != undone.entry.currency or entry.amount_cents * undone.entry.amount_cents >= 0:
        raise UsageError(
            f"{format_cents(entry.amount_cents)} {entry.currency} cannot undo "
            f"{format_cents(undone.entry.amount_cents)} {undone.entry.currency}."
        )
    cents, left = abs(entry.amount_cents), books.left_of(key)
    if cents > left:
        raise UsageError(f"{format_cents(cents)} cannot be undone: {format_cents(left)} of that entry are left.")
    bookings, on_account = books.undone(undone, cents)
    return Decision(
        entry=entry,
        kind=Kind.RETURNED,
        evidence=Evidence.PERSON,
        bookings=bookings,
        on_account_cents=on_account,
        on_account_of=undone.on_account_of if on_account else "",
        undoes=key,
        reason=reason,
    )
