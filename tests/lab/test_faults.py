"""What goes wrong in real networks: addresses change, introducing peers die, a network falls into two halves."""

from __future__ import annotations

import asyncio
import time

import pytest

from p2pgrid.net.silence import GONE_AFTER_S
from tests.grid.conftest import until
from tests.lab.conftest import BuildGrid
from tests.lab.grid import FORWARDS
from tests.lab.plan import STANDARD

pytestmark = [pytest.mark.process, pytest.mark.lab]


async def test_an_operator_is_given_another_address(grid_on: BuildGrid) -> None:
    grid = await grid_on(STANDARD.only("hub", "shop", "home"))
    await grid.start_hub("hub")
    _, client = await asyncio.gather(grid.start_operator("shop"), grid.start_client("home"))
    await until(client.buy, "sold")
    grid.lab.change_address("shop", "198.51.100.99")
    began = time.monotonic()
    await until(client.buy, "sold", deadline_s=90)
    print("resumed after", time.monotonic() - began)


async def test_an_operator_vanishes_and_another_answers(grid_on: BuildGrid) -> None:
    """Nobody says that it is gone: what was sent to it is not acknowledged, and that is all."""
    grid = await grid_on(STANDARD.only("hub", "shop", "shop-west", "home"))
    await grid.start_hub("hub")
    *_, client = await asyncio.gather(
        grid.start_operator("shop", price_eur="0.40"),
        grid.start_operator("shop-west", price_eur="0.80"),
        grid.start_client("home"),
    )
    shop, other = grid.peer_id("shop"), grid.peer_id("shop-west")
    await until(client.offers, lambda offers: {offers.get(one, {}).get("link") for one in (shop, other)} == {"direct"})
    assert await client.buy(shop) == "sold"
    grid.lab.cut("shop")
    began = time.monotonic()
    assert await client.buy(timeout_s=GONE_AFTER_S + 10) == "sold"
    print("answered after", time.monotonic() - began)


async def test_a_bootstrap_peer_dies(grid_on: BuildGrid) -> None:
    grid = await grid_on(STANDARD.only("hub", "hub-west", "shop", "home", "flat"), hubs=("hub", "hub-west"))
    await asyncio.gather(grid.start_hub("hub"), grid.start_hub("hub-west"))
    _, client = await asyncio.gather(grid.start_operator("shop"), grid.start_client("home"))
    await until(client.buy, "sold")
    await grid.kill("hub")
    grid.lab.cut("hub")
    assert await client.buy() == "sold"
    began = time.monotonic()
    newcomer = await grid.start_client("flat")
    await until(newcomer.buy, "sold")
    print("newcomer after", time.monotonic() - began)
    assert await client.buy() == "sold"


async def test_two_halves_go_on_and_find_one_another_again(grid_on: BuildGrid) -> None:
    """Each half has a bootstrap peer, an operator and a client, and is joined by another operator while it is alone."""
    plan = STANDARD.only("hub", "hub-west", "shop", "shop-west", "home", "flat", "vilnius", "torino")
    for name in ("vilnius", "torino"):
        plan = plan.with_router(f"{name}-nat", forwards=tuple((port, name) for port in FORWARDS))
    grid = await grid_on(plan, hubs=("hub", "hub-west"))
    await asyncio.gather(grid.start_hub("hub"), grid.start_hub("hub-west"))
    *_, home, flat = await asyncio.gather(
        *(grid.start_operator(name) for name in ("shop", "shop-west")),
        *(grid.start_client(name) for name in ("home", "flat")),
    )
    for client in (home, flat):
        for operator in ("shop", "shop-west"):
            await until(lambda client=client, operator=operator: client.buy(grid.peer_id(operator)), "sold")
    grid.lab.partition()
    await asyncio.gather(grid.start_operator("vilnius"), grid.start_operator("torino"))
    halves = ((home, {"shop", "vilnius"}), (flat, {"shop-west", "torino"}))
    for client, half in halves:
        own = set(map(grid.peer_id, half))
        await until(client.offers, lambda offers, own=own: own <= set(offers), deadline_s=70)
        for operator in half:
            await until(lambda client=client, operator=operator: client.buy(grid.peer_id(operator)), "sold")
        assert {grid.peer_id(one) for one in ("vilnius", "torino")} - own - set(await client.offers())
    grid.lab.reunite()
    began = time.monotonic()
    everybody = sorted(map(grid.peer_id, ("shop", "shop-west", "vilnius", "torino")))
    for client in (home, flat):
        await until(client.offers, lambda offers: sorted(offers) == everybody, deadline_s=60)
        print("seen after", time.monotonic() - began)
    for client in (home, flat):
        for operator in ("shop", "shop-west", "vilnius", "torino"):
            await until(lambda client=client, operator=operator: client.buy(grid.peer_id(operator)), "sold")
            print(operator, "sold after", time.monotonic() - began)
