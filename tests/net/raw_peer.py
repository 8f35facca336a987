"""A hostile peer below libp2p: a TCP connection, or a secured one on which the test writes yamux frames itself."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import YAMUX_HEADER_FORMAT
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils import encode_delim

from p2pgrid.net.tcp import BufferedTcpStream
from tests.net.trio_hosts import port

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
HEADER = struct.Struct(YAMUX_HEADER_FORMAT)


class RawPeer:
    """Writes and reads yamux frames on a secured connection."""

    def __init__(self, secured: Any, peer_id: ID, tcp: Any) -> None:
        self.secured, self.peer_id, self.tcp = secured, peer_id, tcp
        self._ahead = bytearray()
        self._next_stream = 1

    async def send(self, data: bytes) -> None:
        await self.secured.write(data)

    async def frame(self, kind: int, flags: int, stream: int, length: int = 0, body: bytes = b"") -> None:
        await self.send(frame(kind, flags, stream, length, body))

    async def read_frame(self) -> tuple[int, int, int, int, bytes]:
        """Kind, flags, stream, length, body. Raises libp2p's IOException where the connection is gone."""
        header = await self._take(HEADER.size)
        _, kind, flags, stream, length = HEADER.unpack(header)
        return kind, flags, stream, length, await self._take(length) if kind == DATA else b""

    async def _take(self, n: int) -> bytes:
        while len(self._ahead) < n:
            data = await self.secured.read()
            if not data:
                raise trio.BrokenResourceError("the host closed the connection")
            self._ahead += data
        taken = bytes(self._ahead[:n])
        del self._ahead[:n]
        return taken

    async def open(self, protocol: str | None = None) -> int:
        """A new stream, its protocol asked for in the same write."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        names = ("/multistream/1.0.0", protocol) if protocol else ()
        await self.send(b"".join([frame(WINDOW_UPDATE, SYN, stream), *(spoken(stream, name) for name in names)]))
        return stream

    async def until_closed(self) -> None:
        """Read on until the host closes the connection."""
        try:
            while True:
                await self.read_frame()
        except Exception:  # noqa: BLE001 (however the end shows)
            return


def frame(kind: int, flags: int, stream: int, length: int = 0, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream, length or len(body)) + body


def spoken(stream: int, name: str) -> bytes:
    """A line of multistream-select as a frame."""
    return frame(DATA, 0, stream, body=encode_delim(name.encode()))


async def open_tcp(host: BasicHost, source: str = "127.0.0.1") -> trio.SocketStream:
    """A connection from an address of loopback, such as 127.0.0.7."""
    return await trio.open_tcp_stream("127.0.0.1", port(host), local_address=source)


@asynccontextmanager
async def raw_peer(host: BasicHost, source: str = "127.0.0.1") -> AsyncIterator[RawPeer]:
    """A peer with a key of its own, from an address of loopback, that has negotiated Noise and yamux."""
    tcp = await open_tcp(host, source)
    try:
        keys = create_new_key_pair()
        noise = NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)
        upgrader = TransportUpgrader({NOISE_ID: noise}, {}, 10)
        secured = await upgrader.upgrade_security(RawConnection(BufferedTcpStream(tcp), True), True, host.get_id())
        await MultiselectClient().select_one_of([YAMUX_ID], MultiselectCommunicator(secured))
        yield RawPeer(secured, ID.from_pubkey(keys.public_key), tcp)
    finally:
        await tcp.aclose()
