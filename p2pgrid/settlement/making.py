"""A statement and two parties' billing details as a document: the same inputs give the same document, always."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Final

import msgspec

from p2pgrid.errors import InvalidRecord, LedgerError
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.invoice_sums import cents_of
from p2pgrid.proto.record import Role, Signed, parse_record, verify_self_signed
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.statement_rules import components_of
from p2pgrid.settlement.billing import bank_account_of, party_of
from p2pgrid.settlement.invoices.document import Document, PrecedingInvoice
from p2pgrid.settlement.invoices.issue import Format
from p2pgrid.settlement.invoices.make import Head, make_cancellation, make_document
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.texts import check_text
from p2pgrid.settlement.payments.reference import make_creditor_reference

MAX_REASON_CHARS: Final = 200


class Inputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a document is made of, beside its statement. Kept with its number."""

    number: str
    issue_date: date
    """This and the other days are the provider's."""
    due_date: date | None = None
    period_first: date | None = None
    period_last: date | None = None
    seller: bytes = b""
    """BillingDetails in wire form."""
    buyer: bytes = b""
    held_before_pico: int = 0
    """`held_pico` of the statement before."""
    paid_cents: int = 0
    profile: str = Profile.EN16931.value
    is_self_billed: bool = False
    preceding: tuple[tuple[str, date], ...] = ()
    note: str = ""
    cancels: bytes = b""
    """Of a cancellation: the inputs of the document that is taken back, from which all but number, day and note are."""

    def encoded(self) -> bytes:
        """For settlement.db."""
        return msgspec.msgpack.encode(self)


def decode_inputs(content: bytes) -> Inputs:
    """Raises LedgerError for what is none."""
    try:
        return msgspec.msgpack.decode(content, type=Inputs)
    except msgspec.MsgspecError as error:
        raise LedgerError(f"settlement.db holds no document's inputs where it should: {error}.") from None


def document_of(inputs: Inputs, statement: Signed[Statement]) -> Document:
    """The document. Raises InvoiceRefused; `statement-vat` where it would be taxed otherwise than both have signed."""
    if inputs.cancels:
        made = make_cancellation(
            document_of(decode_inputs(inputs.cancels), statement), number=inputs.number, issue_date=inputs.issue_date
        )
        return dataclasses.replace(made, note=". ".join(part for part in (made.note, inputs.note) if part))
    message = statement.message
    seller, buyer = _details(inputs.seller), _details(inputs.buyer)
    assert inputs.period_first is not None and inputs.period_last is not None
    head = Head(
        number=inputs.number,
        issue_date=inputs.issue_date,
        due_date=inputs.due_date,
        period_first=inputs.period_first,
        period_last=inputs.period_last,
        seller=party_of(seller),
        buyer=party_of(buyer),
        statement_sha256=statement.id,
        account=None if message.net_cents < 0 else bank_account_of(seller),
        reference=make_creditor_reference(statement.id),
        profile=Profile(inputs.profile),
        is_self_billed=inputs.is_self_billed,
        self_billing_agreed=seller.self_billing_agreed and buyer.self_billing_agreed,
        preceding=tuple(PrecedingInvoice(number=number, issue_date=on) for number, on in inputs.preceding),
        note=inputs.note,
    )
    document = make_document(
        head,
        message.lines,
        credits_pico=message.credits_pico,
        held_pico=message.held_pico,
        held_before_pico=inputs.held_before_pico,
        paid_cents=inputs.paid_cents,
    )
    _check_sums(document, message)
    return document


def needs_document(statement: Statement, held_before_pico: int) -> bool:
    """False for a statement of which no line of an invoice would be left: nothing sold, credited or held back, or less
    than half a cent of each."""
    return bool(
        any(component.net_cents for line in statement.lines for component in components_of(line))
        or cents_of(statement.credits_pico)
        or cents_of(statement.held_pico) != cents_of(held_before_pico)
    )


def paid_ahead(statement: Statement) -> int:
    """What of the statement's gross is paid already, in cents: the balance before it is below zero by that much."""
    before = statement.opening_cents - statement.payments_cents - statement.set_off_cents
    return min(max(-before, 0), max(statement.gross_cents, 0))


def main_format(profile: Profile) -> Format:
    """Which of a document's files the Invoice record's `document_sha256` is of (docs/spec/messages.md, rule 23b).

    The page with EN 16931's XML inside; what a portal takes, where the profile is for one.
    """
    return {Profile.EN16931: Format.FACTUR_X, Profile.XRECHNUNG: Format.CII, Profile.PEPPOL: Format.UBL}[profile]


def checked_reason(reason: str) -> str:
    """Why a document is taken back, as it will stand on the credit note. Raises InvoiceRefused (`text`)."""
    return check_text("the reason", reason, most=MAX_REASON_CHARS)


def _check_sums(document: Document, statement: Statement) -> None:
    vat = document.vat
    expected = (vat.category.value, vat.rate_bp, vat.exemption_code)
    signed = [(line.category, line.rate_bp, line.exemption) for line in statement.vat]
    if signed != [expected]:
        raise InvoiceRefused(
            "statement-vat",
            f"both sides signed VAT of the kind {_kinds(signed)}; by the billing details it is {_kinds([expected])}.",
            hint="Mend the billing details that changed since, or agree on a credit in the next statement.",
        )
    sums = statement.net_cents, statement.gross_cents - statement.net_cents, statement.gross_cents
    if document.signed_cents != sums:
        raise InvoiceRefused(
            "statement-sums",
            f"the document comes to {document.signed_cents} cents (net, VAT, gross); both sides signed {sums}.",
        )


def _kinds(kinds: list[tuple[str, int, str]]) -> str:
    return ", ".join(f"{category} {rate / 100:g} %" for category, rate, _ in kinds)


def _details(wire: bytes) -> BillingDetails:
    try:
        record = parse_record(wire)
        role = Role(record.signatures[0].role)
        return verify_self_signed(record, BillingDetails, role).message
    except (InvalidRecord, IndexError) as error:
        raise LedgerError(f"settlement.db holds billing details that do not verify: {error}.") from None
