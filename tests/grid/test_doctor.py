"""`p2pgrid doctor` on the nodes of a grid that runs, and when something is wrong with it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.cli.serve import _ready_text, ready_of
from p2pgrid.commands.client import find_node
from p2pgrid.data_folder import DataFolder
from p2pgrid.demo.grid import CHEAPER, Grid
from p2pgrid.desk.asks import Condition, Examine
from p2pgrid.net import reachability
from p2pgrid.provider.health import health_of
from tests.grid.conftest import get, p2pgrid, until
from tests.grid.market import Market
from tests.grid.test_libp2p_road import market


async def doctor(data: Path, *arguments: str) -> tuple[int, dict[str, Any], dict[str, dict[str, Any]]]:
    """Exit code, what is said in JSON, and its checks by name."""
    code, output, errors = await p2pgrid(data, "doctor", "--json", *arguments)
    assert errors == ""
    report: dict[str, Any] = json.loads(output)
    return code, report, {one["name"]: one for one in report["checks"]}


async def _yet_to_be_written(grid: Grid) -> list[Any]:
    """What the nodes write by themselves once they have met: logs' first checkpoints, and what the gateway remembers of
    the providers. It remembers a road that is not the direct one, if that was too slow to come first."""
    logs = [log for log in grid.folder.glob("operator-*/log.*.sqlite") if not log.with_suffix(".checkpoint").exists()]
    known = [offer for model in (await get(grid, "/models"))["data"] for offer in model["p2pgrid"]["offers"]]
    client = DataFolder(grid.folder / "client")
    cached = json.loads(client.offers_file.read_bytes())["offers"] if client.offers_file.exists() else []
    lacking = {offer["provider"] for offer in known} - {one["peer_id"] for one in cached}
    roads = [offer["provider"] for offer in known if offer["link"] != "direct" and not client.roads_file.exists()]
    return [*logs, *lacking, *roads]


@pytest.mark.process
async def test_the_nodes_of_a_grid(grid: Grid) -> None:
    operator, bootstrap = grid.folder / CHEAPER.folder, grid.folder / "bootstrap"
    await until(partial(_yet_to_be_written, grid), [])
    files = set(grid.folder.rglob("*"))
    code, report, checks = await doctor(operator)
    assert (code, report["healthy"], report["role"]) == (0, True, "provider"), report
    assert report["peer_id"] == grid.operators[CHEAPER].ready["peer_id"]
    for name in ("node", "version", "config", "keys", "ledger", "engine", "bootstrap", "look-up", "clock"):
        assert checks[name]["state"] == "ok", checks[name]
    assert "held by this node" in " ".join(one["text"] for one in report["checks"] if one["name"].startswith("port"))
    assert "direct road: reached from here; libp2p: reached from here" in checks["reachability"]["text"]
    assert [one["name"] for one in report["checks"] if one["state"] not in ("ok", "skipped")] == ["reachability"]

    code, report, checks = await doctor(bootstrap)
    assert (code, report["role"]) == (0, "bootstrap"), report
    assert "held by this node" in " ".join(one["text"] for one in report["checks"])
    assert "libp2p: reached from here" in checks["reachability"]["text"]

    code, report, checks = await doctor(grid.folder / "client")
    assert (code, report["role"]) == (0, "client"), report
    assert checks["bootstrap"]["state"] == checks["clock"]["state"] == "ok"
    assert "reachability" not in checks
    assert set(grid.folder.rglob("*")) == files

    # For people: the same, as a table.
    code, output, _ = await p2pgrid(operator, "doctor")
    assert code == 0
    assert "no faults, 1 warning." in output
    assert "fix:" in output


@pytest.mark.process
async def test_faults_end_with_1_and_a_fix(grid: Grid) -> None:
    operator = grid.folder / CHEAPER.folder
    (operator / "key").chmod(0o644)
    await grid.bootstrap.stop()
    code, report, checks = await doctor(operator)
    assert (code, report["healthy"]) == (1, False)
    assert checks["keys"]["state"] == "fault"
    assert f"chmod 600 {operator / 'key'}" in checks["keys"]["fix"]
    assert checks["bootstrap"]["state"] == "fault"
    assert all(bool(one["fix"]) is (one["state"] in ("fault", "warning")) for one in report["checks"])


async def test_a_node_says_how_it_is_reached(tmp_path: Path) -> None:
    """In /health, and in the text that `serve` prints; to its owner through the command socket."""
    async with market(tmp_path, listen="127.0.0.1:0") as m:
        assert m.provider.reach is not None
        await until(_reach_of(m), {"direct": "local", "libp2p": "local"})
        ready = ready_of(m.provider, m.sold, None)
        assert ready["reachability"] == health_of(m.provider)["reachability"]
        assert "  reach     this node is reachable from its local network" in _ready_text(ready)
        assert "being asked" in _ready_text(ready | {"reachability": None})
        node = await find_node(m.sold.path)
        assert node is not None
        before = m.provider.reach.current
        condition = await node.ask(Examine(), Condition)
        assert m.provider.reach.current is not before, "others were asked once more"
        assert condition.health["reachability"]["roads"] == {"direct": "local", "libp2p": "local"}
        assert condition.health["reachability"]["advice"] == []
        assert condition.listening[0].endswith("/tls")
        assert condition.addresses == m.provider.offered_addresses
        client = await find_node(m.bought.path)
        assert client is not None
        assert (await client.ask(Examine(), Condition)).networks[0].name == "test"


def _reach_of(m: Market) -> Any:
    async def roads() -> Any:
        shown = health_of(m.provider)["reachability"]
        return shown and shown["roads"]

    return roads


async def test_a_node_whose_direct_port_is_closed_says_what_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It announces a port at which nobody listens; the peer that is asked passes for one on the internet."""
    monkeypatch.setattr(reachability, "is_local", lambda ip: False)
    monkeypatch.setattr(reachability.PeerView, "is_outside", True)
    async with market(tmp_path, listen="127.0.0.1:0", announce=("127.0.0.1:1",)) as m:
        await until(_reach_of(m), {"direct": "unreachable", "libp2p": "outside"})
        port = m.provider.listening[0].split("/")[4]
        [line] = health_of(m.provider)["reachability"]["advice"]
        assert line.startswith(f"direct road: let TCP port {port} in to 127.0.0.1 in this machine's firewall")
        assert line in _ready_text(ready_of(m.provider, m.sold, None))
