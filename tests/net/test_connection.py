"""How a connection uses its road: one write a turn of the loop, and no bulk for a road that takes none."""

from __future__ import annotations

import asyncio

from p2pgrid.errors import P2pgridError
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import LinkLimits, Message, Proved

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


async def ready() -> tuple[LinkConnection, MemoryRoad]:
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


async def test_what_is_sent_in_one_turn_leaves_in_one_write() -> None:
    connection, road = await ready()
    streams = [connection.open_stream(Listener()) for _ in range(10)]
    for n in range(100):
        streams[n % 10].send(CONTROL, bytes([n]))
    assert road.writes == []
    await turn_of_the_loop()
    assert len(road.writes) == 1
    messages = [e for e in road.peer.receive(road.writes[0], 0) if type(e) is Message]
    assert [m.payload[0] for m in messages] == list(range(100))
    await connection.aclose()


async def test_a_paused_road_gets_nothing_until_it_resumes() -> None:
    connection, road = await ready()
    handler = Listener()
    stream = connection.open_stream(handler)
    await turn_of_the_loop()
    road.writes.clear()
    connection.pause_writing()
    assert stream.writable_bytes == 0
    draining = asyncio.create_task(stream.drain(1000))
    stream.send(CONTROL, b"waits")
    await turn_of_the_loop()
    assert (road.writes, handler.calls, draining.done()) == ([], [], False)
    connection.resume_writing()
    assert handler.calls == ["writable"]
    await draining
    assert stream.writable_bytes > 0
    assert b"waits" in b"".join(road.writes)
    await connection.aclose()
    assert handler.calls == ["writable", "link_lost"]


async def test_closing_says_goaway_and_tells_the_handlers_once() -> None:
    connection, road = await ready()
    handler = Listener()
    connection.open_stream(handler)
    await asyncio.gather(connection.aclose("done"), connection.aclose())
    connection.abort()
    assert await connection.closed is None
    assert handler.calls == ["link_lost"]
    assert b"done" in road.writes[-1]


async def test_a_peer_that_reads_nothing_ends_the_link_not_its_sender() -> None:
    connection, _ = await ready()
    handler = Listener()
    stream = connection.open_stream(handler)
    connection.pause_writing()
    for _ in range(200):
        stream.send(CONTROL, bytes(60_000))  # 12 MB: no exception here, where a handler would get it
    reason = await connection.closed
    assert reason is not None
    assert "reads too slowly" in reason.message
    assert handler.calls == ["link_lost"]


class Gathering(Listener):
    """Works on what came together once it has all come."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        super().message_received(stream, kind, payload)
        if self.calls.count("message") - self.calls.count("gathered") == 1:
            stream.after_read(self._gather)

    def _gather(self) -> None:
        self.calls.append("gathered")
        if self.fails:
            raise ZeroDivisionError


async def test_what_came_in_one_read_is_worked_on_when_all_of_it_was_told() -> None:
    connection, road = await ready()
    first, second, failing = Gathering(), Gathering(), Gathering(fails=True)
    streams = [connection.open_stream(handler) for handler in (first, second, failing)]
    await turn_of_the_loop()
    list(road.peer.receive(b"".join(road.writes), 0))
    for _ in range(2):
        for stream in streams:
            road.peer.send(stream.id, CONTROL, b"x")
    connection.data_received(road.peer.data_to_send())
    assert first.calls == second.calls == ["message", "message", "gathered"]
    assert failing.calls == ["message", "message", "gathered", "reset"]
    assert [stream.is_open for stream in streams] == [True, True, False]
    # What came before the peer's fault counts, and is worked on before the link is over.
    first.calls.clear()
    road.peer.send(streams[0].id, CONTROL, b"x")
    connection.data_received(road.peer.data_to_send() + bytes([255] * 9))
    assert first.calls == ["message", "gathered", "link_lost"]


async def test_what_is_to_be_worked_on_outside_of_a_read_has_its_turn() -> None:
    connection, _ = await ready()
    handler = Gathering()
    stream = connection.open_stream(handler)
    handler.message_received(stream, CONTROL, b"x")
    assert handler.calls == ["message"]
    await turn_of_the_loop()
    assert handler.calls == ["message", "gathered"]
    await connection.aclose()


async def test_credit_that_is_not_granted_yet_writes_nothing() -> None:
    connection, road = await ready()
    stream = connection.open_stream(Listener())
    await turn_of_the_loop()
    list(road.peer.receive(b"".join(road.writes), 0))
    road.peer.send(stream.id, BULK, bytes(1000))
    connection.data_received(road.peer.data_to_send())
    stream.consume(1000)
    assert not connection._flush_scheduled
    await connection.aclose()
