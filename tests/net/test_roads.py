"""What holds for a link on either road: the direct one on real sockets, the libp2p one on real hosts in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from p2pgrid.errors import Refused, RemoteError, Unreachable
from p2pgrid.net.listening import ListenLimits
from p2pgrid.net.stream import Stream
from p2pgrid.net.stream_reader import Received, StreamReader
from p2pgrid.proto.frame import HEADER, ResetCode, encode_frame
from p2pgrid.proto.link_events import GoingAway, LinkLimits
from tests.net.road_rigs import BULK, CLIENT, CONTROL, FAST, PROVIDER, ROADS, Echo, OpenRoad, RawPeer, dialled


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest) -> OpenRoad:
    return ROADS[request.param]


async def test_frames_of_both_kinds_go_there_and_back(road: OpenRoad) -> None:
    async with road() as provider, dialled(provider) as connection:
        assert connection.peer == PROVIDER.public_key
        reader = StreamReader()
        stream = connection.open_stream(reader)
        stream.send(CONTROL, b"order")
        for n in range(20):  # more than a window
            await stream.drain(65_536)
            stream.send(BULK, bytes([n]) * 65_536)
            if n == 0:
                assert await reader.receive() == Received(CONTROL, b"order")
            assert await reader.receive() == Received(BULK, bytes([n]) * 65_536)
        stream.end()
        assert await reader.receive() is None
        assert not stream.is_open
        assert [c.peer for c in provider.listener.connections] == [CLIENT.public_key]


async def test_a_key_that_is_not_admitted_is_refused_by_name(road: OpenRoad) -> None:
    def admit(peer: object) -> None:
        raise Refused("not-allowed", f"{peer} is not on the list.")

    async with road(admit=admit) as provider:
        with pytest.raises(Refused, match="is not on the list") as refused:
            await provider.dial()
        assert refused.value.code == "refused"


async def test_a_reset_reaches_the_other_side_whichever_sends_it(road: OpenRoad) -> None:
    handlers: list[Echo] = []

    def on_stream(stream: Stream) -> Echo:
        handlers.append(Echo())
        return handlers[-1]

    async with road(on_stream) as provider, dialled(provider) as connection:
        reader = StreamReader()
        stream = connection.open_stream(reader)
        stream.send(CONTROL, b"go")
        await reader.receive()
        stream.reset(ResetCode.CANCELLED, "the user left")
        assert await handlers[0].over == (ResetCode.CANCELLED, "the user left")
        assert (stream.is_open, stream.writable_bytes, connection.n_streams) == (False, 0, 0)
        stream.send(CONTROL, b"nothing happens")

    async with road(lambda stream: Resetting()) as provider, dialled(provider) as connection:
        reader = StreamReader()
        stream = connection.open_stream(reader)
        stream.send(CONTROL, b"go")
        with pytest.raises(Refused, match="no such luck") as refused:
            await reader.receive()
        assert refused.value.code == "reset-77"
        with pytest.raises(Refused):
            await stream.drain()


class Resetting(Echo):
    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        stream.reset(77, "no such luck")


async def test_a_stream_that_is_not_taken_says_so(road: OpenRoad) -> None:
    def full(stream: Stream) -> Echo:
        raise Refused("busy", "come back tomorrow")

    async with road(full) as provider, dialled(provider) as connection:
        reader = StreamReader()
        connection.open_stream(reader).send(CONTROL, b"order")
        with pytest.raises(Refused, match="come back tomorrow") as refused:
            await reader.receive()
        assert refused.value.code == "refused"


class Faulty(Echo):
    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if payload == b"bad":
            raise RuntimeError("a bug")
        super().message_received(stream, kind, payload)


async def test_a_failing_handler_costs_its_own_stream_alone(road: OpenRoad, caplog: pytest.LogCaptureFixture) -> None:
    handlers: list[Faulty] = []

    def on_stream(stream: Stream) -> Faulty:
        handlers.append(Faulty())
        return handlers[-1]

    async with road(on_stream) as provider, dialled(provider) as connection:
        good, bad = StreamReader(), StreamReader()
        good_stream = connection.open_stream(good)
        connection.open_stream(bad).send(CONTROL, b"bad")
        with pytest.raises(Refused) as refused:
            await bad.receive()
        assert refused.value.code == "internal"
        assert await handlers[1].over == (ResetCode.INTERNAL, "the handler failed")
        good_stream.send(CONTROL, b"good")
        assert await good.receive() == Received(CONTROL, b"good")
    assert any(record.exc_info and "a bug" in str(record.exc_info[1]) for record in caplog.records)


async def test_a_reader_that_falls_behind_is_cut_off(road: OpenRoad) -> None:
    readers: list[StreamReader] = []

    def on_stream(stream: Stream) -> StreamReader:
        readers.append(StreamReader(max_messages=10))
        return readers[-1]

    async with road(on_stream) as provider, dialled(provider) as connection:
        reader = StreamReader()
        stream = connection.open_stream(reader)
        for n in range(11):
            stream.send(CONTROL, bytes([n]))
        with pytest.raises(Refused) as refused:
            await reader.receive()
        assert refused.value.code == "overloaded"
        assert [(await readers[0].receive()).payload[0] for _ in range(10)] == list(range(10))
        with pytest.raises(Refused):
            await readers[0].receive()


class Hoarder(Echo):
    """Takes bulk and never gives its credit back."""

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if kind < BULK:
            super().message_received(stream, kind, payload)


async def test_a_slow_reader_slows_only_itself(road: OpenRoad) -> None:
    kinds: list[Callable[[], Echo]] = [Hoarder, Echo]
    async with road(lambda stream: kinds.pop(0)()) as provider, dialled(provider) as connection:
        slow, brisk = StreamReader(), StreamReader()
        slow_stream, brisk_stream = connection.open_stream(slow), connection.open_stream(brisk)
        sent = 0
        while slow_stream._connection._link.credit(slow_stream.id):
            size = min(slow_stream.writable_bytes, 65_536)
            slow_stream.send(BULK, bytes(size))
            sent += size
        assert sent == LinkLimits().stream_credit_bytes
        for n in range(40):
            await brisk_stream.drain(65_536)
            brisk_stream.send(BULK, bytes([n]) * 65_536)
            assert (await brisk.receive()).payload[0] == n
        assert slow_stream.writable_bytes == 0
        slow_stream.send(CONTROL, b"messages still pass")
        assert await slow.receive() == Received(CONTROL, b"messages still pass")


async def test_a_silent_peer_is_found_dead(road: OpenRoad) -> None:
    """The raw peer shakes hands, and then neither reads nor answers."""
    handlers: list[Echo] = []

    def on_stream(stream: Stream) -> Echo:
        handlers.append(Echo())
        return handlers[-1]

    async with road(on_stream, limits=ListenLimits(link=FAST)) as provider:
        raw = await RawPeer.ready(provider)
        raw.link.open_stream()
        raw.flush()
        [connection] = provider.listener.connections
        error = await asyncio.shield(connection.closed)
        assert isinstance(error, Unreachable)
        assert "silent for" in error.message
        assert await handlers[0].over is error
        raw.close()


async def test_heartbeats_keep_a_quiet_link(road: OpenRoad) -> None:
    limits = LinkLimits(heartbeat_ms=40, dead_ms=1_000)
    async with road(limits=ListenLimits(link=limits)) as provider, dialled(provider, limits) as connection:
        _, pending = await asyncio.wait([connection.closed], timeout=1.3)
        assert pending
        assert connection.round_trip_ms is not None


@pytest.mark.parametrize(
    "attack",
    [HEADER.pack(70_000, 1, 16), encode_frame(0, 12), encode_frame(5, 16, b"x"), b"\xff" * 100],
    ids=["oversize", "unknown-kind", "never-opened", "noise"],
)
async def test_who_breaks_the_rules_is_dropped_alone(road: OpenRoad, attack: bytes) -> None:
    async with road() as provider, dialled(provider) as connection:
        raw = await RawPeer.ready(provider)
        raw.writer.write(attack)
        event = await raw.until(GoingAway)
        assert isinstance(event, GoingAway)
        assert event.code == 2
        assert await raw.reader.read() == b""
        raw.close()
        reader = StreamReader()
        connection.open_stream(reader).send(CONTROL, b"still here")
        assert (await reader.receive()).payload == b"still here"


class Flood(Echo):
    """Sends bulk whenever there is room for it."""

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        self.writable(stream)

    def writable(self, stream: Stream) -> None:
        while size := min(stream.writable_bytes, 65_536):
            stream.send(BULK, bytes(size))


async def test_a_peer_that_stops_reading_is_dropped_and_holds_little(road: OpenRoad) -> None:
    async with road(lambda stream: Flood(), limits=ListenLimits(write_stall_s=0.3)) as provider:
        raw = await RawPeer.ready(provider)
        raw.writer.transport.pause_reading()
        for _ in range(200):  # 50 MB of credit
            raw.link.send(raw.link.open_stream(), CONTROL, b"go")
        raw.flush()
        [connection] = provider.listener.connections
        error = await asyncio.shield(connection.closed)
        assert isinstance(error, Unreachable)
        assert "read too little" in error.message
        assert connection._link.queued_bytes < 1_000_000
        raw.close()


async def test_every_flooding_stream_gets_its_turn(road: OpenRoad) -> None:
    async with road(lambda stream: Flood()) as provider, dialled(provider) as connection:
        readers = [StreamReader() for _ in range(20)]
        for reader in readers:
            connection.open_stream(reader).send(CONTROL, b"go")
        for _ in range(30):
            for reader in readers:
                assert (await reader.receive()).kind == BULK


async def test_a_closing_listener_lets_streams_finish(road: OpenRoad) -> None:
    async with road() as provider, dialled(provider) as connection:
        reader = StreamReader()
        stream = connection.open_stream(reader)
        stream.send(CONTROL, b"first")
        await reader.receive()
        closing = asyncio.create_task(provider.listener.aclose(drain_s=5))
        await connection.retired
        with pytest.raises(Refused, match="takes no new streams"):
            connection.open_stream(StreamReader())
        stream.send(CONTROL, b"last")
        assert (await reader.receive()).payload == b"last"
        assert not closing.done()
        stream.end()
        assert await reader.receive() is None
        await closing
        assert isinstance(await connection.closed, Unreachable)


async def test_a_lost_link_is_told_to_every_stream(road: OpenRoad) -> None:
    async with road() as provider:
        connection = await provider.dial()
        readers = [StreamReader() for _ in range(3)]
        for reader in readers:
            connection.open_stream(reader)
        await provider.listener.aclose(drain_s=0)
        for reader in readers:
            with pytest.raises(RemoteError):
                await reader.receive()
        await connection.closed
        with pytest.raises(RemoteError):
            connection.open_stream(StreamReader())
