"""The trio side of the network: one libp2p host, its offer, its part in each network. `network.py` is its asyncio face.

After a crash `run` is simply run again: what the user asked for (the keys to advertise, the port bound) is kept here
and done again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.clock import unix_ms
from p2pgrid.errors import LocalError, Unreachable
from p2pgrid.net import libp2p_road, log_exchange, offer_exchange, reach_asking, withdraw_exchange
from p2pgrid.net.addresses import MAX_ADDRESSES_PER_PEER, usable_addresses, without_peer_id
from p2pgrid.net.host import HostLimits, abandon, open_host
from p2pgrid.net.http_streams import PROTOCOL as HTTP
from p2pgrid.net.http_streams import HttpStreams
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.libp2p_road import PROTOCOL as SESSION
from p2pgrid.net.libp2p_road import SessionListener, open_session, serve_sessions
from p2pgrid.net.lookup_keys import RELAY
from p2pgrid.net.members.gate import Gate
from p2pgrid.net.one_network import OneNetwork
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.net.peer_address import BootstrapState, OnFound, PeerAddress, RelayHealth
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.net.reach_dial import dial_back
from p2pgrid.net.reach_exchange import ReachServer
from p2pgrid.net.reach_wire import Outcome, RoadName
from p2pgrid.net.reachability import Reachability
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.part import RelayPart
from p2pgrid.net.relay.punch import Begin, agree
from p2pgrid.net.relay.use import NO_RELAY, Mode, RelayUse
from p2pgrid.net.stream_road import StreamRoad
from p2pgrid.proto.keys import PublicKey, SecretKey

logger = logging.getLogger(__name__)

ADDRESS_INTERVAL_S: Final = 5.0
"""How often our own addresses are looked at."""
WITHDRAW_TIMEOUT_S: Final = 4.0
"""How long the peers that hold our records may take to hear that we are gone. A node that stops waits for it."""
SOLD_BY: Final = (
    offer_exchange.OFFER.protocol,
    offer_exchange.CARDS.protocol,
    offer_exchange.CAPACITY.protocol,
    libp2p_road.PROTOCOL,
    HTTP,
)
"""Protocols that are answered only where this node sells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """What a user of the network decides."""

    secret_key: SecretKey
    networks: OwnNetworks
    listen: tuple[Multiaddr, ...]
    announce: tuple[Multiaddr, ...]
    serve_dht: bool
    limits: HostLimits = field(default_factory=HostLimits)
    relay: RelayUse = NO_RELAY
    """Whether to be reached through relays."""
    relaying: RelayLimits | None = None
    """What to relay for others, at most; None for nothing."""
    now_ms: Callable[[], int] = unix_ms


class NetworkService:
    """Everything here but the plain attributes belongs to the trio thread."""

    def __init__(
        self,
        config: NetworkConfig,
        current_offer: Callable[[], Awaitable[bytes | None]] | None,
        current_cards: Callable[[], Awaitable[bytes | None]] | None = None,
        answer_log: log_exchange.Answer | None = None,
        sessions: SessionListener | None = None,
        current_capacity: Callable[[], Awaitable[bytes | None]] | None = None,
        punch: Begin | None = None,
        http: HttpStreams | None = None,
    ) -> None:
        self._config = config
        self._current_capacity = current_capacity
        self._punch = punch
        self._reachable: bool | None = None
        self._relay_part: RelayPart | None = None
        self._sessions = sessions
        self._http = http
        self._roads: trio.Nursery | None = None
        """Where the roads run that were dialled from here."""
        self._current_offer = current_offer
        self._current_cards = current_cards
        self._answer_log = answer_log
        self._listen = config.listen
        self._reach_server = ReachServer(now_ms=config.now_ms)
        self._host: BasicHost | None = None
        own_id = config.secret_key.public_key.peer_id
        self.parts: Final = tuple(
            OneNetwork(
                network,
                own_id,
                serve=config.serve_dht,
                standing_keys=self._standing_keys,
            )
            for network in config.networks.all
        )
        """In the order of the configuration."""
        self.addresses: tuple[str, ...] = ()

    @property
    def connected_peers(self) -> int:
        return len(self._host.get_network().connections) if self._host is not None else 0

    @property
    def listening(self) -> tuple[str, ...]:
        return tuple(map(str, self._listen))

    @property
    def bootstrap_reached(self) -> bool | None:
        """None where no network has bootstrap peers; False where one of them has reached none of its own."""
        reached = [part.bootstrap_reached for part in self.parts if part.bootstrap_reached is not None]
        return all(reached) if reached else None

    async def run(self, ready: Callable[[], None]) -> None:
        """Run the host until cancelled; `ready` is called when it listens. Raises LocalError where it cannot."""
        config, gate = self._config, self._make_gate()
        if self._host is not None:
            abandon(self._host)
        async with open_host(
            config.secret_key,
            self._listen,
            announce=config.announce or None,
            limits=config.limits,
            circuits=self._circuits,
            gate=gate,
        ) as host:
            # A port that was free at first is kept over a restart: others know it by now.
            self._listen = tuple(without_peer_id(address) for address in host.get_transport_addrs())
            self._host = host
            for part in self.parts:
                part.begin(host, gate)
            self._decide_who_serves()
            self._relay_part = RelayPart(
                host,
                config.relay,
                config.relaying,
                seeds=[seed for part in self.parts for seed in part.seeds],
                look_up=lambda timeout_s: self.find_providers(RELAY, 20, timeout_s),
                on_change=self._addresses_changed,
                punch=self._punch,
            )
            self._relay_part.decide(self._reachable)
            self.addresses = tuple(map(str, host.get_addrs()))
            if config.serve_dht:
                self._reach_server.serve(host)
                withdraw_exchange.serve_withdrawals(host, self._forget_records_of)
            if self._current_offer is not None:
                offer_exchange.serve_offers(host, self._current_offer)
            if self._answer_log is not None:
                log_exchange.serve_log(host, self._answer_log)
            if self._sessions is not None:
                serve_sessions(host, self._sessions)
            if self._http is not None:
                self._http.serve_on(host)
            if self._current_cards is not None:
                offer_exchange.serve_document(host, offer_exchange.CARDS, self._current_cards)
            if self._current_capacity is not None:
                offer_exchange.serve_document(host, offer_exchange.CAPACITY, self._current_capacity)
            try:
                async with trio.open_nursery() as nursery:
                    self._roads = nursery
                    for part in self.parts:
                        nursery.start_soon(part.run)
                    if gate is not None:
                        nursery.start_soon(gate.run, host)
                    nursery.start_soon(self._relay_part.run)
                    nursery.start_soon(self._watch_addresses)
                    ready()
            finally:
                self._host = self._roads = self._relay_part = None
                for part in self.parts:
                    part.end()

    def _make_gate(self) -> Gate | None:
        """What stands before the protocols of the host; None for a node that is in open networks alone."""
        own = self._config.networks
        if not own.closed:
            return None
        gate = Gate(own, self._config.secret_key.public_key)
        for protocol in SOLD_BY:
            gate.serve_only(protocol, own.selling)
        return gate

    async def advertise(self, keys: Sequence[str], timeout_s: float) -> int:
        """See `Network.advertise`."""
        selling = [part for part in self.parts if part.network.sells]
        held: list[int] = []

        async def one(part: OneNetwork) -> None:
            held.append(await part.advertise(keys, timeout_s))

        async with trio.open_nursery() as nursery:
            for part in selling:
                nursery.start_soon(one, part)
        return min(held, default=0)

    async def set_reachable(self, reachable: bool | None) -> None:
        """See `Network.set_reachable`."""
        if reachable is not self._reachable:
            self._advertise_anew()  # a relay that nobody can dial is advertised no more
        self._reachable = reachable
        self._decide_who_serves()
        if self._relay_part is not None:
            self._relay_part.decide(reachable)

    def _decide_who_serves(self) -> None:
        """Whoever names its relays says itself that nobody dials it: so it answers no look-ups."""
        is_dialled = False if self._config.relay.mode is Mode.LISTED else self._reachable
        for part in self.parts:
            part.decide(is_dialled)

    @property
    def relay_health(self) -> RelayHealth:
        """See `Health.relay`. Asks nobody; also from another thread."""
        part = self._relay_part
        if part is None:
            return RelayHealth(wanted=False, relays=(), reservations=None, circuits=None)
        return RelayHealth(
            wanted=part.keeper.wanted.value,
            relays=tuple(part.keeper.relays),
            reservations=part.relay.n_reservations if part.relay is not None else None,
            circuits=part.relay.n_circuits if part.relay is not None else None,
        )

    async def wait_reserved(self, timeout_s: float) -> None:
        """See `Network.wait_reserved`."""
        if self._relay_part is not None and self._relay_part.keeper.wanted.value:
            with trio.move_on_after(timeout_s):
                await self._relay_part.keeper.settled.wait()

    def _circuits(self) -> list[Multiaddr]:
        return self._relay_part.keeper.circuits if self._relay_part is not None else []

    def _addresses_changed(self) -> None:
        """We are reached through other relays than before: tell the network, in which our records name them."""
        if self._host is None:
            return
        self.addresses = tuple(map(str, self._host.get_addrs()))
        self._advertise_anew()

    def _advertise_anew(self) -> None:
        for part in self.parts:
            part.advertise_anew()

    def _standing_keys(self) -> tuple[str, ...]:
        """What is advertised in every network, beside what the user sells."""
        return (RELAY,) if self._config.relaying is not None and self._reachable is not False else ()

    async def withdraw(self, record: bytes | None) -> int:
        """See `Network.withdraw`."""
        holders = {holder.peer_id: holder for part in self.parts for holder in part.withdraw()}
        if record is None:
            return 0
        return await withdraw_exchange.tell_withdrawal(
            self._running_host(), list(holders.values()), record, WITHDRAW_TIMEOUT_S
        )

    def _forget_records_of(self, peer_id: str) -> None:
        for part in self.parts:
            part.dht.forget_records_of(peer_id)

    async def find_providers(
        self, key: str, limit: int, timeout_s: float, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        """See `Network.find_providers`. `on_found` is called in this thread."""
        found: dict[str, Sequence[PeerAddress]] = {}
        failures: list[Unreachable] = []

        def merged() -> list[PeerAddress]:
            peers = merge_found([(part.name, found.get(part.name, ())) for part in self.parts])[:limit]
            for peer in peers:
                self._config.networks.note_found(peer.peer_id, peer.networks)
            return peers

        def hand_on(part: OneNetwork, peers: Sequence[PeerAddress]) -> None:
            if on_found is not None:
                found[part.name] = peers
                on_found(merged())

        async def one(part: OneNetwork) -> None:
            try:
                found[part.name] = await part.find_providers(
                    key, limit, timeout_s, partial(hand_on, part) if on_found is not None else None
                )
            except Unreachable as failure:
                failures.append(failure)

        async with trio.open_nursery() as nursery:
            for part in self.parts:
                nursery.start_soon(one, part)
        if not found:
            raise failures[0]
        return merged()

    async def fetch(self, document: offer_exchange.Document, peer: PeerAddress, timeout_s: float) -> bytes:
        """See `Network.fetch_offer` and `Network.fetch_cards`."""
        return await offer_exchange.fetch_document(self._running_host(), document, _contact(peer), timeout_s)

    async def ask_log(self, peer: PeerAddress, request: bytes, timeout_s: float) -> bytes:
        """See `Network.ask_log`."""
        return await log_exchange.ask_log(self._running_host(), _contact(peer), request, timeout_s)

    async def reachability(self, announced: Sequence[str], timeout_s: float) -> Reachability:
        """See `Network.reachability`."""
        deadline = trio.current_time() + timeout_s
        with trio.move_on_after(timeout_s / 2):
            async with trio.open_nursery() as nursery:
                for part in self.parts:
                    nursery.start_soon(part.wait_joined)
        host = self._running_host()
        servers = {server.peer_id: server for part in self.parts for server in part.dht.servers()}
        left_s = deadline - trio.current_time()
        return await reach_asking.reachability(
            host, list(servers.values()), announced, timeout_s=left_s, now_ms=self._config.now_ms
        )

    async def check_bootstrap(self, timeout_s: float) -> list[BootstrapState]:
        """See `Network.check_bootstrap`."""
        found: dict[str, list[BootstrapState]] = {}

        async def one(part: OneNetwork) -> None:
            found[part.name] = await part.check_bootstrap(timeout_s)

        async with trio.open_nursery() as nursery:
            for part in self.parts:
                nursery.start_soon(one, part)
        return [state for part in self.parts for state in found[part.name]]

    async def dial_back(self, peer: PublicKey, host: str, port: int, road: RoadName, timeout_s: float) -> Outcome:
        """See `Network.dial_back`."""
        return await dial_back(self._running_host().get_network(), peer, host, port, road, timeout_s=timeout_s)

    async def open_session(
        self,
        peer: PeerAddress,
        road: StreamRoad,
        timeout_s: float,
        direct_only: bool = False,
        protocol: str = SESSION,
    ) -> None:
        """Have `road` run to `peer`. See `Network.dial_link`, `Network.dial_http`."""
        host = self._running_host()
        if self._roads is None:
            raise LocalError("the network is down.", hint="It restarts by itself; try again.")
        await open_session(
            host, _contact(peer), road, self._roads, timeout_s, direct_only=direct_only, protocol=protocol
        )

    async def agree_on_hole(self, peer: str) -> PunchPlan:
        """See `Network.agree_on_hole`."""
        return await agree(self._running_host(), ID.from_base58(peer))

    async def _watch_addresses(self) -> None:
        """This machine may be given other addresses at any time: the network is told at once."""
        while True:
            await trio.sleep(ADDRESS_INTERVAL_S)
            if tuple(map(str, self._running_host().get_addrs())) != self.addresses:
                self._addresses_changed()
                logger.info("others find this node at other addresses now: %s", ", ".join(self.addresses))

    def _running_host(self) -> BasicHost:
        if self._host is None:
            raise LocalError("the network is down.", hint="It restarts by itself; try again.")
        return self._host


def merge_found(found: Sequence[tuple[str, Sequence[PeerAddress]]]) -> list[PeerAddress]:
    """What look-ups in several networks led to, each peer once, in turn the most credible of each network."""
    merged: dict[str, PeerAddress] = {}
    for row in zip_longest(*(peers for _, peers in found)):
        for (name, _), peer in zip(found, row, strict=True):
            if peer is None:
                continue
            known = merged.get(peer.peer_id, PeerAddress(peer.peer_id, ()))
            addresses = tuple(dict.fromkeys((*known.addresses, *peer.addresses)))[:MAX_ADDRESSES_PER_PEER]
            merged[peer.peer_id] = PeerAddress(peer.peer_id, addresses, (*known.networks, name))
    return list(merged.values())


def _contact(peer: PeerAddress) -> Contact:
    return Contact(ID.from_base58(peer.peer_id), tuple(usable_addresses(peer.addresses, peer.peer_id, circuits=True)))
