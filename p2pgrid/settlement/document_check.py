"""Whether a document says what its record, its statement and both sides' billing details say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from p2pgrid.printable import printable
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.statement import Invoice, InvoiceType, Statement
from p2pgrid.settlement.document_facts import DocumentRefused, Facts
from p2pgrid.settlement.making import paid_ahead
from p2pgrid.settlement.payments.reference import make_creditor_reference

DAY_TOLERANCE: Final = timedelta(days=1)
"""Days are the provider's, whose clock is at most 14 hours from UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a document is held against."""

    invoice: Invoice
    statement: Statement
    statement_id: bytes
    seller: Sequence[BillingDetails]
    """The provider's, every version that is known, the latest last."""
    buyer: Sequence[BillingDetails]


def check_document(facts: Facts, expected: Expected) -> None:
    """Raises DocumentRefused with the first that does not fit, its `code` the field."""
    for code, sentence in _differences(facts, expected):
        raise DocumentRefused(code, f"the document of invoice {expected.invoice.invoice_number}: {sentence}")


def account_in_force(details: Sequence[BillingDetails], at_ms: int) -> set[str]:
    """The provider's accounts that an invoice of that time may name: the one it had then, and the one it has now."""
    then = [one for one in details if one.stated_ms <= at_ms + 120_000]
    return {one.iban for one in (*then[-1:], *details[-1:]) if one.iban}


def _differences(facts: Facts, expected: Expected) -> Iterator[tuple[str, str]]:
    invoice, statement = expected.invoice, expected.statement
    sign = -1 if invoice.type_code.is_credit_note else 1
    for code, said, wanted in (
        ("number", facts.number, invoice.invoice_number),
        ("type", facts.type_code, invoice.type_code.value),
        ("currency", facts.currency, invoice.currency),
        ("net", sign * facts.net_cents, invoice.net_cents),
        ("vat", sign * facts.vat_cents, invoice.vat_cents),
        ("gross", sign * facts.gross_cents, invoice.gross_cents),
        ("due", facts.due_cents, facts.gross_cents - facts.paid_cents),
    ):
        if said != wanted:
            yield code, f"its {code} is {said!r}; {wanted!r} was expected, as the provider signed it."
    paid = paid_ahead(statement) if invoice.gross_cents == statement.gross_cents and sign > 0 else 0
    if facts.paid_cents != paid:
        yield "paid", f"{facts.paid_cents} cents are paid ahead, it says; by the statement it is {paid}."
    yield from _vat_differences(facts, statement, sign)
    yield from _reference_differences(facts, expected)
    yield from _day_differences(facts, invoice, statement)
    yield from _party_differences("seller", facts.seller_name, facts.seller_ids, expected.seller)
    yield from _party_differences("buyer", facts.buyer_name, facts.buyer_ids, expected.buyer)
    yield from _account_differences(facts, expected)


def _vat_differences(facts: Facts, statement: Statement, sign: int) -> Iterator[tuple[str, str]]:
    """Category, rate and exemption are the statement's, which both have signed; amounts are compared in all."""
    said = {(one.category, one.rate_bp, one.exemption) for one in facts.vat}
    signed = {(one.category, one.rate_bp, one.exemption) for one in statement.vat}
    if said != signed or len(facts.vat) != len(said):
        yield "vat", f"it is taxed as {sorted(said)}; both sides signed {sorted(signed)}."
    if sum(one.net_cents for one in facts.vat) != facts.net_cents:
        yield "net", "the parts of its VAT are not on its net."
    if sum(one.vat_cents for one in facts.vat) != facts.vat_cents:
        yield "vat", "the parts of its VAT do not come to its VAT."
    is_whole = sign * facts.net_cents == statement.net_cents
    nets = {(one.category, one.rate_bp): sign * one.net_cents for one in facts.vat}
    if is_whole and nets != {(one.category, one.rate_bp): one.net_cents for one in statement.vat}:
        yield "vat", "its VAT is on other amounts than the statement's."


def _reference_differences(facts: Facts, expected: Expected) -> Iterator[tuple[str, str]]:
    if expected.statement_id.hex() not in (text.lower() for text in facts.supporting):
        yield "statement", "it does not name the statement that both sides signed."
    reference = make_creditor_reference(expected.statement_id)
    wanted = {reference, expected.invoice.invoice_number}  # a credit note that is not paid names itself
    if not set(facts.references) <= wanted or (facts.due_cents and reference not in facts.references and facts.ibans):
        yield "reference", f"the payment's reference is {list(facts.references)}; {reference} was expected."


def _day_differences(facts: Facts, invoice: Invoice, statement: Statement) -> Iterator[tuple[str, str]]:
    for what, said, time_ms in (
        ("issue-date", facts.issue_date, invoice.issued_ms),
        ("period", facts.period_first, statement.from_ms),
        ("period", facts.period_last, statement.until_ms - 1),
    ):
        if abs(said - _utc_day(time_ms)) > DAY_TOLERANCE:
            yield what, f"it says {said}; {_utc_day(time_ms)} was signed."
    if facts.due_date is not None and facts.due_date < _utc_day(statement.due_ms) - DAY_TOLERANCE:
        yield "due-date", f"it is to be paid by {facts.due_date}; both sides signed {_utc_day(statement.due_ms)}."


def _party_differences(
    who: str, name: str, ids: Iterable[str], details: Sequence[BillingDetails]
) -> Iterator[tuple[str, str]]:
    if not details:
        yield who, f"the {who}'s billing details are not known here."
        return
    if name not in {one.legal_name for one in details}:
        yield who, f"the {who} is {printable(name[:60])!r}; {details[-1].legal_name!r} was expected."
    known = {number for one in details for number in (one.vat_id, one.tax_number) if number}
    strange = [number for number in ids if number not in known]
    if strange:
        yield who, f"the {who}'s tax number is {printable(strange[0][:60])!r}; {sorted(known)} are known."


def _account_differences(facts: Facts, expected: Expected) -> Iterator[tuple[str, str]]:
    ours = account_in_force(expected.seller, expected.invoice.issued_ms)
    if expected.invoice.type_code.is_credit_note:
        ours |= {one.iban for one in expected.buyer if one.iban}
    elif facts.due_cents and not facts.ibans:
        yield "iban", "it names no account to pay into."
    for iban in facts.ibans:
        if iban not in ours:
            known = ", ".join(sorted(ours)) or "none"
            shown = printable(iban[:60])
            yield "iban", f"it asks for payment to {shown!r}; by its billing details the provider has {known}."


def _utc_day(time_ms: int) -> date:
    return datetime.fromtimestamp(time_ms // 1000, UTC).date()


SELF_BILLED: Final = frozenset({InvoiceType.SELF_BILLED_INVOICE, InvoiceType.SELF_BILLED_CREDIT_NOTE})
