"""What a provider's operator asks about invoices, and what comes of it. In a running node, or on the ledger alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from p2pgrid.desk.asks import Ask
from p2pgrid.settlement.issuing import Issuer
from p2pgrid.settlement.self_billing import read_document


class IssueInvoices(Ask, frozen=True, kw_only=True, tag="issue-invoices"):
    """Issue the invoices of all statements that wait for one."""


class CancelInvoice(Ask, frozen=True, kw_only=True, tag="cancel-invoice"):
    """Take an invoice back by a credit note, and write it anew."""

    number: str
    reason: str


class AcceptInvoice(Ask, frozen=True, kw_only=True, tag="accept-invoice"):
    """Sign the record of a document that the client wrote (self-billing)."""

    file: str
    """Where it is, as an absolute path."""


class InvoiceAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """What `AcceptInvoice` came to."""

    number: str
    gross_cents: int
    currency: str


class StillPending(msgspec.Struct, frozen=True, kw_only=True):
    """A statement that has no invoice yet."""

    statement: str
    """Its id, in hex."""
    code: str
    reason: str
    hint: str = ""


class InvoicesIssued(msgspec.Struct, frozen=True, kw_only=True):
    """What `IssueInvoices` came to."""

    issued: tuple[str, ...]
    pending: tuple[StillPending, ...]


class InvoiceCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """What `CancelInvoice` came to."""

    cancelled: str
    credit_note: str
    invoice: str
    """The one that stands in its place."""


InvoiceAsk = IssueInvoices | CancelInvoice | AcceptInvoice


class InvoiceDesk:
    """Works with the issuer of this process."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer: Final = issuer

    async def perform(self, ask: InvoiceAsk) -> InvoicesIssued | InvoiceCancelled | InvoiceAccepted:
        """Do what was asked; it is durable when this returns. Raises P2pgridError."""
        match ask:
            case IssueInvoices():
                report = await self._issuer.issue_pending()
                return InvoicesIssued(
                    issued=report.issued,
                    pending=tuple(
                        StillPending(statement=one.statement.hex(), code=one.code, reason=one.message, hint=one.hint)
                        for one in report.refused
                    ),
                )
            case CancelInvoice(number=number, reason=reason):
                credit_note, invoice = await self._issuer.cancel(number, reason)
                return InvoiceCancelled(cancelled=number, credit_note=credit_note, invoice=invoice)
            case AcceptInvoice(file=file):
                signed = await self._issuer.accept(read_document(Path(file)))
                message = signed.message
                return InvoiceAccepted(
                    number=message.invoice_number, gross_cents=message.gross_cents, currency=message.currency
                )
