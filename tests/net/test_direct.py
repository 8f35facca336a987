"""The direct road on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable

import pytest

from p2pgrid.errors import LocalError, P2pgridError, Refused, RemoteError, Unreachable
from p2pgrid.net import tls
from p2pgrid.net.connection import LinkConnection, OnStream
from p2pgrid.net.direct import DirectListener, dial, listen
from p2pgrid.net.listening import ListenLimits
from p2pgrid.net.stream import Stream
from p2pgrid.net.stream_reader import Received, StreamReader
from p2pgrid.proto.frame import HEADER, Kind, ResetCode, encode_frame
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import Event, GoingAway, LinkLimits, Ready

PROVIDER = SecretKey(b"p" * 32)
CLIENT = SecretKey(b"c" * 32)
OTHER = SecretKey(b"o" * 32)
CONTROL, BULK = 16, 128
FAST = LinkLimits(heartbeat_ms=60, dead_ms=180, handshake_ms=400)


class Echo(StreamReader):
    """Sends everything back, and ends when the peer does. Tells of its end through `over`."""

    def __init__(self) -> None:
        super().__init__()
        self.over: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        stream.send(kind, payload)
        if kind >= BULK:
            stream.consume(len(payload))

    def ended(self, stream: Stream) -> None:
        stream.end()
        self.over.set_result("ended")

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self.over.set_result((code, message))

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self.over.set_result(error)


@contextlib.asynccontextmanager
async def listening(
    on_stream: OnStream | None = None, *, limits: ListenLimits | None = None, **kwargs: object
) -> AsyncIterator[DirectListener]:
    listener = await listen(
        "127.0.0.1", 0, PROVIDER, on_stream=on_stream or (lambda stream: Echo()), limits=limits, **kwargs
    )
    try:
        yield listener
    finally:
        await listener.aclose(drain_s=0)


@contextlib.asynccontextmanager
async def dialled(listener: DirectListener, limits: LinkLimits | None = None) -> AsyncIterator[LinkConnection]:
    connection = await dial(*listener.addresses[0], PROVIDER.public_key, CLIENT, limits=limits)
    try:
        yield connection
    finally:
        await connection.aclose()


class RawPeer:
    """A peer that keeps to TLS and to nothing else: the test moves its link's bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        self.reader, self.writer, self.link = reader, writer, link

    @classmethod
    async def dial(cls, listener: DirectListener) -> RawPeer:
        host, port = listener.addresses[0]
        reader, writer = await asyncio.open_connection(host, port, ssl=tls.dialler_context(), server_hostname="")
        return cls(reader, writer, Link.dialler(CLIENT, PROVIDER.public_key, limits=LinkLimits(), now_ms=0))

    @classmethod
    async def ready(cls, listener: DirectListener) -> RawPeer:
        peer = await cls.dial(listener)
        await peer.until(Ready)
        return peer

    async def until(self, wanted: type[Event]) -> Event:
        """Read and answer until such an event comes."""
        while True:
            data = await self.reader.read(65_536)
            assert data, f"closed before {wanted.__name__}"
            for event in self.link.receive(data, 0):
                if type(event) is wanted:
                    return event
            self.flush()

    def flush(self) -> None:
        self.writer.write(self.link.data_to_send())

    def close(self) -> None:
        self.writer.transport.abort()


# -- dialling --------------------------------------------------------------------------------------------------


async def test_frames_of_both_kinds_go_there_and_back() -> None:
    async with listening() as listener, dialled(listener) as connection:
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
        assert [c.peer for c in listener.connections] == [CLIENT.public_key]


async def test_another_peer_at_the_address_never_sees_a_byte() -> None:
    """The impostor does its TLS by hand, so that it sees all that is sent to it, even if no handshake is finished."""
    seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = tls.listener_context(OTHER).wrap_bio(incoming, outgoing, server_side=True)
        hello = Link.listener(OTHER.public_key, bytes(32), limits=LinkLimits(), now_ms=0).data_to_send()
        received, said_hello = b"", False
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                incoming.write(data)
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                    session.do_handshake()
                    if not said_hello:
                        session.write(hello)
                        said_hello = True
                    received += session.read(65_536)
                writer.write(outgoing.read())
        seen.set_result(received)
        writer.close()

    async with await asyncio.start_server(impostor, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(Unreachable) as refused:
            await dial(host, port, PROVIDER.public_key, CLIENT)
        for part in (f"{host}:{port}", PROVIDER.public_key.peer_id, OTHER.public_key.peer_id):
            assert part in refused.value.message
        assert await seen == b""


async def test_a_proof_cannot_be_passed_on_to_another_provider() -> None:
    """OTHER shows its client PROVIDER's nonce, and shows PROVIDER the proof it gets."""
    async with listening() as listener:
        verdict: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, port = listener.addresses[0]
            up_reader, up_writer = await asyncio.open_connection(
                host, port, ssl=tls.dialler_context(), server_hostname=""
            )
            writer.write(await up_reader.readexactly(9 + 42))
            up_writer.write(await reader.readexactly(9 + 107))
            verdict.set_result(await up_reader.read())
            writer.transport.abort()
            up_writer.transport.abort()

        server = await asyncio.start_server(middle, "127.0.0.1", 0, ssl=tls.listener_context(OTHER))
        with pytest.raises(Unreachable, match="was lost"):
            await dial(*server.sockets[0].getsockname(), OTHER.public_key, CLIENT)
        _length, stream_id, kind = HEADER.unpack_from(await verdict)
        assert (stream_id, kind) == (0, Kind.GOAWAY)
        assert b"no signature" in (await verdict)[9:]
        server.close()


async def test_who_is_not_there_is_named_with_the_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host, port = unused.getsockname()
        with pytest.raises(Unreachable, match=rf"{host}:{port} cannot be reached"):
            await dial(host, port, PROVIDER.public_key, CLIENT)
        unused.listen()
        with pytest.raises(Unreachable, match=rf"{host}:{port} did not answer within 0.2 s"):
            await dial(host, port, PROVIDER.public_key, CLIENT, timeout_s=0.2)
    with pytest.raises(Unreachable, match=r"no-such-host\.invalid:1 cannot be reached"):
        await dial("no-such-host.invalid", 1, PROVIDER.public_key, CLIENT)


async def test_a_listener_of_something_else_is_no_peer() -> None:
    async def other_protocol(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        writer.close()

    server = await asyncio.start_server(other_protocol, "127.0.0.1", 0)
    with pytest.raises(Unreachable, match="cannot be reached"):
        await dial(*server.sockets[0].getsockname(), PROVIDER.public_key, CLIENT)
    server.close()


async def test_a_peer_without_our_alpn_is_no_p2pgrid_peer() -> None:
    context = tls.listener_context(PROVIDER)
    context.set_alpn_protocols(["h2"])
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=context)
    with pytest.raises(Unreachable, match="no p2pgrid peer"):
        await dial(*server.sockets[0].getsockname(), PROVIDER.public_key, CLIENT)
    server.close()


# -- listening -------------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_a_local_error_with_advice() -> None:
    async with listening() as listener:
        with pytest.raises(LocalError, match="cannot listen on") as refused:
            await listen(*listener.addresses[0], OTHER, on_stream=lambda stream: Echo())
        assert "another port" in refused.value.hint


async def test_an_address_takes_no_more_connections_than_it_may() -> None:
    limits = ListenLimits(max_connections_per_address=2)
    async with listening(limits=limits) as listener, dialled(listener) as first, dialled(listener):
        with pytest.raises(Unreachable):
            await dial(*listener.addresses[0], PROVIDER.public_key, CLIENT)
        assert listener.refused_connections == 1
        port = first._transport.get_extra_info("sockname")[1]
        [served] = [task for task in listener._tasks if task.get_name().endswith(f":{port}")]
        await first.aclose()
        await asyncio.wait([served])
        async with dialled(listener):
            pass


async def test_a_key_that_is_not_admitted_is_refused_by_name() -> None:
    def admit(peer: object) -> None:
        raise Refused("not-allowed", f"{peer} is not on the list.")

    async with listening(admit=admit) as listener:
        with pytest.raises(Refused, match="is not on the list") as refused:
            await dial(*listener.addresses[0], PROVIDER.public_key, CLIENT)
        assert refused.value.code == "refused"


async def test_who_says_nothing_is_sent_away() -> None:
    async with listening(limits=ListenLimits(link=FAST)) as listener:
        tcp_reader, tcp_writer = await asyncio.open_connection(*listener.addresses[0])
        raw = await RawPeer.dial(listener)
        hello_and_goaway = await raw.reader.read()
        assert hello_and_goaway[51 + 8] == Kind.GOAWAY
        with contextlib.suppress(OSError):
            assert await tcp_reader.read() == b""
        tcp_writer.close()
        raw.close()


# -- streams ---------------------------------------------------------------------------------------------------


async def test_a_reset_reaches_the_other_side_whichever_sends_it() -> None:
    handlers: list[Echo] = []

    def on_stream(stream: Stream) -> Echo:
        handlers.append(Echo())
        return handlers[-1]

    async with listening(on_stream) as listener, dialled(listener) as connection:
        reader = StreamReader()
        stream = connection.open_stream(reader)
        stream.send(CONTROL, b"go")
        await reader.receive()
        stream.reset(ResetCode.CANCELLED, "the user left")
        assert await handlers[0].over == (ResetCode.CANCELLED, "the user left")
        assert (stream.is_open, stream.writable_bytes, connection.n_streams) == (False, 0, 0)
        stream.send(CONTROL, b"nothing happens")

    async with listening(lambda stream: Resetting()) as listener, dialled(listener) as connection:
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


async def test_a_stream_that_is_not_taken_says_so() -> None:
    def full(stream: Stream) -> Echo:
        raise Refused("busy", "come back tomorrow")

    async with listening(full) as listener, dialled(listener) as connection:
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


async def test_a_failing_handler_costs_its_own_stream_alone(caplog: pytest.LogCaptureFixture) -> None:
    handlers: list[Faulty] = []

    def on_stream(stream: Stream) -> Faulty:
        handlers.append(Faulty())
        return handlers[-1]

    async with listening(on_stream) as listener, dialled(listener) as connection:
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


async def test_a_reader_that_falls_behind_is_cut_off() -> None:
    readers: list[StreamReader] = []

    def on_stream(stream: Stream) -> StreamReader:
        readers.append(StreamReader(max_messages=10))
        return readers[-1]

    async with listening(on_stream) as listener, dialled(listener) as connection:
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


async def test_a_slow_reader_slows_only_itself() -> None:
    kinds: list[Callable[[], Echo]] = [Hoarder, Echo]
    async with listening(lambda stream: kinds.pop(0)()) as listener, dialled(listener) as connection:
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


# -- links -----------------------------------------------------------------------------------------------------


async def test_a_silent_peer_is_found_dead() -> None:
    """The raw peer shakes hands, and then neither reads nor answers."""
    handlers: list[Echo] = []

    def on_stream(stream: Stream) -> Echo:
        handlers.append(Echo())
        return handlers[-1]

    async with listening(on_stream, limits=ListenLimits(link=FAST)) as listener:
        raw = await RawPeer.ready(listener)
        raw.link.open_stream()
        raw.flush()
        [connection] = listener.connections
        error = await asyncio.shield(connection.closed)
        assert isinstance(error, Unreachable)
        assert "silent for" in error.message
        assert await handlers[0].over is error
        raw.close()


async def test_heartbeats_keep_a_quiet_link() -> None:
    limits = LinkLimits(heartbeat_ms=40, dead_ms=1_000)
    async with listening(limits=ListenLimits(link=limits)) as listener, dialled(listener, limits) as connection:
        _, pending = await asyncio.wait([connection.closed], timeout=1.3)
        assert pending
        assert connection.round_trip_ms is not None


@pytest.mark.parametrize(
    "attack",
    [HEADER.pack(70_000, 1, 16), encode_frame(0, 12), encode_frame(5, 16, b"x"), b"\xff" * 100],
    ids=["oversize", "unknown-kind", "never-opened", "noise"],
)
async def test_who_breaks_the_rules_is_dropped_alone(attack: bytes) -> None:
    async with listening() as listener, dialled(listener) as connection:
        raw = await RawPeer.ready(listener)
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


async def test_a_peer_that_stops_reading_is_dropped_and_holds_little() -> None:
    async with listening(lambda stream: Flood(), limits=ListenLimits(write_stall_s=0.3)) as listener:
        raw = await RawPeer.ready(listener)
        raw.writer.transport.pause_reading()
        for _ in range(200):  # 50 MB of credit
            raw.link.send(raw.link.open_stream(), CONTROL, b"go")
        raw.flush()
        [connection] = listener.connections
        error = await asyncio.shield(connection.closed)
        assert isinstance(error, Unreachable)
        assert "read too little" in error.message
        assert connection._link.queued_bytes < 1_000_000
        raw.close()


async def test_every_flooding_stream_gets_its_turn() -> None:
    async with listening(lambda stream: Flood()) as listener, dialled(listener) as connection:
        readers = [StreamReader() for _ in range(20)]
        for reader in readers:
            connection.open_stream(reader).send(CONTROL, b"go")
        for _ in range(30):
            for reader in readers:
                assert (await reader.receive()).kind == BULK


async def test_a_closing_listener_lets_streams_finish() -> None:
    async with listening() as listener, dialled(listener) as connection:
        reader = StreamReader()
        stream = connection.open_stream(reader)
        stream.send(CONTROL, b"first")
        await reader.receive()
        closing = asyncio.create_task(listener.aclose(drain_s=5))
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


async def test_a_lost_link_is_told_to_every_stream() -> None:
    async with listening() as listener:
        connection = await dial(*listener.addresses[0], PROVIDER.public_key, CLIENT)
        readers = [StreamReader() for _ in range(3)]
        for reader in readers:
            connection.open_stream(reader)
        await listener.aclose(drain_s=0)
        for reader in readers:
            with pytest.raises(RemoteError):
                await reader.receive()
        await connection.closed
        with pytest.raises(RemoteError):
            connection.open_stream(StreamReader())


async def test_an_abandoned_dial_leaves_nothing_open(caplog: pytest.LogCaptureFixture) -> None:
    accepted: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(
        lambda reader, writer: accepted.set_result(reader), "127.0.0.1", 0, ssl=tls.listener_context(PROVIDER)
    )
    dialling = asyncio.create_task(dial(*server.sockets[0].getsockname(), PROVIDER.public_key, CLIENT))
    reader = await accepted
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    with contextlib.suppress(OSError):
        assert await reader.read() == b""
    server.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
