"""Which invoices of a statement stand, and which were taken back; what a credit note corrects. From records alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pgrid.ledger.base import DisputeRow
from p2pgrid.proto.dispute_rules import is_accepted
from p2pgrid.proto.record import M, Signed
from p2pgrid.proto.statement import Invoice, Statement


class Records(Protocol):
    """What of a ledger is needed here."""

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...

    def disputes(self, *, channel: bytes | None = None, unanswered: bool = False) -> list[DisputeRow]: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """An invoice among those of its statement."""

    invoice: Signed[Invoice]
    cancels: str = ""
    """The number of the invoice that this credit note takes back."""
    cancelled_by: str = ""

    @property
    def is_in_force(self) -> bool:
        """True unless it was taken back, or takes back."""
        return not self.cancels and not self.cancelled_by


def standing(invoices: Iterable[Signed[Invoice]]) -> list[Standing]:
    """Invoices of one or more statements, oldest first, each with what it takes back or was taken back by.

    A credit note over the very amounts of an earlier invoice of its statement takes that one back.
    """
    ordered = sorted(invoices, key=lambda one: (one.message.issued_ms, one.message.invoice_number))
    cancels: dict[bytes, str] = {}
    cancelled_by: dict[bytes, str] = {}
    for at, credit in enumerate(ordered):
        if not credit.message.type_code.is_credit_note:
            continue
        for earlier in ordered[:at]:
            if earlier.id not in cancelled_by and _takes_back(credit.message, earlier.message):
                cancels[credit.id] = earlier.message.invoice_number
                cancelled_by[earlier.id] = credit.message.invoice_number
                break
    return [Standing(one, cancels.get(one.id, ""), cancelled_by.get(one.id, "")) for one in ordered]


def corrected_by(records: Records, statement: Signed[Statement]) -> list[Signed[Invoice]]:
    """The invoices that a credit note for this statement corrects: those of the statements that have the receipts which
    it credits or holds back; the latest invoice where none of them has one. Raises LedgerError."""
    message = statement.message
    earlier = [
        one
        for one in records.settlement(Statement, message.channel)
        if one.message.statement_number < message.statement_number
    ]
    in_force = {
        one.invoice.message.statement: one.invoice
        for one in standing(records.settlement(Invoice, message.channel))
        if one.is_in_force and not one.invoice.message.type_code.is_credit_note
    }
    ordered = sorted(earlier, key=lambda one: one.message.statement_number)
    before_ms = ordered[-1].message.stated_ms if ordered else 0
    numbers = _taken_off(records.disputes(channel=message.channel), before_ms, message.stated_ms)
    found = [
        in_force[one.id]
        for one in ordered
        if one.id in in_force and any(one.message.first_receipt <= n <= one.message.last_receipt for n in numbers)
    ]
    latest = [in_force[one.id] for one in ordered if one.id in in_force][-1:]
    return found or latest


def _taken_off(rows: Sequence[DisputeRow], after_ms: int, until_ms: int) -> set[int]:
    """Numbers of the receipts about which a dispute was accepted, or made and not answered, in that time."""
    numbers = set()
    for row in rows:
        dispute, answer = row.dispute.message, row.answer.message if row.answer is not None else None
        if answer is not None and answer.answered_ms <= until_ms:
            is_off = after_ms < answer.answered_ms and is_accepted(answer, dispute)
        else:
            is_off = after_ms < dispute.disputed_ms <= until_ms
        if is_off:
            numbers.add(dispute.receipt_number)
    return numbers


def _takes_back(credit: Invoice, earlier: Invoice) -> bool:
    return (
        credit.statement == earlier.statement
        and not earlier.type_code.is_credit_note
        and (credit.net_cents, credit.vat_cents) == (-earlier.net_cents, -earlier.vat_cents)
    )
