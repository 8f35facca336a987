"""Sales across real address translation, over the roads that need no help from others."""

from __future__ import annotations

import time

import pytest

from tests.grid.conftest import until
from tests.lab.conftest import BuildGrid
from tests.lab.grid import FORWARDS
from tests.lab.plan import STANDARD

pytestmark = [pytest.mark.process, pytest.mark.lab]


async def test_a_public_operator_sells_to_a_client_behind_a_router(grid_on: BuildGrid) -> None:
    grid = await grid_on(STANDARD.only("hub", "shop", "home"))
    await grid.start_hub("hub")
    await grid.start_operator("shop")
    client = await grid.start_client("home")
    await until(client.offers, lambda offers: list(offers) == [grid.peer_id("shop")])
    assert await client.buy() == "sold"
    assert (await client.offers())[grid.peer_id("shop")]["link"] == "direct"


async def test_an_operator_behind_a_router_sells_through_a_forwarded_port(grid_on: BuildGrid) -> None:
    plan = STANDARD.only("hub", "torino", "home")
    grid = await grid_on(plan.with_router("torino-nat", forwards=tuple((port, "torino") for port in FORWARDS)))
    await grid.start_hub("hub")
    await grid.start_operator("torino")
    client = await grid.start_client("home")
    await until(client.offers, lambda offers: list(offers) == [grid.peer_id("torino")])
    assert await client.buy() == "sold"
    assert (await client.offers())[grid.peer_id("torino")]["link"] == "direct"


async def test_the_client_s_router_is_given_another_address(grid_on: BuildGrid) -> None:
    grid = await grid_on(STANDARD.only("hub", "shop", "home"))
    await grid.start_hub("hub")
    await grid.start_operator("shop")
    client = await grid.start_client("home")
    await until(client.buy, "sold")
    grid.lab.change_address("home-nat", "198.51.100.77")
    began = time.monotonic()
    await until(client.buy, "sold")
    print("resumed after", time.monotonic() - began)
