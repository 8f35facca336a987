"""A document as OASIS UBL 2.1: an Invoice or a CreditNote. Elements stand in the order of the schema."""

from __future__ import annotations

import base64
from typing import Any, Final

from p2pgrid.settlement.invoices.document import UNIT, Document, InvoiceLine, SupportingDocument
from p2pgrid.settlement.invoices.libraries import library
from p2pgrid.settlement.invoices.parties import Party
from p2pgrid.settlement.invoices.texts import euros, percent, price

_SCHEMA: Final = "urn:oasis:names:specification:ubl:schema:xsd:"
_CAC: Final = f"{{{_SCHEMA}CommonAggregateComponents-2}}"
_CBC: Final = f"{{{_SCHEMA}CommonBasicComponents-2}}"


def write_ubl(document: Document) -> bytes:
    """The document as UBL, UTF-8. It is not validated yet. Raises LocalError where lxml is missing."""
    etree = library("lxml.etree")
    kind = "CreditNote" if document.is_credit_note else "Invoice"
    names = {None: f"{_SCHEMA}{kind}-2", "cac": _CAC[1:-1], "cbc": _CBC[1:-1]}
    root = etree.Element(f"{{{names[None]}}}{kind}", nsmap=names)
    _Writer(etree, document).write(root)
    return bytes(etree.tostring(root, encoding="UTF-8", xml_declaration=True))


class _Writer:
    """Writes one document."""

    def __init__(self, etree: Any, document: Document) -> None:
        self._etree = etree
        self._document = document
        self._is_credit = document.is_credit_note

    def write(self, root: Any) -> None:
        document = self._document
        self._text(root, "CustomizationID", document.specification)
        if document.process:
            self._text(root, "ProfileID", document.process)
        self._text(root, "ID", document.number)
        self._text(root, "IssueDate", document.issue_date.isoformat())
        if document.due_date is not None and not self._is_credit:
            self._text(root, "DueDate", document.due_date.isoformat())
        self._text(root, "CreditNoteTypeCode" if self._is_credit else "InvoiceTypeCode", str(document.type.value))
        if document.note:
            self._text(root, "Note", document.note)
        self._text(root, "DocumentCurrencyCode", document.currency)
        if document.buyer_reference:
            self._text(root, "BuyerReference", document.buyer_reference)
        period = self._group(root, "InvoicePeriod")
        self._text(period, "StartDate", document.period_first.isoformat())
        self._text(period, "EndDate", document.period_last.isoformat())
        for earlier in document.preceding:
            reference = self._group(root, "BillingReference", "InvoiceDocumentReference")
            self._text(reference, "ID", earlier.number)
            self._text(reference, "IssueDate", earlier.issue_date.isoformat())
        for supporting in document.supporting:
            self._supporting(root, supporting)
        ids = document.tax_ids
        self._party(
            self._group(root, "AccountingSupplierParty", "Party"),
            document.seller,
            {"VAT": ids.seller_vat_id, "TAX": ids.seller_tax_number},
        )
        self._party(self._group(root, "AccountingCustomerParty", "Party"), document.buyer, {"VAT": ids.buyer_vat_id})
        self._payment(root)
        self._allowances(root)
        self._taxes(root)
        self._totals(root)
        for line in document.lines:
            self._line(root, line)

    def _supporting(self, root: Any, supporting: SupportingDocument) -> None:
        reference = self._group(root, "AdditionalDocumentReference")
        self._text(reference, "ID", supporting.reference)
        self._text(reference, "DocumentDescription", supporting.description)
        if supporting.attachment is not None:
            file = supporting.attachment
            content = base64.b64encode(file.content).decode("ascii")
            attachment = self._group(reference, "Attachment")
            self._text(attachment, "EmbeddedDocumentBinaryObject", content, mimeCode=file.mime, filename=file.filename)

    def _party(self, out: Any, party: Party, tax_ids: dict[str, str]) -> None:
        if party.electronic_address is not None:
            self._text(out, "EndpointID", party.electronic_address.address, schemeID=party.electronic_address.scheme)
        address = self._group(out, "PostalAddress")
        self._text(address, "StreetName", party.address.line1)
        if party.address.line2:
            self._text(address, "AdditionalStreetName", party.address.line2)
        self._text(address, "CityName", party.address.city)
        self._text(address, "PostalZone", party.address.post_code)
        if party.address.subdivision:
            self._text(address, "CountrySubentity", party.address.subdivision)
        self._text(self._group(address, "Country"), "IdentificationCode", party.address.country)
        for scheme, number in tax_ids.items():
            if number:
                registration = self._group(out, "PartyTaxScheme")
                self._text(registration, "CompanyID", number)
                self._text(self._group(registration, "TaxScheme"), "ID", scheme)
        legal = self._group(out, "PartyLegalEntity")
        self._text(legal, "RegistrationName", party.name)
        if party.registration is not None:
            listed = {"schemeID": party.registration.scheme} if party.registration.scheme else {}
            self._text(legal, "CompanyID", party.registration.number, **listed)
        if party.contact is not None:
            contact = self._group(out, "Contact")
            self._text(contact, "Name", party.contact.name)
            self._text(contact, "Telephone", party.contact.phone)
            self._text(contact, "ElectronicMail", party.contact.email)

    def _payment(self, root: Any) -> None:
        payment = self._document.payment
        means = self._group(root, "PaymentMeans")
        self._text(means, "PaymentMeansCode", payment.means_code)
        self._text(means, "PaymentID", payment.reference or self._document.number)
        if payment.account is not None:
            account = self._group(means, "PayeeFinancialAccount")
            self._text(account, "ID", payment.account.iban)
            if payment.account.holder:
                self._text(account, "Name", payment.account.holder)
            if payment.account.bic:
                self._text(self._group(account, "FinancialInstitutionBranch"), "ID", payment.account.bic)
        self._text(self._group(root, "PaymentTerms"), "Note", payment.terms)

    def _allowances(self, root: Any) -> None:
        for allowance in self._document.allowances:
            out = self._group(root, "AllowanceCharge")
            self._text(out, "ChargeIndicator", "false")
            self._text(out, "AllowanceChargeReason", allowance.reason)
            self._amount(out, "Amount", allowance.net_cents)
            self._category(self._group(out, "TaxCategory"), has_rate=self._document.states_rate)

    def _taxes(self, root: Any) -> None:
        document, totals = self._document, self._document.totals
        taxes = self._group(root, "TaxTotal")
        self._amount(taxes, "TaxAmount", totals.vat_cents)
        breakdown = self._group(taxes, "TaxSubtotal")
        self._amount(breakdown, "TaxableAmount", totals.net_cents)
        self._amount(breakdown, "TaxAmount", totals.vat_cents)
        self._category(
            self._group(breakdown, "TaxCategory"),
            has_rate=document.sums_state_rate,
            TaxExemptionReasonCode=document.vat.exemption_code,
            TaxExemptionReason=document.vat.exemption_text,
        )

    def _totals(self, root: Any) -> None:
        totals = self._document.totals
        out = self._group(root, "LegalMonetaryTotal")
        self._amount(out, "LineExtensionAmount", totals.lines_cents)
        self._amount(out, "TaxExclusiveAmount", totals.net_cents)
        self._amount(out, "TaxInclusiveAmount", totals.gross_cents)
        self._amount(out, "AllowanceTotalAmount", totals.allowances_cents)
        self._amount(out, "PrepaidAmount", totals.paid_cents)
        self._amount(out, "PayableAmount", totals.due_cents)

    def _line(self, root: Any, line: InvoiceLine) -> None:
        out = self._group(root, "CreditNoteLine" if self._is_credit else "InvoiceLine")
        self._text(out, "ID", str(line.number))
        quantity = "CreditedQuantity" if self._is_credit else "InvoicedQuantity"
        self._text(out, quantity, str(line.quantity), unitCode=UNIT)
        self._amount(out, "LineExtensionAmount", line.net_cents)
        item = self._group(out, "Item")
        self._text(item, "Name", line.name)
        self._category(self._group(item, "ClassifiedTaxCategory"), has_rate=self._document.states_rate)
        unit_price = self._group(out, "Price")
        self._text(unit_price, "PriceAmount", price(line.price_micro), currencyID=self._document.currency)
        self._text(unit_price, "BaseQuantity", str(line.base_quantity), unitCode=UNIT)

    def _category(self, out: Any, *, has_rate: bool, **reasons: str) -> None:
        vat = self._document.vat
        self._text(out, "ID", vat.category.value)
        if has_rate:
            self._text(out, "Percent", percent(vat.rate_bp))
        for name, reason in reasons.items():
            if reason:
                self._text(out, name, reason)
        self._text(self._group(out, "TaxScheme"), "ID", "VAT")

    def _group(self, parent: Any, *names: str) -> Any:
        for name in names:
            parent = self._etree.SubElement(parent, _CAC + name)
        return parent

    def _text(self, parent: Any, name: str, text: str, **attributes: str) -> None:
        self._etree.SubElement(parent, _CBC + name, attributes).text = text

    def _amount(self, parent: Any, name: str, cents: int) -> None:
        self._text(parent, name, euros(cents), currencyID=self._document.currency)
