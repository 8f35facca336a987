"""The two roads behind one face, so that what holds for a link is shown on either."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, Self

from p2pgrid.errors import P2pgridError
from p2pgrid.net import tls
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import DirectListener, dial, listen
from p2pgrid.net.libp2p_road import SessionListener
from p2pgrid.net.listening import ListenLimits
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.stream import OnStream, Stream
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.net.stream_road import StreamRoad
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import Event, LinkLimits, Ready

PROVIDER = SecretKey(b"p" * 32)
CLIENT = SecretKey(b"c" * 32)
OTHER = SecretKey(b"o" * 32)
CONTROL, BULK = 16, 128
FAST = LinkLimits(heartbeat_ms=60, dead_ms=180, handshake_ms=400)
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


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


class Provider(Protocol):
    """Somebody who takes links over one road, and somebody else who dials them."""

    listener: DirectListener | SessionListener

    async def dial(self, limits: LinkLimits | None = None, **options: Any) -> LinkConnection:
        """A link, ready for streams."""

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The road alone: the test moves the bytes of the link."""


class DirectProvider:
    def __init__(self, listener: DirectListener) -> None:
        self.listener = listener

    async def dial(self, limits: LinkLimits | None = None, **options: Any) -> LinkConnection:
        return await dial(*self.listener.addresses[0], PROVIDER.public_key, CLIENT, limits=limits, **options)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.listener.addresses[0]
        return await asyncio.open_connection(host, port, ssl=tls.dialler_context(), server_hostname="")


class Libp2pProvider:
    def __init__(self, listener: SessionListener, provider: Network, client: Network) -> None:
        self.listener, self.provider, self.client = listener, provider, client

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(self.provider.peer_id, self.provider.addresses)

    async def dial(self, limits: LinkLimits | None = None, **options: Any) -> LinkConnection:
        return await self.client.dial_link(PROVIDER.public_key, self.provider.addresses, limits=limits, **options)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        road, reader = StreamRoad(loop), asyncio.StreamReader()
        await self.client._thread.call(self.client._service.open_session, self.address, road, 5.0)
        protocol = asyncio.StreamReaderProtocol(reader)
        road.start(protocol)
        return reader, asyncio.StreamWriter(road, protocol, reader, loop)


OpenRoad = Callable[..., contextlib.AbstractAsyncContextManager[Any]]


@contextlib.asynccontextmanager
async def direct_road(
    on_stream: OnStream | None = None, *, limits: ListenLimits | None = None, **options: Any
) -> AsyncIterator[DirectProvider]:
    """A provider that takes links on the direct road."""
    listener = await listen(
        "127.0.0.1", 0, PROVIDER, on_stream=on_stream or (lambda stream: Echo()), limits=limits, **options
    )
    try:
        yield DirectProvider(listener)
    finally:
        await listener.aclose(drain_s=0)


@contextlib.asynccontextmanager
async def libp2p_road(
    on_stream: OnStream | None = None, *, limits: ListenLimits | None = None, **options: Any
) -> AsyncIterator[Libp2pProvider]:
    """A provider that takes links over libp2p, and a client's host: two threads beside the loop."""
    listener = SessionListener(PROVIDER, on_stream=on_stream or (lambda stream: Echo()), limits=limits, **options)
    async with (
        Network(PROVIDER, "test", listen=[LOOPBACK], sessions=listener) as provider,
        Network(CLIENT, "test") as client,
    ):
        try:
            yield Libp2pProvider(listener, provider, client)
        finally:
            await listener.aclose(drain_s=0)


ROADS: dict[str, OpenRoad] = {"direct": direct_road, "libp2p": libp2p_road}


@contextlib.asynccontextmanager
async def dialled(provider: Provider, limits: LinkLimits | None = None) -> AsyncIterator[LinkConnection]:
    """A link to the provider, closed in the end."""
    connection = await provider.dial(limits)
    try:
        yield connection
    finally:
        await connection.aclose()


class RawPeer:
    """A peer that keeps to its road and to nothing else: the test moves its link's bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        self.reader, self.writer, self.link = reader, writer, link

    @classmethod
    async def dial(cls, provider: Provider) -> Self:
        reader, writer = await provider.open()
        return cls(reader, writer, Link.dialler(CLIENT, PROVIDER.public_key, limits=LinkLimits(), now_ms=0))

    @classmethod
    async def ready(cls, provider: Provider) -> Self:
        peer = await cls.dial(provider)
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

    async def rest(self) -> bytes:
        """All that comes before the road's end, however it ends."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while more := await self.reader.read(65_536):
                data += more
        return data

    def flush(self) -> None:
        self.writer.write(self.link.data_to_send())

    def close(self) -> None:
        self.writer.transport.abort()
