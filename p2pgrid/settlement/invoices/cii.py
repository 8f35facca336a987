"""A document as UN/CEFACT Cross Industry Invoice (CII, D16B), by drafthorse."""

from __future__ import annotations

import base64
import copy
from typing import Any

from p2pgrid.settlement.invoices.document import UNIT, Document, InvoiceLine, PrecedingInvoice, SupportingDocument
from p2pgrid.settlement.invoices.libraries import library
from p2pgrid.settlement.invoices.parties import Address, Contact, Party
from p2pgrid.settlement.invoices.texts import euros, percent, price

_SUPPORTING = "916"
"""UNTDID 1001: a related document (BG-24)."""
_RAM = "urn:un:unece:uncefact:data:standard:ReusableAggregateBusinessInformationEntity:100"


def write_cii(document: Document) -> bytes:
    """The document as CII, UTF-8. It is not validated yet. Raises LocalError where drafthorse is missing."""
    models = library("drafthorse.models.document")
    out = models.Document()
    out.context.guideline_parameter.id = document.specification
    if document.process:
        out.context.business_parameter.id = document.process
    out.header.id = document.number
    out.header.type_code = str(document.type.value)
    out.header.issue_date_time = document.issue_date
    if document.note:
        note = library("drafthorse.models.note").IncludedNote()
        note.content = document.note
        out.header.notes.add(note)
    for line in document.lines:
        out.trade.items.add(_line(document, line))
    _write_agreement(document, out.trade.agreement)
    _write_settlement(document, out.trade.settlement)
    return _with_all_preceding(out.serialize(schema=None), document.preceding)


def _line(document: Document, line: InvoiceLine) -> Any:
    item = library("drafthorse.models.tradelines").LineItem()
    item.document.line_id = str(line.number)
    item.product.name = line.name
    item.agreement.net.amount = price(line.price_micro)
    item.agreement.net.basis_quantity = (str(line.base_quantity), UNIT)
    item.delivery.billed_quantity = (str(line.quantity), UNIT)
    _write_category(document, item.settlement.trade_tax, has_rate=document.states_rate)
    item.settlement.monetary_summation.total_amount = euros(line.net_cents)
    return item


def _write_category(document: Document, tax: Any, *, has_rate: bool) -> None:
    tax.type_code = "VAT"
    tax.category_code = document.vat.category.value
    if has_rate:
        tax.rate_applicable_percent = percent(document.vat.rate_bp)


def _write_agreement(document: Document, agreement: Any) -> None:
    if document.buyer_reference:
        agreement.buyer_reference = document.buyer_reference
    ids = document.tax_ids
    _write_party(document.seller, agreement.seller, {"VA": ids.seller_vat_id, "FC": ids.seller_tax_number})
    _write_party(document.buyer, agreement.buyer, {"VA": ids.buyer_vat_id})
    for supporting in document.supporting:
        agreement.additional_references.add(_supporting(supporting))


def _supporting(supporting: SupportingDocument) -> Any:
    reference = library("drafthorse.models.references").AdditionalReferencedDocument()
    reference.issuer_assigned_id = supporting.reference
    reference.type_code = _SUPPORTING
    reference.name = supporting.description
    if supporting.attachment is not None:
        attachment = supporting.attachment
        content = base64.b64encode(attachment.content).decode("ascii")
        reference.attached_object = (attachment.mime, attachment.filename, content)
    return reference


def _write_party(party: Party, out: Any, tax_ids: dict[str, str]) -> None:
    out.name = party.name
    if party.registration is not None:
        out.legal_organization.id = (party.registration.scheme, party.registration.number)
    if party.contact is not None:
        _write_contact(party.contact, out.contact)
    _write_address(party.address, out.address)
    if party.electronic_address is not None:
        out.electronic_address.uri_ID = (party.electronic_address.scheme, party.electronic_address.address)
    for scheme, number in tax_ids.items():
        if number:
            registration = library("drafthorse.models.party").TaxRegistration()
            registration.id = (scheme, number)
            out.tax_registrations.add(registration)


def _write_contact(contact: Contact, out: Any) -> None:
    out.person_name = contact.name
    out.telephone.number = contact.phone
    out.email.address = contact.email


def _write_address(address: Address, out: Any) -> None:
    out.postcode = address.post_code
    out.line_one = address.line1
    if address.line2:
        out.line_two = address.line2
    out.city_name = address.city
    out.country_id = address.country
    if address.subdivision:
        out.country_subdivision = address.subdivision


def _write_settlement(document: Document, out: Any) -> None:
    out.payment_reference = document.payment.reference or document.number
    out.currency_code = document.currency
    _write_payment(document, out)
    _write_breakdown(document, out)
    out.period.start = document.period_first
    out.period.end = document.period_last
    accounting = library("drafthorse.models.accounting")
    for allowance in document.allowances:
        charge = accounting.TradeAllowanceCharge()
        charge.indicator = False
        charge.actual_amount = euros(allowance.net_cents)
        charge.reason = allowance.reason
        tax = accounting.CategoryTradeTax()
        _write_category(document, tax, has_rate=document.states_rate)
        charge.trade_tax.add(tax)
        out.allowance_charge.add(charge)
    terms = library("drafthorse.models.payment").PaymentTerms()
    terms.description = document.payment.terms
    if document.due_date is not None:
        terms.due = document.due_date
    out.terms.add(terms)
    totals, sums = document.totals, out.monetary_summation
    sums.line_total = euros(totals.lines_cents)
    sums.charge_total = euros(0)
    sums.allowance_total = euros(totals.allowances_cents)
    sums.tax_basis_total = (euros(totals.net_cents), None)
    sums.tax_total = (euros(totals.vat_cents), document.currency)
    sums.grand_total = (euros(totals.gross_cents), None)
    sums.prepaid_total = euros(totals.paid_cents)
    sums.due_amount = euros(totals.due_cents)
    if document.preceding:
        out.invoice_referenced_document.issuer_assigned_id = document.preceding[0].number
        out.invoice_referenced_document.issue_date_time = document.preceding[0].issue_date


def _write_payment(document: Document, out: Any) -> None:
    means = library("drafthorse.models.payment").PaymentMeans()
    means.type_code = document.payment.means_code
    account = document.payment.account
    if account is not None:
        means.payee_account.iban = account.iban
        if account.holder:
            means.payee_account.account_name = account.holder
        if account.bic:
            means.payee_institution.bic = account.bic
    out.payment_means.add(means)


def _write_breakdown(document: Document, out: Any) -> None:
    tax = library("drafthorse.models.accounting").ApplicableTradeTax()
    _write_category(document, tax, has_rate=document.sums_state_rate)
    tax.calculated_amount = euros(document.totals.vat_cents)
    tax.basis_amount = euros(document.totals.net_cents)
    if document.vat.exemption_text:
        tax.exemption_reason = document.vat.exemption_text
    if document.vat.exemption_code:
        tax.exemption_reason_code = document.vat.exemption_code
    out.trade_tax.add(tax)


def _with_all_preceding(xml: bytes, preceding: tuple[PrecedingInvoice, ...]) -> bytes:
    """The XML with every preceding invoice named; drafthorse writes only one."""
    if len(preceding) < 2:
        return xml
    etree = library("lxml.etree")
    root = etree.fromstring(xml)
    first = next(root.iter(f"{{{_RAM}}}InvoiceReferencedDocument"))
    for earlier in reversed(preceding[1:]):
        another = copy.deepcopy(first)
        another.find(f"{{{_RAM}}}IssuerAssignedID").text = earlier.number
        another.find(f"{{{_RAM}}}FormattedIssueDateTime")[0].text = f"{earlier.issue_date:%Y%m%d}"
        first.addnext(another)
    return bytes(etree.tostring(root, encoding="UTF-8", xml_declaration=True))
