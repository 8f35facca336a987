"""Keeps a node reachable through relays: finds them, reserves, renews in time, and replaces one that is lost."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.errors import RemoteError
from p2pgrid.net.addresses import Circuit
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.relay.flag import Flag
from p2pgrid.net.relay.reserving import Reservation, reserve

logger = logging.getLogger(__name__)

RELAYS: Final = 2
"""Reserved at, at once: one may die."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 120.0
DIAL_S: Final = 10.0
LONGEST_RENEWAL_S: Final = 1800.0
_TAG: Final = "our relay"

FindRelays = Callable[[], Awaitable[Sequence[Contact]]]
"""Peers that may relay, the most promising first."""


class ReservationKeeper:
    """The reservations of one host. `run` keeps them while `wanted` is set."""

    def __init__(
        self,
        host: BasicHost,
        find: FindRelays,
        on_change: Callable[[], None],
        *,
        relays: int = RELAYS,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """`on_change` is called in the trio thread whenever `circuits` has changed."""
        self.wanted: Final = Flag()
        self.settled: Final = trio.Event()
        """Set once every reservation that we want is held, or no relay was found for it."""
        self._host = host
        self._find = find
        self._on_change = on_change
        self._n_relays = relays
        self._first_pause_s = first_pause_s
        self._held: dict[ID, Reservation] = {}
        self._in_force: dict[ID, tuple[Circuit, float]] = {}
        """Also those that are kept no more: who learnt of them may still call."""
        self._tried: set[ID] = set()
        """Relays that a slot is busy with."""
        self._unsettled = set(range(relays))
        """Slots that have neither held a reservation nor found that there is none to be had."""
        self._failures: dict[ID, tuple[int, float]] = {}
        """How often a relay failed in a row, and until when it is left alone."""

    @property
    def circuits(self) -> list[Multiaddr]:
        """Where we are reached through relays now, those of each relay in turn."""
        rows = [[circuit.address for circuit in one.circuits] for one in self._held.values()]
        return [row[n] for n in range(max(map(len, rows), default=0)) for row in rows if n < len(row)]

    @property
    def relays(self) -> list[str]:
        """The peer ids of the relays that we hold reservations at."""
        return [str(relay) for relay in self._held]

    def circuit_of(self, relay: ID) -> Circuit | None:
        """The circuit by which the relay leads to us; None for one that owes us nothing."""
        circuit, until_s = self._in_force.get(relay, (None, 0.0))
        return circuit if until_s > trio.current_time() else None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.wanted.wait(True)
            async with trio.open_nursery() as nursery:
                for slot in range(self._n_relays):
                    nursery.start_soon(self._keep_one, slot)
                await self.wanted.wait(False)
                nursery.cancel_scope.cancel()

    async def _keep_one(self, slot: int) -> None:
        """One of the reservations, at whichever relay."""
        pause_s = self._first_pause_s
        while True:
            relay = await self._choose()
            if relay is None:
                self._settle(slot)
                await trio.sleep(_spread(pause_s))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            self._tried.add(relay.peer_id)
            try:
                if await self._hold(relay, slot):
                    pause_s = self._first_pause_s
            finally:
                self._tried.discard(relay.peer_id)

    def _settle(self, slot: int) -> None:
        self._unsettled.discard(slot)
        if not self._unsettled and not self.settled.is_set():
            self.settled.set()
            if not self._held:
                logger.warning("no relay takes us: who cannot dial us cannot reach us. Looking on in the background")

    async def _choose(self) -> Contact | None:
        """A relay that no slot is busy with and that has not just failed; None if there is none now."""
        now_s = trio.current_time()
        found = [
            contact
            for contact in await self._find()
            if contact.peer_id not in self._tried
            and contact.peer_id != self._host.get_id()
            and contact.addresses
            and self._failures.get(contact.peer_id, (0, 0.0))[1] <= now_s
        ]
        return found[0] if found else None

    async def _hold(self, relay: Contact, slot: int) -> bool:
        """Reserve there and renew until that fails or the connection ends. True if it was held at all."""
        is_held = False
        try:
            with trio.fail_after(DIAL_S):
                connection = await self._host.get_network().connect_to(relay.peer_id, relay.addresses, direct_only=True)
            while True:
                reservation = await reserve(self._host, connection, time.time())
                self._note(reservation)
                self._settle(slot)
                is_held = True
                self._failures.pop(relay.peer_id, None)
                if await self._is_lost(connection, min(reservation.lasts_s / 2, LONGEST_RENEWAL_S)):
                    logger.warning("the relay %s is lost; looking for another", relay.peer_id)
                    break
        except (SwarmException, RemoteError, trio.TooSlowError) as error:
            logger.info("no reservation at the relay %s: %s", relay.peer_id, error)
        finally:
            if self._held.pop(relay.peer_id, None) is not None:
                self._host.get_network().unprotect(relay.peer_id, _TAG)
                self._on_change()
        self._note_failure(relay.peer_id)
        return is_held

    async def _is_lost(self, connection: Any, within_s: float) -> bool:
        """True once the connection ends, False if it still lives after that time."""
        with trio.move_on_after(_spread(within_s)):
            await connection.muxed_conn.event_closed.wait()
            return True
        return False

    def _note(self, reservation: Reservation) -> None:
        relay = reservation.relay
        before = self._held.get(relay)
        self._held[relay] = reservation
        self._in_force = {
            name: (circuit, until_s)
            for name, (circuit, until_s) in self._in_force.items()
            if until_s > trio.current_time()
        }
        self._in_force[relay] = (reservation.circuits[0], trio.current_time() + reservation.lasts_s)
        if before is None:
            logger.info("reached through the relay %s", relay)
            self._host.get_network().protect(relay, _TAG)
        if before is None or before.circuits != reservation.circuits:
            self._on_change()

    def _note_failure(self, relay: ID) -> None:
        times, _ = self._failures.get(relay, (0, 0.0))
        pause_s = min(self._first_pause_s * 2.0 ** min(times, 10), LONGEST_PAUSE_S)
        self._failures[relay] = (times + 1, trio.current_time() + _spread(pause_s))
        while len(self._failures) > 256:
            del self._failures[next(iter(self._failures))]


def _spread(pause_s: float) -> float:
    """A little less, so that peers that began together do not go on together."""
    return pause_s * random.uniform(0.8, 1.0)  # noqa: S311 (no secret)
