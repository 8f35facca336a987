"""What a provider sends is looked through: every total, number, account and hash; bombs; names of files."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pikepdf
import pytest

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.settlement import document_facts
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.document_facts import MAX_BYTES, DocumentRefused, facts_of, parse_hostile, xml_in_pdf
from p2pgrid.settlement.documents import Documents, Received
from p2pgrid.settlement.issuing import Issuer
from tests.factories import CLIENT, DAY_MS, NOW_MS, PROVIDER, resigned
from tests.settlement.issuing.scene import BUYER, IBAN, OTHER_IBAN, SELLER, Scene, details
from tests.settlement.issuing.test_crashes import unchecked


@dataclass
class Came:
    """An invoice with its files, and the client who is to take it in."""

    invoice: Signed[Invoice]
    statement: Signed[Statement]
    channel: Channel
    files: dict[str, bytes]
    documents: Documents
    folder: Path

    def take(self, content: bytes, **changes: Any) -> Received:
        """As if the provider had signed this very file."""
        changes.setdefault("document_sha256", hashlib.sha256(content).digest())
        invoice = resigned(self.invoice, PROVIDER, Role.PROVIDER, **changes)
        return self.documents.take_received(invoice, content, channel=self.channel, statement=self.statement)


@pytest.fixture(scope="module")
def issued(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Signed[Invoice], Signed[Statement], Channel, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("provider")

    async def run() -> Any:
        ledger = MemoryLedger()
        scene = await Scene(folder, ledger, seller={"country": "DE", "vat-id": "DE136695976"}).opened()
        statement = await scene.stated(5_000_000, rate_bp=1900)
        now_ms = statement.message.stated_ms + 5000
        issuer = Issuer(scene.data, ledger, [PROVIDER], now_ms=lambda: now_ms, renderer=unchecked)
        await issuer.issue_pending()
        await issuer.aclose()
        (invoice,) = ledger.settlement(Invoice, scene.deal.id)
        return invoice, statement, scene.deal.channel.message

    invoice, statement, channel = asyncio.run(run())
    files = {path.name.partition(".")[2]: path.read_bytes() for path in (folder / "invoices/issued/2027").iterdir()}
    return invoice, statement, channel, files


@pytest.fixture
def came(issued: Any, tmp_path: Path) -> Came:
    invoice, statement, channel, files = issued
    connection = open_database(tmp_path / FILE_NAME)
    book = DetailsBook(connection, lambda: NOW_MS + 100 * DAY_MS)
    book.keep(details({**SELLER, "country": "DE", "vat-id": "DE136695976"}, PROVIDER, Role.PROVIDER))
    book.keep(details(BUYER))
    return Came(invoice, statement, channel, files, Documents(tmp_path, connection), tmp_path)


def test_every_form_is_taken(came: Came) -> None:
    for number, (suffix, content) in enumerate(sorted(came.files.items())):
        taken = came.take(content, issued_ms=came.invoice.message.issued_ms + number)
        assert taken.code == "", taken.message
        assert taken.files[0].suffix == f".{suffix.rpartition('.')[2]}"
        assert taken.files[0].read_bytes() == content
    pdf = came.documents.all_received()[1]
    assert [path.name.partition(".")[2] for path in pdf.files] == ["pdf", "cii.xml"]
    assert pdf.files[1].read_bytes() == came.files["cii.xml"]


def test_what_the_provider_signed_is_taken_once(came: Came) -> None:
    content = came.files["pdf"]
    first = came.documents.take_received(came.invoice, content, channel=came.channel, statement=came.statement)
    assert came.documents.take_received(came.invoice, b"other", channel=came.channel, statement=came.statement) == first
    assert [path.name for path in first.files] == ["INV-2027-000001.pdf", "INV-2027-000001.cii.xml"]


TAMPERED = [
    ("net", b">4.00</ram:TaxBasisTotalAmount", b">4.01</ram:TaxBasisTotalAmount"),
    ("vat", b'"EUR">0.76</ram:TaxTotalAmount', b'"EUR">0.77</ram:TaxTotalAmount'),
    ("gross", b">4.76</ram:GrandTotalAmount", b">4.67</ram:GrandTotalAmount"),
    ("due", b">4.76</ram:DuePayableAmount", b">47.60</ram:DuePayableAmount"),
    ("due", b">0.00</ram:TotalPrepaidAmount", b">1.00</ram:TotalPrepaidAmount"),
    ("paid", b">0.00</ram:TotalPrepaidAmount><ram:DuePayableAmount>4.76<",
     b">1.00</ram:TotalPrepaidAmount><ram:DuePayableAmount>3.76<"),
    ("net", b">4.00</ram:BasisAmount", b">4.10</ram:BasisAmount"),
    ("vat", b">0.76</ram:CalculatedAmount", b">0.86</ram:CalculatedAmount"),
    ("vat", b"<ram:RateApplicablePercent>19<", b"<ram:RateApplicablePercent>21<"),
    ("number", b"INV-2027-000001", b"INV-2027-000002"),
    ("type", b">380<", b">389<"),
    ("currency", b"EUR", b"USD"),
    ("form", b">EUR</ram:InvoiceCurrencyCode", b">USD</ram:InvoiceCurrencyCode"),
    ("iban", IBAN.encode(), b"LT601010012345678901"),
    ("iban", IBAN.encode(), OTHER_IBAN.encode()),
    ("reference", b"RF", b"RG"),
    ("issue-date", b"20270116", b"20270118"),
    ("period", b"20270115", b"20270117"),
    ("due-date", b"20270130", b"20270120"),
    ("seller", "Žaibas UAB".encode(), "Žaibas UA\u0412".encode()),
    ("buyer", "Käufer GmbH".encode(), b"Somebody else"),
    ("buyer", b"DE136695976</ram:ID></ram:SpecifiedTaxRegistration></ram:BuyerTradeParty",
     b"DE129273398</ram:ID></ram:SpecifiedTaxRegistration></ram:BuyerTradeParty"),
    ("form", b">4.76</ram:GrandTotalAmount", b">4,76</ram:GrandTotalAmount"),
    ("form", b">4.76</ram:GrandTotalAmount", b">4.760</ram:GrandTotalAmount"),
    ("form", b">4.76</ram:GrandTotalAmount>", b"></ram:GrandTotalAmount>"),
    ("form", b"<ram:GrandTotalAmount>4.76</ram:GrandTotalAmount>",
     b"<ram:GrandTotalAmount>4.76</ram:GrandTotalAmount><ram:GrandTotalAmount>9.99</ram:GrandTotalAmount>"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "old", "new"), TAMPERED, ids=lambda v: v if isinstance(v, str) else "")
def test_what_does_not_fit_is_kept_apart_and_named(came: Came, code: str, old: bytes, new: bytes) -> None:
    content = came.files["cii.xml"]
    flat = b"".join(line.strip() for line in content.split(b"\n"))
    assert came.take(flat, issued_ms=came.invoice.message.issued_ms + 1).code == ""
    assert old in flat
    changed = flat.replace(old, new)
    taken = came.take(changed)
    assert taken.code == code, taken.message
    assert taken.files[0].read_bytes() == changed
    assert taken.files[-1].read_text().startswith(f"{code}: ")
    assert taken.files[0].is_relative_to(came.folder / "invoices" / "refused")


def test_the_statements_hash_has_to_be_there(came: Came) -> None:
    statement = came.statement.id.hex().encode()
    for suffix in ("cii.xml", "ubl.xml"):
        changed = came.files[suffix].replace(statement, hashlib.sha256(b"").hexdigest().encode())
        assert came.take(changed, issued_ms=came.invoice.message.issued_ms + len(suffix)).code == "statement"


@pytest.mark.parametrize(
    ("field", "change", "code"),
    [
        ("net_cents", -1, "net"),
        ("vat_cents", 1, "vat"),
        ("invoice_number", "X", "number"),
        ("issued_ms", 3 * DAY_MS, "issue-date"),
        ("statement", b"\x01" * 32, "statement"),
    ],
)
def test_the_record_has_to_be_the_documents(came: Came, field: str, change: Any, code: str) -> None:
    before = getattr(came.invoice.message, field)
    changes = {field: before + change if isinstance(change, int) else change}
    if field.endswith("cents"):
        changes["gross_cents"] = came.invoice.message.gross_cents + change
    assert came.take(came.files["ubl.xml"], **changes).code == code


def test_the_hash_is_the_first_thing(came: Came) -> None:
    taken = came.documents.take_received(
        came.invoice, came.files["cii.xml"], channel=came.channel, statement=came.statement
    )
    assert taken.code == "hash"
    again = came.documents.take_received(
        came.invoice, came.files["pdf"], channel=came.channel, statement=came.statement
    )
    assert not again.is_refused
    assert not list((came.folder / "invoices" / "refused").rglob("*.*"))


def test_a_statement_that_the_client_has_not_signed_is_none(came: Came) -> None:
    alone = resigned(came.statement, PROVIDER, Role.PROVIDER)
    content = came.files["pdf"]
    assert (
        came.documents.take_received(came.invoice, content, channel=came.channel, statement=alone).code == "statement"
    )
    assert came.documents.take_received(came.invoice, content, channel=came.channel, statement=None).code == "statement"


def test_an_account_of_before_is_good_for_an_invoice_of_before(came: Came) -> None:
    book = DetailsBook(open_database(came.folder / FILE_NAME), lambda: NOW_MS + 100 * DAY_MS)
    seller = {**SELLER, "country": "DE", "vat-id": "DE136695976", "iban": OTHER_IBAN}
    changed = details(seller, PROVIDER, Role.PROVIDER, 2, stated_ms=came.invoice.message.issued_ms + DAY_MS)
    kept = book.keep(changed)
    assert kept.account_change is not None
    assert kept.account_change.iban_before == IBAN
    assert came.take(came.files["pdf"]).code == ""
    much_later = came.invoice.message.issued_ms + 2 * DAY_MS
    moved = came.files["cii.xml"].replace(b"20270116", b"20270118")
    assert came.take(moved, issued_ms=much_later).code == "iban"


BOMBS = [
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
    b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
    b'<!DOCTYPE l [<!ENTITY a "' + b"a" * 1000 + b'"><!ENTITY b "' + b"&a;" * 1000 + b'">]><l>&b;</l>',
    '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>'.encode("utf-16"),
    b'<?xml version="1.0" encoding="utf-7"?><a/>',
    b'<?xml version="1.0" encoding="utf-16"?><a/>',
    b'<?xml version="1.0" encoding="iso-8859-1"?><a/>',
    b"<a>" * 5000 + b"</a>" * 5000,
    b"<a>" + b"<b/>" * 300_000 + b"</a>",
    b"<a",
    b"\x00" * 100,
    b"<a>&undefined;</a>",
    b"",
    b"a" * (MAX_BYTES + 1),
]  # fmt: skip


@pytest.mark.parametrize("content", BOMBS, ids=lambda content: repr(content[:40]))
def test_bombs_and_entities(came: Came, content: bytes) -> None:
    with pytest.raises(DocumentRefused):
        facts_of(content)
    assert came.take(content).code in ("xml", "size")


def test_an_entity_that_is_named_without_a_dtd_is_no_text(came: Came) -> None:
    with pytest.raises(DocumentRefused):
        parse_hostile(b'<?xml version="1.0"?><a>&file;</a>')


def pdf_with(content: bytes, *, name: str = "factur-x.xml") -> bytes:
    with pikepdf.new() as pdf:
        pdf.add_blank_page()
        pdf.attachments[name] = pikepdf.AttachedFileSpec(pdf, content, mime_type="text/xml")
        out = io.BytesIO()
        pdf.save(out, compress_streams=True)
        return out.getvalue()


def test_pdfs_that_unpack_to_much_or_hold_nothing(came: Came) -> None:
    for bad in (
        pdf_with(b" " * (MAX_BYTES + 1)),
        pdf_with(b"<a/>", name="other.xml"),
        b"%PDF-1.7\n" + b"%" * 1000,
        b"%PDF-1.7\n1 0 obj<</Length 10/Filter/FlateDecode>>stream\n" + zlib.compress(b"\0" * 10**7) + b"\nendstream",
    ):
        with pytest.raises(DocumentRefused) as caught:
            xml_in_pdf(bad)
        assert caught.value.code == "pdf"
    assert xml_in_pdf(pdf_with(b"<a/>")) == b"<a/>"
    assert came.take(pdf_with(b"<a/>")).code == "form"


def packed_zeros(mebibytes: int) -> bytes:
    """As `zlib.compress` packs them, without unpacked ones."""
    packing = zlib.compressobj(9, wbits=-15)
    one = packing.compress(bytes(1 << 20)) + packing.flush(zlib.Z_FULL_FLUSH)
    checksum = ((mebibytes << 20) % 65_521) << 16 | 1
    return b"\x78\xda" + one * mebibytes + b"\x03\x00" + checksum.to_bytes(4, "big")


@pytest.mark.process
def test_a_pdf_that_unpacks_to_gigabytes_ends_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is its memory that ends it, however slow the machine is.
    monkeypatch.setattr(document_facts, "PDF_TIMEOUT_S", 100)
    assert zlib.decompress(packed_zeros(2)) == bytes(2 << 20)
    packed = zlib.compress(zlib.compress(packed_zeros(1536), 9), 9)
    assert len(packed) < 100_000
    with pikepdf.new() as pdf:
        pdf.add_blank_page()
        spec = pikepdf.AttachedFileSpec(pdf, b"x", mime_type="text/xml")
        pdf.attachments["factur-x.xml"] = spec
        stream = pdf.attachments["factur-x.xml"].obj.EF.F
        stream.write(packed, filter=pikepdf.Array([pikepdf.Name.FlateDecode] * 3))
        out = io.BytesIO()
        pdf.save(out)
    with pytest.raises(DocumentRefused, match="no invoice's XML"):
        xml_in_pdf(out.getvalue())


@pytest.mark.parametrize(
    "number", ["../../etc/passwd", "a/b", "..", ".hidden", "x" * 64, "INV 1", "CON", "inv-2027-000001", "\u202e1"]
)
def test_a_number_chooses_no_path(came: Came, number: str) -> None:
    first = came.documents.take_received(
        came.invoice, came.files["pdf"], channel=came.channel, statement=came.statement
    )
    content = came.files["ubl.xml"].replace(b"INV-2027-000001", number.encode())
    taken = came.take(content, invoice_number=number)
    places = {path.parent for path in (*first.files, *taken.files)}
    allowed = {came.folder / "invoices" / kind / first.peer for kind in ("received", "refused")}
    assert places <= allowed
    names = [path.name.lower() for path in (*first.files, *taken.files)]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and not name.startswith(".") for name in names)


def test_facts_are_the_same_in_both_syntaxes(came: Came) -> None:
    cii, ubl = facts_of(came.files["cii.xml"]), facts_of(came.files["ubl.xml"])
    assert dataclasses.replace(cii, syntax=ubl.syntax) == ubl
    assert CLIENT.public_key.raw == came.channel.client


def test_what_was_paid_ahead_and_its_cancellation_fit(tmp_path: Path) -> None:
    async def run() -> None:
        ledger = MemoryLedger()
        scene = await Scene(tmp_path / "provider", ledger).opened()
        statement = await scene.stated(5_000_000, payments_cents=100)
        now_ms = statement.message.stated_ms + 5000
        issuer = Issuer(scene.data, ledger, [PROVIDER], now_ms=lambda: now_ms, renderer=unchecked)
        await issuer.issue_pending()
        await issuer.cancel("INV-2027-000001", "moved")
        (tmp_path / "client").mkdir()
        documents = Documents(tmp_path / "client", now_ms=lambda: now_ms)
        book = DetailsBook(open_database(tmp_path / "client" / FILE_NAME), lambda: now_ms)
        book.keep(details(SELLER, PROVIDER, Role.PROVIDER))
        book.keep(details(BUYER))
        for invoice in ledger.settlement(Invoice, scene.deal.id):
            found = await issuer.document(invoice)
            assert found is not None
            channel = scene.deal.channel.message
            taken = documents.take_received(invoice, found[1], channel=channel, statement=statement)
            assert (taken.code, taken.message) == ("", "")
        assert facts_of(xml_in_pdf(documents.all_received()[0].files[0].read_bytes())).paid_cents == 100
        await issuer.aclose()

    asyncio.run(run())
