"""Which earlier entry a return undoes."""

from __future__ import annotations

from collections.abc import Sequence

from p2pgrid.settlement.payments.books import Books
from p2pgrid.settlement.payments.decisions import Decision, Evidence, Kind
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.reference import normalised
from p2pgrid.units import format_cents


def find_return(entry: BookedEntry, books: Books, named: Sequence[str]) -> Decision | None:
    """The decision that takes an earlier one back, or None if no earlier one fits, or several that differ.

    It fits if money moved the other way, at least as much is left of it, and an id agrees: our instruction's, the
    end-to-end id, or, where the bank leaves both out, an invoice that both name with amount or account agreeing.
    """
    cents = abs(entry.amount_cents)
    fitting = [
        decision
        for decision, left in books.returnable(entry, named)
        if left >= cents and entry.booking_date >= decision.entry.booking_date and _is_of(entry, decision, named)
    ]
    whole = [decision for decision in fitting if abs(decision.entry.amount_cents) == cents]
    fitting = whole or (fitting if entry.is_return else [])
    if not fitting or len({_invoices(decision) for decision in fitting}) > 1:
        return None
    undone = fitting[0]
    bookings, on_account = books.undone(undone, cents)
    reason = f" ({entry.return_reason})" if entry.return_reason else ""
    return Decision(
        entry=entry,
        kind=Kind.RETURNED,
        evidence=Evidence.EARLIER_ENTRY,
        bookings=bookings,
        on_account_cents=on_account,
        on_account_of=undone.on_account_of if on_account else "",
        undoes=undone.entry.key,
        reason=f"{format_cents(cents)} {entry.currency} of the entry of {undone.entry.booking_date} went back{reason}; "
        f"{', '.join(b.invoice_number for b in bookings) or 'the account'} is open again by that much.",
    )


def _is_of(entry: BookedEntry, decision: Decision, named: Sequence[str]) -> bool:
    earlier = decision.entry
    for mine, theirs in (
        (entry.instruction_id, earlier.instruction_id),
        (normalised(entry.end_to_end_id), normalised(earlier.end_to_end_id)),
    ):
        if mine and theirs:
            return mine == theirs
    is_named = any(number in named for number in _invoices(decision))
    is_same_account = bool(entry.counterparty_iban) and entry.counterparty_iban == earlier.counterparty_iban
    is_whole = entry.amount_cents == -earlier.amount_cents
    return (is_named and (is_whole or is_same_account)) or (entry.is_return and is_same_account and is_whole)


def _invoices(decision: Decision) -> tuple[str, ...]:
    return tuple(booking.invoice_number for booking in decision.bookings) or (decision.on_account_of,)
