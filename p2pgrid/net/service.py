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
from p2pgrid.net import log_exchange, offer_exchange
from p2pgrid.net.addresses import full_multiaddr, usable_addresses, without_peer_id
from p2pgrid.net.dht import Dht
from p2pgrid.net.host import HostLimits, open_host
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.libp2p_road import SessionListener, open_session, serve_sessions
from p2pgrid.net.lookup_keys import record_key
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.stream_road import StreamRoad
from p2pgrid.proto.keys import SecretKey

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0
CHECK_INTERVAL_S: Final = 30.0
READVERTISE_INTERVAL_S: Final = 20 * 60.0
"""Three times within the hour for which a record is kept."""
RETRY_ADVERTISE_S: Final = 15.0
PARALLEL_ADVERTISEMENTS: Final = 4
ADDRESS_INTERVAL_S: Final = 5.0
"""How often our own addresses are looked at."""


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


class NetworkService:
    """Everything here but the plain attributes belongs to the trio thread."""

    def __init__(
        self,
        config: NetworkConfig,
        current_offer: Callable[[], Awaitable[bytes | None]] | None,
        current_cards: Callable[[], Awaitable[bytes | None]] | None = None,
        answer_log: log_exchange.Answer | None = None,
        sessions: SessionListener | None = None,
    ) -> None:
        self._config = config
        self._sessions = sessions
        self._roads: trio.Nursery | None = None
        """Where the roads run that were dialled from here."""
        self._current_offer = current_offer
        self._current_cards = current_cards
        self._answer_log = answer_log
        self._listen = config.listen
        self._keys: tuple[str, ...] = ()
        self._held: dict[str, int] = {}
        """How many servers hold our record of a key, as of the last announcement."""
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
    def advertised_keys(self) -> int:
        return len(self._keys)

    async def run(self, ready: Callable[[], None]) -> None:
        """Run the host until cancelled; `ready` is called when it listens. Raises LocalError where it cannot."""
        config = self._config
        self._forget_run()
        async with open_host(
            config.secret_key, self._listen, announce=config.announce or None, limits=config.limits
        ) as host:
            # A port that was free at first is kept over a restart: others know it by now.
            self._listen = tuple(without_peer_id(address) for address in host.get_transport_addrs())
            self.addresses = tuple(full_multiaddr(a, str(host.get_id())) for a in host.get_addrs())
            self._host, self._dht = host, Dht(host, config.network_name, serve=config.serve_dht)
            if self._current_offer is not None:
                offer_exchange.serve_offers(host, self._current_offer)
            if self._answer_log is not None:
                log_exchange.serve_log(host, self._answer_log)
            if self._sessions is not None:
                serve_sessions(host, self._sessions)
            if self._current_cards is not None:
                offer_exchange.serve_document(host, offer_exchange.CARDS, self._current_cards)
            try:
                async with trio.open_nursery() as nursery:
                    self._roads = nursery
                    nursery.start_soon(self._dht.run)
                    nursery.start_soon(self._stay_joined)
                    nursery.start_soon(self._stay_advertised)
                    nursery.start_soon(self._watch_addresses)
                    ready()
            finally:
                self._host = self._dht = self._roads = None
                self.bootstrap_reached = False if self._seeds else None

    async def advertise(self, keys: Sequence[str], timeout_s: float) -> int:
        """See `Network.advertise`."""
        self._keys = tuple(dict.fromkeys(keys))
        self._keys_changed.set()
        with trio.move_on_after(timeout_s):
            while any(key not in self._held for key in keys):
                await self._announced.wait()
        return min((self._held.get(key, 0) for key in keys), default=0)

    async def withdraw(self) -> None:
        """See `Network.withdraw`."""
        self._keys = ()
        self._keys_changed.set()
        self._running_dht().forget_own_records()

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

    async def open_session(self, peer: PeerAddress, road: StreamRoad, timeout_s: float) -> None:
        """Have `road` run to `peer`. See `Network.dial_link`."""
        host = self._running_host()
        if self._roads is None:
            raise LocalError("the network is down.", hint="It restarts by itself; try again.")
        await open_session(host, _contact(peer), road, self._roads, timeout_s)

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
        """True if a bootstrap peer answered, as a server of this network's DHT. One that is silent holds up nobody."""
        network, reached = self._running_host().get_network(), trio.Event()

        async def reach(seed: Contact) -> None:
            try:
                await network.connect_to(seed.peer_id, seed.addresses)
            except SwarmException as error:
                logger.debug("bootstrap peer: %s", error)
            else:
                reached.set()

        async def reach_any() -> None:
            async with trio.open_nursery() as nursery:
                for seed in self._seeds:
                    nursery.start_soon(reach, seed)
            reached.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reach_any)
            await reached.wait()
            nursery.cancel_scope.cancel()
        return await self._running_dht().join(self._seeds) > 0

    async def _stay_advertised(self) -> None:
        """Advertise all keys once joined, then three times an hour, and at once where they change."""
        await self._joined.wait()
        while True:
            self._keys_changed = trio.Event()  # before the keys are read: a change from here on is not missed
            self._held = await self._announce(self._keys)
            self._announced.set()
            self._announced = trio.Event()
            interval_s = READVERTISE_INTERVAL_S if all(self._held.values()) else RETRY_ADVERTISE_S
            with trio.move_on_after(_spread(interval_s)):
                await self._keys_changed.wait()

    async def _watch_addresses(self) -> None:
        """This machine may be given other addresses at any time: the network is told at once."""
        while True:
            await trio.sleep(ADDRESS_INTERVAL_S)
            now = tuple(map(str, self._running_host().get_addrs()))
            if now != self.addresses:
                logger.info("others find this node at other addresses now: %s", ", ".join(now))
                self.addresses = now
                self._keys_changed.set()

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
    return Contact(ID.from_base58(peer.peer_id), tuple(usable_addresses(peer.addresses, peer.peer_id)))


def _spread(pause_s: float) -> float:
    """A little more or less, so that peers that began together do not go on together."""
    return pause_s * random.uniform(0.85, 1.15)  # noqa: S311 (no secret)
