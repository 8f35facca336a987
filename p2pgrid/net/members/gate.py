"""The gate of a host that is in closed networks: what a peer is answered on a connection, and what is used with it.

Until a peer has shown itself a member, on that very connection, it can negotiate nothing but what `FREE` names: all
else is "not supported" to it, whether it is there or not. Each protocol belongs to networks: the DHT's to one, what is
sold to those where this node sells, all others to every network that it is in. One open network among them lets
everybody in.

Before this node uses a protocol with a peer, the same holds the other way round. It calls for the proof itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.errors import P2pgridError, Refused
from p2pgrid.net.host import reset_stream
from p2pgrid.net.member_books import NOT_A_MEMBER
from p2pgrid.net.members.exchange import PROTOCOL, show_membership, take_membership
from p2pgrid.net.members.negotiation import GatedMultiselect
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.net.relay.messages import HOP, STOP
from p2pgrid.net.shielding import shielded_for
from p2pgrid.proto.keys import PublicKey

logger = logging.getLogger(__name__)

FREE: Final = frozenset({str(IDENTIFY), str(IDENTIFY_PUSH), str(PING), PROTOCOL, STOP})
"""What anybody is answered. STOP is answered by itself to nobody but a relay where this host holds a reservation."""
ASKED_OF_STRANGERS: Final = frozenset({HOP})
"""A relay learns who calls whom and reads nothing: its owner may name one that is in no network of ours."""
LOOK_INTERVAL_S: Final = 1.0
RETRY_S: Final = 10.0
"""How long a peer that showed nothing is not asked again."""
PROVE_WITHIN_S: Final = 10.0
"""How long a host that is in closed networks alone keeps a connection on which nothing was shown."""
LAPSED_S: Final = 8.0
"""The same, once a member is none any more: what runs with it is wound up meanwhile."""
MAX_TAKEN_AT_ONCE: Final = 256
"""Of all connections together, one of each: four times what one address may hold open."""
MAX_TAKEN_PER_MINUTE: Final = 30
"""On one connection."""
MAX_FAULTS: Final = 1000
"""Peers of which it is kept why they are not dealt with."""
LOG_INTERVAL_S: Final = 10.0
"""Between two lines in the log about peers that were not let in."""


@dataclass(eq=False)
class _Shown:
    """What one connection's peer has shown."""

    names: frozenset[str] = frozenset()
    changed: trio.Event = field(default_factory=trio.Event)
    calling: trio.Lock = field(default_factory=trio.Lock)
    called_s: float = float("-inf")
    """When this side last called for a proof."""
    is_stale: bool = False
    """True once the peer did not answer what a member would: it may have forgotten what was shown to it."""
    fault: Refused | None = None
    """Why that came to nothing."""
    is_taking: bool = False
    """True while the peer shows something."""
    since_s: float = field(default_factory=trio.current_time)
    """Since when it has shown nothing that holds."""


class Gate:
    """One host's, for one run of it; all of it belongs to the trio thread."""

    def __init__(self, own: OwnNetworks, own_key: PublicKey) -> None:
        self._own = own
        self._own_key = own_key
        self._served_in: dict[str, frozenset[str]] = {}
        self._used_in: dict[str, frozenset[str]] = {}
        self._all = frozenset(own.names)
        self._shown: WeakKeyDictionary[Any, _Shown] = WeakKeyDictionary()
        self._taken: Counter[Any] = Counter()
        self._limiter = trio.CapacityLimiter(MAX_TAKEN_AT_ONCE)
        self._own_memberships = self._memberships()
        self._next_log_s = float("-inf")
        self._last_faults: dict[ID, Refused] = {}

    def guard(self, host: BasicHost) -> None:
        """Stand before the host's protocols, those that are added later too."""
        host.multiselect = GatedMultiselect(host.multiselect.handlers, self)
        host.set_stream_handler(PROTOCOL, self.take)

    def belongs(self, protocol: str, name: str) -> None:
        """The protocol is that of one network: answered to its members, and used with them."""
        self._served_in[protocol] = self._used_in[protocol] = frozenset({name})

    def serve_only(self, protocol: str, names: frozenset[str]) -> None:
        """The protocol is answered in these networks alone."""
        self._served_in[protocol] = names

    # -- what others may do -----------------------------------------------------------------------------------------

    def may(self, connection: Any, protocol: str) -> bool:
        """True if the peer at the other end of the muxed connection is answered on the protocol."""
        if protocol in FREE:
            return True
        names = self._served_in.get(protocol, self._all)
        return bool(names & self._own.open) or bool(names & self.member_of(connection))

    def is_told(self, protocol: str) -> bool:
        """True if strangers are told that the protocol is spoken: they are of what they would be answered."""
        return protocol in FREE or bool(self._served_in.get(protocol, self._all) & self._own.open)

    def member_of(self, connection: Any) -> frozenset[str]:
        """The closed networks in which the peer has shown itself a member on this muxed connection, and still is."""
        shown = self._shown.get(connection)
        return self._own.still(shown.names, str(connection.peer_id)) if shown is not None else frozenset()

    async def wait_member(self, connection: Any, name: str, timeout_s: float) -> bool:
        """True once the peer has shown itself a member of the network, False if it has not within the time."""
        shown = self._of(connection)
        with trio.move_on_after(timeout_s):
            while name not in self.member_of(connection):
                await shown.changed.wait()
            return True
        return False

    async def take(self, stream: Any) -> None:
        """The handler of `/p2pgrid/member/1`."""
        connection = stream.muxed_conn
        shown = self._of(connection)
        is_full = shown.is_taking or not self._limiter.available_tokens
        if is_full or self._taken[connection] >= MAX_TAKEN_PER_MINUTE:
            await reset_stream(stream)
            return
        self._taken[connection] += 1
        shown.is_taking = True

        def note(names: frozenset[str], fault: Refused | None) -> None:
            self._note(connection, names)
            if not names and trio.current_time() >= self._next_log_s:
                self._next_log_s = trio.current_time() + LOG_INTERVAL_S
                why = fault.message if fault is not None else "its credentials fit none of this node's closed networks"
                logger.info("%s asked to be let in and was not: %s", connection.peer_id, why)

        async with self._limiter:
            try:
                await take_membership(stream, self._own, self._own_key, note)
            except (trio.TooSlowError, P2pgridError, IOException, MuxedStreamError, MuxedConnError) as error:
                logger.debug("%s showed no membership: %r", connection.peer_id, error)
                await reset_stream(stream)
            finally:
                shown.is_taking = False

    # -- what this node does ----------------------------------------------------------------------------------------

    async def before_use(self, host: BasicHost, connection: Any, protocol: str) -> None:
        """Return once the protocol may be used with the peer on this connection of the swarm's.

        Raises Refused (`not-a-member`) where the peer has not shown itself a member of a network that it takes.
        """
        if protocol in FREE:
            return
        muxed = connection.muxed_conn
        names = self._used_in.get(protocol) or self._own.found_in(str(muxed.peer_id))
        wanted = names & self._own.closed
        may_be_open = bool(names & self._own.open) or protocol in ASKED_OF_STRANGERS
        shown = self._of(muxed)
        if not wanted or (wanted & self.member_of(muxed) and not shown.is_stale):
            return
        async with shown.calling:
            is_due = trio.current_time() >= shown.called_s + RETRY_S
            if is_due and (shown.is_stale or not wanted & self.member_of(muxed)):
                await self._call(host, connection, shown)
        if wanted & self.member_of(muxed) or may_be_open:
            return
        raise shown.fault or Refused(
            NOT_A_MEMBER, f"{muxed.peer_id} has not shown that it is in {' or '.join(sorted(wanted))}."
        )

    def not_answered(self, connection: Any) -> None:
        """The peer does not answer what it should: it may have forgotten what was shown. Show it again at next use."""
        shown = self._of(connection.muxed_conn)
        shown.is_stale = trio.current_time() >= shown.called_s + RETRY_S

    def fault_of(self, peer_id: ID) -> Refused | None:
        """Why a peer and this node last did not find one another members; None if they did, or did not ask."""
        return self._last_faults.get(peer_id)

    async def _show_anew(self, host: BasicHost, connection: Any, shown: _Shown) -> None:
        async with shown.calling:
            await self._call(host, connection, shown)

    async def _call(self, host: BasicHost, connection: Any, shown: _Shown) -> None:
        shown.called_s, shown.is_stale = trio.current_time(), False
        names, shown.fault = await show_membership(host, connection, self._own, self._own_key)
        peer_id: ID = connection.muxed_conn.peer_id
        self._last_faults.pop(peer_id, None)
        if shown.fault is not None:
            self._last_faults[peer_id] = shown.fault
            if len(self._last_faults) > MAX_FAULTS:
                del self._last_faults[next(iter(self._last_faults))]
        if names is not None:
            self._note(connection.muxed_conn, names)

    # -- in time ----------------------------------------------------------------------------------------------------

    async def run(self, host: BasicHost) -> None:
        """Look after connections until cancelled: memberships end, and some peers never show any."""
        async with trio.open_nursery() as nursery:
            for n in range(1, 2**62):
                await trio.sleep(LOOK_INTERVAL_S)
                self._own.refresh()
                if n % 60 == 0:
                    self._taken.clear()
                renewed = self._renewed()
                for connection in host.get_network().get_connections():
                    await self._look_at(host, connection)
                    shown = self._shown.get(connection.muxed_conn)
                    if shown is not None and shown.names & renewed:
                        nursery.start_soon(self._show_anew, host, connection, shown)

    async def _look_at(self, host: BasicHost, connection: Any) -> None:
        muxed = connection.muxed_conn
        shown = self._of(muxed)
        names, now_s = self.member_of(muxed), trio.current_time()
        if names != shown.names:
            gone = ", ".join(sorted(shown.names - names))
            logger.info("%s is no member of %s any more", muxed.peer_id, gone)
            was_member, shown.names = bool(shown.names), names
            if was_member and not names:
                shown.since_s = now_s - PROVE_WITHIN_S + LAPSED_S
        if self._own.open or names or now_s < shown.since_s + PROVE_WITHIN_S:
            return
        if muxed.is_initiator and not _is_idle(host.get_network(), connection):
            return
        logger.info("the connection with %s is closed: it showed no membership", muxed.peer_id)
        with shielded_for(1):
            await connection.close()

    def _note(self, connection: Any, names: frozenset[str]) -> None:
        shown = self._of(connection)
        if names - shown.names:
            logger.debug("%s is a member of %s", connection.peer_id, ", ".join(sorted(names)))
        if shown.names and not names:
            shown.since_s = trio.current_time()
        shown.names = names
        shown.changed.set()
        shown.changed = trio.Event()

    def _of(self, connection: Any) -> _Shown:
        shown = self._shown.get(connection)
        if shown is None:
            shown = self._shown[connection] = _Shown()
        return shown

    def _memberships(self) -> dict[str, bytes | None]:
        books = {network.name: network.book for network in self._own.all}
        return {name: book.own_membership for name, book in books.items() if book is not None}

    def _renewed(self) -> frozenset[str]:
        """The networks of which this node has another membership than when this was last called."""
        before, self._own_memberships = self._own_memberships, self._memberships()
        return frozenset(name for name, now in self._own_memberships.items() if now != before[name])


def _is_idle(network: Any, connection: Any) -> bool:
    """True for a connection that this side made, and that carries nothing but libp2p's own, nor is to be kept."""
    peer_id: ID = connection.muxed_conn.peer_id
    if network.is_wanted(peer_id) or network.is_protected(peer_id):
        return False
    own = (None, IDENTIFY, IDENTIFY_PUSH, PING)
    return all(stream.get_protocol() in own for stream in connection.get_streams())
