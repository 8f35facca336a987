"""From a provider's folder to its client's, by what the exchange of statements calls."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.record import Role
from p2pgrid.proto.statement import Invoice
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.document_hooks import IssuingHooks, ReceivingHooks, details_for
from p2pgrid.settlement.documents import Documents
from p2pgrid.settlement.invoice_list import InvoiceList
from p2pgrid.settlement.issue_book import IssueBook
from p2pgrid.settlement.issuing import Issuer
from tests.factories import CLIENT, PROVIDER
from tests.settlement.issuing.scene import BUYER, SELLER, Scene, config_text, details
from tests.settlement.issuing.test_crashes import unchecked


@pytest.mark.parametrize("profile", ["en16931", "xrechnung", "peppol"])
def test_all_that_is_issued_is_taken_in(tmp_path: Path, profile: str, caplog: pytest.LogCaptureFixture) -> None:
    """An invoice, its cancellation, what replaces it, and a credit note: none is refused by the client."""

    async def run() -> None:
        ledger = MemoryLedger()
        buyer = {"profile": profile, "electronic-address": "a@b.example", "electronic-scheme": "EM"}
        scene = await Scene(tmp_path / "provider", ledger, buyer=buyer).opened()
        channel = scene.deal.channel.message
        first = await scene.stated(5_000_000)
        second = await scene.stated(100, credits_pico=10**12)
        now_ms = second.message.stated_ms + 5000
        issuer = Issuer(scene.data, ledger, [PROVIDER], now_ms=lambda: now_ms, renderer=unchecked)
        seller = IssuingHooks(scene.data, issuer, lambda: now_ms)
        for statement in (first, second, first):
            await seller.on_stated(statement, channel)
        await issuer.cancel("INV-2027-000001", "a wrong street")

        client = DataFolder(tmp_path / "client")
        client.make()
        client.config_file.write_text(config_text({**BUYER, **buyer}))
        book = details_for(client, [CLIENT], Role.CLIENT, lambda: now_ms)
        taking = ReceivingHooks(client, ledger, lambda: now_ms)
        invoices = ledger.settlement(Invoice, scene.deal.id)
        assert len(invoices) == 4

        # The documents come before the provider's billing details, and are asked for again.
        early = seller.document(invoices[0])
        assert early is not None
        await taking.on_document(invoices[0], channel, early)
        assert "DO NOT PAY" in caplog.text
        book.keep(details(SELLER, PROVIDER, Role.PROVIDER))
        assert list(taking.lacks(invoices)) == invoices
        for invoice in invoices:
            file = seller.document(invoice)
            assert file is not None
            await taking.on_document(invoice, channel, file)
        documents = Documents(client.path)
        assert [(one.code, one.message) for one in documents.all_received()] == [("", "")] * 4
        assert list(taking.lacks(invoices)) == []

        for folder, key, direction in ((scene.data, PROVIDER, "sent"), (client, CLIENT, "received")):
            connection = open_database(folder.path / FILE_NAME)
            found = InvoiceList(
                ledger, [key.public_key], IssueBook(connection), Documents(folder.path, connection), book
            )
            views = found.views(at_ms=now_ms + 1)
            # The credit note covers a part of the invoice that replaces the first one.
            assert [view.status for view in views] == ["cancelled", "covered", "cancellation", direction]
            assert [view.left_cents for view in views] == [0, 0, 0, 300]
            assert all(view.files for view in views)
        await issuer.aclose()

    asyncio.run(run())


def test_details_that_do_not_do_stop_no_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DataFolder(tmp_path)
    assert details_for(data, [CLIENT], Role.CLIENT).own(Role.CLIENT) is None
    assert not caplog.text
    data.config_file.write_text(config_text({"legal-name": "A", "country": "LT", "iban": "LT1"}))
    assert details_for(data, [CLIENT], Role.CLIENT).own(Role.CLIENT) is None
    assert "iban is 'LT1'" in caplog.text
    data.config_file.write_text(config_text(BUYER))
    own = details_for(data, [CLIENT, PROVIDER], Role.CLIENT).own(Role.CLIENT)
    assert own is not None
    assert own.message.party == CLIENT.public_key.raw
