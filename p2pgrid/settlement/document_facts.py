"""What an invoice's XML from a peer says: the facts that are held against the record and the statement.

Everything in it is hostile. No DTD, no entities, no network, a cap on size and depth; each fact once, in the form that
EN 16931 gives it; what is not understood is refused. A PDF is opened in a process of its own (`pdf_process`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from p2pgrid.errors import LocalError, UsageError
from p2pgrid.printable import printable
from p2pgrid.settlement import pdf_process
from p2pgrid.settlement.invoices.libraries import library
from p2pgrid.settlement.invoices.profiles import Syntax

MAX_BYTES: Final = 4 * 1024 * 1024
"""Of a document from a peer, and of the XML inside a PDF."""
PDF_TIMEOUT_S: Final = 20.0
_MAX_TAGS: Final = 200_000
"""Opening and closing ones: a document of 1,000 lines has some 60,000."""
_DECLARATION: Final = re.compile(
    rb"""<\?xml\s+version\s*=\s*["']1\.0["'](\s+encoding\s*=\s*["']utf-8["'])?"""
    rb"""(\s+standalone\s*=\s*["'](yes|no)["'])?\s*\?>""",
    re.IGNORECASE,
)
_AMOUNT: Final = re.compile(r"(-?)(\d{1,13})\.(\d{2})", re.ASCII)
_RATE: Final = re.compile(r"(\d{1,3})(?:\.(\d{1,2}))?", re.ASCII)
_RSM: Final = "{urn:un:unece:uncefact:data:standard:CrossIndustryInvoice:100}"
_RAM: Final = "{urn:un:unece:uncefact:data:standard:ReusableAggregateBusinessInformationEntity:100}"
_UDT: Final = "{urn:un:unece:uncefact:data:standard:UnqualifiedDataType:100}"
_UBL: Final = "urn:oasis:names:specification:ubl:schema:xsd:"
_CAC: Final = f"{{{_UBL}CommonAggregateComponents-2}}"
_CBC: Final = f"{{{_UBL}CommonBasicComponents-2}}"


class DocumentRefused(UsageError):
    """A document from a peer is not what it should be. `code` is a short name of the reason
    (docs/settlement/issuing.md)."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class VatFact:
    """One VAT breakdown (BG-23)."""

    category: str
    rate_bp: int
    exemption: str
    net_cents: int
    vat_cents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a document says. Amounts in cents, as they stand there: a credit note's are above zero."""

    syntax: Syntax
    number: str
    type_code: int
    currency: str
    issue_date: date
    due_date: date | None
    period_first: date
    period_last: date
    seller_name: str
    seller_ids: tuple[str, ...]
    """VAT and tax numbers."""
    buyer_name: str
    buyer_ids: tuple[str, ...]
    net_cents: int
    vat_cents: int
    gross_cents: int
    paid_cents: int
    due_cents: int
    vat: tuple[VatFact, ...]
    ibans: tuple[str, ...]
    references: tuple[str, ...]
    """What the payer is to write (BT-83)."""
    supporting: tuple[str, ...]
    """BT-122: the statement's hash is one of them."""
    preceding: tuple[str, ...]


def facts_of(xml: bytes) -> Facts:
    """The facts in a CII or UBL document. Raises DocumentRefused (`xml`, `form`), LocalError without lxml."""
    root = parse_hostile(xml)
    try:
        if root.tag == f"{_RSM}CrossIndustryInvoice":
            return _cii(root)
        if root.tag in (f"{{{_UBL}Invoice-2}}Invoice", f"{{{_UBL}CreditNote-2}}CreditNote"):
            return _ubl(root)
    except ValueError as error:
        raise DocumentRefused("form", f"the document is not written as EN 16931 has it: {error}.") from None
    raise DocumentRefused("form", f"the root element {str(root.tag)[:80]!r} is none of an invoice in CII or UBL.")


def parse_hostile(xml: bytes) -> Any:
    """The root of XML that nobody vouches for. Raises DocumentRefused (`xml`).

    What is looked for in the bytes is what the parser sees: they are UTF-8, and say nothing else of themselves.
    """
    etree = library("lxml.etree")
    if not 0 < len(xml) <= MAX_BYTES:
        raise DocumentRefused("xml", f"a document of {len(xml)} bytes is not looked at; {MAX_BYTES} are the most.")
    try:
        xml.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentRefused("xml", f"the document is not written in UTF-8: {error.reason}.") from None
    head = xml.removeprefix(b"\xef\xbb\xbf")
    if head[:5] == b"<?xml" and not _DECLARATION.match(head):
        raise DocumentRefused("xml", "the document says that it is in another encoding than UTF-8.")
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise DocumentRefused("xml", "the document has a DTD; no invoice needs one, and entities are not read.")
    if xml.count(b"<") > _MAX_TAGS:
        raise DocumentRefused("xml", f"the document has more than {_MAX_TAGS} tags: no invoice has.")
    parser = etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        dtd_validation=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        return etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise DocumentRefused("xml", f"the document is no XML that is read here: {str(error)[:200]}.") from None


def xml_in_pdf(pdf: bytes) -> bytes:
    """The `factur-x.xml` inside a PDF from a peer. Raises DocumentRefused (`pdf`), LocalError."""
    if not 0 < len(pdf) <= MAX_BYTES:
        raise DocumentRefused("pdf", f"a document of {len(pdf)} bytes is not looked at; {MAX_BYTES} are the most.")
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and our own file
            [sys.executable, "-P", pdf_process.__file__, str(MAX_BYTES)],
            input=pdf,
            capture_output=True,
            timeout=PDF_TIMEOUT_S,
            cwd=tempfile.gettempdir(),
            env={key: value for key, value in os.environ.items() if not key.startswith("P2PGRID")},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DocumentRefused("pdf", f"the PDF took longer than {PDF_TIMEOUT_S:g} s to be opened.") from None
    except OSError as error:
        raise LocalError(f"the process that opens PDFs cannot be started: {error}.") from None
    if done.returncode == pdf_process.NO_LIBRARY:
        library("pikepdf")  # says what to install
    if done.returncode != 0:
        said = done.stderr[-200:].decode(errors="replace").strip() or f"it ended with {done.returncode}"
        raise DocumentRefused("pdf", f"there is no invoice's XML to be had from the PDF: {_plain(said)}")
    return done.stdout


# -- CII --------------------------------------------------------------------------------------------------------------


def _cii(root: Any) -> Facts:
    header = _one(root, f"{_RSM}ExchangedDocument")
    trade = _one(root, f"{_RSM}SupplyChainTradeTransaction")
    agreement = _one(trade, f"{_RAM}ApplicableHeaderTradeAgreement")
    settlement = _one(trade, f"{_RAM}ApplicableHeaderTradeSettlement")
    sums = _one(settlement, f"{_RAM}SpecifiedTradeSettlementHeaderMonetarySummation")
    currency = _text(settlement, f"{_RAM}InvoiceCurrencyCode")
    period = _one(settlement, f"{_RAM}BillingSpecifiedPeriod")
    due = list(settlement.iterfind(f"{_RAM}SpecifiedTradePaymentTerms/{_RAM}DueDateDateTime"))
    seller, buyer = (_one(agreement, f"{_RAM}{who}TradeParty") for who in ("Seller", "Buyer"))
    account = f"{_RAM}SpecifiedTradeSettlementPaymentMeans/{_RAM}PayeePartyCreditorFinancialAccount/"
    return Facts(
        syntax=Syntax.CII,
        number=_text(header, f"{_RAM}ID"),
        type_code=_type(_text(header, f"{_RAM}TypeCode")),
        currency=currency,
        issue_date=_cii_day(_one(header, f"{_RAM}IssueDateTime")),
        due_date=_cii_day(_only(due, "DueDateDateTime")) if due else None,
        period_first=_cii_day(_one(period, f"{_RAM}StartDateTime")),
        period_last=_cii_day(_one(period, f"{_RAM}EndDateTime")),
        seller_name=_text(seller, f"{_RAM}Name"),
        seller_ids=_texts(seller, f"{_RAM}SpecifiedTaxRegistration/{_RAM}ID"),
        buyer_name=_text(buyer, f"{_RAM}Name"),
        buyer_ids=_texts(buyer, f"{_RAM}SpecifiedTaxRegistration/{_RAM}ID"),
        net_cents=_amount(sums, f"{_RAM}TaxBasisTotalAmount", currency),
        vat_cents=_amount(sums, f"{_RAM}TaxTotalAmount", currency),
        gross_cents=_amount(sums, f"{_RAM}GrandTotalAmount", currency),
        paid_cents=_amount(sums, f"{_RAM}TotalPrepaidAmount", currency, is_optional=True),
        due_cents=_amount(sums, f"{_RAM}DuePayableAmount", currency),
        vat=tuple(_cii_vat(tax, currency) for tax in settlement.iterfind(f"{_RAM}ApplicableTradeTax")),
        ibans=(*_texts(settlement, f"{account}{_RAM}IBANID"), *_texts(settlement, f"{account}{_RAM}ProprietaryID")),
        references=_texts(settlement, f"{_RAM}PaymentReference"),
        supporting=_texts(agreement, f"{_RAM}AdditionalReferencedDocument/{_RAM}IssuerAssignedID"),
        preceding=_texts(settlement, f"{_RAM}InvoiceReferencedDocument/{_RAM}IssuerAssignedID"),
    )


def _cii_day(element: Any) -> date:
    text = _text(element, f"{_UDT}DateTimeString")
    if not re.fullmatch(r"\d{8}", text, re.ASCII):
        raise ValueError(f"{_plain(text)!r} is no day")
    return date(int(text[:4]), int(text[4:6]), int(text[6:]))


def _cii_vat(tax: Any, currency: str) -> VatFact:
    rates = _texts(tax, f"{_RAM}RateApplicablePercent")
    return VatFact(
        category=_text(tax, f"{_RAM}CategoryCode"),
        rate_bp=_rate(rates),
        exemption=_optional(_texts(tax, f"{_RAM}ExemptionReasonCode")),
        net_cents=_amount(tax, f"{_RAM}BasisAmount", currency),
        vat_cents=_amount(tax, f"{_RAM}CalculatedAmount", currency),
    )


# -- UBL --------------------------------------------------------------------------------------------------------------


def _ubl(root: Any) -> Facts:
    kind = "CreditNote" if root.tag.endswith("}CreditNote") else "Invoice"
    currency = _text(root, f"{_CBC}DocumentCurrencyCode")
    period, sums = _one(root, f"{_CAC}InvoicePeriod"), _one(root, f"{_CAC}LegalMonetaryTotal")
    tax = _one(root, f"{_CAC}TaxTotal")
    due = _texts(root, f"{_CBC}DueDate")
    seller, buyer = (
        _one(_one(root, f"{_CAC}Accounting{who}Party"), f"{_CAC}Party") for who in ("Supplier", "Customer")
    )
    ids = f"{_CAC}PartyTaxScheme/{_CBC}CompanyID"
    return Facts(
        syntax=Syntax.UBL,
        number=_text(root, f"{_CBC}ID"),
        type_code=_type(_text(root, f"{_CBC}{kind}TypeCode")),
        currency=currency,
        issue_date=_ubl_day(_text(root, f"{_CBC}IssueDate")),
        due_date=_ubl_day(_optional(due)) if due else None,
        period_first=_ubl_day(_text(period, f"{_CBC}StartDate")),
        period_last=_ubl_day(_text(period, f"{_CBC}EndDate")),
        seller_name=_text(_one(seller, f"{_CAC}PartyLegalEntity"), f"{_CBC}RegistrationName"),
        seller_ids=_texts(seller, ids),
        buyer_name=_text(_one(buyer, f"{_CAC}PartyLegalEntity"), f"{_CBC}RegistrationName"),
        buyer_ids=_texts(buyer, ids),
        net_cents=_amount(sums, f"{_CBC}TaxExclusiveAmount", currency),
        vat_cents=_amount(tax, f"{_CBC}TaxAmount", currency),
        gross_cents=_amount(sums, f"{_CBC}TaxInclusiveAmount", currency),
        paid_cents=_amount(sums, f"{_CBC}PrepaidAmount", currency, is_optional=True),
        due_cents=_amount(sums, f"{_CBC}PayableAmount", currency),
        vat=tuple(_ubl_vat(one, currency) for one in tax.iterfind(f"{_CAC}TaxSubtotal")),
        ibans=_texts(root, f"{_CAC}PaymentMeans/{_CAC}PayeeFinancialAccount/{_CBC}ID"),
        references=_texts(root, f"{_CAC}PaymentMeans/{_CBC}PaymentID"),
        supporting=_texts(root, f"{_CAC}AdditionalDocumentReference/{_CBC}ID"),
        preceding=_texts(root, f"{_CAC}BillingReference/{_CAC}InvoiceDocumentReference/{_CBC}ID"),
    )


def _ubl_day(text: str) -> date:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        raise ValueError(f"{_plain(text)!r} is no day")
    return date.fromisoformat(text)


def _ubl_vat(subtotal: Any, currency: str) -> VatFact:
    category = _one(subtotal, f"{_CAC}TaxCategory")
    return VatFact(
        category=_text(category, f"{_CBC}ID"),
        rate_bp=_rate(_texts(category, f"{_CBC}Percent")),
        exemption=_optional(_texts(category, f"{_CBC}TaxExemptionReasonCode")),
        net_cents=_amount(subtotal, f"{_CBC}TaxableAmount", currency),
        vat_cents=_amount(subtotal, f"{_CBC}TaxAmount", currency),
    )


# -- elements ---------------------------------------------------------------------------------------------------------


def _one(parent: Any, tag: str) -> Any:
    return _only(list(parent.iterfind(tag)), tag)


def _only(found: Sequence[Any], tag: str) -> Any:
    if len(found) != 1:
        raise ValueError(f"{tag.rpartition('}')[2] or tag} stands there {len(found)} times; once was expected")
    return found[0]


def _text(parent: Any, tag: str) -> str:
    return _string(_one(parent, tag))


def _texts(parent: Any, path: str) -> tuple[str, ...]:
    return tuple(_string(element) for element in parent.iterfind(path))


def _string(element: Any) -> str:
    if len(element):
        raise ValueError(f"{str(element.tag).rpartition('}')[2]} has elements where a text was expected")
    text = (element.text or "").strip()
    if not text or len(text) > 500:
        raise ValueError(f"{str(element.tag).rpartition('}')[2]} has a text of {len(text)} characters")
    return text


def _optional(texts: Sequence[str]) -> str:
    if len(texts) > 1:
        raise ValueError("a fact stands there twice")
    return texts[0] if texts else ""


def _type(text: str) -> int:
    if not re.fullmatch(r"\d{3}", text, re.ASCII):
        raise ValueError(f"{_plain(text)!r} is no type of document")
    return int(text)


def _amount(parent: Any, tag: str, currency: str, *, is_optional: bool = False) -> int:
    found = list(parent.iterfind(tag))
    if is_optional and not found:
        return 0
    element = _only(found, tag)
    if element.get("currencyID", currency) != currency:
        raise ValueError(f"an amount is in {_plain(element.get('currencyID'))!r}, the document in {_plain(currency)!r}")
    text = _string(element)
    parts = _AMOUNT.fullmatch(text)
    if parts is None:
        raise ValueError(f"{_plain(text)!r} is no amount with two decimals")
    return (-1 if parts[1] else 1) * (int(parts[2]) * 100 + int(parts[3]))


def _rate(texts: Sequence[str]) -> int:
    text = _optional(texts)
    if not text:
        return 0
    parts = _RATE.fullmatch(text)
    if parts is None:
        raise ValueError(f"{_plain(text)!r} is no rate")
    return int(parts[1]) * 100 + int((parts[2] or "0").ljust(2, "0"))


def _plain(text: str) -> str:
    """A peer's text, fit for a message."""
    return printable(text[:100])
