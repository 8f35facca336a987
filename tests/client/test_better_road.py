"""A link on a slow road: faster ones are tried, in their order, until one leads there or the link is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import pytest

from p2pgrid.client.better_road import Way, improve
from p2pgrid.errors import Unreachable
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.road import Road
from tests.net.test_road_move import Grid, count_on, grid, until


class Ways:
    """Roads that do not lead there yet, and what was tried."""

    def __init__(self, g: Grid, link: LinkConnection, *open_roads: Road) -> None:
        self.tried: list[Road] = []
        self.open = set(open_roads)
        self._grid, self._link = g, link

    def __call__(self) -> Mapping[Road, Way]:
        return {road: self._way(road) for road in Road}

    def _way(self, road: Road) -> Way:
        async def dial(_: LinkConnection | None) -> LinkConnection:
            self.tried.append(road)
            if road not in self.open:
                raise Unreachable("not yet")
            return await self._grid.dial(road, continues=self._link)

        return dial


async def test_a_link_is_brought_to_the_fastest_road_that_opens() -> None:
    async with grid() as g, asyncio.timeout(20):
        link = await g.dial(Road.LIBP2P)
        numbers = count_on(link, 3000)
        ways = Ways(g, link)
        task = asyncio.create_task(improve(link, ways, first_pause_s=0.05))
        await until(lambda: len(ways.tried) >= 5, "it is tried again and again")
        assert ways.tried[:5] == [Road.PUNCHED, Road.DIRECT, Road.PUNCHED, Road.DIRECT, Road.PUNCHED]
        assert link.road is Road.LIBP2P
        ways.open.add(Road.DIRECT)
        await task
        assert link.road.value == "direct"
        assert Road.LIBP2P not in ways.tried and Road.RELAYED not in ways.tried
        await numbers.over
        await link.aclose()


async def test_nothing_is_tried_for_a_link_that_is_over() -> None:
    async with grid() as g, asyncio.timeout(20):
        link = await g.dial(Road.LIBP2P)
        ways = Ways(g, link)
        task = asyncio.create_task(improve(link, ways, first_pause_s=30))
        await until(lambda: bool(ways.tried), "it is tried")
        await link.aclose()
        await task
        assert ways.tried == [Road.PUNCHED]
        await improve(link, Ways(g, link, *Road))


async def test_a_link_on_the_fastest_road_stays_there() -> None:
    async with grid() as g, asyncio.timeout(20):
        link = await g.dial(Road.DIRECT)
        ways = Ways(g, link, *Road)
        await improve(link, ways)
        assert ways.tried == []
        await link.aclose()


@pytest.mark.parametrize(("first", "pauses"), [(1.0, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300])])
async def test_it_is_tried_ever_more_seldom(first: float, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    async with grid() as g, asyncio.timeout(20):
        link = await g.dial(Road.LIBP2P)
        slept: list[float] = []
        real = asyncio.wait

        async def wait(futures: set[asyncio.Future[None]], timeout: float) -> object:
            slept.append(timeout)
            if len(slept) == len(pauses):
                link.abort()
            return await real(futures, timeout=0)

        monkeypatch.setattr(asyncio, "wait", wait)
        monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
        await improve(link, Ways(g, link), first_pause_s=first)
        assert slept == pauses
