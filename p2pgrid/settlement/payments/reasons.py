"""Decisions' reasons, as sentences for the accountant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2pgrid.settlement.payments.decisions import Booking, Evidence, Finding
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.units import format_cents

_BY: Final = {
    Evidence.REFERENCE: "its reference is in the transfer",
    Evidence.CUT_REFERENCE: "its reference is in the transfer, cut off or wrong at the end",
    Evidence.MISTYPED_REFERENCE: "its reference is in the transfer, mistyped",
    Evidence.INVOICE_NUMBER: "its number is in the transfer",
    Evidence.AMOUNT_AND_DEBTOR: "the transfer names none, but payer and amount fit only this",
}


def why_booked(
    entry: BookedEntry, bookings: Sequence[Booking], left: int, evidence: Evidence, *, is_whole: bool
) -> str:
    numbers = listed([booking.invoice_number for booking in bookings])
    how = "in full" if is_whole else "in part"
    over = f", and {format_cents(left)} more stand on account" if left else ""
    return f"{money(entry)} pay {numbers} {how}{over}: {_BY[evidence]}."


def why_unclear(candidates: Sequence[str], findings: Sequence[Finding], *, is_fitting: bool) -> str:
    if is_fitting:
        return f"It names no invoice, and its amount fits in more than one way: {listed(candidates)}."
    if Finding.UNKNOWN_REFERENCE in findings:
        return "Its reference is well formed and belongs to no invoice that is known here."
    if candidates:
        return f"It names no open invoice, and its amount fits none of {listed(candidates)}."
    return "It is from a known account, which has nothing open."


def money(entry: BookedEntry) -> str:
    other = entry.counterparty_name or entry.counterparty_iban or "somebody"
    return (
        f"{format_cents(abs(entry.amount_cents))} {entry.currency} {'from' if entry.amount_cents > 0 else 'to'} {other}"
    )


def listed(names: Sequence[str]) -> str:
    return ", ".join(names)
