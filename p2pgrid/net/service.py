"""The trio side of the network: one libp2p host, its DHT, its offer, its bootstrap. `network.py` is its asyncio face.

After a crash `run` is simply run again: what the user asked for (the keys to advertise, the port bound) is kept here
and done again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.errors import LocalError, Unreachable
from p2pgrid.net import log_exchange, offer_exchange, reach_asking, withdraw_exchange
from p2pgrid.net.addresses import full_multiaddr, usable_addresses, without_peer_id
from p2pgrid.net.dht import Dht
from p2pgrid.net.host import HostLimits, open_host
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.libp2p_road import SessionListener, open_session, serve_sessions
from p2pgrid.net.lookup_keys import RELAY, record_key
from p2pgrid.net.peer_address import BootstrapState, PeerAddress, RelayHealth
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.net.reach_dial import dial_back
from p2pgrid.net.reach_exchange import ReachServer, unix_ms
from p2pgrid.net.reach_wire import Outcome, RoadName
from p2pgrid.net.reachability import Reachability
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.part import RelayPart
from p2pgrid.net.relay.punch import Begin, agree
from p2pgrid.net.relay.use import NO_RELAY, RelayUse
from p2pgrid.net.stream_road import StreamRoad
from p2pgrid.proto.keys import PublicKey, SecretKey

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0
CHECK_INTERVAL_S: Final = 30.0
READVERTISE_INTERVAL_S: Final = 20 * 60.0
"""Three times within the hour for which a record is kept."""
RETRY_ADVERTISE_S: Final = 15.0
PARALLEL_ADVERTISEMENTS: Final = 4
WITHDRAW_TIMEOUT_S: Final = 4.0
"""How long the peers that hold our records may take to hear that we are gone. A node that stops waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """What a user of the network decides."""

    secret_key: SecretKey
    network_name: str
    listen: tuple[Multiaddr, ...]
    bootstrap: tuple[tuple[str, Multiaddr], ...]
    """(peer id, address without it)"""
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
    ) -> None:
        self._config = config
        self._current_capacity = current_capacity
        self._punch = punch
        self._reachable: bool | None = None
        self._relay_part: RelayPart | None = None
        self._sessions = sessions
        self._roads: trio.Nursery | None = None
        """Where the roads run that were dialled from here."""
        self._current_offer = current_offer
        self._current_cards = current_cards
        self._answer_log = answer_log
        self._listen = config.listen
        self._reach_server = ReachServer(now_ms=config.now_ms)
        self._keys: tuple[str, ...] = ()
        self._held: dict[str, int] = {}
        """How many servers hold our record of a key, as of the last announcement."""
        self._announcement = trio.CancelScope()
        self._forget_run()
        self._host: BasicHost | None = None
        self._dht: Dht | None = None
        self._seeds = _by_peer(config.bootstrap)
        self.addresses: tuple[str, ...] = ()
        self.bootstrap_reached: bool | None = False if self._seeds else None

    def _forget_run(self) -> None:
        self._joined, self._keys_changed, self._announced = trio.Event(), trio.Event(), trio.Event()
        self._held = {}

    @property
    def connected_peers(self) -> int:
        return len(self._host.get_network().connections) if self._host is not None else 0

    @property
    def routing_table_size(self) -> int:
        return self._dht.size if self._dht is not None else 0

    @property
    def listening(self) -> tuple[str, ...]:
        return tuple(map(str, self._listen))

    @property
    def advertised_keys(self) -> int:
        return len(self._keys)

    async def run(self, ready: Callable[[], None]) -> None:
        """Run the host until cancelled; `ready` is called when it listens. Raises LocalError where it cannot."""
        config = self._config
        self._forget_run()
        async with open_host(
            config.secret_key,
            self._listen,
            announce=config.announce or None,
            limits=config.limits,
            circuits=self._circuits,
        ) as host:
            # A port that was free at first is kept over a restart: others know it by now.
            self._listen = tuple(without_peer_id(address) for address in host.get_transport_addrs())
            self._host, self._dht = host, Dht(host, config.network_name, serve=config.serve_dht)
            self._relay_part = RelayPart(
                host,
                config.relay,
                config.relaying,
                seeds=self._seeds,
                look_up=lambda timeout_s: self.find_providers(RELAY, 20, timeout_s),
                on_change=self._addresses_changed,
                punch=self._punch,
            )
            self._relay_part.decide(self._reachable)
            self.addresses = tuple(map(str, host.get_addrs()))
            if config.serve_dht:
                self._reach_server.serve(host)
            if self._current_offer is not None:
                offer_exchange.serve_offers(host, self._current_offer)
            if self._answer_log is not None:
                log_exchange.serve_log(host, self._answer_log)
            if self._sessions is not None:
                serve_sessions(host, self._sessions)
            if self._current_cards is not None:
                offer_exchange.serve_document(host, offer_exchange.CARDS, self._current_cards)
            if self._current_capacity is not None:
                offer_exchange.serve_document(host, offer_exchange.CAPACITY, self._current_capacity)
            if config.serve_dht:
                withdraw_exchange.serve_withdrawals(host, self._dht.forget_records_of)
            try:
                async with trio.open_nursery() as nursery:
                    self._roads = nursery
                    nursery.start_soon(self._dht.run)
                    nursery.start_soon(self._stay_joined)
                    nursery.start_soon(self._stay_advertised)
                    nursery.start_soon(self._relay_part.run)
                    ready()
            finally:
                self._host = self._dht = self._roads = self._relay_part = None
                self.bootstrap_reached = False if self._seeds else None

    async def advertise(self, keys: Sequence[str], timeout_s: float) -> int:
        """See `Network.advertise`."""
        self._keys = tuple(dict.fromkeys(keys))
        self._keys_changed.set()
        with trio.move_on_after(timeout_s):
            while any(key not in self._held for key in keys):
                await self._announced.wait()
        return min((self._held.get(key, 0) for key in keys), default=0)

    async def set_reachable(self, reachable: bool | None) -> None:
        """See `Network.set_reachable`."""
        if reachable is not self._reachable:
            self._keys_changed.set()  # a relay that nobody can dial is advertised no more
        self._reachable = reachable
        if self._relay_part is not None:
            self._relay_part.decide(reachable)

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
        self._keys_changed.set()

    async def withdraw(self, record: bytes | None) -> int:
        """See `Network.withdraw`."""
        self._keys, self._held = (), {}
        self._keys_changed.set()
        self._announcement.cancel()  # what it left after the withdrawal would stay for an hour
        dht = self._running_dht()
        dht.forget_own_records()
        holders, dht.holders = list(dht.holders.values()), {}
        if record is None:
            return 0
        return await withdraw_exchange.tell_withdrawal(self._running_host(), holders, record, WITHDRAW_TIMEOUT_S)

    async def find_providers(self, key: str, limit: int, timeout_s: float) -> list[PeerAddress]:
        """See `Network.find_providers`."""
        raw_key = record_key(self._config.network_name, key)
        deadline = trio.current_time() + timeout_s
        with trio.move_on_at(deadline):
            await self._joined.wait()
        if not self._joined.is_set():
            raise Unreachable(
                f"no bootstrap peer answered in {timeout_s:g} s: tried {self._seed_addresses()}.",
                hint="Check that this machine is online, or give another bootstrap peer.",
            )
        return await self._running_dht().find_providers(raw_key, limit, deadline - trio.current_time())

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
            await self._joined.wait()
        host, dht = self._running_host(), self._running_dht()
        left_s = deadline - trio.current_time()
        return await reach_asking.reachability(
            host, dht.servers(), announced, timeout_s=left_s, now_ms=self._config.now_ms
        )

    async def check_bootstrap(self, timeout_s: float) -> list[BootstrapState]:
        """See `Network.check_bootstrap`."""
        network, dht, faults = self._running_host().get_network(), self._running_dht(), dict[ID, str]()

        async def check(seed: Contact) -> None:
            faults[seed.peer_id] = f"no answer in {timeout_s:g} s"
            with trio.move_on_after(timeout_s):
                try:
                    await network.connect_to(seed.peer_id, seed.addresses)
                except SwarmException as error:
                    faults[seed.peer_id] = str(error)
                else:
                    name = self._config.network_name
                    is_server = await dht.is_server(seed)
                    faults[seed.peer_id] = "" if is_server else f"it is up, and does not serve the network {name!r}"

        async with trio.open_nursery() as nursery:
            for seed in self._seeds:
                nursery.start_soon(check, seed)
        return [BootstrapState(str(s.peer_id), tuple(map(str, s.addresses)), faults[s.peer_id]) for s in self._seeds]

    async def dial_back(self, peer: PublicKey, host: str, port: int, road: RoadName, timeout_s: float) -> Outcome:
        """See `Network.dial_back`."""
        return await dial_back(self._running_host().get_network(), peer, host, port, road, timeout_s=timeout_s)

    async def open_session(
        self, peer: PeerAddress, road: StreamRoad, timeout_s: float, direct_only: bool = False
    ) -> None:
        """Have `road` run to `peer`. See `Network.dial_link`."""
        host = self._running_host()
        if self._roads is None:
            raise LocalError("the network is down.", hint="It restarts by itself; try again.")
        await open_session(host, _contact(peer), road, self._roads, timeout_s, direct_only=direct_only)

    async def agree_on_hole(self, peer: str) -> PunchPlan:
        """See `Network.agree_on_hole`."""
        return await agree(self._running_host(), ID.from_base58(peer))

    async def _stay_joined(self) -> None:
        """Reach a bootstrap peer, and again whenever we have lost everybody."""
        if not self._seeds:
            self._joined.set()
            return
        retry_s, said = FIRST_RETRY_S, False
        while True:
            if await self._join():
                if said:
                    logger.info("a bootstrap peer of the network %s answers again", self._config.network_name)
                retry_s, said, self.bootstrap_reached = FIRST_RETRY_S, False, True
                self._joined.set()
                while self.connected_peers and self.routing_table_size:  # noqa: ASYNC110 (libp2p tells of no such event)
                    await trio.sleep(CHECK_INTERVAL_S)
            self.bootstrap_reached = False
            if not said:
                said = True
                logger.warning(
                    "no bootstrap peer of the network %s answers; tried %s. Trying on in the background",
                    self._config.network_name,
                    self._seed_addresses(),
                )
            await trio.sleep(_spread(retry_s))
            retry_s = min(retry_s * 2, LONGEST_RETRY_S)

    async def _join(self) -> bool:
        """True if a bootstrap peer answered, as a server of this network's DHT."""
        network = self._running_host().get_network()

        async def reach(seed: Contact) -> None:
            try:
                await network.connect_to(seed.peer_id, seed.addresses)
            except SwarmException as error:
                logger.debug("bootstrap peer: %s", error)

        async with trio.open_nursery() as nursery:
            for seed in self._seeds:
                nursery.start_soon(reach, seed)
        return await self._running_dht().join(self._seeds) > 0

    async def _stay_advertised(self) -> None:
        """Advertise all keys once joined, then three times an hour, and at once where they change."""
        await self._joined.wait()
        while True:
            self._keys_changed = trio.Event()  # before the keys are read: a change from here on is not missed
            own = (RELAY,) if self._config.relaying is not None and self._reachable is not False else ()
            with trio.CancelScope() as self._announcement:
                self._held = await self._announce((*self._keys, *own))
            self._announced.set()
            self._announced = trio.Event()
            interval_s = READVERTISE_INTERVAL_S if all(self._held.values()) else RETRY_ADVERTISE_S
            with trio.move_on_after(_spread(interval_s)):
                await self._keys_changed.wait()

    async def _announce(self, keys: Sequence[str]) -> dict[str, int]:
        dht, held, limiter = self._running_dht(), dict.fromkeys(keys, 0), trio.CapacityLimiter(PARALLEL_ADVERTISEMENTS)

        async def one(key: str) -> None:
            async with limiter:
                held[key] = await dht.announce(record_key(self._config.network_name, key))

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(one, key)
        return held

    def _running_host(self) -> BasicHost:
        if self._host is None:
            raise LocalError("the network is down.", hint="It restarts by itself; try again.")
        return self._host

    def _running_dht(self) -> Dht:
        if self._dht is None:
            raise LocalError("the network is down.", hint="It restarts by itself; try again.")
        return self._dht

    def _seed_addresses(self) -> str:
        return ", ".join(full_multiaddr(address, peer_id) for peer_id, address in self._config.bootstrap)


def _by_peer(bootstrap: Sequence[tuple[str, Multiaddr]]) -> tuple[Contact, ...]:
    addresses: dict[str, list[Multiaddr]] = {}
    for peer_id, address in bootstrap:
        addresses.setdefault(peer_id, []).append(address)
    return tuple(Contact(ID.from_base58(peer_id), tuple(found)) for peer_id, found in addresses.items())


def _contact(peer: PeerAddress) -> Contact:
    return Contact(ID.from_base58(peer.peer_id), tuple(usable_addresses(peer.addresses, peer.peer_id, circuits=True)))


def _spread(pause_s: float) -> float:
    """A little more or less, so that peers that began together do not go on together."""
    return pause_s * random.uniform(0.85, 1.15)  # noqa: S311 (no secret)
