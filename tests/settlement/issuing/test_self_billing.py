"""The client writes, the provider signs: where both have agreed, and what the document says is what both signed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import LocalError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.billing_rules import faults_of_invoices
from p2pgrid.proto.record import Role
from p2pgrid.proto.statement import Invoice, InvoiceType
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.document_facts import DocumentRefused, facts_of, xml_in_pdf
from p2pgrid.settlement.document_hooks import IssuingHooks, ReceivingHooks
from p2pgrid.settlement.documents import Documents
from p2pgrid.settlement.invoice_list import InvoiceList
from p2pgrid.settlement.issue_book import IssueBook
from p2pgrid.settlement.issuing import Issuer
from p2pgrid.settlement.self_billing import self_bill, series_of
from tests.factories import CLIENT, NOW_MS, PROVIDER
from tests.settlement.issuing.scene import BUYER, SELLER, Scene, config_text, details
from tests.settlement.issuing.test_crashes import unchecked

BOTH = {"self-billing": True}


class Pair:
    """A provider and its client, who share what would be in both ledgers."""

    def __init__(self, folder: Path, seller: dict[str, Any], buyer: dict[str, Any]) -> None:
        self.ledger = MemoryLedger()
        self.scene = Scene(folder / "provider", self.ledger, seller=seller, buyer=buyer)
        self.client = DataFolder(folder / "client")
        self.client.make()
        self.client.config_file.write_text(config_text({**BUYER, **buyer}))
        self.book = DetailsBook(open_database(self.client.path / FILE_NAME), lambda: self.now_ms)
        self.now_ms = NOW_MS
        self.seller = {**SELLER, **seller}

    async def begin(self) -> None:
        await self.scene.opened()
        await self.scene.stated(5_000_000)
        self.now_ms = self.scene.statements[-1].message.stated_ms + 5000
        self.book.keep(details(self.seller, PROVIDER, Role.PROVIDER))
        self.issuer = Issuer(self.scene.data, self.ledger, [PROVIDER], now_ms=lambda: self.now_ms, renderer=unchecked)

    def bill(self) -> list[str]:
        return self_bill(self.client, self.ledger, [CLIENT], now_ms=lambda: self.now_ms, renderer=unchecked)

    def written(self, number: str, suffix: str = ".pdf") -> bytes:
        return (self.client.path / "invoices" / "self-billed" / "2027" / f"{number}{suffix}").read_bytes()


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def test_the_client_writes_the_provider_signs_and_the_client_takes_it(tmp_path: Path) -> None:
    async def run() -> None:
        pair = Pair(tmp_path, BOTH, BOTH)
        await pair.begin()
        terms = pair.scene.deal.channel.message
        assert [one.code for one in (await pair.issuer.issue_pending()).refused] == ["self-billing"]
        number = f"{series_of(terms)}-2027-000001"
        assert pair.bill() == [number]
        assert pair.bill() == []
        content = pair.written(number)
        assert facts_of(xml_in_pdf(content)).type_code == InvoiceType.SELF_BILLED_INVOICE
        signed = await pair.issuer.accept(content)
        assert signed.message.type_code is InvoiceType.SELF_BILLED_INVOICE
        assert not faults_of_invoices([signed.message], statement=pair.scene.statements[0].message)
        assert (await pair.issuer.issue_pending()).refused == ()
        assert (await pair.issuer.accept(content)).id == signed.id
        with pytest.raises(DocumentRefused, match="has an invoice already"):
            await pair.issuer.accept(pair.written(number, ".cii.xml"))

        connection = pair.scene.connection
        documents = Documents(pair.scene.data.path, connection)
        (view,) = InvoiceList(
            pair.ledger, [PROVIDER.public_key], IssueBook(connection), documents, pair.scene.book
        ).views(at_ms=pair.now_ms)
        assert (view.status, view.number) == ("received", number)
        assert read(view.files[0]) == content
        assert CLIENT.public_key.peer_id in view.files[0]

        # The client gets record and file as it gets any other.
        taking = ReceivingHooks(pair.client, pair.ledger, lambda: pair.now_ms)
        assert list(taking.lacks([signed])) == [signed]
        file = IssuingHooks(pair.scene.data, pair.issuer).document(signed)
        assert file is not None
        await taking.on_document(signed, terms, file)
        assert [one.code for one in Documents(pair.client.path).all_received()] == [""]
        await pair.scene.stated(3_000_000)
        assert pair.bill() == [f"{series_of(terms)}-2027-000002"]
        await pair.issuer.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(("seller", "buyer"), [({}, BOTH), (BOTH, {}), ({}, {})])
def test_not_unless_both_have_agreed(tmp_path: Path, seller: dict[str, Any], buyer: dict[str, Any]) -> None:
    async def run() -> None:
        pair = Pair(tmp_path, seller, buyer)
        await pair.begin()
        assert pair.bill() == []
        assert len((await pair.issuer.issue_pending()).issued) == 1
        await pair.issuer.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b">4.00</ram:TaxBasisTotalAmount", b">3.00</ram:TaxBasisTotalAmount", "gross"),
        (b">4.00</ram:GrandTotalAmount", b">3.00</ram:GrandTotalAmount", "gross"),
        (b"LT121000011101001000", b"DE89370400440532013000", "iban"),
        (b">389<", b">380<", "type"),
        (b"K\xc3\xa4ufer GmbH", b"Somebody", "buyer"),
        (b"20270116", b"20290116", "issue-date"),
        (b"-2027-000001", b"-2027-1", "number"),
        (b"-2027-000001", b"-2026-000001", "number"),
        (b"SB-", b"SX-", "number"),
    ],
)
def test_the_provider_signs_no_other_document(tmp_path: Path, old: bytes, new: bytes, code: str) -> None:
    async def run() -> None:
        pair = Pair(tmp_path, BOTH, BOTH)
        await pair.begin()
        (number,) = pair.bill()
        content = pair.written(number, ".cii.xml")
        assert old in content
        with pytest.raises(DocumentRefused) as caught:
            await pair.issuer.accept(content.replace(old, new))
        assert caught.value.code == code, caught.value
        assert pair.ledger.settlement(Invoice, pair.scene.deal.id) == []
        statement = pair.scene.statements[0].id.hex().encode()
        with pytest.raises(DocumentRefused, match="names no statement"):
            await pair.issuer.accept(content.replace(statement, b"00" * 32))
        await pair.issuer.aclose()

    asyncio.run(run())


def test_an_agreement_that_one_side_ended_is_none(tmp_path: Path) -> None:
    async def run() -> None:
        pair = Pair(tmp_path, BOTH, BOTH)
        await pair.begin()
        (number,) = pair.bill()
        pair.scene.data.config_file.write_text(config_text(SELLER))
        with pytest.raises(DocumentRefused, match="have not agreed"):
            await pair.issuer.accept(pair.written(number))
        await pair.issuer.aclose()

    asyncio.run(run())


def test_a_number_is_accepted_once_and_those_of_the_provider_stay_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        pair = Pair(tmp_path, BOTH, BOTH)
        await pair.begin()
        await pair.scene.stated(3_000_000)
        first, second = pair.bill()
        await pair.issuer.accept(pair.written(first))
        twice = pair.written(second, ".cii.xml").replace(second.encode(), first.encode())
        for content in (twice, pair.written(second, ".cii.xml").replace(second.encode(), b"INV-2027-000007")):
            with pytest.raises(DocumentRefused) as caught:
                await pair.issuer.accept(content)
            assert caught.value.code == "number"
        assert len(pair.ledger.settlement(Invoice, pair.scene.deal.id)) == 1
        await pair.issuer.accept(pair.written(second))
        await pair.issuer.aclose()

    asyncio.run(run())


def test_accepted_again_after_a_crash_the_file_is_there(tmp_path: Path) -> None:
    async def run() -> None:
        pair = Pair(tmp_path, BOTH, BOTH)
        await pair.begin()
        (number,) = pair.bill()
        content = pair.written(number)
        (pair.scene.data.path / "invoices").write_text("in the way")
        with pytest.raises(LocalError):
            await pair.issuer.accept(content)
        (signed,) = pair.ledger.settlement(Invoice, pair.scene.deal.id)
        (pair.scene.data.path / "invoices").unlink()
        assert (await pair.issuer.accept(content)).id == signed.id
        assert len(pair.ledger.settlement(Invoice, pair.scene.deal.id)) == 1
        file = IssuingHooks(pair.scene.data, pair.issuer).document(signed)
        assert file is not None
        assert file.content == content
        await pair.issuer.aclose()

    asyncio.run(run())


def test_a_series_of_the_nodes_own_that_looks_like_a_pairs_is_left_to_its_issuer(tmp_path: Path) -> None:
    async def run() -> None:
        ledger = MemoryLedger()
        scene = await Scene(tmp_path, ledger, seller={"invoice-prefix": "SB-1"}).opened()
        statement = await scene.stated(5_000_000)
        issuer = Issuer(
            scene.data, ledger, [PROVIDER], now_ms=lambda: statement.message.stated_ms + 5000, renderer=unchecked
        )
        (tmp_path / "invoices").write_text("in the way")
        with pytest.raises(LocalError):
            await issuer.issue_pending()
        (tmp_path / "invoices").unlink()
        assert self_bill(scene.data, ledger, [PROVIDER], renderer=unchecked) == []
        assert not (tmp_path / "invoices" / "self-billed").exists()
        await issuer.issue_pending()
        assert (tmp_path / "invoices" / "issued" / "2027" / "SB-1-2027-000001.pdf").exists()
        await issuer.aclose()

    asyncio.run(run())
