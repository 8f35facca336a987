"""A libp2p host that strangers may connect to: py-libp2p 0.8.1, hardened (see also yamux.py, swarm.py and tcp.py).

| fault | here |
|---|---|
| a host accepts `/plaintext/2.0.0`, which proves no key, and SECIO | Noise alone is offered and asked for |
| an exception in a stream's handler, or in its negotiation, ends the host | `_StreamGuard` resets that stream |
| invalid UTF-8 in a protocol's name raises there | a malformed name is a failed negotiation |
| a protocol's name may be announced as long as 2^64 bytes, before any key is proven | 1 KiB |
| the resource manager makes streams over its limit wait, and lets too few connections through | own caps |
| a protocol's handler is called for as many streams as a peer opens | each stands behind a door (doors.py) |
| identify keeps up to 1 MiB of each of 1,000 peers | identify_intake.py |
| ping is answered at any rate, and whoever asked is remembered for good | ping.py |
| two processes may listen on one port, and share its connections at random (SO_REUSEPORT) | checked first |
| what a peer says it sees as our address is told to others | ignored |
| a circuit address is told without the part that makes it one | it is told whole |
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import libp2p.protocol_muxer.multiselect_communicator as communicator_module
import libp2p.stream_muxer.yamux.yamux as yamux_module
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.exceptions import ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import ID as PING_ID
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.identity.identify_push.identify_push import identify_push_handler_for
from libp2p.io.exceptions import IOException, MessageTooLarge
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2pgrid.errors import LocalError
from p2pgrid.net import identify_intake, libp2p_logs
from p2pgrid.net.addresses import announced, full_multiaddr, told_addresses
from p2pgrid.net.doors import Doors, Handler, caller_of_connection
from p2pgrid.net.identify import answer_without_addresses
from p2pgrid.net.limits import Allowance, Rates, Seats
from p2pgrid.net.peerstore import OwnKeyPeerStore
from p2pgrid.net.ping import answer_pings
from p2pgrid.net.shielding import shielded_for
from p2pgrid.net.swarm import DIAL_TIMEOUT_S, STREAM_TIMEOUT_S, GridSwarm
from p2pgrid.net.tcp import BufferedTcp
from p2pgrid.net.yamux import ShieldedMuxer, SteadyStream
from p2pgrid.net.yamux_frames import Throttle
from p2pgrid.proto.keys import SecretKey

if TYPE_CHECKING:
    from p2pgrid.net.members.gate import Gate

logger = logging.getLogger(__name__)

MAX_PROTOCOL_NAME_BYTES: Final = 1024
NEGOTIATION_TIMEOUT_S: Final = 10
_REPORT_EVERY_S: Final = 60.0
_CLOSE_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What peers may hold open, and do in a time. A connection costs about 100 KB and 10 ms, a stream 5 KB and 3 ms.

    What is open is refused past its cap; what is done too fast waits. Rates are those of one address, for all of its
    connections together: `burst` at once, then `per_s`. Peers that we dialled may do `dialled_factor` times as much.
    """

    max_connections: int = 400
    max_inbound_per_ip: int = 64
    """An eighth of it once half of all connections are taken."""
    max_inbound_streams: int = 1024
    max_inbound_streams_per_connection: int = 64
    connects_burst: int = 256
    connects_per_s: float = 8.0
    opens_burst: int = 1000
    """Streams."""
    opens_per_s: float = 100.0
    frames_burst: int = 50_000
    """Frames of yamux (35 to 70 us each), save those of links, and messages of Noise."""
    frames_per_s: float = 5_000.0
    answers_burst: int = 500
    """On streams that carry many requests: the DHT's, pings."""
    answers_per_s: float = 50.0
    dialled_factor: float = 4.0
    handshake_s: float = 10.0
    """What an accepted connection may take until it is secured and multiplexed."""


class GridHost(BasicHost):  # type: ignore[misc]
    """A host whose handlers, libp2p's own among them, each stand behind a door.

    It tells circuit addresses whole, where the base class cuts them off behind the relay's name.
    """

    gate: Gate | None = None
    """Asked before a protocol is used."""
    on_pushed: list[Callable[[ID], None]]
    """Called with every peer that has told anew what it is, once that is kept (identify/push)."""

    def __init__(self, limits: HostLimits, **options: Any) -> None:
        super().__init__(**options)
        self.doors = Doors(Rates(limits.answers_burst, limits.answers_per_s))
        self.on_pushed = []
        for protocol, handler in list(self.multiselect.handlers.items()):
            self.set_stream_handler(protocol, handler)
        self.set_stream_handler(PING_ID, answer_pings(self.doors.pace))
        self.set_stream_handler(IDENTIFY_PUSH, self._take_push)

    def set_stream_handler(self, protocol_id: Any, stream_handler: Handler) -> None:
        super().set_stream_handler(protocol_id, self.doors.guard(protocol_id, stream_handler))

    async def _take_push(self, stream: Any) -> None:
        await identify_push_handler_for(self)(stream)
        for listener in self.on_pushed:
            listener(stream.muxed_conn.peer_id)

    def get_addrs(self) -> list[Multiaddr]:
        """What others are told, each with this host's name behind it."""
        told: Sequence[Multiaddr] = self._addrs_factory(list(self.get_transport_addrs()))
        return [Multiaddr(full_multiaddr(address, str(self.get_id()))) for address in told]


@asynccontextmanager
async def open_host(
    secret_key: SecretKey,
    listen: Sequence[Multiaddr],
    *,
    announce: Sequence[Multiaddr] | None = None,
    limits: HostLimits | None = None,
    circuits: Callable[[], Sequence[Multiaddr]] = tuple,
    gate: Gate | None = None,
) -> AsyncIterator[BasicHost]:
    """Run a host that listens on `listen` (nowhere, if empty) and tells others `announce`, or where it listens.

    `circuits`: where it is reached through relays, as of now; others are told of that too. `gate`: what stands before
    its protocols, where it is in closed networks.
    Raises LocalError where an address cannot be listened on.
    """
    libp2p_logs.quieten()
    communicator_module.read_delim = _read_protocol_name
    yamux_module.YamuxStream = SteadyStream  # yamux makes its streams of whatever has this name there
    identify_intake.install()
    limits = limits or HostLimits()
    swarm = _make_swarm(secret_key, limits)
    host = GridHost(
        limits,
        network=swarm,
        negotiate_timeout=NEGOTIATION_TIMEOUT_S,
        addrs_factory=lambda bound: told_addresses(list(announce) if announce else announced(bound), circuits()),
        disable_identify_address_discovery=True,
    )
    if not listen:
        answer_without_addresses(host)
    if gate is not None:
        host.gate = gate
        gate.guard(host)
    swarm.set_stream_handler(_StreamGuard(swarm.common_stream_handler, limits))
    for address in listen:
        check_free(address)
    async with host.run(listen):
        for address in listen:
            if str(address) not in swarm.listeners:
                raise LocalError(f"{address} cannot be listened on.", hint="Another program may have just taken it.")
        try:
            yield host
        finally:
            await swarm.close_all()
            with shielded_for(_CLOSE_TIMEOUT_S):
                await host.close()  # listeners too: they belong to no task of the swarm, and would go on accepting


def abandon(host: BasicHost) -> None:
    """Free the ports of a host whose trio run was cut off, so that nothing of it was closed. Called in the next run."""
    for listener in host.get_network().listeners.values():
        for accepting in listener.listeners:
            accepting.socket.close()


def check_free(address: Multiaddr) -> None:
    """Raise LocalError, saying why and what to do, where `address` (`/ip4|ip6/.../tcp/...`) cannot be listened on."""
    family_name = address.protocols()[0].name
    ip, port = str(address.value_for_protocol(family_name)), int(address.value_for_protocol("tcp"))
    with socket.socket(socket.AF_INET6 if family_name == "ip6" else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
            probe.listen(1)
        except OSError as error:
            raise _listen_error(error, ip, port) from error


def _listen_error(error: OSError, ip: str, port: int) -> LocalError:
    if error.errno == errno.EADDRINUSE:
        return LocalError(
            f"port {port} on {ip} is in use by another program.",
            hint="Stop that program, or listen on another port (0 takes any free one).",
        )
    if error.errno == errno.EACCES:
        return LocalError(f"port {port} may not be listened on by this user.", hint="Choose a port from 1024 up.")
    if error.errno == errno.EADDRNOTAVAIL:
        return LocalError(f"{ip} is not an address of this machine.", hint="Listen on 0.0.0.0 for all of its own.")
    return LocalError(f"{ip} port {port} cannot be listened on: {error.strerror}.", hint="Choose another address.")


def _make_swarm(secret_key: SecretKey, limits: HostLimits) -> GridSwarm:
    keys = create_new_key_pair(secret_key.expose_seed())
    peer_id = ID.from_pubkey(keys.public_key)
    upgrader = TransportUpgrader(
        {NOISE_ID: NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)},
        {YAMUX_ID: Yamux},
        NEGOTIATION_TIMEOUT_S,
    )
    upgrader.muxer_multistream = ShieldedMuxer({YAMUX_ID: Yamux}, NEGOTIATION_TIMEOUT_S)
    upgrader.muxer_multistream.throttle_of = _throttles(limits)
    peerstore = OwnKeyPeerStore(peer_id)
    peerstore.add_key_pair(peer_id, keys)
    return GridSwarm(
        peer_id,
        peerstore,
        upgrader,
        [BufferedTcp(dns_resolution_timeout=3.0, dns_max_retries=1)],
        retry_config=RetryConfig(max_retries=0),
        connection_config=ConnectionConfig(
            max_connections=limits.max_connections,
            min_connections=0,
            low_watermark=limits.max_connections // 2,
            high_watermark=limits.max_connections * 3 // 4,  # above it, idle connections are closed, 20 at a time
            max_connections_per_peer=1,
            dial_timeout=DIAL_TIMEOUT_S,
            inbound_upgrade_timeout=limits.handshake_s,
        ),
        seats=Seats(
            Allowance(
                total=limits.max_connections,
                per_address=limits.max_inbound_per_ip,
                crowded_per_address=max(1, limits.max_inbound_per_ip // 8),
            )
        ),
        connects=Rates(limits.connects_burst, limits.connects_per_s),
    )


def _throttles(limits: HostLimits) -> Callable[[Any], Throttle]:
    """For a secured connection: how fast its peer may talk."""

    def rates(factor: float) -> tuple[Rates, Rates]:
        opens = Rates(limits.opens_burst * factor, limits.opens_per_s * factor)
        return opens, Rates(limits.frames_burst * factor, limits.frames_per_s * factor)

    accepted, dialled = rates(1.0), rates(limits.dialled_factor)

    def of(secured: Any) -> Throttle:
        address = caller_of_connection(secured.get_remote_address(), secured.get_remote_peer())
        return Throttle(address, *(dialled if secured.is_initiator else accepted))

    return of


async def _read_protocol_name(reader: Any) -> bytes:
    """multistream-select's line: a varint length, the name, a newline (connections/README.md of the libp2p specs)."""
    try:
        line: bytes = await read_varint_prefixed_bytes_limited(reader, MAX_PROTOCOL_NAME_BYTES)
        line.decode("utf-8")
    except (MessageTooLarge, UnicodeDecodeError) as error:
        raise ParseError("a protocol name is too long, or no UTF-8") from error
    if not line.endswith(b"\n"):
        raise ParseError("a protocol name does not end in a newline")
    return line[:-1]


class _StreamGuard:
    """Stands between a peer's stream and the host: counts streams, and keeps what their handlers raise."""

    def __init__(self, inner: Any, limits: HostLimits) -> None:
        self._inner = inner
        self._seats = Seats(
            Allowance(total=limits.max_inbound_streams, per_address=limits.max_inbound_streams_per_connection)
        )
        self._reported_at: dict[str, float] = {}

    async def __call__(self, stream: Any) -> None:
        connection = str(id(stream.muxed_conn))
        if not self._seats.take(connection):
            await stream.reset()
            return
        try:
            await self._inner(stream)
        except (IOException, MuxedStreamError) as error:
            logger.debug("%s ended a stream of %s: %r", stream.muxed_conn.peer_id, stream.get_protocol(), error)
            await stream.reset()
        except Exception as error:  # noqa: BLE001 (the host's boundary: one stream's fault ends that stream)
            self._report(stream, error)
            await stream.reset()
        finally:
            self._seats.leave(connection)

    def _report(self, stream: Any, error: Exception) -> None:
        """Once a minute for each kind: a peer that can cause it must not fill the log."""
        what = f"{stream.get_protocol()} {type(error).__name__}"
        now = time.monotonic()
        if now - self._reported_at.get(what, -_REPORT_EVERY_S) >= _REPORT_EVERY_S and len(self._reported_at) < 256:
            self._reported_at[what] = now
            peer_id = stream.muxed_conn.peer_id
            logger.warning("a stream of %s with %s ended by an error: %r", stream.get_protocol(), peer_id, error)


async def open_stream(host: BasicHost, peer_id: ID, addresses: Sequence[Multiaddr], protocol: str) -> Any:
    """A stream to `peer_id` over the live connection, or one newly dialled by `addresses`.

    Raises SwarmException where the peer cannot be reached, StreamFailure where it does not speak `protocol`, Refused
    (`not-a-member`) where it is in none of the closed networks that it would have to be in.
    """
    connection = await host.get_network().connect_to(peer_id, addresses)
    if _gate_of(host) is not None:
        return await open_stream_on(host, connection, protocol)
    return await host.new_stream(peer_id, [protocol])


async def open_stream_on(host: BasicHost, connection: Any, protocol: str) -> Any:
    """A stream on that connection, and on no other to the same peer.

    Raises StreamFailure where the peer does not speak `protocol`, Refused as `open_stream` does, and what a broken
    connection raises.
    """
    gate = _gate_of(host)
    if gate is None:
        return await negotiate_on(host, connection, protocol)
    await gate.before_use(host, connection, protocol)
    try:
        return await negotiate_on(host, connection, protocol)
    except StreamFailure:
        gate.not_answered(connection)
        raise


def _gate_of(host: BasicHost) -> Gate | None:
    return host.gate if isinstance(host, GridHost) else None


async def negotiate_on(host: BasicHost, connection: Any, protocol: str) -> Any:
    """As `open_stream_on`, whatever the gate says."""
    stream = None
    with shielded_for(STREAM_TIMEOUT_S):
        stream = await connection.new_stream()
    if stream is None:
        raise StreamFailure(f"{connection.muxed_conn.peer_id} took no stream in {STREAM_TIMEOUT_S:.0f} s")
    try:
        chosen = await host.multiselect_client.select_one_of(
            [protocol], MultiselectCommunicator(stream), NEGOTIATION_TIMEOUT_S
        )
    except MultiselectClientError as error:
        await reset_stream(stream)
        raise StreamFailure(f"{connection.muxed_conn.peer_id} did not take up {protocol}") from error
    except BaseException:
        await reset_stream(stream)
        raise
    stream.set_protocol(chosen)
    return stream


async def close_stream(stream: Any) -> None:
    """End a stream of ours in good order, whatever became of it. Never raises, save on cancellation."""
    try:
        await stream.close()
    except Exception as error:  # noqa: BLE001 (closing what the peer has already broken)
        logger.debug("closing a stream: %r", error)
        await stream.reset()


async def reset_stream(stream: Any) -> None:
    """Drop a stream at once, also while being cancelled."""
    with shielded_for(1):
        await stream.reset()
