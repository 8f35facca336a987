"""A link that goes on over another road, with streams in full flow: nothing is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from p2pgrid.errors import P2pgridError, Refused, Unreachable
from p2pgrid.net import direct, road_move
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import DirectListener, listen
from p2pgrid.net.libp2p_road import SessionListener
from p2pgrid.net.network import Network
from p2pgrid.net.road import Road
from p2pgrid.net.road_move import LinksByName
from p2pgrid.net.stream import Stream
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.proto.keys import SecretKey
from tests.net.road_rigs import BULK, CLIENT, CONTROL, LOOPBACK, OTHER, PROVIDER, Echo

Move = Callable[[LinkConnection], Awaitable[LinkConnection]]


class Grid:
    """A provider that takes links on both roads, and a client's host."""

    def __init__(self, listener: DirectListener, sessions: SessionListener, provider: Network, client: Network) -> None:
        self.listener, self.sessions, self.provider, self.client = listener, sessions, provider, client

    async def dial(
        self, road: Road, continues: LinkConnection | None = None, key: SecretKey = CLIENT
    ) -> LinkConnection:
        if road is Road.LIBP2P:
            return await self.client.dial_link(PROVIDER.public_key, self.provider.addresses, continues=continues)
        host, port = self.listener.addresses[0]
        return await direct.dial(host, port, PROVIDER.public_key, key, continues=continues)

    @property
    def links(self) -> list[LinkConnection]:
        return [*self.listener.connections, *self.sessions.connections]


@contextlib.asynccontextmanager
async def grid() -> AsyncIterator[Grid]:
    movable = LinksByName()
    listener = await listen("127.0.0.1", 0, PROVIDER, on_stream=lambda _: Echo(), movable=movable)
    sessions = SessionListener(PROVIDER, on_stream=lambda _: Echo(), movable=movable)
    async with (
        Network(PROVIDER, "test", listen=[LOOPBACK], sessions=sessions) as provider,
        Network(CLIENT, "test") as client,
    ):
        try:
            yield Grid(listener, sessions, provider, client)
        finally:
            async with asyncio.timeout(10):
                await asyncio.gather(sessions.aclose(drain_s=0), listener.aclose(drain_s=0))


class Numbers(StreamReader):
    """Sends numbered messages and bulk as fast as it may, and expects all of them back in order."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.sent, self.echoed = n, 0, 0
        self.error: P2pgridError | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def go_on(self, stream: Stream) -> None:
        while self.sent < min(self.n, self.echoed + 32):
            kind, payload = self.frame(self.sent)
            if kind >= BULK and stream.writable_bytes < len(payload):
                return
            stream.send(kind, payload)
            self.sent += 1

    @staticmethod
    def frame(number: int) -> tuple[int, bytes]:
        kind = BULK if number % 3 else CONTROL
        return kind, number.to_bytes(4) + bytes(number * 37 % 9000 if kind == BULK else 0)

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        assert (kind, payload) == self.frame(self.echoed), f"number {self.echoed}"
        if kind >= BULK:
            stream.consume(len(payload))
        self.echoed += 1
        if self.echoed == self.n:
            stream.end()
            self.over.set_result(None)
        else:
            self.go_on(stream)

    def writable(self, stream: Stream) -> None:
        self.go_on(stream)

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        if not self.over.done():
            self.over.set_exception(error)

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self.over.set_exception(AssertionError(message))


def count_on(link: LinkConnection, n: int) -> Numbers:
    numbers = Numbers(n)
    numbers.go_on(link.open_stream(numbers))
    return numbers


@pytest.mark.parametrize(
    ("first", "then"), [(Road.LIBP2P, Road.DIRECT), (Road.DIRECT, Road.LIBP2P), (Road.DIRECT,) * 2]
)
async def test_streams_in_full_flow_notice_nothing(first: Road, then: Road) -> None:
    async with grid() as g, asyncio.timeout(60):
        link = await g.dial(first)
        flows = [count_on(link, 600) for _ in range(8)]
        await until(lambda: min(flow.echoed for flow in flows) > 50, "all flow")
        assert await g.dial(then, continues=link) is link
        assert link.road is then
        assert max(flow.echoed for flow in flows) < 600
        later = count_on(link, 100)
        await asyncio.gather(*(flow.over for flow in (*flows, later)))
        assert not link.retired.done() and not link.closed.done()
        [far] = [one for one in g.links if one._heir is None]
        assert far.road is then
        await link.aclose()
        await until(lambda: not g.links, "every end of it is gone")


async def test_a_link_may_move_again_and_again() -> None:
    async with grid() as g, asyncio.timeout(60):
        link = await g.dial(Road.LIBP2P)
        numbers = count_on(link, 4000)
        for road in (Road.DIRECT, Road.LIBP2P, Road.DIRECT, Road.DIRECT, Road.LIBP2P):
            await g.dial(road, continues=link)
            assert link.road is road
            goal = min(numbers.echoed + 100, numbers.n)
            await until(lambda goal=goal: numbers.echoed >= goal, "it flows on")  # type: ignore[misc]
        await numbers.over
        await until(lambda: len(g.links) == 2, "all roads are closed but the link's, which the last one carries")
        assert g.sessions.seats.taken == 1
        await link.aclose()
        await until(lambda: not g.links, "every end of it is gone")


async def test_what_was_moved_from_may_die() -> None:
    async with grid() as g, asyncio.timeout(30):
        link = await g.dial(Road.LIBP2P)
        numbers = count_on(link, 2000)
        await g.dial(Road.DIRECT, continues=link)
        await g.provider.__aexit__(None, None, None)
        await numbers.over
        assert not link.closed.done()
        await link.aclose()


async def test_after_the_move_the_link_is_lost_with_its_new_road() -> None:
    async with grid() as g, asyncio.timeout(30):
        link = await g.dial(Road.LIBP2P)
        await g.dial(Road.DIRECT, continues=link)
        [far] = list(g.sessions.connections)
        assert far.transport is not None
        far.transport.abort()
        assert isinstance(await link.closed, Unreachable)
        await until(lambda: not g.links, "the listeners know")


@pytest.mark.parametrize("order", ["sessions first", "direct first"])
async def test_either_listener_may_close_first(order: str) -> None:
    async with grid() as g, asyncio.timeout(10):
        link = await g.dial(Road.LIBP2P)
        await g.dial(Road.DIRECT, continues=link)
        listeners: list[Any] = [g.sessions, g.listener]
        for one in listeners if order == "sessions first" else reversed(listeners):
            await one.aclose(drain_s=0)
        await link.closed


async def test_nobody_else_gets_a_road_for_the_link() -> None:
    async with grid() as g, asyncio.timeout(30):
        link = await g.dial(Road.LIBP2P)
        numbers = count_on(link, 300)
        host, port = g.listener.addresses[0]
        thief = await direct.dial(host, port, PROVIDER.public_key, OTHER)

        class Stolen:
            link_name = link.link_name

        with pytest.raises(Refused, match="no such link"):
            await direct.dial(host, port, PROVIDER.public_key, OTHER, continues=Stolen())  # type: ignore[arg-type]
        await thief.aclose()
        with pytest.raises(Refused, match="no such link"):
            await direct.dial(host, port, PROVIDER.public_key, OTHER, continues=thief)
        await numbers.over
        assert link.road is Road.LIBP2P


async def test_a_road_that_is_claimed_and_not_used_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(road_move, "MOVE_S", 0.3)
    async with grid() as g, asyncio.timeout(30):
        link = await g.dial(Road.LIBP2P)
        carrier = await claim_only(g, link)
        await carrier.closed
        numbers = count_on(link, 300)
        await numbers.over
        await g.dial(Road.DIRECT, continues=link)  # and the link may still move
        assert link.road is Road.DIRECT


async def test_a_claimed_road_that_dies_leaves_the_link_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(road_move, "MOVE_S", 0.5)
    async with grid() as g, asyncio.timeout(30):
        link = await g.dial(Road.LIBP2P)
        carrier = await claim_only(g, link)
        carrier.abort()
        await until(lambda: len(g.links) == 1, "the provider has noticed")
        numbers = count_on(link, 300)
        await numbers.over
        carrier = await claim_only(g, link)
        carrier.abort()
        await g.dial(Road.DIRECT, continues=link)  # at once: who claims another road wants the first no more
        assert link.road is Road.DIRECT


async def test_a_link_that_dies_takes_the_claimed_road_with_it() -> None:
    async with grid() as g, asyncio.timeout(30):
        link = await g.dial(Road.LIBP2P)
        carrier = await claim_only(g, link)
        link.abort()
        await carrier.closed
        await until(lambda: not g.links, "nothing is left")
        with pytest.raises(Unreachable, match="cannot move"):
            await link.move_to(carrier)


async def test_a_provider_that_never_answers_the_move_loses_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(road_move, "MOVE_S", 0.3)
    async with grid() as g, asyncio.timeout(30):
        link = await g.dial(Road.LIBP2P)
        [far] = g.sessions.connections
        far.transport.pause_reading()  # type: ignore[union-attr]
        with pytest.raises(Unreachable):
            await g.dial(Road.DIRECT, continues=link)
        assert isinstance(await link.closed, Unreachable)
        await until(lambda: not g.links, "nothing is left")


async def test_a_link_that_goes_away_takes_no_road() -> None:
    async with grid() as g, asyncio.timeout(30):
        link = await g.dial(Road.LIBP2P)
        [far] = g.sessions.connections
        flow = count_on(link, 10**9)
        await until(lambda: flow.echoed > 0, "it flows")
        far.retire("bye")
        await link.retired
        with pytest.raises(Refused, match="no such link"):
            await g.dial(Road.DIRECT, continues=link)
        assert not flow.over.done()
        link.abort()
        with pytest.raises(Unreachable):
            await flow.over


async def claim_only(g: Grid, link: LinkConnection) -> LinkConnection:
    """A road that is claimed for the link, and on which it does not go on yet."""
    real, kept = link.move_to, []

    async def keep(carrier: LinkConnection) -> None:
        kept.append(carrier)

    link.move_to = keep  # type: ignore[method-assign]
    try:
        await g.dial(Road.DIRECT, continues=link)
    finally:
        link.move_to = real  # type: ignore[method-assign]
    carrier: LinkConnection = kept[0]
    await until(lambda: len(g.links) == 2, "the provider holds both roads")
    return carrier


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - listeners tell of no such event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not in time: {what}") from None
