"""A receipt disputed by hand on running nodes, with real processes: both ledgers come to hold dispute and answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pgrid.demo.grid import CHEAPER, Grid
from p2pgrid.demo.processes import NodeProcess
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.record import Role
from p2pgrid.proto.verdict import Verdict, audit_records
from tests.grid.conftest import audit_everything, receipts, until
from tests.grid.test_reconcile import command
from tests.grid.test_sales import ask, keep_address

pytestmark = pytest.mark.process

DAY_MS = 86_400_000


async def disputes(node: NodeProcess) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = await command(node.data, "receipts", "disputes")
    return listed


def audit_after(files: list[Path], due_ms: int) -> Verdict:
    """What an audit of these bundles says a while after the time to answer was over."""
    sides = (Role.CLIENT, Role.PROVIDER)
    bundles = [Bundle(file.name, read_bundle(file), side) for file, side in zip(files, sides, strict=True)]
    return audit_records(bundles, now_ms=due_ms + DAY_MS)


async def test_a_client_disputes_and_the_provider_answers(grid: Grid) -> None:
    gateway, provider = grid.gateway, grid.operators[CHEAPER]
    assert gateway is not None
    for _ in range(3):
        await ask(grid)
    third, second, first = await until(lambda: receipts(gateway.data), lambda rows: len(rows) == 3)

    # The operator decides.
    made = await command(gateway.data, "receipts", "dispute", first["id"], "--reason", "quality", "--owed", "0")
    assert made["is_sent"]
    ((waiting,), (ours,)) = await disputes(provider), await disputes(gateway)
    assert (waiting["id"], waiting["is_ours"], ours["is_ours"]) == (made["dispute"]["id"], False, True)
    given = await command(provider.data, "receipts", "answer", first["id"], "--accept", "--statement", "Agreed.")
    answer = given["dispute"]["answer"]
    await until(lambda: disputes(gateway), lambda rows: rows[0]["answer"] == answer)

    # The records decide.
    await command(gateway.data, "receipts", "dispute", second["id"], "--reason", "wrong-amount")
    rows = await until(lambda: disputes(gateway), lambda rows: all(row["answer"] for row in rows))
    assert sorted(row["answer"]["decision"] for row in rows) == ["accepted", "rejected"]

    # The other way round.
    await command(provider.data, "receipts", "dispute", third["id"], "--reason", "duplicate")
    await until(lambda: disputes(gateway), lambda rows: len(rows) == 3)
    given = await command(gateway.data, "receipts", "answer", third["id"], "--reject", "--statement", "No.")
    assert given["is_sent"]

    sold, bought = await disputes(provider), await disputes(gateway)
    assert {(row["id"], row["answer"]["id"]) for row in sold} == {(row["id"], row["answer"]["id"]) for row in bought}
    await ask(grid)
    newest = (await until(lambda: receipts(gateway.data), lambda rows: len(rows) == 4))[0]
    shown = await command(gateway.data, "receipts", "show", newest["id"])
    assert set(shown["mentions"]) == {i for row in sold for i in (row["id"], row["answer"]["id"])}
    verdict = await audit_everything(grid)
    assert verdict["clean"], verdict["findings"]

    erased = await command(provider.data, "receipts", "erase", first["id"])
    assert erased == {"request_keys": 1, "log_salts": 3}
    assert (await audit_everything(grid))["clean"]


async def test_a_dispute_made_while_nobody_runs_arrives_and_unanswered_it_is_a_finding(grid: Grid) -> None:
    gateway, provider = grid.gateway, grid.operators[CHEAPER]
    assert gateway is not None
    await ask(grid)
    (row,) = await until(lambda: receipts(gateway.data), lambda rows: len(rows) == 1 and rows[0]["countersigned"])
    await provider.stop()
    away = await command(gateway.data, "receipts", "dispute", row["id"], "--reason", "quality")
    assert not away["is_sent"]
    keep_address(provider)
    await provider.start(timeout_s=60)
    await command(gateway.data, "receipts", "reconcile", provider.ready["peer_id"])
    (waiting,) = await disputes(provider)
    assert waiting["answer"] is None and not waiting["is_overdue"]
    assert (await audit_everything(grid))["clean"]

    files = [grid.folder / f"{node.data.name}.jsonl" for node in (gateway, provider)]
    assert audit_after(files, waiting["due_ms"] - 2 * DAY_MS).clean
    late = audit_after(files, waiting["due_ms"])
    assert [finding.code for finding in late.findings] == ["dispute-unanswered"]
    assert late.findings[0].party == "provider"

    # Answered after all, while the node is down.
    await provider.stop()
    await command(provider.data, "receipts", "answer", waiting["id"], "--reject")
    await provider.start(timeout_s=60)
    await until(lambda: disputes(gateway), lambda rows: rows[0]["answer"] is not None)
    assert (await audit_everything(grid))["clean"]
    assert audit_after(files, waiting["due_ms"]).clean
