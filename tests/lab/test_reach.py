"""What `p2pgrid doctor` says of nodes on public hosts, behind forwarded ports, and behind none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.grid.conftest import until
from tests.lab.conftest import BuildGrid
from tests.lab.grid import FORWARDS, LabGrid
from tests.lab.plan import STANDARD

pytestmark = [pytest.mark.process, pytest.mark.lab, pytest.mark.timeout(180)]


async def reachability(grid: LabGrid, name: str) -> dict[str, Any]:
    """The doctor's check, once somebody has dialled the node back."""

    async def check() -> dict[str, Any]:
        checks = (await grid.doctor(name))["checks"]
        return next(one for one in checks if one["name"] == "reachability")

    found: dict[str, Any] = await until(check, lambda one: one["state"] != "skipped", deadline_s=60, pause_s=0.5)
    return found


async def test_who_can_be_reached_is_told_so_and_who_cannot_is_told_what_to_open(grid_on: BuildGrid) -> None:
    plan = STANDARD.only("hub", "hub-west", "shop", "vilnius", "torino")
    plan = plan.with_router("torino-nat", forwards=tuple((port, "torino") for port in FORWARDS))
    grid = await grid_on(plan, hubs=("hub", "hub-west"))
    await grid.start(operators=["shop", "torino"])
    await grid.start_operator("vilnius", "--relay-through", "never")
    public, forwarded, hidden = [await reachability(grid, name) for name in ("shop", "torino", "vilnius")]
    for one in (public, forwarded):
        assert one["state"] == "ok"
        assert "strangers can reach this node" in one["text"]
    assert hidden["state"] == "fault"
    assert "strangers cannot reach this node" in hidden["text"]
    for port in FORWARDS:
        assert str(port) in hidden["fix"]


async def test_who_is_reached_through_a_relay_is_warned(grid_on: BuildGrid) -> None:
    grid = await grid_on(STANDARD.only("hub", "vilnius"))
    await grid.start(operators=["vilnius"], serve=["--relay-through", grid.hubs["hub"]])
    found = await reachability(grid, "vilnius")
    assert found["state"] == "warning"
    assert "through a relay" in found["text"]


async def test_a_node_that_does_not_run_is_looked_at_where_it_would_listen(grid_on: BuildGrid) -> None:
    grid = await grid_on(STANDARD.only("hub", "shop", "vilnius"))
    await grid.start(operators=["shop", "vilnius"])
    await asyncio.gather(*(grid.nodes[name].stop() for name in ("shop", "vilnius")))
    for name, state in (("shop", "ok"), ("vilnius", "fault")):
        grid.configure(name)
        assert (await reachability(grid, name))["state"] == state
