"""Whose calendar a statement's days are of: the provider's, whose clock's offset from UTC its offers say."""

from __future__ import annotations

from typing import Protocol

from p2pgrid.proto.messages import Offer, Receipt
from p2pgrid.proto.record import Signed
from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.statements.days import StatementDays


class OffersLedger(Protocol):
    """What of a ledger tells the provider's calendar. Raises LedgerError."""

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None: ...

    def offer(self, offer_id: bytes) -> Signed[Offer] | None: ...


def offset_of(ledger: OffersLedger, statement: Statement) -> int | None:
    """Minutes ahead of UTC by the offer of its last receipt; None if that is not known. Raises LedgerError."""
    number = statement.last_receipt
    receipt = ledger.receipt(statement.channel, number) if number else None
    offer = ledger.offer(receipt.message.offer) if receipt is not None else None
    return offer.message.utc_offset_minutes if offer is not None else None


def days_of(ledger: OffersLedger, statement: Statement) -> StatementDays:
    """A statement's days, by the calendar of the offer of its last receipt. Raises LedgerError."""
    return StatementDays.of(statement, offset_of(ledger, statement))
