"""What an invoice file says: number, kind, currency, sums, and the statement that it is of. From CII, UBL, Factur-X.

Files may come from anybody. XML is read by expat (Python's own): no DTD, no entity, nothing fetched, and caps on size,
depth, elements and text. Of a PDF only the file `factur-x.xml` inside is taken, and never more of it than a cap.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field
from typing import Any, Final
from xml.parsers import expat

from p2pgrid.errors import UsageError
from p2pgrid.proto.statement import InvoiceType
from p2pgrid.settlement.invoices.libraries import library
from p2pgrid.settlement.payments.cents import NotAnAmount, signed_cents_of

MAX_BYTES: Final = 32 * 1024 * 1024
"""Of a file, and of the XML inside a PDF."""
MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 500_000
MAX_TEXT_CHARS: Final = 1000
"""Of a text that is taken."""

_UNECE: Final = "urn:un:unece:uncefact:data:standard:"
_UBL: Final = "urn:oasis:names:specification:ubl:schema:xsd:"
_ROOTS: Final = {
    f"{_UNECE}CrossIndustryInvoice:100 CrossIndustryInvoice": "cii",
    f"{_UBL}Invoice-2 Invoice": "ubl",
    f"{_UBL}CreditNote-2 CreditNote": "ubl",
}
_SPACES: Final = {
    "cii": (f"{_UNECE}CrossIndustryInvoice:100", f"{_UNECE}ReusableAggregateBusinessInformationEntity:100"),
    "ubl": (
        f"{_UBL}Invoice-2",
        f"{_UBL}CreditNote-2",
        f"{_UBL}CommonAggregateComponents-2",
        f"{_UBL}CommonBasicComponents-2",
    ),
}
_SETTLEMENT: Final = "SupplyChainTradeTransaction/ApplicableHeaderTradeSettlement"
_SUMS: Final = f"{_SETTLEMENT}/SpecifiedTradeSettlementHeaderMonetarySummation"
_AGREEMENT: Final = "SupplyChainTradeTransaction/ApplicableHeaderTradeAgreement"
_FIELDS: Final = {
    "cii": {
        "ExchangedDocument/ID": "number",
        "ExchangedDocument/TypeCode": "type",
        f"{_SETTLEMENT}/InvoiceCurrencyCode": "currency",
        f"{_SUMS}/TaxBasisTotalAmount": "net",
        f"{_SUMS}/TaxTotalAmount": "vat",
        f"{_SUMS}/GrandTotalAmount": "gross",
        f"{_AGREEMENT}/AdditionalReferencedDocument/IssuerAssignedID": "supporting",
    },
    "ubl": {
        "ID": "number",
        "InvoiceTypeCode": "type",
        "CreditNoteTypeCode": "type",
        "DocumentCurrencyCode": "currency",
        "LegalMonetaryTotal/TaxExclusiveAmount": "net",
        "TaxTotal/TaxAmount": "vat",
        "LegalMonetaryTotal/TaxInclusiveAmount": "gross",
        "AdditionalDocumentReference/ID": "supporting",
    },
}
"""Below the root, what is taken."""


class UnreadableInvoice(UsageError):
    """The file is no invoice that can be read, and says why."""


@dataclass(frozen=True, slots=True)
class InvoiceTotals:
    """What a file says. Amounts have the record's sign: a credit note's are below zero."""

    number: str
    type_code: int
    currency: str
    net_cents: int
    vat_cents: int
    gross_cents: int
    supporting: tuple[str, ...]
    """References of supporting documents (BT-122): the statement's id in hex is one."""


def read_totals(content: bytes) -> InvoiceTotals:
    """What a file says. Raises UnreadableInvoice; LocalError where it is a PDF and pikepdf is missing."""
    if len(content) > MAX_BYTES:
        raise UnreadableInvoice(f"the file has {len(content)} bytes; invoices have at most {MAX_BYTES}.")
    if content[:5] == b"%PDF-":
        content = _inside(content)
    reader = _Reader()
    reader.read(content)
    return _totals(reader)


def _inside(pdf: bytes) -> bytes:
    """The XML inside a Factur-X page."""
    pikepdf = library("pikepdf")
    try:
        with pikepdf.open(io.BytesIO(pdf), attempt_recovery=False) as opened:
            spec = opened.attachments.get("factur-x.xml")
            if spec is None:
                raise UnreadableInvoice("the PDF has no factur-x.xml inside: it is no Factur-X.")
            stream = spec.get_file().obj
            kind, raw = str(stream.get("/Filter", "")), bytes(stream.read_raw_bytes())
            has_parameters = "/DecodeParms" in stream
    except (pikepdf.PdfError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UnreadableInvoice(f"the PDF cannot be read: {error}.") from None
    if kind == "" and not has_parameters:
        return raw
    if kind != "/FlateDecode" or has_parameters:
        raise UnreadableInvoice(f"the XML inside the PDF is packed as {kind[:40]!r}; /FlateDecode was expected.")
    unpacker = zlib.decompressobj()
    try:
        xml = unpacker.decompress(raw, MAX_BYTES)
    except zlib.error as error:
        raise UnreadableInvoice(f"the XML inside the PDF cannot be unpacked: {error}.") from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise UnreadableInvoice(f"the XML inside the PDF is cut off, or unpacks to more than {MAX_BYTES} bytes.")
    return xml


def _totals(reader: _Reader) -> InvoiceTotals:
    found = reader.found
    type_code = _one(found, "type")
    if type_code not in {str(kind.value) for kind in InvoiceType}:
        shown = repr(type_code[:20])
        raise UnreadableInvoice(f"the document's type is {shown}; an invoice's or a credit note's was expected.")
    kind, currency = InvoiceType(int(type_code)), _one(found, "currency")
    sign = -1 if kind.is_credit_note else 1
    vat = [amount for amount, attribute in found.get("vat", ()) if attribute in ("", currency)]
    if len(vat) > 1:
        raise UnreadableInvoice(f"the document has {len(vat)} sums of VAT in {currency[:3]!r}; one was expected.")
    supporting = tuple(text for text, _ in found.get("supporting", ()))
    return InvoiceTotals(
        number=_one(found, "number"),
        type_code=kind.value,
        currency=currency,
        net_cents=sign * _cents(_one(found, "net")),
        vat_cents=sign * _cents(vat[0]) if vat else 0,
        gross_cents=sign * _cents(_one(found, "gross")),
        supporting=supporting,
    )


def _one(found: dict[str, list[tuple[str, str]]], name: str) -> str:
    texts = found.get(name, [])
    if len(texts) != 1 or not texts[0][0]:
        raise UnreadableInvoice(f"the document has {len(texts)} values for its {name}; one was expected.")
    return texts[0][0]


def _cents(text: str) -> int:
    try:
        return signed_cents_of(text)
    except NotAnAmount as error:
        raise UnreadableInvoice(f"{error}.") from None


@dataclass
class _Reader:
    """One document."""

    found: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """By field, texts with the currency that stands at each."""
    _syntax: str = ""
    _path: list[str] = field(default_factory=list)
    _pieces: list[str] | None = None
    _chars: int = 0
    _currency: str = ""
    _elements: int = 0

    def read(self, content: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.ExternalEntityRefHandler = _refuse_external
        parser.SkippedEntityHandler = _refuse_entity
        try:
            parser.Parse(content, True)
        except expat.ExpatError as error:
            what = expat.ErrorString(error.code)
            raise UnreadableInvoice(f"the file is no XML: {what} at line {error.lineno}.") from None
        except (ValueError, LookupError):
            raise UnreadableInvoice("the file declares an encoding that cannot be read.") from None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if len(self._path) >= MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise UnreadableInvoice("the file has too many elements, or too many in one another.")
        if not self._syntax:
            self._syntax = _ROOTS.get(name, "")
            if not self._syntax:
                raise UnreadableInvoice(f"the file is no invoice in CII or UBL: it begins with {name[-60:]!r}.")
        space, _, tag = name.rpartition(" ")
        self._path.append(tag if space in _SPACES[self._syntax] else "?")
        self._pieces, self._chars, self._currency = None, 0, ""
        if self._field:
            self._pieces, self._currency = [], attributes.get("currencyID", "")

    @property
    def _field(self) -> str:
        return _FIELDS[self._syntax].get("/".join(self._path[1:]), "")

    def _end(self, name: str) -> None:
        if self._pieces is not None:
            self.found.setdefault(self._field, []).append(("".join(self._pieces).strip(), self._currency))
            self._pieces = None
        self._path.pop()

    def _text(self, text: str) -> None:
        if self._pieces is not None:
            self._chars += len(text)
            if self._chars > MAX_TEXT_CHARS:
                raise UnreadableInvoice(f"a text in the file has more than {MAX_TEXT_CHARS} characters.")
            self._pieces.append(text)


def _refuse_doctype(*_: Any) -> None:
    raise UnreadableInvoice("the file declares a document type (DTD), which no invoice does.")


def _refuse_external(*_: Any) -> int:
    raise UnreadableInvoice("the file refers to another file.")


def _refuse_entity(*_: Any) -> None:
    raise UnreadableInvoice("the file uses an entity that is not defined.")
