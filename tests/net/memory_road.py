"""A connection on a road in memory, whose far end is a bare link."""

from __future__ import annotations

import asyncio

from p2pgrid.errors import P2pgridError
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import LinkLimits, Proved

PROVIDER, CLIENT = SecretKey(b"p" * 32), SecretKey(b"c" * 32)
CONTROL, BULK = 16, 128


class MemoryRoad(asyncio.Transport):
    """A road that keeps what is written, and whose far end is a bare link."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.connection: LinkConnection | None = None
        self.peer = Link.listener(PROVIDER.public_key, bytes(32), limits=LinkLimits(), now_ms=0)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self.connection is not None:
            connection, self.connection = self.connection, None
            asyncio.get_running_loop().call_soon(connection.connection_lost, None)


class Listener(StreamHandler):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        self.calls.append("message")

    def writable(self, stream: Stream) -> None:
        self.calls.append("writable")

    def ended(self, stream: Stream) -> None:
        self.calls.append("ended")

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self.calls.append("reset")

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self.calls.append("link_lost")


async def turn_of_the_loop() -> None:
    """Everything that was scheduled by now has run when this returns."""
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(done.set_result, None)
    await done


async def ready_connection() -> tuple[LinkConnection, MemoryRoad]:
    road = MemoryRoad()
    link = Link.dialler(
        CLIENT, PROVIDER.public_key, limits=LinkLimits(), now_ms=int(asyncio.get_running_loop().time() * 1000)
    )
    connection = road.connection = LinkConnection(link, name="a test")
    connection.connection_made(road)
    connection.data_received(road.peer.data_to_send())
    await turn_of_the_loop()
    assert [type(e) for e in road.peer.receive(b"".join(road.writes), 0)] == [Proved]
    road.peer.accept()
    connection.data_received(road.peer.data_to_send())
    await connection.ready
    road.writes.clear()
    return connection, road
