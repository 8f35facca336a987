"""Which road a client takes to a provider: real listeners on both, real ports that refuse, swallow or mislead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.road_memory import RoadMemory
from p2pgrid.client.roads import ProviderRoads, libp2p_addresses, roads_of
from p2pgrid.errors import Refused, Unreachable
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import DirectListener, listen
from p2pgrid.net.libp2p_road import SessionListener
from p2pgrid.net.network import Network
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.use import parse_relay_use
from p2pgrid.net.road import Road
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.proto.keys import PublicKey
from tests.factories import CLIENT, PROVIDER, secret_key
from tests.ports import reserved_port

PEER = PROVIDER.public_key.peer_id
LONG_S = 30.0
"""A head start that no test waits for."""


@dataclass
class Grid:
    """A provider on both roads, and a client's host."""

    direct: DirectListener
    sessions: SessionListener
    libp2p: tuple[str, ...]
    client: Network

    @property
    def tls(self) -> str:
        return "/ip4/{}/tcp/{}/tls".format(*self.direct.addresses[0])

    @property
    def links(self) -> int:
        return len(self.direct.connections) + len(self.sessions.connections)


@contextlib.asynccontextmanager
async def grid(refuses: bool = False) -> AsyncIterator[Grid]:
    def admit(key: PublicKey) -> None:
        if refuses:
            raise Refused("not-allowed", "not you.")

    direct = await listen("127.0.0.1", 0, PROVIDER, on_stream=lambda _: StreamReader(), admit=admit)
    sessions = SessionListener(PROVIDER, on_stream=lambda _: StreamReader(), admit=admit)
    async with (
        Network(PROVIDER, "test", listen=["/ip4/127.0.0.1/tcp/0"], sessions=sessions) as provider,
        Network(CLIENT, "test") as client,
    ):
        yield Grid(direct, sessions, provider.addresses, client)
        await sessions.aclose(drain_s=0)
    await direct.aclose(drain_s=0)


@pytest.fixture
def closed() -> Iterator[str]:
    """An address of the direct road where nobody listens."""
    with reserved_port() as port:
        yield f"/ip4/127.0.0.1/tcp/{port}/tls"


@contextlib.contextmanager
def swallowing() -> Iterator[str]:
    """One where the connection is taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}/tls"


async def road_to(roads: ProviderRoads, addresses: list[str]) -> Road:
    """Dial, and hang up."""
    async with asyncio.timeout(10):
        link = await roads.dial(addresses, PROVIDER.public_key, CLIENT)
    assert link.peer == PROVIDER.public_key
    await link.aclose()
    return link.road


async def until_links(grid: Grid, n: int) -> None:
    async with asyncio.timeout(10):
        while grid.links != n:  # noqa: ASYNC110 - listeners tell of no such event
            await asyncio.sleep(0.005)


async def test_the_direct_road_is_taken_where_it_is_open() -> None:
    async with grid() as g:
        roads = ProviderRoads(g.client, head_start_s=LONG_S)
        assert await road_to(roads, [*g.libp2p, g.tls]) is Road.DIRECT
        assert not g.sessions.refused_connections


async def test_libp2p_is_taken_at_once_where_the_direct_port_is_closed(
    closed: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with grid() as g:
        with caplog.at_level(logging.INFO, logger="p2pgrid.client.roads"):
            assert await road_to(ProviderRoads(g.client, head_start_s=LONG_S), [closed, *g.libp2p]) is Road.LIBP2P
        assert f"{PEER} is reached over the libp2p road" in caplog.text


async def test_libp2p_is_taken_where_there_is_no_direct_address() -> None:
    async with grid() as g:
        assert await road_to(ProviderRoads(g.client, head_start_s=LONG_S), list(g.libp2p)) is Road.LIBP2P


async def test_a_port_that_swallows_costs_the_head_start_once() -> None:
    async with grid() as g:
        with swallowing() as tls:
            roads = ProviderRoads(g.client, head_start_s=0.3)
            assert await road_to(roads, [tls, *g.libp2p]) is Road.LIBP2P
            roads._head_start_s = LONG_S  # from now on nothing but what it remembers gets it there in time
            assert await road_to(roads, [tls, *g.libp2p]) is Road.LIBP2P


async def test_a_port_that_swallows_costs_nothing_in_the_next_process(tmp_path: Path) -> None:
    async with grid() as g:
        with swallowing() as tls:
            async with RoadMemory(tmp_path / "roads.json") as memory:
                roads = ProviderRoads(g.client, head_start_s=0.1, memory=memory)
                assert await road_to(roads, [tls, *g.libp2p]) is Road.LIBP2P
            async with RoadMemory(tmp_path / "roads.json") as memory:
                roads = ProviderRoads(g.client, head_start_s=LONG_S, memory=memory)
                assert await road_to(roads, [tls, *g.libp2p]) is Road.LIBP2P


async def test_a_remembered_road_that_is_offered_no_more_has_the_faster_ones_begin_at_once() -> None:
    async with grid() as g:
        memory = RoadMemory()
        memory.worked(PEER, Road.RELAYED)
        with swallowing() as tls:
            roads = ProviderRoads(g.client, head_start_s=LONG_S, memory=memory)
            assert await road_to(roads, [tls, *g.libp2p]) is Road.LIBP2P


async def test_a_direct_road_that_is_open_again_is_found_again() -> None:
    """Both start at once then, and the faster one is the direct one; libp2p's is held up here to make that sure."""

    class SlowNetwork:
        async def dial_link(self, provider: PublicKey, addresses: Sequence[str], **options: Any) -> LinkConnection:
            await asyncio.sleep(0.2)
            return await g.client.dial_link(provider, addresses, **options)

        async def agree_on_hole(self, provider: PublicKey, *, timeout_s: float = 12.0) -> PunchPlan:
            raise Unreachable("not here.")

    async with grid() as g:
        with swallowing() as tls:
            roads = ProviderRoads(SlowNetwork(), head_start_s=0.1)
            assert await road_to(roads, [tls, *g.libp2p]) is Road.LIBP2P
        assert await road_to(roads, [g.tls, *g.libp2p]) is Road.DIRECT
        roads._libp2p = g.client
        roads._head_start_s = LONG_S
        assert await road_to(roads, [g.tls, *g.libp2p]) is Road.DIRECT


async def test_the_link_that_loses_the_race_is_closed() -> None:
    async with grid() as g:
        for _ in range(5):
            link = await ProviderRoads(g.client, head_start_s=0.0).dial([g.tls, *g.libp2p], PROVIDER.public_key, CLIENT)
            await until_links(g, 1)
            await link.aclose()
            await until_links(g, 0)


async def test_a_dial_that_is_cancelled_leaves_no_link_on_either_road() -> None:
    async with grid() as g:
        roads = ProviderRoads(g.client, head_start_s=0.0)
        for n in range(8):
            dialling = asyncio.create_task(roads.dial([g.tls, *g.libp2p], PROVIDER.public_key, CLIENT))
            await asyncio.sleep(n / 1000)
            dialling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await dialling).aclose()
        await until_links(g, 0)


async def test_a_providers_own_refusal_is_not_asked_for_twice() -> None:
    async with grid(refuses=True) as g:
        with pytest.raises(Refused, match="not you"):
            await ProviderRoads(g.client, head_start_s=LONG_S).dial([g.tls, *g.libp2p], PROVIDER.public_key, CLIENT)
        assert not g.sessions.connections
        assert not g.client.health().connected_peers


async def test_where_no_road_leads_both_are_named(closed: str) -> None:
    async with Network(CLIENT, "test") as client:
        with pytest.raises(Unreachable) as error:
            nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"
            await ProviderRoads(client).dial([closed, nobody], PROVIDER.public_key, CLIENT)
        assert closed.split("/")[4] in error.value.message
        assert nobody.split("/p2p/")[0] in error.value.message
        with pytest.raises(Unreachable, match="no address that this machine can dial"):
            await ProviderRoads(client).dial(["/ip4/127.0.0.1/udp/1/quic"], PROVIDER.public_key, CLIENT)
    with pytest.raises(Unreachable, match="no address that this machine can dial"):
        await ProviderRoads().dial([f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"], PROVIDER.public_key, CLIENT)


OTHER_PEER = secret_key("other").public_key.peer_id


@pytest.mark.parametrize(
    ("addresses", "roads", "libp2p"),
    [
        (["/ip4/1.2.3.4/tcp/1/tls"], ["direct"], []),
        ([f"/ip4/1.2.3.4/tcp/1/tls/p2p/{PEER}"], ["direct"], []),
        ([f"/ip6/::1/tcp/1/p2p/{PEER}"] * 2, ["libp2p"], [f"/ip6/::1/tcp/1/p2p/{PEER}"]),
        (
            [f"/dns/a.example/tcp/2/p2p/{PEER}", "/dns4/a.example/tcp/1/tls"],
            ["direct", "libp2p"],
            [f"/dns/a.example/tcp/2/p2p/{PEER}"],
        ),
        ([f"/ip4/1.2.3.4/tcp/1/p2p/{OTHER_PEER}"], [], []),
        ([f"/ip4/1.2.3.4/tcp/0/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/70000/p2p/{PEER}"], [], []),
        ([f"/ip4/1.2.3.4/udp/1/p2p/{PEER}", f"ip4/1.2.3.4/tcp/1/p2p/{PEER}", "", "/", "/ip4//tcp/1/tls"], [], []),
        ([f"/ip4/1.2.3.4/tcp/1/p2p/{OTHER_PEER}/p2p-circuit/p2p/{PEER}"], ["relayed"], []),
        ([f"/ip4/1.2.3.4/tcp/1/p2p/{OTHER_PEER}/p2p-circuit/p2p/{OTHER_PEER}"], [], []),
        ([f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}"], [], []),
        ([f"/ip4/1.2.3.4/tcp/1/p2p/{OTHER_PEER}/p2p-circuit/p2p/{OTHER_PEER}/p2p-circuit/p2p/{PEER}"], [], []),
    ],
)
def test_the_roads_of_an_offer_are_read_off_its_addresses(
    addresses: list[str], roads: list[str], libp2p: list[str]
) -> None:
    assert roads_of(addresses, PEER) == roads
    assert libp2p_addresses(addresses, PEER) == libp2p


@contextlib.asynccontextmanager
async def grid_behind_a_relay() -> AsyncIterator[tuple[Grid, str]]:
    """A provider, and the circuit address that leads to it."""
    direct = await listen("127.0.0.1", 0, PROVIDER, on_stream=lambda _: StreamReader())
    sessions = SessionListener(PROVIDER, on_stream=lambda _: StreamReader())
    here = ["/ip4/127.0.0.1/tcp/0"]
    async with (
        Network(secret_key("relay"), "test", listen=here, serve_dht=True, relaying=RelayLimits()) as relay,
        Network(PROVIDER, "test", listen=here, sessions=sessions, relay=parse_relay_use(relay.addresses)) as provider,
        Network(CLIENT, "test") as client,
    ):
        own = provider.addresses
        await provider.wait_reserved(10)
        [circuit] = provider.addresses
        yield Grid(direct, sessions, own, client), circuit
        await sessions.aclose(drain_s=0)
    await direct.aclose(drain_s=0)


@pytest.fixture
def nobody() -> str:
    """An address over libp2p where nobody listens."""
    return f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"


async def test_a_relay_is_taken_where_nothing_else_leads_there(closed: str, nobody: str) -> None:
    async with grid_behind_a_relay() as (g, circuit):
        roads = ProviderRoads(g.client, head_start_s=LONG_S, punches=False)
        assert await road_to(roads, [circuit]) is Road.RELAYED
        assert await road_to(roads, [circuit, nobody, closed]) is Road.RELAYED


async def test_a_relay_is_taken_last(nobody: str) -> None:
    async with grid_behind_a_relay() as (g, circuit):
        assert await road_to(ProviderRoads(g.client, head_start_s=LONG_S), [circuit, *g.libp2p]) is Road.LIBP2P
        assert await road_to(ProviderRoads(g.client, head_start_s=LONG_S), [circuit, nobody, g.tls]) is Road.DIRECT


async def test_two_ports_that_swallow_cost_two_head_starts_once() -> None:
    async with grid_behind_a_relay() as (g, circuit):
        with swallowing() as tls, swallowing() as other:
            mute = other.replace("/tls", f"/p2p/{PEER}")
            roads = ProviderRoads(g.client, head_start_s=0.2, punches=False)
            assert await road_to(roads, [tls, mute, circuit]) is Road.RELAYED
            roads._head_start_s = LONG_S  # from now on nothing but what it remembers gets it there in time
            assert await road_to(roads, [tls, mute, circuit]) is Road.RELAYED


async def test_a_link_through_a_relay_moves_to_a_road_that_opens() -> None:
    async with grid_behind_a_relay() as (g, circuit):
        addresses = [circuit]
        roads = ProviderRoads(g.client, punches=False, addresses_of=lambda _: addresses)
        link = await roads.dial(addresses, PROVIDER.public_key, CLIENT)
        assert link.road is Road.RELAYED
        addresses.append(g.libp2p[0])
        async with asyncio.timeout(20):
            while link.road is Road.RELAYED:  # noqa: ASYNC110 - a link tells of no such event
                await asyncio.sleep(0.05)
        assert link.road.value == "libp2p"
        assert not link.closed.done()
        await link.aclose()
