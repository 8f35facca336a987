"""Real hosts on loopback for the tests of this room."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.host.basic_host import BasicHost
from multiaddr import Multiaddr

from p2pgrid.net.host import HostLimits, open_host
from p2pgrid.net.kad_query import Contact
from p2pgrid.proto.keys import SecretKey

LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")
ECHO = "/p2pgrid-test/echo/1"


def run_trio(main: Callable[[], Awaitable[None]], deadline_s: float = 30.0) -> None:
    """Run a trio test, with a deadline over all of it."""

    async def bounded() -> None:
        with trio.fail_after(deadline_s):
            await main()

    trio.run(bounded)


async def until(condition: Callable[[], Any], what: str, deadline_s: float = 10.0) -> None:
    """Wait for `condition`, looking often; fail with `what` if it does not come true."""
    with trio.move_on_after(deadline_s):
        while not condition():  # noqa: ASYNC110 (libp2p tells of few events)
            await trio.sleep(0.005)
        return
    raise AssertionError(f"not in {deadline_s} s: {what}")


def new_key() -> SecretKey:
    return SecretKey(os.urandom(32))


@asynccontextmanager
async def listening_host(limits: HostLimits | None = None) -> AsyncIterator[BasicHost]:
    """A hardened host on a free port that echoes what it is sent on `ECHO`."""
    async with open_host(new_key(), [LOOPBACK], limits=limits) as host:
        host.set_stream_handler(ECHO, _echo)
        yield host


@asynccontextmanager
async def dialling_host() -> AsyncIterator[BasicHost]:
    """A hardened host that listens nowhere."""
    async with open_host(new_key(), []) as host:
        yield host


def contact(host: BasicHost) -> Contact:
    return Contact(host.get_id(), tuple(host.get_transport_addrs()))


def port(host: BasicHost) -> int:
    return int(host.get_transport_addrs()[0].value_for_protocol("tcp"))


async def connect(a: BasicHost, b: BasicHost) -> Any:
    return await a.get_network().connect_to(b.get_id(), b.get_transport_addrs())


async def echo(a: BasicHost, b: BasicHost, data: bytes = b"hello") -> None:
    """Prove that `a` gets an answer from `b`, over a fresh stream."""
    await connect(a, b)
    stream = await a.new_stream(b.get_id(), [ECHO])
    await stream.write(data)
    assert await stream.read(len(data)) == data
    await stream.reset()


async def _echo(stream: Any) -> None:
    while data := await stream.read(65536):
        await stream.write(data)
