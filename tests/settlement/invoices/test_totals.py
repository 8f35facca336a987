"""What a file says is read back as it was written; hostile files are refused at once, and fetch and expand nothing."""

from __future__ import annotations

import dataclasses
import io
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pikepdf
import pytest

from p2pgrid.settlement.invoices.cii import write_cii
from p2pgrid.settlement.invoices.document import Document
from p2pgrid.settlement.invoices.factur_x import write_factur_x
from p2pgrid.settlement.invoices.make import make_document
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.invoices.totals import MAX_BYTES, UnreadableInvoice, read_totals
from p2pgrid.settlement.invoices.ubl import write_ubl
from tests.settlement.invoices.parties import EARLIER, head, line


def documents() -> list[Document]:
    """An invoice with VAT, one with reverse charge and money paid ahead, and a credit note."""
    return [
        make_document(head("LT", "LT"), [line()]),
        make_document(head("LT", "DE"), [line()], credits_pico=10**11, paid_cents=100),
        make_document(head("LT", "LT", preceding=EARLIER), [line()], credits_pico=10**14),
    ]


def as_factur_x(document: Document) -> bytes:
    plain = dataclasses.replace(document, profile=Profile.EN16931)
    return write_factur_x(plain, write_cii(plain))


@pytest.mark.parametrize("write", [write_cii, write_ubl, as_factur_x])
@pytest.mark.parametrize("index", range(3))
def test_what_was_written_is_read_back(write: Callable[[Document], bytes], index: int) -> None:
    document = documents()[index]
    totals = read_totals(write(document))
    assert (totals.net_cents, totals.vat_cents, totals.gross_cents) == document.signed_cents
    assert (totals.number, totals.type_code, totals.currency) == (document.number, document.type.value, "EUR")
    assert totals.supporting == tuple(one.reference for one in document.supporting)
    assert bytes(range(32)).hex() in totals.supporting


def test_a_credit_note_is_below_zero() -> None:
    assert read_totals(write_ubl(documents()[2])).gross_cents < 0


CII = write_cii(documents()[0])
UBL = write_ubl(documents()[0])


def in_pdf(stream: bytes, name: str = "factur-x.xml", **entries: object) -> bytes:
    """A PDF with one file inside, as it is."""
    out = io.BytesIO()
    with pikepdf.new() as pdf:
        pdf.add_blank_page()
        pdf.attachments[name] = pikepdf.AttachedFileSpec(
            pdf, stream, description="", filename=name, mime_type="text/xml", creation_date="", mod_date=""
        )
        for key, value in entries.items():
            pdf.attachments[name].get_file().obj[f"/{key}"] = value
        pdf.save(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no XML"),
        (b"<a/>", "no invoice in CII or UBL"),
        (CII[:-20], "no XML"),
        (CII.replace(b"?>", b"?><!DOCTYPE x>", 1), "document type"),
        (UBL.replace(b"<cbc:ID>", b"<cbc:ID>&boom;", 1), "no XML"),
        (UBL.replace(b"EUR</cbc:DocumentCurrencyCode>", b"</cbc:DocumentCurrencyCode>"), "currency"),
        (UBL.replace(b">380<", b">7<"), "type"),
        (UBL.replace(b">380<", b">3800<"), "type"),
        (UBL.replace(b"<cbc:InvoiceTypeCode>", b"<cbc:ID>2</cbc:ID><cbc:InvoiceTypeCode>"), "2 values for its number"),
        (UBL.replace(b"2026/0001", b"9" * 1001), "more than 1000 characters"),
        (CII.replace(b"<ram:GrandTotalAmount>", b"<ram:GrandTotalAmount>1,"), "comma"),
        (CII.replace(b"<ram:GrandTotalAmount>", b"<ram:GrandTotalAmount>1e9"), "no amount"),
        (b"<" * 100, "no XML"),
        (b"%PDF-1.7\nnonsense", "PDF"),
        (in_pdf(CII, name="other.xml"), "no factur-x.xml inside"),
        (in_pdf(b"<a/>"), "no invoice"),
        (b"\xff\xfe\x00", "no XML"),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "encoding"),
    ],
)
def test_what_is_no_invoice_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(UnreadableInvoice) as caught:
        read_totals(content)
    assert words in caught.value.message


def bomb() -> bytes:
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    return f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "boom">{levels}]><x>&l11;</x>'.encode()


def test_entities_expand_to_nothing_and_fetch_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("2026/0001")
    outside = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "{secret.as_uri()}">]><x>&e;</x>'.encode()
    for content in (bomb(), outside, outside.decode().encode("utf-16")):
        began = time.monotonic()
        with pytest.raises(UnreadableInvoice, match="document type"):
            read_totals(content)
        assert time.monotonic() - began < 5


def test_depth_size_and_number_have_caps() -> None:
    start, end = CII.split(b"<rsm:ExchangedDocument>", 1)
    deep = start + b"<rsm:x>" * 100 + b"</rsm:x>" * 100 + b"<rsm:ExchangedDocument>" + end
    many = start + b"<rsm:x/>" * 600_000 + b"<rsm:ExchangedDocument>" + end
    for content in (deep, many):
        with pytest.raises(UnreadableInvoice, match="too many"):
            read_totals(content)
    with pytest.raises(UnreadableInvoice, match="at most"):
        read_totals(b" " * (MAX_BYTES + 1))


def test_xml_in_a_pdf_unpacks_to_no_more_than_a_cap() -> None:
    pdf = in_pdf(b"<a>" + b" " * (4 * MAX_BYTES))
    assert len(pdf) < MAX_BYTES // 8
    tracemalloc.start()
    with pytest.raises(UnreadableInvoice, match="unpacks to more"):
        read_totals(pdf)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_BYTES
