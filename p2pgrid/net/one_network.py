"""One of the networks that a host is in: its DHT, the peers that introduce to it, what is advertised there.

All of it belongs to the trio thread, save what reads plain attributes. After a crash of the host it is begun anew with
the next: what is to be advertised is kept.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.errors import LocalError, Refused, Unreachable
from p2pgrid.net.addresses import full_multiaddr, parse_peer_multiaddr
from p2pgrid.net.dht import Dht
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.lookup_keys import scoped_key
from p2pgrid.net.members.gate import Gate
from p2pgrid.net.own_networks import OwnNetwork
from p2pgrid.net.peer_address import BootstrapState, OnFound, PeerAddress

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0
CHECK_INTERVAL_S: Final = 30.0
READVERTISE_INTERVAL_S: Final = 20 * 60.0
"""Three times within the hour for which a record is kept."""
RETRY_ADVERTISE_S: Final = 15.0
PARALLEL_ADVERTISEMENTS: Final = 4
NEWCOMER_SHOWS_S: Final = 5.0
"""How long a peer that connects may take to show that it is in a closed network, to be got to know there."""


class OneNetwork:
    """A host's part in one network."""

    def __init__(
        self,
        network: OwnNetwork,
        own_peer_id: str,
        *,
        serve: bool,
        standing_keys: Callable[[], tuple[str, ...]],
    ) -> None:
        """`standing_keys`: what is advertised beside what the user asked for. Raises UsageError for a bad multiaddr."""
        peers = map(parse_peer_multiaddr, network.bootstrap)
        self.network: Final = network
        self._bootstrap = tuple(peer for peer in peers if peer[0] != own_peer_id)
        self.seeds: Final = _by_peer(self._bootstrap)
        self._serve = serve
        self._standing_keys = standing_keys
        self._keys: tuple[str, ...] = ()
        self._announcement = trio.CancelScope()
        self._host: BasicHost | None = None
        self._gate: Gate | None = None
        self._dht: Dht | None = None
        self.bootstrap_reached: bool | None = None
        self._forget_run()

    def _forget_run(self) -> None:
        self._joined, self._keys_changed, self._announced = trio.Event(), trio.Event(), trio.Event()
        self._held: dict[str, int] = {}
        """How many servers hold our record of a key, as of the last announcement."""
        self.bootstrap_reached = False if self.seeds else None

    @property
    def name(self) -> str:
        """As the user calls it."""
        return self.network.name

    @property
    def routing_table_size(self) -> int:
        """Peers known to answer look-ups here."""
        return self._dht.size if self._dht is not None else 0

    @property
    def advertised_keys(self) -> int:
        """Of the user's."""
        return len(self._keys)

    def begin(self, host: BasicHost, gate: Gate | None) -> None:
        """Have a part in the network on this host; `run` next."""
        self._forget_run()
        self._host, self._gate = host, gate
        is_closed = gate is not None and self.network.closed is not None
        self._dht = Dht(
            host, self.network.scope, serve=self._serve, is_one_of_us=self._is_one_of_us if is_closed else None
        )
        if gate is not None:
            gate.belongs(self._dht.protocol, self.name)

    def decide(self, reachable: bool | None) -> None:
        """Whether strangers reach us, None where nobody knows: whom they do not serves no look-ups.

        A peer that begins with nobody does in any case: others begin with it.
        """
        if self._dht is not None and self.seeds:
            self._dht.decide(reachable)

    def end(self) -> None:
        """The host is gone."""
        self._host = self._gate = self._dht = None
        self.bootstrap_reached = False if self.seeds else None

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.dht.run)
            nursery.start_soon(self._stay_joined)
            nursery.start_soon(self._stay_advertised)

    @property
    def dht(self) -> Dht:
        """Raises LocalError while there is no host."""
        if self._dht is None:
            raise LocalError("the network is down.", hint="It restarts by itself; try again.")
        return self._dht

    # -- for users --------------------------------------------------------------------------------------------------

    async def advertise(self, keys: Sequence[str], timeout_s: float) -> int:
        """See `Network.advertise`."""
        self._keys = tuple(dict.fromkeys(keys))
        self._keys_changed.set()
        with trio.move_on_after(timeout_s):
            while any(key not in self._held for key in keys):
                await self._announced.wait()
        return min((self._held.get(key, 0) for key in keys), default=0)

    def advertise_anew(self) -> None:
        """What our records say has changed: tell the servers."""
        self._keys_changed.set()

    def withdraw(self) -> list[Contact]:
        """Advertise nothing any more. Returns the servers that hold our records."""
        self._keys, self._held = (), {}
        self._keys_changed.set()
        self._announcement.cancel()  # what it left after the withdrawal would stay for an hour
        self.dht.forget_own_records()
        holders, self.dht.holders = list(self.dht.holders.values()), {}
        return holders

    async def wait_joined(self) -> None:
        """Return once a bootstrap peer has answered, or at once if there is none."""
        await self._joined.wait()

    async def check_bootstrap(self, timeout_s: float) -> list[BootstrapState]:
        """See `Network.check_bootstrap`."""
        network, dht, faults = self._running_host().get_network(), self.dht, dict[ID, str]()

        async def check(seed: Contact) -> None:
            faults[seed.peer_id] = f"no answer in {timeout_s:g} s"
            with trio.move_on_after(timeout_s):
                try:
                    await network.connect_to(seed.peer_id, seed.addresses)
                except SwarmException as error:
                    faults[seed.peer_id] = str(error)
                else:
                    is_server = await dht.is_server(seed)
                    faults[seed.peer_id] = (
                        "" if is_server else f"it is up, and does not serve the network {self.name!r}"
                    )

        async with trio.open_nursery() as nursery:
            for seed in self.seeds:
                nursery.start_soon(check, seed)
        return [
            BootstrapState(self.name, str(seed.peer_id), tuple(map(str, seed.addresses)), faults[seed.peer_id])
            for seed in self.seeds
        ]

    async def find_providers(
        self, key: str, limit: int, timeout_s: float, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        """See `Network.find_providers`."""
        raw_key = scoped_key(self.network.scope, key)
        deadline = trio.current_time() + timeout_s
        with trio.move_on_at(deadline):
            await self._joined.wait()
        if not self._joined.is_set():
            raise Unreachable(
                f"no bootstrap peer of the network {self.name!r} answered in {timeout_s:.3g} s: tried {self._tried()}.",
                hint=self._advice(),
            )
        return await self.dht.find_providers(raw_key, limit, deadline - trio.current_time(), on_found)

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _stay_joined(self) -> None:
        """Reach a bootstrap peer, and again whenever we have lost everybody."""
        if not self.seeds:
            self._joined.set()
            return
        retry_s, said = FIRST_RETRY_S, False
        while True:
            if await self._join():
                if said:
                    logger.info("a bootstrap peer of the network %s answers again", self.name)
                retry_s, said, self.bootstrap_reached = FIRST_RETRY_S, False, True
                self._joined.set()
                while self._running_host().get_network().connections and self.routing_table_size:  # noqa: ASYNC110 (no such event)
                    await trio.sleep(CHECK_INTERVAL_S)
            self.bootstrap_reached = False
            if not said:
                said = True
                logger.warning(
                    "no bootstrap peer of the network %s answers; tried %s. Trying on in the background",
                    self.name,
                    self._tried(),
                )
            await trio.sleep(spread(retry_s))
            retry_s = min(retry_s * 2, LONGEST_RETRY_S)

    async def _join(self) -> bool:
        """True if a bootstrap peer answered, as a server of this network's DHT. One that is silent holds up nobody."""
        return await self.dht.join(self.seeds) > 0

    async def _stay_advertised(self) -> None:
        """Advertise all keys once joined, then three times an hour, and at once where they change."""
        await self._joined.wait()
        while True:
            self._keys_changed = trio.Event()  # before the keys are read: a change from here on is not missed
            with trio.CancelScope() as self._announcement:
                self._held = await self._announce((*self._keys, *self._standing_keys()))
            self._announced.set()
            self._announced = trio.Event()
            interval_s = READVERTISE_INTERVAL_S if all(self._held.values()) else RETRY_ADVERTISE_S
            with trio.move_on_after(spread(interval_s)):
                await self._keys_changed.wait()

    async def _announce(self, keys: Sequence[str]) -> dict[str, int]:
        dht, held, limiter = self.dht, dict.fromkeys(keys, 0), trio.CapacityLimiter(PARALLEL_ADVERTISEMENTS)

        async def one(key: str) -> None:
            async with limiter:
                held[key] = await dht.announce(scoped_key(self.network.scope, key))

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(one, key)
        return held

    async def _is_one_of_us(self, peer_id: ID) -> bool:
        """True if a peer that has connected shows itself a member in time."""
        assert self._gate is not None
        for connection in self._running_host().get_network().get_connections(peer_id):
            if await self._gate.wait_member(connection.muxed_conn, self.name, NEWCOMER_SHOWS_S):
                return True
        return False

    def _running_host(self) -> BasicHost:
        if self._host is None:
            raise LocalError("the network is down.", hint="It restarts by itself; try again.")
        return self._host

    def _tried(self) -> str:
        """The bootstrap peers, and why one that is there did not let us in."""
        tried = ", ".join(full_multiaddr(address, peer_id) for peer_id, address in self._bootstrap)
        fault = self._fault()
        return f"{tried}: {fault.message.rstrip('.')}" if fault is not None else tried

    def _advice(self) -> str:
        fault = self._fault()
        if fault is not None and fault.hint:
            return fault.hint
        if self._host is not None and any(self._host.get_network().get_connections(one.peer_id) for one in self.seeds):
            return "A peer is there, but not of this network: it may be closed (p2pgrid network join), or another one."
        return "Check that this machine is online, or give another bootstrap peer."

    def _fault(self) -> Refused | None:
        if self._gate is None or self.network.closed is None:
            return None
        faults = (self._gate.fault_of(seed.peer_id) for seed in self.seeds)
        return next((fault for fault in faults if fault is not None), None)


def _by_peer(bootstrap: Sequence[tuple[str, Multiaddr]]) -> tuple[Contact, ...]:
    addresses: dict[str, list[Multiaddr]] = {}
    for peer_id, address in bootstrap:
        addresses.setdefault(peer_id, []).append(address)
    return tuple(Contact(ID.from_base58(peer_id), tuple(found)) for peer_id, found in addresses.items())


def spread(pause_s: float) -> float:
    """A little more or less, so that peers that began together do not go on together."""
    return pause_s * random.uniform(0.85, 1.15)  # noqa: S311 (no secret)
