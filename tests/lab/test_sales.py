"""Sales across real address translation, over the roads that need no help from others."""

from __future__ import annotations

import pytest

from tests.lab.conftest import BuildGrid
from tests.lab.grid import FORWARDS
from tests.lab.plan import STANDARD

pytestmark = [pytest.mark.process, pytest.mark.lab]


async def test_operators_with_a_public_port_sell_to_a_client_behind_a_router(grid_on: BuildGrid) -> None:
    """One has a public address, to the other its router forwards the ports."""
    plan = STANDARD.only("hub", "shop", "torino", "home")
    grid = await grid_on(plan.with_router("torino-nat", forwards=tuple((port, "torino") for port in FORWARDS)))
    [client] = await grid.start(operators=["shop", "torino"], clients=["home"])
    for operator in map(grid.peer_id, ("shop", "torino")):
        await client.can_buy(operator)
        assert await client.link(operator) == "direct"


async def test_the_client_s_router_is_given_another_address(grid_on: BuildGrid) -> None:
    grid = await grid_on(STANDARD.only("hub", "shop", "home"))
    [client] = await grid.start(operators=["shop"], clients=["home"])
    await client.can_buy(grid.peer_id("shop"))
    grid.lab.change_address("home-nat", "192.52.193.77")
    await client.can_buy(grid.peer_id("shop"))
