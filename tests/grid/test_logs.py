"""Logs of real nodes: exports with proofs for a demanding auditor; providers that moved; one that leaves out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.demo.grid import CHEAPER, DEARER, Grid
from p2pgrid.demo.processes import NodeProcess
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.inclusion import INCLUSION_PROOF_TYPE, parse_log_proof
from p2pgrid.proto.record import Record
from tests.grid.conftest import offer_count, p2pgrid, receipts, until
from tests.grid.test_reconcile import command
from tests.grid.test_sales import ask, keep_address
from tests.ports import reserved_port

pytestmark = pytest.mark.process

LEAVE_OUT = """\
import p2pgrid.log.log as log

true = log.loggable


def loggable(signed, own_key):
    left_out = type(signed.message).__name__ == "Receipt" and signed.message.receipt_number == 2
    return None if left_out else true(signed, own_key)


log.loggable = loggable
"""
"""The provider's node never hears of its second receipt where its log is concerned."""


def network(grid: Grid) -> tuple[str, ...]:
    return ("--network", "demo", "--bootstrap-peers", str(grid.folder / "bootstrap_peers.toml"))


def configure(node: NodeProcess, old: str, new: str) -> None:
    config = node.data / "config.toml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


async def restart(node: NodeProcess, timeout_s: float = 60) -> None:
    await node.stop()
    await node.start(timeout_s=timeout_s)


async def restart_gateway(grid: Grid) -> None:
    """It forgets who was away, knows all offers again, and looks at the logs of its providers first of all."""
    assert grid.gateway is not None
    await restart(grid.gateway)
    await until(lambda: offer_count(grid), 2)


async def bought(grid: Grid, count: int) -> list[dict[str, Any]]:
    """So many sales, one after the other, signed by both on both sides; the client's receipts, newest first."""
    assert grid.gateway is not None
    for _ in range(count):
        await ask(grid)
    for node in (grid.operators[CHEAPER], grid.gateway):
        rows = await until(
            lambda node=node: receipts(node.data),
            lambda rows: len(rows) == count and all(row["countersigned"] for row in rows),
        )
    signed: list[dict[str, Any]] = rows
    return signed


async def export(grid: Grid, node: NodeProcess, *arguments: str) -> tuple[int, dict[str, Any], Path]:
    file = grid.folder / f"{node.data.name}.jsonl"
    code, output, errors = await p2pgrid(
        node.data, "receipts", "export", str(file), "--logged", "--json", *network(grid), *arguments
    )
    assert code in (0, 1), errors
    return code, json.loads(output), file


async def audit(grid: Grid, *arguments: Any) -> tuple[int, list[str]]:
    code, output, errors = await p2pgrid(grid.folder, "audit", "--json", *map(str, arguments))
    assert code in (0, 1), errors
    return code, [finding["code"] for finding in json.loads(output)["findings"]]


def proofs_in(file: Path) -> int:
    lines = [line for _, line in read_bundle(file)]
    return sum(isinstance(one, Record) and one.payload_type == INCLUSION_PROOF_TYPE for one in lines)


async def test_exports_with_proofs_satisfy_an_auditor_who_demands_them(grid: Grid) -> None:
    provider, other, gateway = grid.operators[CHEAPER], grid.operators[DEARER], grid.gateway
    assert gateway is not None
    witness = other.ready["libp2p_addresses"][0]
    configure(provider, "[provider]\n", f'[provider]\nwitnesses = ["{witness}"]\n')
    keep_address(provider)
    await restart(provider)
    await restart_gateway(grid)
    first, *_ = reversed(await bought(grid, 4))
    await command(gateway.data, "receipts", "dispute", first["id"], "--reason", "quality")
    await command(provider.data, "receipts", "answer", first["id"], "--accept")
    await restart_gateway(grid)

    code, said, sold = await export(grid, provider, "--witnesses", "2")
    assert (code, said["complete"]) == (0, True), said
    (of_own,) = said["logs"]
    assert of_own["proofs"] == of_own["wanted"] == proofs_in(sold)
    assert of_own["log"] == provider.ready["peer_id"] and of_own["witnesses"] >= 2
    code, said, paid = await export(grid, gateway, "--witnesses", "2")
    assert (code, said["complete"]) == (0, True), said
    # Four receipts, one dispute, one answer, and the offer; the provider has offered more than once.
    assert [one["proofs"] for one in said["logs"]] == [proofs_in(paid)]
    assert 7 <= proofs_in(paid) <= proofs_in(sold)
    for files in ((sold, paid), (sold,), (paid,)):
        assert await audit(grid, *files, "--logged", "--witnesses", "2") == (0, []), files

    # What is not there is named: a third witness, and a provider that is away.
    code, said, _ = await export(grid, provider, "--witnesses", "3", "--wait", "0")
    assert (code, said["complete"], said["logs"][0]["witnesses"]) == (1, False, 2)
    await asyncio.gather(provider.stop(), gateway.stop())
    code, said, paid = await export(grid, gateway)
    assert (code, said["complete"], proofs_in(paid)) == (1, False, 0)
    assert "cannot be reached" in said["logs"][0]["error"]
    assert (await audit(grid, paid, "--logged"))[1] == ["not-logged"]
    assert await audit(grid, paid) == (0, [])
    # The operator's own data folder needs no node.
    code, said, sold = await export(grid, provider)
    assert code == 0 and await audit(grid, sold, paid, "--logged") == (0, [])


async def test_a_receipt_that_a_provider_left_out_of_its_log_is_found(grid: Grid, tmp_path: Path) -> None:
    honest, gateway = grid.operators[CHEAPER], grid.gateway
    assert gateway is not None
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(LEAVE_OUT)
    keep_address(honest)
    await honest.stop()
    path = f"{tmp_path / 'fault'}:{Path(__file__).parents[2]}"
    peers = str(grid.folder / "bootstrap_peers.toml")
    provider = NodeProcess("cheat", honest.data, "serve", "--bootstrap-peers", peers, environment={"PYTHONPATH": path})
    grid.operators[CHEAPER] = provider
    await provider.start(timeout_s=60)
    await restart_gateway(grid)
    _, second, _ = await bought(grid, 3)

    for node in (provider, gateway):
        code, said, file = await export(grid, node)
        assert (code, said["complete"]) == (1, False)
        (lacking,) = said["logs"][0]["lacking"]
        assert lacking == {"type": "receipt", "record": second["id"], "why": "not-logged"}
        code, output, errors = await p2pgrid(grid.folder, "audit", "--json", str(file), "--logged")
        findings = json.loads(output)["findings"]
        assert [(one["code"], one["party"], one["record_id"]) for one in findings] == [
            ("not-logged", "provider", second["id"])
        ], errors


async def test_a_client_has_its_proof_wherever_its_provider_went(grid: Grid) -> None:
    provider, gateway = grid.operators[CHEAPER], grid.gateway
    assert gateway is not None
    (row,) = await bought(grid, 1)

    async def prove() -> str:
        code, output, errors = await p2pgrid(gateway.data, "log", "prove", row["id"], *network(grid))
        assert code == 0, errors
        proof = parse_log_proof(output.encode())
        assert proof.verify().log_key.peer_id == provider.ready["peer_id"]
        assert proof.inclusion.record_id.hex() == row["id"]
        return output

    await prove()
    # To another port: its new offer says where.
    (before,) = provider.ready["addresses"]
    await provider.stop()
    with reserved_port(int(before.split("/")[4])):  # the system gives it another one, while that is held
        await provider.start(timeout_s=60)
    assert provider.ready["addresses"] != [before]
    await prove()
    # To where nobody gets by the direct road.
    await provider.stop()
    configure(provider, "[provider]\n", '[provider]\nannounce = ["127.0.0.1:1"]\n')
    await provider.start(timeout_s=60)
    await prove()
    code, said, _ = await export(grid, gateway)
    assert (code, said["complete"]) == (0, True), said
    # A stranger is told nothing, on that road as on the other.
    stranger = grid.folder / "stranger"
    (stranger / "logs").mkdir(parents=True)
    for file in gateway.data.glob("ledger.sqlite*"):
        (stranger / file.name).write_bytes(file.read_bytes())
    await p2pgrid(stranger, "init")
    code, _, errors = await p2pgrid(stranger, "log", "prove", row["id"], *network(grid))
    assert code != 0 and "is not in the log" in errors
    await provider.stop()
    code, _, errors = await p2pgrid(gateway.data, "log", "prove", row["id"], *network(grid), "--timeout", "3")
    assert code == 4 and "cannot be reached" in errors and "Nor was it found anew" in errors
