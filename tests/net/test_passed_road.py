"""A road whose bytes another process passes on: nothing is lost or stored without limit, either end ends it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from p2pgrid.errors import Unreachable
from p2pgrid.net.passed_road import dial_over, pass_on
from tests.factories import CLIENT, PROVIDER


class SocketRoad:
    """A road that is a socket, as the road to a peer stands before anything is read or written."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.transport: asyncio.Transport | None = None
        self._starting: asyncio.Task[None] | None = None

    def start(self, protocol: asyncio.Protocol) -> None:
        self._starting = asyncio.get_running_loop().create_task(self._start(protocol))

    async def _start(self, protocol: asyncio.Protocol) -> None:
        self.end.setblocking(False)
        self.transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: protocol, sock=self.end)

    def abort(self) -> None:
        self.end.close()


class Ends:
    """Whoever holds the link, and the peer at the road's other end."""

    def __init__(self, own: socket.socket, peer: socket.socket, road: SocketRoad) -> None:
        self.own, self.peer, self.road = own, peer, road
        for one in (own, peer):
            one.setblocking(False)


@contextlib.asynccontextmanager
async def passed_on() -> AsyncIterator[Ends]:
    ours, theirs = socket.socketpair()
    near, peer = socket.socketpair()
    road = SocketRoad(near)
    await pass_on(road, ours)
    assert road._starting is not None
    await road._starting
    try:
        yield Ends(theirs, peer, road)
    finally:
        theirs.close()
        peer.close()


async def read(end: socket.socket, n_bytes: int) -> bytes:
    found = b""
    async with asyncio.timeout(20):
        while len(found) < n_bytes and (data := await asyncio.get_running_loop().sock_recv(end, 65536)):
            found += data
    return found


async def test_bytes_pass_both_ways_at_once() -> None:
    loop = asyncio.get_running_loop()
    out, back = bytes(range(256)) * 8000, bytes(range(255, -1, -1)) * 8000
    async with passed_on() as ends:
        _, _, at_peer, at_own = await asyncio.gather(
            loop.sock_sendall(ends.own, out),
            loop.sock_sendall(ends.peer, back),
            read(ends.peer, len(out)),
            read(ends.own, len(back)),
        )
        assert (at_peer, at_own) == (out, back)


async def test_what_nobody_reads_stops_who_sends() -> None:
    loop = asyncio.get_running_loop()
    async with passed_on() as ends:
        sending = asyncio.ensure_future(loop.sock_sendall(ends.own, bytes(64 * 1024 * 1024)))
        done, _ = await asyncio.wait({sending}, timeout=0.5)
        assert not done
        assert ends.road.transport is not None
        assert ends.road.transport.get_write_buffer_size() < 1024 * 1024
        sending.cancel()


@pytest.mark.parametrize("which", ["own", "peer"])
async def test_either_end_ends_the_other(which: str) -> None:
    async with passed_on() as ends:
        first, second = (ends.own, ends.peer) if which == "own" else (ends.peer, ends.own)
        await asyncio.get_running_loop().sock_sendall(first, b"last words")
        first.close()
        assert await read(second, 1000) == b"last words"


async def test_a_road_that_ends_before_the_link_is_ready_is_unreachable() -> None:
    async with passed_on() as ends:
        dialling = asyncio.ensure_future(dial_over(ends.own, PROVIDER.public_key, CLIENT))
        await asyncio.sleep(0)
        ends.peer.close()
        with pytest.raises(Unreachable):
            await asyncio.wait_for(dialling, 10)
