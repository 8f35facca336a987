"""Holes on loopback: two sides, each with one port, end up with one connection between these ports."""

from __future__ import annotations

import asyncio
import socket

import pytest

from p2pgrid.net import direct
from p2pgrid.net.direct import DirectListener
from p2pgrid.net.punch_plan import Place, PunchPlan
from p2pgrid.net.punching import Hole
from p2pgrid.net.road import Road
from tests.net.road_rigs import CLIENT, PROVIDER, Echo


def connected_port(server: socket.socket) -> tuple[socket.socket, Place]:
    """A connection as the one to a relay is, and its own port: in use, and to be shared."""
    tcp = socket.socket()
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    tcp.bind(("127.0.0.1", 0))
    tcp.connect(server.getsockname())
    return tcp, tcp.getsockname()


@pytest.fixture
def ports() -> object:
    with socket.create_server(("127.0.0.1", 0)) as relay:
        one, here = connected_port(relay)
        other, there = connected_port(relay)
        with one, other:
            yield here, there


async def first(hole: Hole) -> socket.socket:
    tcp = await hole.next()
    assert tcp is not None
    return tcp


@pytest.mark.parametrize("delay_s", [0.0, 0.3, 1.5])
async def test_both_sides_get_the_same_connection(ports: tuple[Place, Place], delay_s: float) -> None:
    here, there = ports
    loop = asyncio.get_running_loop()
    async with Hole(PunchPlan(here, (there,))) as mine:
        await asyncio.sleep(delay_s)
        async with Hole(PunchPlan(there, (here,))) as theirs:
            one, other = await asyncio.gather(first(mine), first(theirs))
            with one, other:
                assert (one.getsockname(), one.getpeername()) == (here, there)
                assert (other.getsockname(), other.getpeername()) == (there, here)
                await loop.sock_sendall(one, b"through the hole")
                assert await loop.sock_recv(other, 100) == b"through the hole"


async def test_where_nobody_answers_it_ends_in_time(ports: tuple[Place, Place]) -> None:
    here, there = ports
    began = asyncio.get_running_loop().time()
    async with Hole(PunchPlan(here, (there, ("127.0.0.1", 1))), lasts_s=0.5) as hole:
        assert await hole.next() is None
    assert 0.4 < asyncio.get_running_loop().time() - began < 2
    async with Hole(PunchPlan(("192.0.2.1", 9), (there,)), lasts_s=0.2) as hole:  # an address that is not ours
        assert await hole.next() is None


async def test_what_nobody_took_is_closed(ports: tuple[Place, Place]) -> None:
    here, there = ports
    async with Hole(PunchPlan(here, (there,))), Hole(PunchPlan(there, (here,))) as theirs:
        tcp = await first(theirs)
    tcp.setblocking(True)
    tcp.settimeout(20)
    with tcp:
        assert tcp.recv(1) == b""


async def test_a_link_of_the_direct_road_goes_through_a_hole(ports: tuple[Place, Place]) -> None:
    """The provider is the TLS server, whoever's SYN came first."""
    here, there = ports
    listener = DirectListener(PROVIDER, on_stream=lambda _: Echo())

    async def provide() -> None:
        async with Hole(PunchPlan(there, (here,))) as hole:
            while (tcp := await hole.next()) is not None:
                listener.take(tcp, "a hole", Road.PUNCHED)

    providing = asyncio.create_task(provide())
    async with Hole(PunchPlan(here, (there,))) as hole, asyncio.timeout(10):
        link = await direct.dial_over(await first(hole), PROVIDER.public_key, CLIENT, road=Road.PUNCHED)
    assert link.road is Road.PUNCHED
    [far] = listener.connections
    assert (far.road, far.peer) == (Road.PUNCHED, CLIENT.public_key)
    await link.aclose()
    providing.cancel()
    await listener.aclose(drain_s=0)
