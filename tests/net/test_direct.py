"""The direct road on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time

import pytest

from p2pgrid.errors import LocalError, Unreachable
from p2pgrid.net import tls
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import dial, listen
from p2pgrid.net.listening import ListenLimits
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.proto.frame import HEADER, Kind
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import LinkLimits, Ready
from tests.net.road_rigs import CLIENT, CONTROL, FAST, OTHER, PROVIDER, Echo, RawPeer, dialled, direct_road

# -- dialling --------------------------------------------------------------------------------------------------


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
    async with direct_road() as provider:
        verdict: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, port = provider.listener.addresses[0]
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
    async with direct_road() as provider:
        with pytest.raises(LocalError, match="cannot listen on") as refused:
            await listen(*provider.listener.addresses[0], OTHER, on_stream=lambda stream: Echo())
        assert "another port" in refused.value.hint


async def test_an_address_takes_no_more_connections_than_it_may() -> None:
    limits = ListenLimits(max_connections_per_address=2)
    async with direct_road(limits=limits) as provider, dialled(provider) as first, dialled(provider):
        with pytest.raises(Unreachable):
            await dial(*provider.listener.addresses[0], PROVIDER.public_key, CLIENT)
        assert provider.listener.refused_connections == 1
        port = first.transport.get_extra_info("sockname")[1]
        [served] = [task for task in provider.listener._tasks if task.get_name().endswith(f":{port}")]
        await first.aclose()
        await asyncio.wait([served])
        async with dialled(provider):
            pass


async def test_who_says_nothing_is_sent_away() -> None:
    async with direct_road(limits=ListenLimits(link=FAST)) as provider:
        tcp_reader, tcp_writer = await asyncio.open_connection(*provider.listener.addresses[0])
        raw = await RawPeer.dial(provider)
        hello_and_goaway = await raw.reader.read()
        assert hello_and_goaway[51 + 8] == Kind.GOAWAY
        with contextlib.suppress(OSError):
            assert await tcp_reader.read() == b""
        tcp_writer.close()
        raw.close()


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


async def test_who_connects_too_often_is_turned_away() -> None:
    limits = ListenLimits(connects_burst=3, connects_per_s=0.001)
    async with direct_road(limits=limits) as provider:
        for _ in range(3):
            async with dialled(provider):
                pass
        with pytest.raises(Unreachable):
            async with dialled(provider):
                pass
        assert provider.listener.refused_connections == 1


async def test_a_flood_of_frames_takes_no_more_than_its_share_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flooding peer is read no further; an honest one at another address is answered all the while."""
    took_s: dict[LinkConnection, float] = {}
    deal_with = LinkConnection._deal_with

    def timed(connection: LinkConnection, data: bytes) -> None:
        began_s = time.thread_time()  # and no time that the machine gave to others
        deal_with(connection, data)
        took_s[connection] = took_s.get(connection, 0.0) + time.thread_time() - began_s

    monkeypatch.setattr(LinkConnection, "_deal_with", timed)
    async with direct_road(limits=ListenLimits(time_share=0.05, time_burst_s=0.05)) as provider:
        host, port = provider.listener.addresses[0]
        road = await asyncio.open_connection(
            host, port, ssl=tls.dialler_context(), server_hostname="", local_addr=("127.0.0.9", 0)
        )
        hostile = RawPeer(*road, Link.dialler(OTHER, PROVIDER.public_key, limits=LinkLimits(), now_ms=0))
        await hostile.until(Ready)
        pings = b"".join(HEADER.pack(8, 0, Kind.PING) + n.to_bytes(8) for n in range(1, 4000))

        async def flood() -> None:
            while True:
                hostile.writer.write(pings)
                await hostile.writer.drain()

        began_s, flooding = time.monotonic(), asyncio.gather(flood(), hostile.rest())
        async with dialled(provider) as honest:
            while time.monotonic() < began_s + 2.0:
                reader = StreamReader()
                stream = honest.open_stream(reader)
                stream.send(CONTROL, b"hello")
                assert await asyncio.wait_for(reader.receive(), 20)
                stream.end()
        elapsed_s = time.monotonic() - began_s
        flooding.cancel()
        await asyncio.wait([flooding])
        [spent_s] = [spent for link, spent in took_s.items() if "127.0.0.9" in link.name]
        assert 0 < spent_s < 0.15 + 0.05 * elapsed_s, "it got its share, and a callback more at most"
        hostile.close()
