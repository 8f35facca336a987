"""Operators behind address translation that forward no port: sales through a relay, and past it."""

from __future__ import annotations

import functools

import pytest

from tests.grid.conftest import until
from tests.lab.conftest import BuildGrid
from tests.lab.grid import Client, LabGrid
from tests.lab.plan import STANDARD, Nat, Plan

pytestmark = [pytest.mark.process, pytest.mark.lab]


PLAN = STANDARD.only("hub", "vilnius", "torino", "home")
OPERATORS = ("vilnius", "torino")


async def grid_with_a_relay(grid_on: BuildGrid, plan: Plan) -> tuple[LabGrid, Client]:
    """One public host for bootstrap and relay, two operators and one client behind routers; all offers are known."""
    grid = await grid_on(plan)
    through = ["--relay-through", grid.hubs["hub"]]
    [client] = await grid.start(operators=OPERATORS, clients=["home"], serve=through)
    await client.knows(*map(grid.peer_id, OPERATORS))
    return grid, client


async def stays_relayed(client: Client, operator: str) -> None:
    """Wait until a hole was tried in vain, as the gateway's log says. The link is where it was."""

    async def tried() -> bool:
        lines = client.node.log.read_text().splitlines()
        return any(operator in line and "stays on the relayed road" in line for line in lines)

    await until(tried, True, pause_s=0.2)
    assert await client.link(operator) == "relayed"
    assert await client.buy(operator) == "sold"


async def test_both_sell_through_the_relay(grid_on: BuildGrid) -> None:
    """The client's router is of the symmetric kind: no hole leads there."""
    grid, client = await grid_with_a_relay(grid_on, PLAN.with_router("home-nat", nat=Nat.SYMMETRIC))
    for operator in map(grid.peer_id, OPERATORS):
        assert await client.buy(operator) == "sold"
        assert await client.link(operator) == "relayed"
        assert "relayed" in (await client.offers())[operator]["roads"]
    for operator in map(grid.peer_id, OPERATORS):
        await stays_relayed(client, operator)


async def test_holes_are_punched_where_both_routers_keep_ports(grid_on: BuildGrid) -> None:
    """One operator's router keeps them, the other's does not. Then the relay dies."""
    grid, client = await grid_with_a_relay(grid_on, PLAN.with_router("torino-nat", nat=Nat.SYMMETRIC))
    keeping, symmetric = map(grid.peer_id, OPERATORS)
    await client.can_buy(keeping, symmetric)
    await until(functools.partial(client.link, keeping), "punched")
    await stays_relayed(client, symmetric)
    await grid.kill("hub")
    grid.lab.cut("hub")
    assert await client.buy(keeping) == "sold"
    assert await client.link(keeping) == "punched"


async def test_the_operator_s_router_is_given_another_address(grid_on: BuildGrid) -> None:
    grid, client = await grid_with_a_relay(grid_on, PLAN)
    operator = grid.peer_id("vilnius")
    await client.can_buy(operator)
    grid.lab.change_address("vilnius-nat", "192.52.193.88")
    await client.can_buy(operator, within_s=60)


async def test_nobody_has_to_name_a_relay(grid_on: BuildGrid) -> None:
    """`p2pgrid serve` behind a router, as it comes: it finds out that nobody reaches it, and a relay."""
    grid = await grid_on(PLAN)
    [client] = await grid.start(operators=OPERATORS, clients=["home"])
    await client.knows(*map(grid.peer_id, OPERATORS))
    for operator in map(grid.peer_id, OPERATORS):
        await client.can_buy(operator)
        assert await client.link(operator) in ("relayed", "punched")
