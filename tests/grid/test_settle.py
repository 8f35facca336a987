"""Statements between running nodes, with real processes and commands."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.cli.main import COMMANDS
from p2pgrid.demo.grid import CHEAPER, DEARER, Grid
from p2pgrid.demo.processes import NodeProcess
from tests.grid.conftest import audit_everything, p2pgrid, receipts, until
from tests.grid.test_reconcile import command
from tests.grid.test_sales import ask, keep_address

pytestmark = pytest.mark.process

SELLER = (
    "--legal-name",
    "Vilnius Compute UAB",
    "--street",
    "Gedimino pr. 1",
    "--city",
    "Vilnius",
    "--post-code",
    "01103",
)
BUYER = ("--legal-name", "Kauno prekyba UAB", "--street", "Laisvės al. 2", "--city", "Kaunas", "--post-code", "44240")
has_billing = pytest.mark.skipif("billing" not in COMMANDS, reason="nobody can say who is on the invoices")


async def listed(data: Path) -> list[dict[str, Any]]:
    found: dict[str, Any] = await command(data, "settle", "--list")
    rows: list[dict[str, Any]] = found["statements"]
    return rows


async def settle(data: Path, *arguments: str) -> dict[str, Any]:
    done: dict[str, Any] = (await command(data, "settle", *arguments))["settled"][0]
    return done


async def received(data: Path) -> list[Path]:
    """Files of invoices that came."""
    return [one for one in (data / "invoices" / "received").rglob("*") if one.is_file()]


async def buy(grid: Grid, answers: int) -> None:
    assert grid.gateway is not None
    before = len(await receipts(grid.gateway.data))
    for _ in range(answers):
        await ask(grid)
    for node in (grid.gateway, grid.operators[CHEAPER]):
        await until(
            lambda node=node: receipts(node.data),
            lambda rows: len(rows) == before + answers and all(row["countersigned"] for row in rows),
        )


async def with_details(grid: Grid) -> tuple[NodeProcess, NodeProcess]:
    """Gateway and provider, started again with billing details."""
    gateway, provider = grid.gateway, grid.operators[CHEAPER]
    assert gateway is not None
    keep_address(provider)
    await grid.operators[DEARER].stop()
    for node, details, vat_id in ((provider, SELLER, "LT100001738313"), (gateway, BUYER, "LT100001919017")):
        await command(node.data, "billing", "set", *details, "--country", "LT", "--vat-id", vat_id)
        if node is provider:
            await command(node.data, "billing", "set", "--iban", "LT121000011101001000")
            config = node.data / "config.toml"
            config.write_text(config.read_text().replace('"0.40"', '"2000"'))  # so that there is something to pay
        await node.stop()
        await node.start(timeout_s=60)
    return gateway, provider


async def test_without_details_it_is_shown_what_would_be_stated_and_said_what_is_missing(grid: Grid) -> None:
    gateway, provider = grid.gateway, grid.operators[CHEAPER]
    assert gateway is not None
    peer = provider.ready["peer_id"]
    await buy(grid, 2)
    ours = await settle(gateway.data, peer, "--dry-run")
    theirs = await settle(provider.data, gateway.ready["peer_id"], "--dry-run")
    for done, role in ((ours, "client"), (theirs, "provider")):
        assert (done["role"], done["dry_run"]) == (role, True)
        (view,) = done["channels"][0]["statements"]
        assert (view["state"], view["last_receipt"]) == ("preview", 2)
        assert "billing set" in view["note"] and view["gross_cents"] == view["net_cents"]
    done = await settle(gateway.data, peer)
    assert done["channels"][0]["nothing_code"] == "details-missing"
    assert "billing set" in done["channels"][0]["nothing"]
    done = await settle(provider.data, gateway.ready["peer_id"])
    assert done["waits_for_client"] and done["is_connected"]
    assert await listed(gateway.data) == await listed(provider.data) == []
    code, output, _ = await p2pgrid(gateway.data, "settle", peer, "--dry-run")
    assert (
        code == 0
        and "preview of statement 1 " in output
        and ", preview" not in output
        and "2 receipt(s), 1 to 2" in output
    )
    code, _, errors = await p2pgrid(gateway.data, "settle", peer, "--channel", "ffff", "--dry-run")
    assert code == 2 and "no channel" in errors
    code, _, errors = await p2pgrid(gateway.data, "settle", peer, "--until", "31.1.2027", "--dry-run")
    assert code == 2 and "is no day" in errors


@has_billing
async def test_both_sides_sign_on_the_clients_word_and_on_the_providers(grid: Grid) -> None:
    gateway, provider = await with_details(grid)
    await buy(grid, 3)
    done = await settle(gateway.data, provider.ready["peer_id"])
    (statement,) = done["channels"][0]["statements"]
    assert (statement["state"], statement["first_receipt"], statement["last_receipt"]) == ("signed by both", 1, 3)
    assert statement["vat"][0]["category"] == "S" and statement["vat"][0]["rate_bp"] == 2100
    ((ours,), (theirs,)) = await listed(gateway.data), await listed(provider.data)
    assert ours["statement"]["id"] == theirs["statement"]["id"] == statement["id"]

    assert statement["gross_cents"] > 0
    # The invoice is issued, and comes over by itself.
    for node in (gateway, provider):
        (row,) = await until(lambda node=node: listed(node.data), lambda rows: bool(rows[0]["invoices"]))
        assert row["invoiced_cents"] == row["open_cents"] == statement["gross_cents"]
    await until(lambda: received(gateway.data), lambda files: len(files) > 0)

    await buy(grid, 2)
    asked = await settle(provider.data, gateway.ready["peer_id"])
    assert asked["waits_for_client"] and asked["channels"][0]["statements"][0]["first_receipt"] == 4
    rows = await until(lambda: listed(gateway.data), lambda rows: len(rows) == 2)
    assert rows[1]["statement"]["last_receipt"] == 5
    assert (await audit_everything(grid))["clean"]

    # Nothing happened since: nothing is signed, whoever asks.
    done = await settle(gateway.data, provider.ready["peer_id"])
    assert (done["channels"][0]["statements"], done["channels"][0]["nothing_code"]) == ([], "nothing-happened")
    done = await settle(provider.data, gateway.ready["peer_id"])
    assert not done["waits_for_client"] and done["channels"][0]["nothing_code"] == "nothing-happened"
    code, output, _ = await p2pgrid(provider.data, "settle", gateway.ready["peer_id"])
    assert code == 0 and "nothing happened since statement 2" in output
    # The days are the provider's, whoever looks.
    ((ours, _), (theirs, _)) = await listed(gateway.data), await listed(provider.data)
    for day in ("first_day", "last_day", "due_day"):
        assert ours["statement"][day] == theirs["statement"][day] == statement[day]
    assert date.fromisoformat(statement["due_day"]) - date.fromisoformat(statement["last_day"]) == timedelta(days=14)
    code, output, _ = await p2pgrid(gateway.data, "settle", "--list")
    assert code == 0 and f"due {statement['due_day']}" in output

    # Without a gateway that runs, the command dials by itself.
    await buy(grid, 1)
    await gateway.stop()
    done = await settle(gateway.data, provider.ready["peer_id"])
    assert [one["statement_number"] for one in done["channels"][0]["statements"]] == [3]
    # And on the provider's side, where it does not run, it waits.
    await provider.stop()
    done = await settle(provider.data, gateway.ready["peer_id"])
    assert not done["waits_for_client"] and done["channels"][0]["nothing_code"] == "nothing-happened"


@has_billing
async def test_a_disputed_receipt_is_held_back_and_then_credited(grid: Grid) -> None:
    gateway, provider = await with_details(grid)
    await buy(grid, 2)
    (second, first) = await receipts(gateway.data)
    await command(gateway.data, "receipts", "dispute", first["id"], "--reason", "quality", "--owed", "0")
    done = await settle(gateway.data, provider.ready["peer_id"])
    (statement,) = done["channels"][0]["statements"]
    assert statement["held_pico"] == first["amount_pico"] and statement["total_pico"] == 2 * second["amount_pico"]
    await command(provider.data, "receipts", "answer", first["id"], "--accept")
    done = await settle(gateway.data, provider.ready["peer_id"])
    (statement,) = done["channels"][0]["statements"]
    assert (statement["held_pico"], statement["credits_pico"]) == (0, first["amount_pico"])
    assert (await audit_everything(grid))["clean"]


@has_billing
async def test_nodes_of_several_processes_settle_every_channel(tmp_path: Path, fake_engine: Any) -> None:
    grid = Grid(tmp_path, model="fake", engine_url=fake_engine.url)
    try:
        await grid.start_bootstrap()
        await grid.start_operator(CHEAPER, "--processes", "2")
        await grid.start_gateway("127.0.0.1:0", "--processes", "2")
        gateway, provider = grid.gateway, grid.operators[CHEAPER]
        assert gateway is not None
        for node, details, vat_id in ((provider, SELLER, "LT100001738313"), (gateway, BUYER, "LT100001919017")):
            await command(node.data, "billing", "set", *details, "--country", "LT", "--vat-id", vat_id)
            await node.stop()
        keep_address(provider)
        await provider.start(timeout_s=60)
        await gateway.start(timeout_s=60)
        for _ in range(8):
            await ask(grid)
        await until(
            lambda: receipts(provider.data), lambda rows: len(rows) == 8 and all(r["countersigned"] for r in rows)
        )
        done = await settle(gateway.data, provider.ready["peer_id"])
        stated = [one for channel in done["channels"] for one in channel["statements"]]
        assert sum(one["last_receipt"] for one in stated) == 8
        assert len({row["channel"] for row in await receipts(gateway.data)}) == len(done["channels"])
        ours, theirs = await listed(gateway.data), await listed(provider.data)
        assert {row["statement"]["id"] for row in ours} == {row["statement"]["id"] for row in theirs}
        assert json.dumps(stated)
    finally:
        await grid.stop()
