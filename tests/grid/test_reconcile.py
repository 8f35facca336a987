"""Nodes killed in mid-stream, restarted, and brought to agree by `p2pgrid receipts reconcile`; disputes by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import Any

import openai
import pytest

from p2pgrid.demo.grid import CHEAPER, Grid
from p2pgrid.demo.processes import NodeProcess
from tests.grid.conftest import audit_everything, p2pgrid, receipts, until
from tests.grid.test_sales import ask, keep_address, read_some

pytestmark = pytest.mark.process


async def command(data: Any, *arguments: str) -> Any:
    """A command that must succeed; what it printed as JSON."""
    code, output, errors = await p2pgrid(data, *arguments, "--json")
    assert code == 0, errors
    return json.loads(output)


def kill(node: NodeProcess) -> None:
    os.killpg(node.pid, signal.SIGKILL)


async def both_agree(grid: Grid, *, of: NodeProcess) -> list[dict[str, Any]]:
    """The gateway and one operator hold the same receipts of their channel, all signed by both; they are returned."""
    assert grid.gateway is not None
    peer_id = of.ready["peer_id"]
    sold = await receipts(of.data)
    bought = [row for row in await receipts(grid.gateway.data) if row["provider"] == peer_id]
    assert sold == bought
    assert all(row["countersigned"] for row in sold)
    assert [row["receipt_number"] for row in sold] == list(range(len(sold), 0, -1))
    verdict = await audit_everything(grid)
    assert verdict["clean"], verdict["findings"]
    return sold


@pytest.mark.parametrize(
    ("who", "chunks"), [("provider", 1), ("provider", 100), ("gateway", 1), ("gateway", 100), ("both", 40)]
)
async def test_whoever_is_killed_both_come_to_agree(grid: Grid, who: str, chunks: int) -> None:
    provider, gateway = grid.operators[CHEAPER], grid.gateway
    assert gateway is not None
    await ask(grid)
    killed = [node for node in (provider, gateway) if who in ("both", "provider" if node is provider else "gateway")]

    async def strike() -> None:
        for node in killed:
            kill(node)

    with contextlib.suppress(openai.APIError, Exception):
        await read_some(grid, chunks, then=strike)
    for node in killed:
        await node.exited()
    if provider in killed:
        keep_address(provider)
        await provider.start(timeout_s=60)
    peer_id = provider.ready["peer_id"]
    network = ("--network", "demo", "--bootstrap-peers", str(grid.folder / "bootstrap_peers.toml"))
    if gateway in killed:
        # No gateway runs: the command opens the ledger itself, dials, and is done.
        first = await command(gateway.data, "receipts", "reconcile", peer_id, *network)
        await gateway.start(timeout_s=60)
    else:
        first = await command(gateway.data, "receipts", "reconcile", peer_id)
    assert first["peer"] == peer_id
    # Whoever came first, the gateway's own exchange or the command: what was cut off is told of.
    changes = [change for one in (first, *first["earlier"]) for of in one["channels"] for change in of["receipts"]]
    cut_off = [change for change in changes if change["status"] in ("interrupted", "cancelled")]
    assert cut_off and len(cut_off) == len({change["receipt_number"] for change in cut_off}), first
    again = await command(gateway.data, "receipts", "reconcile", peer_id)
    assert not again["changed"], again
    rows = await both_agree(grid, of=provider)
    assert any(row["status"] in ("interrupted", "cancelled") for row in rows)
    # And the grid goes on.
    await until(lambda: _sold(grid), lambda sold: sold, deadline_s=60)


async def _sold(grid: Grid) -> bool:
    with contextlib.suppress(openai.APIError):
        return bool((await ask(grid)).choices[0].message.content)
    await asyncio.sleep(0.2)
    return False
