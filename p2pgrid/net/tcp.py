"""libp2p 0.8.1's TCP transport, mended where the libp2p road spends its time.

| fault | here |
|---|---|
| every message costs two reads of the socket, one for its two bytes of length | one read takes all that has come |
| each read and write takes a lock, a turn of trio's scheduler, though each has one task alone | no such locks |
| a caller's IPv6 address is not known, so that all of them are counted as one | it is |
| the local port of a connection that was dialled cannot be used for another | it can, for hole punching |
| a connection to a peer that is gone lives on for a quarter of an hour, and is used | it breaks (`silence.py`) |
"""

from __future__ import annotations

import socket
from typing import Any, Final

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from p2pgrid.net.silence import notice_silence

READ_BYTES: Final = 64 * 1024


class BufferedTcpStream(TrioTCPStream):  # type: ignore[misc]
    """A TCP stream that reads ahead. One task reads and one writes at a time, as yamux and Noise do."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        notice_silence(stream.socket)
        self._remote_address: tuple[str, int] | None = None
        self._ahead = b""
        self._taken = 0
        """Of what was read ahead."""

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, or all that is there; `b""` at the end. Raises ConnectionClosedError."""
        left = len(self._ahead) - self._taken
        if not left and n != 0:
            try:
                self._ahead, self._taken = await self.stream.receive_some(READ_BYTES), 0
            except trio.BrokenResourceError as error:
                raise ConnectionClosedError(f"the connection broke: {error}", transport="tcp") from error
            except trio.ClosedResourceError:
                return b""
            left = len(self._ahead)
        size = left if n is None else min(n, left)
        data = self._ahead[self._taken : self._taken + size]
        self._taken += size
        return data

    async def write(self, data: bytes) -> None:
        """Send all of it. Raises ConnectionClosedError."""
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError(f"the connection broke: {error}", transport="tcp") from error
        except trio.ClosedResourceError:
            return  # closed from this side: as the base class has it

    def get_local_address(self) -> tuple[str, int] | None:
        """Host and port of this end, while it is open."""
        try:
            host, port = self.stream.socket.getsockname()[:2]
        except OSError:
            return None
        return str(host), int(port)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other end, also once it is gone."""
        if self._remote_address is None:
            try:
                host, port = self.stream.socket.getpeername()[:2]
            except OSError:
                return None
            self._remote_address = (str(host), int(port))
        return self._remote_address


class BufferedTcp(TCP):  # type: ignore[misc]
    """A TCP transport whose connections read ahead. Accepted ones are wrapped by the swarm."""

    async def _dial_resolved(self, maddr: Multiaddr, source: tuple[str, int] | None = None) -> RawConnection:
        family = maddr.protocols()[0].name
        place = str(maddr.value_for_protocol(family)), int(maddr.value_for_protocol("tcp"))
        tcp = trio.socket.socket(trio.socket.AF_INET6 if family == "ip6" else trio.socket.AF_INET)
        try:
            share_port(tcp)
            # Bound even where any port will do: the kernel gives that one to nobody else, and it stays ours to share.
            await tcp.bind(source or ("::" if family == "ip6" else "0.0.0.0", 0))  # noqa: S104 - no port to listen on
            await tcp.connect(place)
        except OSError as error:
            tcp.close()
            raise OpenConnectionError(f"{place[0]} port {place[1]}: {error.strerror or error}") from error
        except BaseException:
            tcp.close()
            raise
        return RawConnection(BufferedTcpStream(trio.SocketStream(tcp)), True)


def share_port(tcp: Any) -> None:
    """Let other sockets of this user be bound to the same port, if they say so too. To be called before it is bound."""
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def local_address(connection: Any) -> tuple[str, int] | None:
    """This end of a connection of the swarm that runs over TCP; None where it does not, or is closed."""
    session = connection.muxed_conn.secured_conn.conn  # of Noise
    stream = getattr(session.conn, "stream", None)
    return stream.get_local_address() if isinstance(stream, BufferedTcpStream) else None
