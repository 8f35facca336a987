"""From an answer to a payment file: running nodes state, invoice, hand over, look through and pay."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.demo.grid import CHEAPER, Grid
from p2pgrid.demo.processes import NodeProcess
from tests.grid.conftest import audit_everything, until
from tests.grid.test_reconcile import command
from tests.grid.test_sales import keep_address
from tests.grid.test_settle import BUYER, SELLER, buy, settle

pytestmark = pytest.mark.process

OURS, THEIRS = "LT121000011101001000", "DE89370400440532013000"


async def invoices(data: Path) -> list[dict[str, Any]]:
    found: dict[str, Any] = await command(data, "invoices", "list")
    rows: list[dict[str, Any]] = found["invoices"]
    return rows


def page_of(view: dict[str, Any]) -> bytes:
    return Path(next(path for path in view["files"] if path.endswith(".pdf"))).read_bytes()


def read(path: str) -> str:
    return Path(path).read_text()


async def at_a_price(grid: Grid) -> tuple[NodeProcess, NodeProcess]:
    """Gateway and provider with billing details, and tokens that cost something."""
    gateway, provider = grid.gateway, grid.operators[CHEAPER]
    assert gateway is not None
    for name, other in grid.operators.items():
        if name != CHEAPER:
            await other.stop()
    keep_address(provider)
    config = provider.data / "config.toml"
    config.write_text(re.sub(r'price-output-eur = "[^"]*"', 'price-output-eur = "2000"', config.read_text()))
    for node, details, vat_id, iban in (
        (provider, SELLER, "LT100001738313", OURS),
        (gateway, BUYER, "LT100001919017", THEIRS),
    ):
        await command(node.data, "billing", "set", *details, "--country", "LT", "--vat-id", vat_id, "--iban", iban)
        await node.stop()
        await node.start(timeout_s=60)
    return gateway, provider


async def test_an_invoice_reaches_the_client_and_is_paid(grid: Grid, tmp_path: Path) -> None:
    gateway, provider = await at_a_price(grid)
    await buy(grid, 2)
    done = await settle(gateway.data, provider.ready["peer_id"])
    (statement,) = done["channels"][0]["statements"]
    assert statement["gross_cents"] > 0

    (ours,) = await until(lambda: invoices(provider.data), lambda rows: rows and rows[0]["status"] == "sent")
    (theirs,) = await until(lambda: invoices(gateway.data), lambda rows: rows and rows[0]["status"] == "received")
    for view in (ours, theirs):
        assert (view["gross_cents"], view["statement"]) == (statement["gross_cents"], statement["id"])
        assert re.fullmatch(r"INV-\d{4}-000001", view["number"])
    assert page_of(theirs) == page_of(ours)

    paid = await command(gateway.data, "pay", "--invoice", theirs["number"], "--out", str(tmp_path))
    ((file,), (payment,)) = paid["files"], paid["payments"]
    assert payment["iban"] == OURS
    assert THEIRS in read(file)

    # Taken back and written anew: both go over by themselves, and the first is no longer asked for.
    await command(provider.data, "invoices", "cancel", theirs["number"], "--reason", "a test")
    rows = await until(
        lambda: invoices(gateway.data), lambda rows: len(rows) == 3 and all(row["files"] for row in rows)
    )
    assert [row["status"] for row in rows] == ["cancelled", "cancellation", "received"]
    assert (await audit_everything(grid))["clean"]
