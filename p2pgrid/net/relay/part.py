"""A host's part in relaying: what it does for others, and what others do for it. `net/service.py` runs it."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.errors import P2pgridError
from p2pgrid.net.addresses import is_circuit, is_loopback, is_public, usable_addresses
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.relay.dialler import CircuitDialler
from p2pgrid.net.relay.hop import Relay
from p2pgrid.net.relay.keeper import ReservationKeeper
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.punch import Begin, PunchListener
from p2pgrid.net.relay.stop import CircuitListener
from p2pgrid.net.relay.use import Mode, RelayUse

logger = logging.getLogger(__name__)

LOOK_UP_S: Final = 5.0

LookUp = Callable[[float], Awaitable[list[PeerAddress]]]
"""Peers that advertise that they relay, within so many seconds. Raises P2pgridError."""


class RelayPart:
    """Made anew with every run of the host; all of it belongs to the trio thread."""

    def __init__(
        self,
        host: BasicHost,
        use: RelayUse,
        limits: RelayLimits | None,
        *,
        seeds: Sequence[Contact],
        look_up: LookUp,
        on_change: Callable[[], None],
        punch: Begin | None = None,
    ) -> None:
        """`limits`: those of the relay on this host; None for none. `seeds`: the bootstrap peers, which may relay.

        `punch` is called when a peer wants a connection of its own to us; None: holes are not punched.
        """
        self._host = host
        self._use = use
        self._seeds = seeds
        self._look_up = look_up
        host.get_network().circuits = CircuitDialler(host)
        self.relay: Final = Relay(host, limits) if limits is not None else None
        self.keeper: Final = ReservationKeeper(host, self._candidates, on_change)
        self._listener = CircuitListener(host, self.keeper.circuit_of)
        self._punches = PunchListener(host, punch) if punch is not None else None

    async def run(self) -> None:
        """Hold reservations while they are wanted. Until cancelled."""
        await self.keeper.run()

    def decide(self, reachable: bool | None) -> None:
        """Hold reservations or not. `reachable`: whether strangers can dial us; None where nobody knows."""
        if self._use.mode is Mode.AUTO:
            self.keeper.wanted.set(not reachable if reachable is not None else self._looks_unreachable())
        else:
            self.keeper.wanted.set(self._use.mode is Mode.LISTED)

    def _looks_unreachable(self) -> bool:
        """By our own addresses: none is public, and we do not keep to this machine on purpose."""
        own = [address for address in self._host.get_addrs() if not is_circuit(address)]
        bound: list[Multiaddr] = list(self._host.get_transport_addrs())
        return bool(own) and not any(map(is_public, own)) and not all(map(is_loopback, bound))

    async def _candidates(self) -> Sequence[Contact]:
        """Those named, or bootstrap peers and who advertises it: at random, public ones first."""
        if self._use.mode is Mode.LISTED:
            return [Contact(ID.from_base58(peer_id), (at,)) for peer_id, at in self._use.relays]
        found = {seed.peer_id: seed for seed in self._seeds}
        try:
            advertised = await self._look_up(LOOK_UP_S)
        except P2pgridError as error:
            logger.debug("no relays could be looked up: %s", error)
            advertised = []
        for peer in advertised:
            peer_id = ID.from_base58(peer.peer_id)
            found.setdefault(peer_id, Contact(peer_id, tuple(usable_addresses(peer.addresses, peer.peer_id))))
        contacts = list(found.values())
        random.shuffle(contacts)
        return sorted(contacts, key=lambda contact: not any(map(is_public, contact.addresses)))
