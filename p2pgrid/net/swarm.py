"""libp2p 0.8.1's swarm (the set of connections), with its dialling and accepting mended.

| fault | here |
|---|---|
| a dial waits out a 250 ms happy-eyeballs delay | addresses are tried at once, the next after 100 ms or a failure |
| only the first address of each transport class is dialled | all that were given, up to 8 |
| a peer that could not be dialled is refused for 60 s, even at a right address | no such memory |
| an outgoing handshake has no time bound | DIAL_TIMEOUT_S over the whole of it |
| an inbound connection keeps its slot after it closed, until no more are accepted | the slot goes with it |
| a task cancelled while it opens a stream leaves the stream open | opening is shielded, once connected |
| one address can take every inbound slot, and connect as often as it likes | a cap and a rate per address |
| a connection that is ending is still taken for a live one, and a stream on it fails | it is passed over |
| to close a connection takes 0.2 s | nobody has to wait for it (`part`) |
| known peers are dialled in the background to reach a number of connections | only what we ask for is dialled |
| circuit addresses are never dialled | they are, behind the others, where a `circuits` dialler is set |
| a relayed connection is closed as soon as there is a direct one, and what runs on it is lost | it stays |
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, Protocol

import libp2p.network.swarm as swarm_module
import trio
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from p2pgrid.net.addresses import MAX_ADDRESSES_PER_PEER, Circuit, is_circuit, split_circuit, without_peer_id
from p2pgrid.net.limits import Rates, Seats
from p2pgrid.net.listening import caller_of
from p2pgrid.net.relay.kind import is_relayed
from p2pgrid.net.shielding import shielded_for
from p2pgrid.net.tcp import BufferedTcpStream

logger = logging.getLogger(__name__)

DIAL_TIMEOUT_S: Final = 8.0
DIAL_STAGGER_S: Final = 0.1
CIRCUIT_STAGGER_S: Final = 0.25
"""What the addresses that lead there directly may take before a relay is asked."""
STREAM_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 2.0

# The base class makes one of the first for itself and one of the second for every caller, and nothing here reads them.
# The real ones bring a DNS library and a metrics library, 12 MB, into every node. TCP resolves names by its own.
swarm_module.DNSResolver = swarm_module.SwarmEvent = SimpleNamespace


class DialsCircuits(Protocol):
    """Who dials through relays: `p2pgrid.net.relay.dialler` does."""

    async def dial(self, peer_id: ID, circuit: Circuit) -> Any:
        """A connection to `peer_id` over the circuit. Raises SwarmException."""


class GridSwarm(Swarm):  # type: ignore[misc]
    """A swarm that dials what it is told, at once, and lets go of what has ended."""

    def __init__(self, *args: Any, seats: Seats, connects: Rates, **kwargs: Any) -> None:
        """`seats`: of connections that others make; `connects`: how often an address may make one."""
        super().__init__(*args, **kwargs)
        self.auto_connector = _NoAutoConnector(self)
        self._seats = seats
        self._connects = connects
        self._wanted: Counter[ID] = Counter()
        self.circuits: DialsCircuits | None = None
        self._dialling: dict[tuple[ID, bool], trio.Event] = {}
        """Dials under way: to whom, and whether through a relay too."""
        self.passing: set[ID] = set()
        """Peers that were connected to for a question: whoever asked last closes the connection."""
        self._parting: set[Any] = set()
        """Connections that are about to be closed."""

    async def connect_to(self, peer_id: ID, addresses: Sequence[Multiaddr], *, direct_only: bool = False) -> Any:
        """The live connection to `peer_id`, the direct one first, or a new one by one of `addresses`.

        `direct_only`: none that leads through a relay. Raises SwarmException.
        """
        # Whoever may go through a relay does not wait for who may not: a port that swallows packets costs seconds.
        way = peer_id, not direct_only and any(map(is_circuit, addresses))
        while True:
            live = self._filter_valid_connections(self.get_connections(peer_id))
            direct = [connection for connection in live if not is_relayed(connection)]
            if direct or (live and not direct_only):
                return (direct or live)[0]
            dialling = self._dialling.get(way)
            if dialling is None:
                break
            await dialling.wait()  # and look again: that dial may have had other addresses, and failed
        done = self._dialling[way] = trio.Event()
        try:
            return await self._dial_any(peer_id, addresses, direct_only)
        finally:
            self._dialling.pop(way, None)
            done.set()

    async def dial_peer(self, peer_id: ID) -> list[Any]:
        """What the base class calls where a stream is wanted and no connection is there."""
        try:
            addresses = self.peerstore.addrs(peer_id)
        except PeerStoreError:
            addresses = []
        return [await self.connect_to(peer_id, addresses)]

    async def new_stream(self, peer_id: ID) -> Any:
        """A stream to `peer_id`, over the live connection or a new one by known addresses. Raises SwarmException."""
        await self.dial_peer(peer_id)
        with shielded_for(STREAM_TIMEOUT_S):
            return await super().new_stream(peer_id)
        raise SwarmException(f"no stream to {peer_id} could be opened in {STREAM_TIMEOUT_S:.0f} s")

    def _filter_valid_connections(self, connections: list[Any]) -> list[Any]:
        return [
            connection
            for connection in super()._filter_valid_connections(connections)
            if connection not in self._parting
            and not (connection.muxed_conn.is_broken or connection.muxed_conn.event_shutting_down.is_set())
        ]

    def part(self, connection: Any) -> None:
        """Close a connection, and take it for no live one from now on. Does not wait for it."""
        self._parting.add(connection)
        trio.lowlevel.spawn_system_task(self._part, connection)

    async def _part(self, connection: Any) -> None:
        try:
            await connection.close()
        except Exception as error:  # noqa: BLE001 (what the peer made of it in the end; in a system task it would end all)
            logger.debug("closing a connection to %s: %r", connection.muxed_conn.peer_id, error)
        finally:
            self._parting.discard(connection)

    @contextmanager
    def wanting(self, peer_id: ID) -> Iterator[None]:
        """Within it, `is_wanted` is true: a stream to stay is being opened, and does not show yet."""
        self._wanted[peer_id] += 1
        try:
            yield
        finally:
            self._wanted[peer_id] -= 1
            if not self._wanted[peer_id]:
                del self._wanted[peer_id]

    def is_connected(self, peer_id: ID) -> bool:
        """True while there is a connection that is not ending."""
        return bool(self._filter_valid_connections(self.get_connections(peer_id)))

    def is_wanted(self, peer_id: ID) -> bool:
        """True while somebody is about to use the connection to this peer."""
        return peer_id in self._wanted

    async def close_all(self) -> None:
        """Close every connection at once; the base class takes 0.2 s for each, one after another."""
        with shielded_for(_CLOSE_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for connection in self.get_connections():
                    nursery.start_soon(connection.close)

    async def _dial_any(self, peer_id: ID, addresses: Sequence[Multiaddr], direct_only: bool) -> Any:
        connections: list[Any] = []
        failures: list[str] = []

        async def attempt(address: Multiaddr, failed: trio.Event) -> None:
            try:
                connections.append(await self._dial_one(peer_id, address))
            except Exception as error:  # noqa: BLE001 (a peer can make the handshake raise anything; it is kept below)
                failures.append(f"{address}: {error.__cause__ or error}")
                failed.set()
            else:
                nursery.cancel_scope.cancel()

        direct = [address for address in addresses if not is_circuit(address)]
        relayed = [] if direct_only else [address for address in addresses if is_circuit(address)]
        chosen = (direct + relayed)[:MAX_ADDRESSES_PER_PEER]
        with trio.move_on_after(DIAL_TIMEOUT_S) as deadline:
            async with trio.open_nursery() as nursery:
                for n, address in enumerate(chosen, 1):
                    failed = trio.Event()
                    nursery.start_soon(attempt, address, failed)
                    with trio.move_on_after(CIRCUIT_STAGGER_S if n == len(direct) else DIAL_STAGGER_S):
                        await failed.wait()
        if connections:
            return connections[0]
        if deadline.cancelled_caught:
            failures.append(f"no answer in {DIAL_TIMEOUT_S:.0f} s")
        raise SwarmException(f"{peer_id} cannot be reached: {'; '.join(failures) or 'no address is known'}")

    async def _dial_one(self, peer_id: ID, address: Multiaddr) -> Any:
        if not is_circuit(address):
            return await self._dial_addr_single_attempt(address, peer_id)
        circuit = split_circuit(without_peer_id(address))
        if circuit is None or self.circuits is None:
            raise SwarmException("this way through a relay is not taken")
        return await self.circuits.dial(peer_id, circuit)

    def _trim_connections(self, peer_id: ID) -> None:
        """Connections over circuits are left alone: whoever takes circuits caps them, and links may run on them."""
        relayed = [connection for connection in self.connections[peer_id] if is_relayed(connection)]
        self.connections[peer_id] = [one for one in self.connections[peer_id] if one not in relayed]
        super()._trim_connections(peer_id)
        self.connections[peer_id] += relayed

    async def _do_handle_inbound_connection(self, read_write_closer: Any, maddr: Multiaddr, _event: Any) -> None:
        tcp = BufferedTcpStream(read_write_closer.stream)
        remote = tcp.get_remote_address()
        ip = caller_of(remote[0]) if remote else ""
        raw = RawConnection(tcp, False)
        if not self._connects.take(ip, trio.current_time()) or not self._seats.take(ip):
            await raw.close()
            return
        try:
            muxed = await self.upgrade_inbound_raw_conn(raw, maddr)
            await muxed.event_closed.wait()
        finally:
            self._seats.leave(ip)
            with shielded_for(1):
                await raw.close()


class _NoAutoConnector(AutoConnector):  # type: ignore[misc]
    async def start(self) -> None:
        """Never started, so it never dials."""
