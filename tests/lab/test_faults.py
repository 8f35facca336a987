"""What goes wrong in real networks: addresses change, peers vanish, a network falls into two halves."""

from __future__ import annotations

import asyncio
import functools

import pytest

from p2pgrid.net.silence import GONE_AFTER_S
from tests.grid.conftest import until
from tests.lab.conftest import BuildGrid
from tests.lab.grid import FORWARDS
from tests.lab.plan import STANDARD

pytestmark = [pytest.mark.process, pytest.mark.lab, pytest.mark.timeout(240)]


async def test_operators_are_given_other_addresses(grid_on: BuildGrid) -> None:
    """One sells over both roads, the other over libp2p alone."""
    grid = await grid_on(STANDARD.only("hub", "shop", "shop-west", "home"))
    [client] = await grid.start(operators=["shop"], clients=["home"])
    await grid.start_operator("shop-west", "--no-direct")
    both = list(map(grid.peer_id, ("shop", "shop-west")))
    await client.can_buy(*both)
    grid.lab.change_address("shop", "192.52.193.99")
    grid.lab.change_address("shop-west", "192.175.48.99")
    await client.can_buy(*both, within_s=60)
    await until(functools.partial(client.link, both[0]), "direct", pause_s=0.2)


async def test_an_operator_s_router_is_given_another_address_and_the_operator_announces_it(grid_on: BuildGrid) -> None:
    plan = STANDARD.only("hub", "vilnius", "home")
    grid = await grid_on(plan.with_router("vilnius-nat", forwards=tuple((port, "vilnius") for port in FORWARDS)))
    [client] = await grid.start(operators=["vilnius"], clients=["home"])
    await client.can_buy(grid.peer_id("vilnius"))
    grid.lab.change_address("vilnius-nat", "192.52.193.99")
    await grid.nodes["vilnius"].stop()
    await grid.start_operator("vilnius")
    await client.can_buy(grid.peer_id("vilnius"), within_s=60)


async def test_an_operator_vanishes_and_another_answers(grid_on: BuildGrid) -> None:
    """Nobody says that it is gone: what was sent to it is not acknowledged, and that is all."""
    grid = await grid_on(STANDARD.only("hub", "shop", "shop-west", "home"))
    [client] = await grid.start(operators=["shop-west"], clients=["home"])
    await grid.start_operator("shop", price_eur="0.40")
    both = list(map(grid.peer_id, ("shop", "shop-west")))
    await client.can_buy(*both)
    assert [await client.link(one) for one in both] == ["direct", "direct"]
    grid.lab.cut("shop")
    assert await client.buy(timeout_s=GONE_AFTER_S + 10) == "sold"


async def test_a_bootstrap_peer_dies(grid_on: BuildGrid) -> None:
    """Who is there trades on, and a newcomer joins by the second one."""
    grid = await grid_on(STANDARD.only("hub", "hub-west", "shop", "home", "flat"), hubs=("hub", "hub-west"))
    [client] = await grid.start(operators=["shop"], clients=["home"])
    await client.can_buy(grid.peer_id("shop"))
    await grid.kill("hub")
    grid.lab.cut("hub")
    assert await client.buy() == "sold"
    newcomer = await grid.start_client("flat")
    await newcomer.can_buy(grid.peer_id("shop"))
    assert await client.buy() == "sold"


async def test_two_halves_go_on_and_find_one_another_again(grid_on: BuildGrid) -> None:
    """Each half has a bootstrap peer, an operator and a client, and another operator joins it while it is alone."""
    plan = STANDARD.only("hub", "hub-west", "shop", "shop-west", "home", "flat", "vilnius", "torino")
    for name in ("vilnius", "torino"):
        plan = plan.with_router(f"{name}-nat", forwards=tuple((port, name) for port in FORWARDS))
    grid = await grid_on(plan, hubs=("hub", "hub-west"))
    old = ("shop", "shop-west")
    home, flat = await grid.start(operators=old, clients=["home", "flat"])
    for client in (home, flat):
        await client.can_buy(*map(grid.peer_id, old))

    grid.lab.partition()
    await asyncio.gather(*map(grid.start_operator, ("vilnius", "torino")))
    shop, shop_west, vilnius, torino = map(grid.peer_id, (*old, "vilnius", "torino"))
    for client, half, absent in ((home, (shop, vilnius), torino), (flat, (shop_west, torino), vilnius)):
        await client.knows(*half, within_s=70)
        await client.can_buy(*half)
        assert absent not in await client.offers()

    grid.lab.reunite()
    everybody = (shop, shop_west, vilnius, torino)
    async with asyncio.timeout(60):
        for client in (home, flat):
            await until(client.offers, lambda offers: set(offers) == set(everybody), deadline_s=60, pause_s=0.2)
    for client in (home, flat):
        await client.can_buy(*everybody)
