"""Connections are accepted in one place and served in another: shares, caps, and workers that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from p2pgrid.net.limits import Allowance, Seats
from p2pgrid.processes.accepting import Acceptor, Handed, receive_connections


class Side:
    """A worker's end: what it was handed."""

    def __init__(self) -> None:
        self.giver, self._taker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.giver.setblocking(False)
        self.taken: list[tuple[socket.socket, Handed]] = []
        self.came = asyncio.Event()
        self.lost: list[Handed] = []
        self._stop = receive_connections(self._taker, self._take, self.lost.append)
        self._is_deaf = False

    def _take(self, tcp: socket.socket, handed: Handed) -> None:
        self.taken.append((tcp, handed))
        self.came.set()

    def go_deaf(self) -> None:
        if not self._is_deaf:
            self._is_deaf = True
            self._stop()
            self._taker.close()

    def close(self) -> None:
        self.go_deaf()
        for tcp, _ in self.taken:
            tcp.close()
        self.giver.close()


@contextlib.asynccontextmanager
async def accepting(n: int, **options: Any) -> AsyncIterator[tuple[Acceptor, list[Side]]]:
    acceptor = Acceptor(**options)
    await acceptor.listen("127.0.0.1", 0)
    sides = [Side() for _ in range(n)]
    for worker, side in enumerate(sides, 1):
        acceptor.add_worker(worker, side.giver)
    acceptor.start()
    try:
        yield acceptor, sides
    finally:
        await acceptor.stop()
        for side in sides:
            side.close()


async def connect(acceptor: Acceptor) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, acceptor.addresses[0])
    return made


async def until_held(sides: list[Side], n: int) -> None:
    async with asyncio.timeout(10):
        while True:
            for side in sides:
                side.came.clear()
            if sum(len(side.taken) for side in sides) >= n:
                return
            waits = [asyncio.ensure_future(side.came.wait()) for side in sides]
            _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in pending:
                wait.cancel()


async def closed_by_other(made: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(made, 1), 10) == b""
    return True


async def test_each_connection_goes_to_the_worker_that_holds_the_fewest() -> None:
    async with accepting(3) as (acceptor, sides):
        made = [await connect(acceptor) for _ in range(7)]
        await until_held(sides, 7)
        assert sorted(len(side.taken) for side in sides) == [2, 2, 3]
        for _, handed in list(sides[1].taken):
            acceptor.gone(2, handed.number)
        held = len(sides[1].taken)
        made += [await connect(acceptor) for _ in range(2)]
        await until_held(sides, 9)
        assert len(sides[1].taken) == held + 2
        for one in made:
            one.close()


async def test_what_is_handed_over_is_the_connection_itself() -> None:
    async with accepting(1) as (acceptor, (side,)):
        made = await connect(acceptor)
        await until_held([side], 1)
        ((tcp, handed),) = side.taken
        assert handed.name == "{}:{}".format(*made.getsockname())
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(tcp, b"hello")
        assert await loop.sock_recv(made, 5) == b"hello"
        tcp.close()
        assert await closed_by_other(made)  # the main process holds no end of it
        made.close()


async def test_the_caps_hold_over_all_workers() -> None:
    places = Seats(Allowance(total=100, per_address=3))
    async with accepting(2, places=places) as (acceptor, sides):
        made = [await connect(acceptor) for _ in range(3)]
        await until_held(sides, 3)
        refused = await connect(acceptor)
        assert await closed_by_other(refused)
        assert (acceptor.refused_connections, acceptor.n_connections) == (1, 3)
        acceptor.gone(1, sides[0].taken[0][1].number)
        made.append(await connect(acceptor))
        await until_held(sides, 4)
        for one in (*made, refused):
            one.close()


async def test_a_worker_that_is_gone_is_given_nothing_and_counts_no_more() -> None:
    async with accepting(2) as (acceptor, sides):
        made = [await connect(acceptor) for _ in range(4)]
        await until_held(sides, 4)
        acceptor.remove_worker(1)
        assert acceptor.n_connections == 2
        before = len(sides[0].taken)
        made += [await connect(acceptor) for _ in range(3)]
        await until_held(sides, 7)
        assert len(sides[0].taken) == before
        for one in made:
            one.close()


async def test_a_worker_that_takes_nothing_is_passed_over() -> None:
    async with accepting(2) as (acceptor, sides):
        sides[0].go_deaf()
        made = [await connect(acceptor) for _ in range(3)]
        await until_held(sides, 3)
        assert len(sides[1].taken) == 3
        for one in made:
            one.close()


async def test_a_worker_that_may_open_no_more_files_says_so() -> None:
    async with accepting(1) as (acceptor, (side,)):
        made = await connect(acceptor)
        await until_held([side], 1)
        # A note without its descriptor is what the kernel delivers then.
        side.giver.send(msgspec.msgpack.encode(Handed(99, "somebody")))
        other = await connect(acceptor)
        await until_held([side], 2)
        assert side.lost == [Handed(99, "somebody")]
        made.close()
        other.close()


async def test_without_a_worker_connections_wait() -> None:
    async with accepting(1) as (acceptor, (side,)):
        acceptor.remove_worker(1)
        waited = [await connect(acceptor) for _ in range(2)]
        acceptor.add_worker(1, side.giver)
        await until_held([side], 2)
        for one in waited:
            one.close()


async def test_a_caller_that_connects_too_often_is_turned_away() -> None:
    asked: list[str] = []

    def may_connect(caller: str) -> bool:
        asked.append(caller)
        return len(asked) <= 2

    async with accepting(1, may_connect=may_connect) as (acceptor, (side,)):
        made = [await connect(acceptor) for _ in range(2)]
        await until_held([side], 2)
        refused = await connect(acceptor)
        assert await closed_by_other(refused)
        assert asked == ["127.0.0.1"] * 3
        assert (acceptor.refused_connections, acceptor.n_connections) == (1, 2)
        for one in (*made, refused):
            one.close()
