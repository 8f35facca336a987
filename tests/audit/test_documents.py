"""Invoice files held against their records."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from p2pgrid.audit.documents import DocumentCheck, check_documents
from p2pgrid.cli.audit import audit
from p2pgrid.errors import UsageError
from p2pgrid.proto.settlement_summary import ChannelSettlement, SettledInvoice
from p2pgrid.settlement.invoices.make import make_document
from p2pgrid.settlement.invoices.totals import InvoiceTotals
from p2pgrid.settlement.invoices.ubl import write_ubl
from tests.audit.tracing import judged
from tests.factories import make_invoice
from tests.proto.audit_cases import both
from tests.proto.audit_cases_settlement import sold, statement
from tests.settlement.invoices.parties import head


def settled(**changes: object) -> tuple[ChannelSettlement, SettledInvoice]:
    grid = sold(3)
    grid.keep(make_invoice(statement(grid, 1, 3, rate_bp=2100), **changes))
    (one,) = judged(both(grid)).verdict.settlement
    return one, one.invoices[0]


def totals_of(invoice: SettledInvoice) -> InvoiceTotals:
    return InvoiceTotals(
        number=invoice.invoice_number,
        type_code=invoice.type_code,
        currency=invoice.currency,
        net_cents=invoice.net_cents,
        vat_cents=invoice.vat_cents,
        gross_cents=invoice.gross_cents,
        supporting=("other", invoice.statement_id),
    )


@dataclass
class Reader:
    """Says of every file what it is told to; of those that begin with `no` that they are no invoices."""

    totals: InvoiceTotals

    def __call__(self, content: bytes) -> InvoiceTotals:
        if content.startswith(b"no"):
            raise UsageError("this is no invoice.")
        return self.totals


def checked(folder: Path, read: Reader, digest: bytes) -> DocumentCheck:
    one, _ = settled(document_sha256=digest)
    (check,) = check_documents([one], folder, read, lambda *_: None)
    return check


CONTENT = b"<invoice/>"
SHA = hashlib.sha256(CONTENT).digest()


def test_a_file_that_says_what_the_record_says(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.XML").write_bytes(CONTENT)
    check = checked(tmp_path, Reader(totals_of(settled(document_sha256=SHA)[1])), SHA)
    assert (check.state, check.file) == ("ok", "below/a.XML")


@pytest.mark.parametrize(
    ("changes", "words", "difference"),
    [
        ({"number": "1"}, "says 1 for the number", None),
        ({"type_code": 381}, "says 381 for the type", None),
        ({"currency": "CHF"}, "says CHF for the currency", None),
        ({"net_cents": 10}, "The net of invoice 2027-0001 is 0.10 EUR in a.xml; its record says 0.09", 0),
        ({"vat_cents": 1, "gross_cents": 10}, "The VAT of invoice 2027-0001 is 0.01 EUR in a.xml", -1),
        ({"gross_cents": 13}, "The gross of invoice 2027-0001 is 0.13 EUR in a.xml; its record says 0.11.", 2),
        ({"supporting": ()}, "does not name its statement", None),
    ],
)
def test_a_file_that_says_something_else(
    tmp_path: Path, changes: dict[str, Any], words: str, difference: int | None
) -> None:
    (tmp_path / "a.xml").write_bytes(CONTENT)
    read = Reader(replace(totals_of(settled(document_sha256=SHA)[1]), **changes))
    check = checked(tmp_path, read, SHA)
    assert (check.state, check.difference_cents) == ("wrong", difference)
    assert words in check.sentence


def test_a_file_that_was_altered_one_that_is_missing_and_one_that_is_none(tmp_path: Path) -> None:
    read = Reader(totals_of(settled(document_sha256=SHA)[1]))
    assert checked(tmp_path, read, SHA).state == "missing"
    (tmp_path / "a.xml").write_bytes(b"no invoice")
    assert checked(tmp_path, read, SHA).state == "missing"
    (tmp_path / "b.pdf").write_bytes(b"%PDF altered")
    check = checked(tmp_path, read, SHA)
    assert (check.state, check.file) == ("altered", "b.pdf")
    assert checked(tmp_path, read, hashlib.sha256(b"no invoice").digest()).state == "unreadable"


def test_another_form_of_the_invoice_that_says_something_else(tmp_path: Path) -> None:
    """A person opens the PDF, and the record has the hash of the XML beside it."""
    right = totals_of(settled(document_sha256=SHA)[1])
    said = {b"%PDF": right, b"%PDF 2": replace(right, gross_cents=9_00), CONTENT: right}
    (tmp_path / "a.xml").write_bytes(CONTENT)
    for content, state, file in ((b"%PDF", "ok", "a.xml"), (b"%PDF 2", "wrong", "a.pdf")):
        (tmp_path / "a.pdf").write_bytes(content)
        one, _ = settled(document_sha256=SHA)
        (check,) = check_documents([one], tmp_path, lambda content: said[content], lambda *_: None)
        assert (check.state, check.file) == (state, file)
    (tmp_path / "another provider's").mkdir()
    (tmp_path / "a.pdf").rename(tmp_path / "another provider's" / "a.pdf")
    (check,) = check_documents([one], tmp_path, lambda content: said[content], lambda *_: None)
    assert check.state == "ok", "two providers may give one number"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        check_documents([], tmp_path / "none", Reader(totals_of(settled()[1])), lambda *_: None)


def test_the_command_reads_real_files(tmp_path: Path) -> None:
    """The record's hash is of the UBL; its sums are the statement's."""
    grid = sold(3)
    stated = statement(grid, 1, 3, rate_bp=2100)
    asked = replace(head("LT", "LT", number="2027-0001"), statement_sha256=stated.id)
    xml = write_ubl(make_document(asked, stated.message.lines))
    grid.keep(make_invoice(stated, document_sha256=hashlib.sha256(xml).digest()))
    provider, _ = both(grid)
    bundle, folder = tmp_path / "provider.jsonl", tmp_path / "invoices"
    bundle.write_bytes(b"\n".join(provider.lines) + b"\n")
    folder.mkdir()
    (folder / "2027-0001.ubl.xml").write_bytes(xml)
    result = CliRunner().invoke(audit, [str(bundle), "--documents", str(folder)])
    assert result.exit_code == 0, result.output
    assert "Invoice files: 1 of 1 are what their records say." in result.output
    (folder / "2027-0001.ubl.xml").write_bytes(xml.replace(b"Vilnius", b"Kaunas"))
    result = CliRunner().invoke(audit, [str(bundle), "--documents", str(folder), "--json"])
    assert result.exit_code == 1
    (check,) = json.loads(result.stdout)["documents"]
    assert (check["state"], check["file"]) == ("altered", "2027-0001.ubl.xml")
    assert json.loads(result.stdout)["clean"] is True


def test_the_record_is_what_it_is_held_against() -> None:
    one, invoice = settled(document_sha256=SHA)
    assert invoice.document_sha256 == SHA.hex()
    assert msgspec.json.decode(msgspec.json.encode(one), type=ChannelSettlement) == one
