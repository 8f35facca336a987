"""What the invoices of a statement and the payments of a channel may say (docs/spec/audit.md, section 8).

Pure, over messages whose form and signatures were checked. What a missing record could explain is not proven: several
invoices of a statement, and payments there and back, are right by their sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from p2pgrid.proto.codes import Party
from p2pgrid.proto.judgement import shortened
from p2pgrid.proto.rules import Fault
from p2pgrid.proto.statement import Invoice, Payment, PaymentKind, Statement
from p2pgrid.proto.statement_rules import euros
from p2pgrid.units import format_cents

_DAY_MS: Final = 86_400_000


def faults_of_invoices(invoices: Sequence[Invoice], *, statement: Statement) -> list[Fault]:
    """Do all invoices of a statement together say what it says? One `invoice-mismatch` at most.

    Several are right where one is taken back and made again: their sums count.
    """
    numbers = shortened([invoice.invoice_number for invoice in invoices])
    other = next((invoice for invoice in invoices if invoice.currency != statement.currency), None)
    if other is not None:
        sentence = f"The invoice {other.invoice_number} over {euros(other.gross_cents, other.currency)} is of "
        sentence += f"statement {statement.statement_number}, which is in {statement.currency}."
        return [Fault("invoice-mismatch", sentence, cents=other.gross_cents)]
    for name, billed, owed in (
        ("net", sum(i.net_cents for i in invoices), statement.net_cents),
        ("VAT", sum(i.vat_cents for i in invoices), statement.gross_cents - statement.net_cents),
    ):
        if billed != owed:
            sentence = f"The {name} of invoice {numbers} is {euros(billed, statement.currency)}; "
            sentence += f"statement {statement.statement_number} has {format_cents(owed)}."
            return [Fault("invoice-mismatch", sentence, proven=False, cents=billed - owed)]
    return []


class Bookings:
    """The payments of a channel, taken in the order in which they were booked."""

    def __init__(self, currency: str) -> None:
        """`currency`: the channel's."""
        self._currency: Final = currency
        self._entries: Final[dict[tuple[bytes, str, bytes], bytes]] = {}
        self._last: Final[dict[tuple[object, ...], tuple[int, bytes]]] = {}
        """When the last one was booked, and its id, by all that it says; likewise of those typed in by hand."""
        self._last_by_hand: Final[dict[tuple[object, ...], tuple[int, bytes]]] = {}

    def fault_of_next(self, payment: Payment, record_id: bytes = b"") -> Fault | None:
        """Is it in the channel's currency, and not booked already? `payment-mismatch`.

        An entry of the bank's file books one movement of money, once for an invoice. Of what was typed in by hand it
        shows in all that it says, within a day: kind, reference, amount.
        """
        what, cents = name_of(payment), payment.amount_cents
        known = self._known(payment, record_id)
        if payment.currency != self._currency:
            sentence = f"{what} is in {payment.currency}, its channel in {self._currency}."
            return Fault("payment-mismatch", sentence, cents=cents)
        if known is not None:
            where = f"for invoice {payment.invoice_number}" if payment.statement else "as paid ahead"
            same = f", as record {known.hex()[:16]} already" if known else ""
            sentence = f"{what} was booked twice {where}{same}."
            return Fault("payment-mismatch", sentence, cents=cents, others=(known,))
        return None

    def _known(self, payment: Payment, record_id: bytes) -> bytes | None:
        """The id of the one that books the same, None if there is none."""
        if payment.kind is PaymentKind.REALLOCATED:
            return None
        where = payment.statement, payment.invoice_number
        said = (*where, payment.kind, payment.reference, payment.amount_cents)
        alike = self._last_by_hand if payment.entry else self._last
        last_ms, last_id = alike.get(said, (-_DAY_MS, b""))
        known = last_id if payment.booked_ms - last_ms < _DAY_MS else None
        self._last[said] = payment.booked_ms, record_id
        if payment.entry:
            if known is None:
                known = self._entries.get((*where, payment.entry))
            self._entries.setdefault((*where, payment.entry), record_id)
        else:
            self._last_by_hand[said] = payment.booked_ms, record_id
        return known


def name_of(payment: Payment) -> str:
    """For the beginning of a sentence: `The payment 'NY2AXHH7' over 12.40 EUR`."""
    return f"The payment {payment.reference!r} over {euros(payment.amount_cents, payment.currency)}"


def fault_of_payments(payments: Sequence[Payment], *, invoices: Iterable[Invoice]) -> tuple[Payment, Fault] | None:
    """Do the payments of a statement's invoices come to more than these, or to less than nothing? `payment-mismatch`.

    The last that pays more, or takes more back, is at fault; `payments` are in the order in which they were booked.
    """
    invoices = list(invoices)
    owed = sum(invoice.gross_cents for invoice in invoices)
    numbers = shortened([invoice.invoice_number for invoice in invoices])
    paid = sum(payment.amount_cents for payment in payments)
    # Whoever pays too much is at fault, or whoever books what never came or went: the records do not tell.
    if paid > max(owed, 0):
        last = next(p for p in reversed(payments) if p.amount_cents > 0)
        sentence = f"With {_lower(name_of(last))} {euros(paid, last.currency)} are paid of invoice {numbers}, "
        sentence += f"which comes to {format_cents(owed)}."
        cents = paid - max(owed, 0)
    elif paid < min(owed, 0):
        last = next(p for p in reversed(payments) if p.amount_cents < 0)
        sentence = f"With {_lower(name_of(last))} {euros(-paid, last.currency)} went back for invoice {numbers}, "
        sentence += f"which comes to {format_cents(owed)}."
        cents = paid - min(owed, 0)
    else:
        return None
    return last, Fault("payment-mismatch", sentence, Party.UNCLEAR, cents=cents)


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def spread(rests: Sequence[int], ahead_cents: int) -> list[int]:
    """What is open of each statement, in cents, never below zero, the oldest first.

    `rests`: of each what its invoices come to less what was paid for them; below zero what the provider owes for it.
    That, and `ahead_cents` (paid ahead for none of them, and set off), covers the oldest of the others.
    """
    left = max(ahead_cents + sum(-rest for rest in rests if rest < 0), 0)
    still_open = []
    for rest in rests:
        covered = min(max(rest, 0), left)
        left -= covered
        still_open.append(max(rest, 0) - covered)
    return still_open
