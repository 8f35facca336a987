"""Operators behind address translation that forward no port: sales through a relay, and past it."""

from __future__ import annotations

import functools

import pytest

from tests.grid.conftest import until
from tests.lab.conftest import BuildGrid
from tests.lab.grid import Client, LabGrid
from tests.lab.plan import STANDARD, Nat, Plan

pytestmark = [pytest.mark.process, pytest.mark.lab]

pytest.importorskip("p2pgrid.net.relay")

PLAN = STANDARD.only("hub", "vilnius", "torino", "home")
OPERATORS = ("vilnius", "torino")


async def grid_with_a_relay(grid_on: BuildGrid, plan: Plan) -> tuple[LabGrid, Client]:
    """One public host for bootstrap and relay, two operators and one client behind routers; all offers are known."""
    grid = await grid_on(plan)
    through = ["--relay-through", grid.hubs["hub"]]
    [client] = await grid.start(operators=OPERATORS, clients=["home"], serve=through)
    await client.knows(*map(grid.peer_id, OPERATORS))
    return grid, client


async def test_both_sell_through_the_relay(grid_on: BuildGrid) -> None:
    plan = PLAN.with_router("home-nat", nat=Nat.SYMMETRIC)
    grid, client = await grid_with_a_relay(grid_on, plan)
    for operator in map(grid.peer_id, OPERATORS):
        assert await client.buy(operator) == "sold"
        assert await client.link(operator) == "relayed"
        assert "relayed" in (await client.offers())[operator]["roads"]


async def test_holes_are_punched_where_routers_keep_ports(grid_on: BuildGrid) -> None:
    grid, client = await grid_with_a_relay(grid_on, PLAN)
    for operator in map(grid.peer_id, OPERATORS):
        assert await client.buy(operator) == "sold"
        await until(functools.partial(client.link, operator), "punched")
    await grid.kill("hub")
    grid.lab.cut("hub")
    for operator in map(grid.peer_id, OPERATORS):
        assert await client.buy(operator) == "sold"
        assert await client.link(operator) == "punched"


async def test_the_operator_s_router_is_given_another_address(grid_on: BuildGrid) -> None:
    grid, client = await grid_with_a_relay(grid_on, PLAN)
    operator = grid.peer_id("vilnius")
    assert await client.buy(operator) == "sold"
    grid.lab.change_address("vilnius-nat", "192.52.193.88")
    await client.can_buy(operator, within_s=60)
