"""A road that another process of this node holds: its bytes are passed on over a Unix socket.

A gateway's libp2p host is in its main process. What that has proven of the peer at the other end is believed here; the
link's own handshake runs in the process that buys, as on every road.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final, Protocol, cast

from p2pgrid.errors import Unreachable
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.link_membership import calling
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.net.road import Road
from p2pgrid.net.road_move import new_dialler
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.link_events import LinkLimits

_NAME: Final = "libp2p, through the main process"


class OpenRoad(Protocol):
    """A road whose other end is known, and on which nothing has been read or written."""

    def start(self, protocol: asyncio.Protocol) -> None:
        """Call `connection_made`, and deliver what has come. Once."""

    def abort(self) -> None:
        """Cut it."""


async def pass_on(road: OpenRoad, end: socket.socket) -> None:
    """Pass bytes between a road and one end of a socket pair, until either is closed. Returns once it has begun."""
    near, far = _Half(), _Half()
    near.other, far.other = far, near
    end.setblocking(False)
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: near, sock=end)
    except BaseException:
        road.abort()
        end.close()
        raise
    road.start(far)


class _Half(asyncio.Protocol):
    """One side. It reads no faster than the other writes."""

    other: _Half
    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other.transport is not None:
            self.other.transport.close()


async def dial_over(
    end: socket.socket,
    provider: PublicKey,
    secret_key: SecretKey,
    *,
    limits: LinkLimits | None = None,
    road: Road = Road.LIBP2P,
    continues: LinkConnection | None = None,
    networks: OwnNetworks | None = None,
) -> LinkConnection:
    """A link to `provider` over a road that is passed on to `end`, ready for streams. The caller sets the time.

    `road`: what the main process says that it is. With `continues`, that link goes on over it, and is returned.
    `networks`: those we are in, where any is closed.
    Raises Unreachable, Refused, ProtocolViolation as `p2pgrid.net.direct.dial` does.
    """
    loop = asyncio.get_running_loop()

    def make() -> LinkConnection:
        membership = calling(networks, secret_key, provider, continues)
        link = new_dialler(secret_key, provider, continues, limits, membership)
        return LinkConnection(link, name=f"{provider} over {_NAME}", road=road, membership=membership)

    connection: Any = None
    is_made = False
    end.setblocking(False)
    try:
        _, connection = await loop.create_unix_connection(make, sock=end)
        await asyncio.shield(connection.ready)
        is_made = True
    except OSError as error:
        raise Unreachable(f"{provider} cannot be reached over {_NAME}: {error.strerror or error}.") from error
    finally:
        if connection is None:
            end.close()
        elif not is_made:
            connection.abort()
    made: LinkConnection = connection
    if continues is None:
        return made
    await continues.move_to(made)
    return continues
