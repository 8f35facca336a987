"""The page, what is inside it, and files that are whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
from datetime import date
from pathlib import Path
from typing import Any

import pikepdf
import pypdfium2
import pytest
from facturx import get_xml_from_pdf

from p2pgrid.errors import LocalError
from p2pgrid.settlement.invoices import issue as room
from p2pgrid.settlement.invoices.cii import write_cii
from p2pgrid.settlement.invoices.document import Attachment, Document
from p2pgrid.settlement.invoices.factur_x import write_factur_x
from p2pgrid.settlement.invoices.issue import Format, formats_of, issue, rendered, write_new
from p2pgrid.settlement.invoices.make import make_document
from p2pgrid.settlement.invoices.page import grouped
from p2pgrid.settlement.invoices.pdfa import embedded_files, pdfa_faults
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.sheet import BOTTOM, LEFT, RIGHT
from p2pgrid.settlement.invoices.validate import Validator
from tests.settlement.invoices.parties import EARLIER, head, line, party

LONG = "meta-llama/" + "Llama-4-Maverick-17B-128E-Instruct-FP8-" * 2 + "ąčęėįšųūž-мистраль-äöüß"
MM = 72 / 25.4


def page_of(document: Document) -> bytes:
    return write_factur_x(document, write_cii(document))


def texts_of(pdf: bytes) -> list[str]:
    """What a reader would copy from each page, its blanks made alike."""
    opened = pypdfium2.PdfDocument(pdf)
    return [re.sub(r"[\s\u202f]+", " ", page.get_textpage().get_text_bounded()) for page in opened]


def test_the_page_says_everything() -> None:
    attachment = Attachment(filename="statement.csv", mime="text/csv", content=b"a,b\n")
    asked = head("LT", "DE", statement_file=attachment, note="Ačiū.")
    (text,) = texts_of(page_of(make_document(asked, [line()], credits_pico=10**11, paid_cents=100)))
    for words in (
        "Invoice", "2026/0001", "1 November 2026", "15 November 2026", "1 \u2013 31 October 2026", "K-77",
        "Žaibas & Söhne LT", "Gedimino pr. 1", "LT-01103 Vilnius", "Lithuania", "VAT ID LT100001738313",
        "Käufer DE", "10623 Berlin", "Germany", "VAT ID DE136695976", "Registration 300123456",
        "Qwen/Qwen3-32B", "Input tokens 11 345 678 0.20 2.27", "Cached input tokens 1 000 000 0.05 0.05",
        "Output tokens 7 654 321 0.60 4.59", "Credit for accepted disputes \u22120.10", "Net 6.81",
        "VAT, reverse charge 0.00", "Total with VAT 6.81", "Paid ahead \u22121.00", "Amount due 5.81 EUR",
        "LT12 1000 0111 0100 1000", "HABALT22", "RF18539007547034", "Reverse charge / Atvirkštinis apmokestinimas",
        "Ačiū.", bytes(range(32)).hex(), "statement.csv", "page 1 of 1", "books@party.example",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seller": "FI", "buyer": "FI"}, ["VAT 25.5 %", "Amount due"]),
        ({"seller": "DE", "buyer": "US"}, ["VAT, out of scope", "VAT ID DE136695976", "United States"]),
        ({"seller": party("DE", is_small=True), "buyer": "DE"}, ["VAT, exempt", "§ 19 UStG", "Tax number"]),
        ({"seller": "EE", "buyer": "EE", "is_self_billed": True, "self_billing_agreed": True},
         ["Self-billed invoice", "Self-billing / Endale arve koostamine"]),
    ],
)  # fmt: skip
def test_what_the_law_wants_to_read(changes: dict[str, Any], words: list[str]) -> None:
    (text,) = texts_of(page_of(make_document(head(**changes), [line()])))
    assert [word for word in words if word not in text] == []


def test_who_paid_ahead_is_not_asked_to_pay() -> None:
    document = make_document(head("LT", "LT"), [line()])
    paid = make_document(head("LT", "LT"), [line()], paid_cents=document.totals.gross_cents)
    (text,) = texts_of(page_of(paid))
    assert "Nothing is left to pay." in text and "Amount due 0.00 EUR" in text
    assert "Please pay" not in text and "IBAN" not in text


def test_a_credit_note_names_what_it_corrects() -> None:
    document = make_document(head(preceding=EARLIER, account=None), [line()], credits_pico=10**13)
    (text,) = texts_of(page_of(document))
    for words in ("Credit note", "Credited to", "Corrects 2026/0000, 1 October 2026", "2025/0917", "\u221211 345 678",
                  "Amount credited 3.09 EUR", "Set off against your invoices"):  # fmt: skip
        assert words in text, words
    assert "IBAN" not in text


def test_forty_lines_go_over_pages_and_stay_on_them() -> None:
    lines = [line(f"{LONG}-{number}", prompt=10**12 + number) for number in range(14)]
    seller = party(
        "LT", name="Aukštųjų technologijų ir dirbtinio intelekto paslaugų uždaroji akcinė bendrovė „Žalia“ " * 2
    )
    pdf = page_of(make_document(head(seller), lines))
    pages = texts_of(pdf)
    assert len(pages) > 2
    for number, text in enumerate(pages, start=1):
        assert f"2026/0001 · page {number} of {len(pages)}" in text
        if "tokens" in text:
            assert "Model and tokens" in text
    assert sum(text.count("Output tokens") for text in pages) == 14
    opened = pypdfium2.PdfDocument(pdf)
    for page in opened:
        for found in page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_TEXT]):
            left, bottom, right, top = found.get_bounds()
            assert left >= (LEFT - 3) * MM and right <= (RIGHT + 3) * MM, "text beside the paper's margins"
            assert bottom >= (297 - BOTTOM - 20) * MM and top <= 297 * MM


def test_no_text_lies_on_another() -> None:
    """Rows of text do not overlap, whatever the lengths of names."""
    seller = party(
        "LT",
        name="Aukštųjų technologijų ir dirbtinio intelekto paslaugų uždaroji akcinė bendrovė „Žaliosios Kregždutės“",
    )
    pdf = page_of(make_document(head(seller, party("DE", name="W" * 120)), [line(LONG), line("x" * 120)]))
    for page in pypdfium2.PdfDocument(pdf):
        boxes = [found.get_bounds() for found in page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_TEXT])]
        for position, (left, bottom, right, top) in enumerate(boxes):
            for other in boxes[position + 1 :]:
                wide = min(right, other[2]) - max(left, other[0])
                high = min(top, other[3]) - max(bottom, other[1])
                assert wide <= 0.5 or high <= 1.2, (boxes[position], other)


def test_a_sign_that_the_font_lacks_is_refused() -> None:
    with pytest.raises(InvoiceRefused) as refused:
        page_of(make_document(head(buyer=party("DE", name="株式会社")), [line()]))
    assert refused.value.code == "glyph"


def test_the_same_document_gives_the_same_bytes() -> None:
    document = make_document(head(), [line()])
    assert hashlib.sha256(page_of(document)).digest() == hashlib.sha256(page_of(document)).digest()


def test_it_is_factur_x_to_another_reader() -> None:
    document = make_document(head(), [line()])
    name, xml = get_xml_from_pdf(page_of(document), check_xsd=True)
    assert name == "factur-x.xml" and xml == write_cii(document)


def test_attachments_are_inside() -> None:
    attachment = Attachment(filename="statement.csv", mime="text/csv", content=b"a,b\n")
    document = make_document(head(statement_file=attachment), [line()])
    assert embedded_files(page_of(document)) == {"factur-x.xml": write_cii(document), "statement.csv": b"a,b\n"}


def test_a_page_is_pdf_a() -> None:
    assert pdfa_faults(page_of(make_document(head(), [line()]))) == []


def spoil(change: str) -> bytes:
    """A good page with one thing made wrong."""
    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(page_of(make_document(head(), [line()])))) as pdf:
        root, page = pdf.Root, pdf.pages[0]
        font = next(iter(page.obj.Resources.Font.values()))
        match change:
            case "no metadata":
                del root.Metadata
            case "other metadata":
                root.Metadata = pdf.make_stream(root.Metadata.read_bytes().replace(b">B<", b">A<"))
            case "no intent":
                del root.OutputIntents
            case "script":
                root.AA = pikepdf.Dictionary()
            case "font not embedded":
                del font.DescendantFonts[0].FontDescriptor.FontFile2
            case "wrong widths":
                font.DescendantFonts[0].W = pikepdf.Array([1, pikepdf.Array([1] * 40)])
            case "no map to Unicode":
                del font.ToUnicode
            case "file without relationship":
                del root.AF[0].AFRelationship
            case "file not associated":
                root.AF = pikepdf.Array()
            case "annotation":
                page.obj.Annots = pikepdf.Array()
            case "CMYK":
                page.contents_add(b"0 0 0 1 k")
        save = {"encryption": pikepdf.Encryption(owner="o", user="")} if change == "encrypted" else {}
        pdf.save(out, fix_metadata_version=False, **save)
    return out.getvalue()


@pytest.mark.parametrize(
    "change",
    ["no metadata", "other metadata", "no intent", "script", "font not embedded", "wrong widths", "no map to Unicode",
     "file without relationship", "file not associated", "annotation", "CMYK", "encrypted"],
)  # fmt: skip
def test_what_is_no_pdf_a(change: str) -> None:
    assert pdfa_faults(spoil("")) == []
    assert pdfa_faults(spoil(change))


def test_what_is_no_pdf() -> None:
    assert pdfa_faults(b"%PDF-1.7 nothing")
    with pytest.raises(ValueError, match="no PDF"):
        embedded_files(b"nothing")


@pytest.mark.parametrize("profile", Profile)
def test_issuing(profile: Profile, tmp_path: Path, validator: Validator) -> None:
    document = make_document(head(profile=profile), [line()])
    paths = issue(document, formats_of(profile), tmp_path, "2026-0001", validator)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert {path.name.removeprefix("2026-0001") for path in paths} == {one.value for one in formats_of(profile)}
    with pytest.raises(LocalError, match="never overwritten"):
        issue(document, formats_of(profile), tmp_path, "2026-0001", validator)


def test_nothing_is_written_of_what_is_not_valid(tmp_path: Path, validator: Validator) -> None:
    document = make_document(head(), [line()])
    wrong = dataclasses.replace(document, totals=dataclasses.replace(document.totals, gross_cents=1))
    with pytest.raises(InvoiceRefused) as refused:
        issue(wrong, formats_of(Profile.EN16931), tmp_path, "x", validator)
    assert refused.value.code.startswith("BR-CO-1")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_no_pdf_a_is_not_issued(validator: Validator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "write_factur_x", lambda document, cii: spoil("no intent"))
    with pytest.raises(InvoiceRefused) as refused:
        rendered(make_document(head(), [line()]), [Format.FACTUR_X], validator)
    assert refused.value.code == "pdf-a"


def test_a_page_with_other_xml_inside_is_not_issued(validator: Validator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "write_factur_x", lambda document, cii: write_factur_x(document, cii + b"\n"))
    with pytest.raises(InvoiceRefused) as refused:
        rendered(make_document(head(), [line()]), [Format.FACTUR_X], validator)
    assert refused.value.code == "pdf-a"


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validator: Validator) -> None:
    write_new(tmp_path / "a", b"one")
    with pytest.raises(LocalError):
        write_new(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    with pytest.raises(LocalError):
        write_new(tmp_path / "none" / "a", b"two")
    linked: list[Any] = []

    def full(source: Any, target: Any) -> None:
        if linked:
            raise OSError(28, "No space left on device")
        linked.append(target)
        Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(LocalError, match="No space left"):
        issue(make_document(head(), [line()]), [Format.CII, Format.UBL], tmp_path, "x", validator)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_numbers_for_people() -> None:
    thin = "\u202f"
    for number, shown in (
        ("0", "0"),
        ("999", "999"),
        ("1000", f"1{thin}000"),
        ("-1234567.80", f"\u22121{thin}234{thin}567.80"),
    ):
        assert grouped(number) == shown


def test_dates_of_another_day_change_the_file() -> None:
    one, other = (make_document(head(issue_date=day), [line()]) for day in (date(2026, 11, 1), date(2026, 11, 2)))
    assert page_of(one) != page_of(other)
