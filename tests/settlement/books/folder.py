"""A data folder with a year in it: receipts, statements, an invoice with its files, payments."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Order
from p2pgrid.proto.record import Signed
from p2pgrid.proto.statement import Invoice, Payment, Statement
from tests.factories import CLIENT, PROVIDER, digest, make_invoice
from tests.proto.audit_cases_settlement import paid, sold, statement
from tests.proto.chains import Dealings

PDF = b"%PDF-1.7 the page of an invoice"
XML = b"<Invoice>LT-2026-000001</Invoice>"


@dataclass
class Year:
    """What was stored."""

    data: DataFolder
    grid: Dealings
    statement: Signed[Statement]
    invoice: Signed[Invoice]
    payment: Signed[Payment]

    @property
    def id(self) -> bytes:
        """The channel's."""
        return self.grid.channel.message.channel


def make_folder(path: Path, key: SecretKey = PROVIDER, name: str = "provider") -> DataFolder:
    """An empty data folder of one party."""
    data = DataFolder(path)
    data.make()
    data.key_file.write_text(digest(name).hex())
    data.key_file.chmod(0o600)
    assert data.load_key().public_key == key.public_key
    return data


def store(data: DataFolder, *records: Signed[Any], keys: bool = False) -> None:
    """Write records; with `keys`, orders with the keys of their requests."""

    async def write() -> None:
        ledger = SqliteLedger.open(data.ledger_file)
        try:
            for one in records:
                if keys and isinstance(one.message, Order):
                    ledger.keep_request_key(one, digest(f"key {one.message.order_number}"))
                await ledger.append(one)
        finally:
            await ledger.aclose()

    asyncio.run(write())


def make_year(path: Path, *, side: str = "provider", keys: bool = False, is_paid: bool = True) -> Year:
    """One channel of May 2026, settled: 3 receipts, their statement, its invoice, paid in June."""
    data = make_folder(path, PROVIDER if side == "provider" else CLIENT, side)
    grid = sold(3)
    stated = statement(grid, 1, 3, rate_bp=1900)
    number, sha256 = "LT-2026-000001", hashlib.sha256(XML).digest()
    invoice = grid.keep(make_invoice(stated, invoice_number=number, document_sha256=sha256))
    payment = paid(grid, invoice)
    folder = data.path / "invoices" / ("issued" if side == "provider" else f"received/{PROVIDER.public_key.peer_id}")
    folder.mkdir(parents=True)
    (folder / f"{number}.cii.xml").write_bytes(XML)
    (folder / f"{number}.pdf").write_bytes(PDF)
    (folder / "LT-2025-000009.pdf").write_bytes(b"another year's")
    has = grid.provider_has if side == "provider" else grid.client_has
    store(data, *(has if is_paid else has[:-1]), keys=keys)
    return Year(data, grid, stated, invoice, payment)
