"""The libp2p road: a link over a stream of `/p2pgrid/session/1` (docs/spec/link.md, section 6).

For providers that cannot be dialled on the direct road, and for other implementations of libp2p. Noise proves both
keys before the stream is opened; the link's own handshake then runs as on every road.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.errors import ProtocolViolation, Unreachable
from p2pgrid.net.connection import Admit, LinkConnection
from p2pgrid.net.host import open_stream_on
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.limits import Seats
from p2pgrid.net.link_membership import CalledMembership
from p2pgrid.net.listening import ListenLimits, caller_of, close_links
from p2pgrid.net.offer_exchange import is_idle
from p2pgrid.net.relay.kind import is_relayed
from p2pgrid.net.road import Road
from p2pgrid.net.road_move import LinksByName
from p2pgrid.net.session_stream import SessionStream
from p2pgrid.net.stream import OnStream
from p2pgrid.net.stream_road import StreamRoad
from p2pgrid.proto.frame import NONCE_BYTES
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.link import Link

log = logging.getLogger(__name__)

PROTOCOL: Final = "/p2pgrid/session/1"
_NOT_SUPPORTED: Final = "not supported"


async def open_session(
    host: BasicHost,
    peer: Contact,
    road: StreamRoad,
    nursery: trio.Nursery,
    timeout_s: float,
    *,
    direct_only: bool = False,
    protocol: str = PROTOCOL,
) -> None:
    """On the trio side: open a stream to `peer` and have `road` run on it in `nursery`.

    `direct_only`: not on a connection that leads through a relay.
    Raises Unreachable: not there, not in time, or it does not speak `protocol` (links over libp2p, if it is left out).
    """
    try:
        with host.get_network().wanting(peer.peer_id), trio.fail_after(timeout_s):
            connection = await host.get_network().connect_to(peer.peer_id, peer.addresses, direct_only=direct_only)
            stream = await open_stream_on(host, connection, protocol)
    except trio.TooSlowError:
        raise Unreachable(f"{peer.peer_id} did not answer over libp2p within {timeout_s:g} s.") from None
    except SwarmException as error:
        raise Unreachable(f"{error}.") from error
    except StreamFailure as error:
        if isinstance(error.__cause__, MultiselectClientError) and _NOT_SUPPORTED in str(error.__cause__):
            raise Unreachable(f"{peer.peer_id} does not speak {protocol} over libp2p.") from error
        raise Unreachable(f"{peer.peer_id} did not take up a stream of {protocol}.") from error
    except (IOException, MuxedStreamError, MuxedConnError) as error:
        raise Unreachable(f"the connection to {peer.peer_id} ended while a link was opened on it.") from error
    session = SessionStream(stream)
    road.lay_on(session, _extra_of(session))
    nursery.start_soon(_run, road, host.get_network(), connection)


async def _run(road: StreamRoad, network: Any, connection: Any) -> None:
    """To its end. A circuit is then given back to its relay, if nothing else runs on it."""
    await road.run()
    if is_relayed(connection) and not network.is_wanted(connection.muxed_conn.peer_id) and is_idle(connection):
        await connection.close()


def verify_listener(provider: PublicKey, transport: asyncio.Transport) -> None:
    """Whom Noise has proven to be there must be the provider. Raises Unreachable."""
    found = transport.get_extra_info("peer_id")
    if found != provider.peer_id:
        raise Unreachable(
            f"another peer answered over libp2p: {found}; {provider} was expected.",
            hint="Look up the provider's present addresses.",
        )


class SessionListener:
    """Takes links from a libp2p host. Made on the loop; `serve` belongs to the trio thread, whichever run of it."""

    def __init__(
        self,
        secret_key: SecretKey,
        *,
        on_stream: OnStream,
        admit: Admit | None = None,
        limits: ListenLimits | None = None,
        movable: LinksByName | None = None,
        membership: CalledMembership | None = None,
    ) -> None:
        """`movable`: the links of this node that may go on over another road, those of its other listeners too.

        `membership`: who may call, for a node that is in closed networks.
        """
        self._movable = movable if movable is not None else LinksByName()
        self._loop = asyncio.get_running_loop()
        self._own_key = secret_key.public_key
        self._on_stream = on_stream
        self._admit = admit
        self._limits = limits or ListenLimits()
        self._membership = membership
        self._is_closed = False
        self.seats = Seats(self._limits.allowance(by_peer=True))
        self._spend_of = self._limits.shares()
        self.connections: set[LinkConnection] = set()
        """The links that live, their own handshake done or not."""

    @property
    def refused_connections(self) -> int:
        """Callers turned away because of the caps."""
        return self.seats.refused

    async def aclose(self, *, drain_s: float = 10.0, message: str = "the provider is shutting down") -> None:
        """Take no more links or streams, give open streams `drain_s` to finish, then close everything."""
        self._is_closed = True
        await close_links(self.connections, drain_s, message)

    async def serve(self, stream: Any) -> None:
        """On the trio side: one link, from its stream's negotiation to its end. The host's handler of `PROTOCOL`."""
        session = SessionStream(stream)
        extra = _extra_of(session)
        peer_id, address = extra["peer_id"], _where(extra)
        if self._is_closed or not self.seats.take(address, peer_id):
            log.info("a link of %s over libp2p was refused: %d are open", peer_id, self.seats.taken)
            await stream.reset()
            return
        try:
            road = StreamRoad(self._loop)
            road.lay_on(session, extra)
            self._loop.call_soon_threadsafe(self._accept, road, peer_id)
            await road.run()
        finally:
            self.seats.leave(address, peer_id)

    def _accept(self, road: StreamRoad, peer_id: str) -> None:
        """On the loop: lay a link on the road."""
        if self._is_closed:
            road.abort()
            return
        caller = _where({name: road.get_extra_info(name) for name in ("peername", "relay")}) or peer_id
        link = Link.listener(
            self._own_key,
            secrets.token_bytes(NONCE_BYTES),
            limits=self._limits.link,
            now_ms=int(self._loop.time() * 1000),
        )
        connection = LinkConnection(
            link,
            name=f"{peer_id} over libp2p",
            on_stream=self._on_stream,
            admit=self._admit,
            write_stall_s=self._limits.write_stall_s,
            road=road_of(road),
            movable=self._movable,
            membership=self._membership,
            spend=self._spend_of(caller),
            caller=caller,
        )
        self.connections.add(connection)
        connection.closed.add_done_callback(lambda closed: self._gone(connection))
        road.start(connection)

    def _gone(self, connection: LinkConnection) -> None:
        self.connections.discard(connection)
        if isinstance(connection.reason, ProtocolViolation):
            log.warning("%s broke the link's rules: %s", connection.name, connection.reason)


def serve_sessions(host: BasicHost, listener: SessionListener) -> None:
    """Have the host hand every stream of `PROTOCOL` to the listener."""
    host.set_stream_handler(PROTOCOL, listener.serve)


def _extra_of(session: SessionStream) -> dict[str, Any]:
    return {"peer_id": session.peer_id, "peername": session.peer_address, "relay": session.relay}


def road_of(transport: asyncio.Transport) -> Road:
    """What the transport is, of the two roads over libp2p."""
    return Road.LIBP2P if transport.get_extra_info("relay") is None else Road.RELAYED


def _where(extra: dict[str, Any]) -> str:
    """What a caller is counted by: its address, or the relay that it comes through."""
    if extra["relay"] is not None:
        return f"relay {extra['relay']}"
    return caller_of(extra["peername"][0]) if extra["peername"] else ""
