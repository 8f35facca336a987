"""From a statement that both have signed to its documents: which, with what in them, and what is refused."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.errors import LocalError, UsageError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.billing_rules import faults_of_invoices
from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.record import Signed
from p2pgrid.proto.statement import Invoice, InvoiceType
from p2pgrid.settlement.document_facts import Facts, facts_of, xml_in_pdf
from p2pgrid.settlement.documents import Documents
from p2pgrid.settlement.invoice_list import InvoiceList
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.validate import Validator
from p2pgrid.settlement.issue_book import IssueBook, Number, parse_number
from p2pgrid.settlement.issuing import Issuer, IssueReport
from p2pgrid.settlement.payments.reference import make_creditor_reference
from p2pgrid.settlement.rendering import Renderer, RenderHere, RenderProcess
from tests.factories import CLIENT, DAY_MS, NOW_MS, PROVIDER, make_answer, make_dispute, make_offer
from tests.settlement.issuing.scene import BUYER, IBAN, SELLER, Scene, config_text, details
from tests.settlement.issuing.test_crashes import unchecked

Run = Callable[[Scene, "Desk"], Coroutine[Any, Any, None]]


class Desk:
    """An issuer whose clock is set by hand."""

    def __init__(self, scene: Scene, ledger: MemoryLedger, renderer: Callable[[], Renderer]) -> None:
        self.ledger, self.scene = ledger, scene
        self.now_ms = NOW_MS + 2 * DAY_MS
        self.issuer = Issuer(scene.data, ledger, [PROVIDER], now_ms=lambda: self.now_ms, renderer=renderer)

    async def issue(self) -> IssueReport:
        self.now_ms = max(self.now_ms, self.scene.statements[-1].message.stated_ms + 1000)
        return await self.issuer.issue_pending()

    @property
    def invoices(self) -> list[Signed[Invoice]]:
        return self.ledger.settlement(Invoice, self.scene.deal.id)

    def facts(self, number: str, suffix: str = ".pdf") -> Facts:
        content = (self.issuer.folder / number.split("-")[-2] / f"{number}{suffix}").read_bytes()
        return facts_of(xml_in_pdf(content) if suffix == ".pdf" else content)

    def list(self) -> list[Any]:
        connection = self.scene.connection
        documents = Documents(self.scene.data.path, connection)
        keys = [PROVIDER.public_key]
        found = InvoiceList(self.ledger, keys, IssueBook(connection), documents, self.scene.book)
        return found.views(at_ms=self.now_ms)


def play(folder: Path, run: Run, renderer: Callable[[], Renderer] = unchecked, **parties: dict[str, Any]) -> None:
    """Run with a provider and its issuer."""

    async def main() -> None:
        ledger = MemoryLedger()
        scene = await Scene(folder, ledger, **parties).opened()
        desk = Desk(scene, ledger, renderer)
        try:
            await run(scene, desk)
        finally:
            await desk.issuer.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("seller", "buyer", "rate_bp", "vat", "main", "suffixes"),
    [
        ({}, {}, 0, ("AE", 0, "VATEX-EU-AE"), ".pdf", {".pdf", ".cii.xml", ".ubl.xml"}),
        ({}, {"country": "LT", "vat-id": "LT100001738313"}, 2100, ("S", 2100, ""), ".pdf",
         {".pdf", ".cii.xml", ".ubl.xml"}),
        ({"country": "DE", "vat-id": "DE136695976"}, {"profile": "xrechnung", "electronic-address": "a@b.example",
          "electronic-scheme": "EM"}, 1900, ("S", 1900, ""), ".cii.xml", {".pdf", ".cii.xml", ".ubl.xml"}),
        ({}, {"profile": "peppol"}, 0, ("AE", 0, "VATEX-EU-AE"), ".ubl.xml", {".pdf", ".ubl.xml"}),
    ],
)  # fmt: skip
def test_documents_that_pass_every_rule(
    tmp_path: Path, seller: Any, buyer: Any, rate_bp: int, vat: Any, main: str, suffixes: set[str]
) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        statement = await scene.stated(5_000_000, 3_000_001, rate_bp=rate_bp)
        report = await desk.issue()
        assert report == IssueReport(issued=("INV-2027-000001",), refused=())
        (invoice,) = desk.invoices
        message = invoice.message
        assert not faults_of_invoices([message], statement=statement.message)
        paths = list((desk.issuer.folder / "2027").iterdir())
        assert {p.name.removeprefix("INV-2027-000001") for p in paths} == suffixes
        content = (desk.issuer.folder / "2027" / f"INV-2027-000001{main}").read_bytes()
        assert hashlib.sha256(content).digest() == message.document_sha256
        assert await desk.issuer.document(invoice) == (f"INV-2027-000001{main}", content)
        for suffix in suffixes:
            facts = desk.facts("INV-2027-000001", suffix)
            assert (facts.gross_cents, facts.vat_cents) == (message.gross_cents, message.vat_cents)
            assert [(v.category, v.rate_bp, v.exemption) for v in facts.vat] == [vat]
            assert facts.ibans == (IBAN,)
            assert facts.references == (make_creditor_reference(statement.id),)
            assert facts.supporting == (statement.id.hex(),)
        # The channel was opened on the 15th of January 2027, 08:00 UTC; issued is two days later.
        assert (facts.period_first.day, facts.issue_date.day) == (15, 17)

    play(tmp_path, run, RenderProcess, seller=seller, buyer=buyer)


def test_days_are_the_providers(tmp_path: Path) -> None:
    """Opened on the last of the month at 23:30 in Vilnius, stated at midnight: the period is that day alone."""
    midnight = int(datetime.datetime(2027, 1, 31, 22, tzinfo=datetime.UTC).timestamp() * 1000)

    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(1_000_000, until_ms=midnight, stated_ms=midnight + 60_000, due_ms=midnight + 60_000)
        await desk.issue()
        facts = desk.facts("INV-2027-000001")
        assert facts.period_last == datetime.date(2027, 1, 31)
        assert facts.issue_date == datetime.date(2027, 2, 1)
        assert facts.due_date == datetime.date(2027, 2, 1)

    play(tmp_path, run)


def test_the_list_has_the_providers_days(tmp_path: Path) -> None:
    """By its offer: in winter Vilnius is two hours ahead of UTC, where it is still the day before."""
    midnight = int(datetime.datetime(2027, 1, 31, 22, tzinfo=datetime.UTC).timestamp() * 1000)

    async def run(scene: Scene, desk: Desk) -> None:
        scene.deal.offer = make_offer(PROVIDER, sequence=2, utc_offset_minutes=120)
        await scene.ledger.append(scene.deal.offer)
        await scene.stated(1_000_000, until_ms=midnight, stated_ms=midnight + 60_000, due_ms=midnight + 60_000)
        (pending,) = desk.list()
        assert (pending.issued_day, pending.due_day) == ("", "2027-02-01")
        await desk.issue()
        (listed,) = desk.list()
        assert (listed.issued_day, listed.due_day) == ("2027-02-01", "2027-02-01")
        assert desk.facts(listed.number).due_date == datetime.date(2027, 2, 1)

    play(tmp_path, run)


def test_a_new_year_begins_with_one(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(1_000_000)
        await desk.issue()
        desk.now_ms += 365 * DAY_MS
        await scene.stated(1_000_000, until_ms=desk.now_ms - DAY_MS, stated_ms=desk.now_ms)
        await scene.stated(1_000_000)
        assert (await desk.issue()).issued == ("INV-2028-000001", "INV-2028-000002")

    play(tmp_path, run)


def test_statements_of_nothing_need_no_invoice(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(100)  # less than half a cent
        await scene.stated(payments_cents=500)
        assert await desk.issue() == IssueReport(issued=(), refused=())
        assert desk.list() == []

    play(tmp_path, run)


def test_what_is_paid_ahead_is_not_asked_for_again(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(100, payments_cents=300)
        await scene.stated(5_000_000)
        await desk.issue()
        facts = desk.facts("INV-2027-000001")
        assert (facts.gross_cents, facts.paid_cents, facts.due_cents) == (400, 300, 100)

    play(tmp_path, run)


def test_a_credit_note_corrects_the_invoices_whose_receipts_are_credited(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        first = await scene.stated(5_000_000)
        await scene.stated(4_000_000)
        await desk.issue()
        receipt = scene.deal.receipts[0]
        dispute = make_dispute(receipt, owed_pico=0, disputed_ms=first.message.stated_ms + 5000)
        answer = make_answer(dispute, answered_ms=scene.statements[-1].message.stated_ms + 500)
        await desk.ledger.append(dispute)
        await desk.ledger.append(answer)
        assert answer.message.decision is Decision.ACCEPTED
        await scene.stated(100, credits_pico=receipt.message.amount_pico)
        report = await desk.issue()
        assert report.issued == ("INV-2027-000003",), report
        note = desk.invoices[-1].message
        assert (note.type_code, note.net_cents) == (InvoiceType.CREDIT_NOTE, -400)
        facts = desk.facts("INV-2027-000003")
        assert facts.preceding == ("INV-2027-000001",)
        assert facts.ibans == ()

    play(tmp_path, run, RenderHere)


@pytest.mark.parametrize(
    ("seller", "buyer", "rate_bp", "code"),
    [
        ({}, {}, 2100, "statement-vat"),
        ({}, {"vat-id": ""}, 0, "buyer-vat-id-missing"),
        ({"vat-id": "", "small-business": True, "tax-number": "123"}, {}, 0, "seller-vat-id-missing"),
        ({"country": "FR", "vat-id": "FR40303265045"}, {}, 0, "seller-country"),
        ({}, {"legal-name": "株式会社"}, 0, "glyph"),
        ({"self-billing": True}, {"self-billing": True}, 0, "self-billing"),
        ({"street": ""}, {}, 0, "billing"),
        ({}, {"street": ""}, 0, "billing"),
        ({"iban": "LT1"}, {}, 0, "out-of-range"),
    ],
)
def test_what_is_refused_waits_and_takes_no_number(
    tmp_path: Path, seller: Any, buyer: Any, rate_bp: int, code: str
) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        statement = await scene.stated(5_000_000, rate_bp=rate_bp)
        report = await desk.issue()
        assert report.issued == ()
        assert [(one.statement, one.code) for one in report.refused] == [(statement.id, code)], report
        (view,) = desk.list()
        assert (view.status, view.number, view.code) == ("pending", "", code)
        assert view.reason
        assert not list(desk.issuer.folder.rglob("*.*"))
        # Mended, it is issued, under the number that is next.
        scene.data.config_file.write_text(config_text(SELLER))
        scene.book.keep(details({**BUYER, **({"country": "LT", "vat-id": "LT100001738313"} if rate_bp else {})},
                                sequence=2))  # fmt: skip
        assert (await desk.issue()).issued == ("INV-2027-000001",)
        assert [view.status for view in desk.list()] == ["issued"]

    play(tmp_path, run, seller=seller, buyer=buyer)


def test_a_document_that_no_rule_has_checked_is_not_issued(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(5_000_000)
        report = await desk.issue()
        assert [one.code for one in report.refused] == ["not-checked"]
        assert not list(desk.issuer.folder.rglob("*.*"))

    play(tmp_path, run, lambda: RenderHere(Validator(python="/nowhere/python")))


def test_without_the_clients_details_it_waits(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(5_000_000)
        scene.connection.execute("DELETE FROM billing_details")
        assert [one.code for one in (await desk.issue()).refused] == ["buyer-details"]

    play(tmp_path, run)


def test_cancelled_and_written_anew(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        statement = await scene.stated(5_000_000)
        await desk.issue()
        scene.book.keep(details({**BUYER, "street": "Neue Str. 7"}, sequence=2))
        assert await desk.issuer.cancel("INV-2027-000001", "moved") == ("INV-2027-000002", "INV-2027-000003")
        messages = [invoice.message for invoice in desk.invoices]
        assert not faults_of_invoices(messages, statement=statement.message)
        assert [m.gross_cents for m in messages] == [400, -400, 400]
        views = desk.list()
        assert [view.status for view in views] == ["cancelled", "cancellation", "issued"]
        assert [view.left_cents for view in views] == [0, 0, 400]
        assert desk.facts("INV-2027-000002").preceding == ("INV-2027-000001",)
        with pytest.raises(InvoiceRefused, match="taken back already"):
            await desk.issuer.cancel("INV-2027-000001", "again")
        with pytest.raises(InvoiceRefused, match="is a credit note"):
            await desk.issuer.cancel("INV-2027-000002", "again")
        with pytest.raises(UsageError, match="issued no invoice"):
            await desk.issuer.cancel("INV-2027-000009", "again")
        assert await desk.issuer.cancel("INV-2027-000003", "once more") == ("INV-2027-000004", "INV-2027-000005")
        assert await desk.issue() == IssueReport(issued=(), refused=())

    play(tmp_path, run, RenderHere)


def test_a_cancellation_that_cannot_be_written_anew_is_none(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(5_000_000)
        await desk.issue()
        scene.book.keep(details({**BUYER, "country": "LT", "vat-id": "LT100001738313"}, sequence=2))
        with pytest.raises(InvoiceRefused, match="both sides signed VAT"):
            await desk.issuer.cancel("INV-2027-000001", "moved to Lithuania")
        assert len(desk.invoices) == 1
        await scene.stated(1_000_000, rate_bp=2100)
        assert (await desk.issue()).issued == ("INV-2027-000002",)

    play(tmp_path, run)


def test_a_clock_that_went_back(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(5_000_000)
        desk.now_ms = scene.statements[-1].message.stated_ms + 10 * DAY_MS
        await desk.issue()
        await scene.stated(5_000_000)
        desk.now_ms -= 3_600_000
        await desk.issuer.issue_pending()
        first, second = (invoice.message.issued_ms for invoice in desk.invoices)
        assert second == first
        await scene.stated(5_000_000)
        desk.now_ms -= 5 * DAY_MS
        assert [one.code for one in (await desk.issuer.issue_pending()).refused] == ["clock"]

    play(tmp_path, run)


def test_a_file_that_somebody_put_there_is_not_overwritten(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(5_000_000)
        (desk.issuer.folder / "2027").mkdir(parents=True)
        squatter = desk.issuer.folder / "2027" / "INV-2027-000001.cii.xml"
        squatter.write_bytes(b"mine")
        with pytest.raises(Exception, match="is not the document that was issued"):
            await desk.issue()
        assert squatter.read_bytes() == b"mine"
        squatter.unlink()
        await desk.issue()
        assert len(desk.invoices) == 1
        assert squatter.read_bytes() != b"mine"

    play(tmp_path, run)


def test_the_other_sides_channels_are_not_ours_to_bill(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(5_000_000)
        other = Issuer(scene.data, desk.ledger, [CLIENT], now_ms=lambda: desk.now_ms, renderer=unchecked)
        await other.on_stated(scene.statements[0], scene.deal.channel.message)
        assert await other.issue_pending() == IssueReport(issued=(), refused=())
        await other.aclose()

    play(tmp_path, run)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("INV-2027-000001", Number("INV", 2027, 1)),
        ("A-2026-2027-1000000", Number("A-2026", 2027, 1_000_000)),
        ("INV-2027-0000001", None),
        ("INV-2027-000000", None),
        ("INV-27-000001", None),
        ("2027-000001", None),
        ("INV-2027-00000\u0661", None),
    ],
)
def test_numbers(text: str, number: Number | None) -> None:
    assert parse_number(text) == number
    assert number is None or str(number) == text


@pytest.mark.parametrize("back_ms", [0, DAY_MS // 2])
def test_cancelled_under_another_prefix_while_the_clock_stands_or_went_back(tmp_path: Path, back_ms: int) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(5_000_000)
        await desk.issue()
        scene.data.config_file.write_text(config_text({**SELLER, "invoice-prefix": "AAA"}))
        desk.now_ms -= back_ms
        assert await desk.issuer.cancel("INV-2027-000001", "moved") == ("AAA-2027-000001", "AAA-2027-000002")
        views = {view.number: view for view in desk.list()}
        assert [views[n].status for n in ("INV-2027-000001", "AAA-2027-000001", "AAA-2027-000002")] == [
            "cancelled", "cancellation", "issued",
        ]  # fmt: skip
        assert views["INV-2027-000001"].cancelled_by == "AAA-2027-000001"

    play(tmp_path, run)


def test_a_file_that_is_not_the_one_that_was_signed_is_given_to_nobody(tmp_path: Path) -> None:
    async def run(scene: Scene, desk: Desk) -> None:
        await scene.stated(5_000_000)
        await desk.issue()
        (invoice,) = desk.invoices
        path = desk.issuer.folder / "2027" / "INV-2027-000001.pdf"
        content = path.read_bytes()
        path.write_bytes(content + b"%")
        with pytest.raises(LocalError, match="not the file that was signed"):
            await desk.issuer.document(invoice)
        (view,) = desk.list()
        assert (view.status, view.code) == ("missing", "files")
        assert "not the file that was signed" in view.reason
        path.write_bytes(content)
        assert await desk.issuer.document(invoice) == (path.name, content)
        assert [view.status for view in desk.list()] == ["issued"]

    play(tmp_path, run)
