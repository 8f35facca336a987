"""Relays, reserved peers and callers on loopback."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.net.addresses import Circuit
from p2pgrid.net.host import HostLimits
from p2pgrid.net.relay.dialler import CircuitDialler
from p2pgrid.net.relay.hop import Relay
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.reserving import Reservation, reserve
from p2pgrid.net.relay.stop import CircuitListener
from tests.net.trio_hosts import connect, contact, dialling_host, listening_host


@asynccontextmanager
async def relay_host(
    limits: RelayLimits | None = None, *, allow: Callable[[ID], bool] = lambda _: True, host: HostLimits | None = None
) -> AsyncIterator[tuple[BasicHost, Relay]]:
    """A host that relays."""
    async with listening_host(host) as relaying:
        yield relaying, Relay(relaying, limits or RelayLimits(), allow)


class Reserved:
    """A peer that is reached through relays: it echoes, and takes circuits from where it reserved."""

    def __init__(self, host: BasicHost) -> None:
        self.host = host
        self.reservations: dict[ID, Reservation] = {}
        CircuitListener(host, self._circuit_of)

    def _circuit_of(self, relay: ID) -> Circuit | None:
        found = self.reservations.get(relay)
        return found.circuits[0] if found is not None else None

    async def reserve(self, relay: BasicHost) -> Reservation:
        connection = await connect(self.host, relay)
        reservation = await reserve(self.host, connection, time.time())
        self.reservations[relay.get_id()] = reservation
        return reservation


@asynccontextmanager
async def reserved_host(relay: BasicHost | None = None) -> AsyncIterator[Reserved]:
    """A peer with a reservation at `relay`, if one is given."""
    async with listening_host() as host:
        reserved = Reserved(host)
        if relay is not None:
            await reserved.reserve(relay)
        yield reserved


@asynccontextmanager
async def caller_host() -> AsyncIterator[BasicHost]:
    """A client that dials circuits."""
    async with dialling_host() as host:
        host.get_network().circuits = CircuitDialler(host)
        yield host


def circuit_through(relay: BasicHost) -> Multiaddr:
    """The first part of the circuit address of whoever has a reservation there."""
    return Circuit(str(relay.get_id()), contact(relay).addresses[0]).address


async def call(caller: BasicHost, relay: BasicHost, to: BasicHost) -> Any:
    """A connection through the relay."""
    return await caller.get_network().connect_to(to.get_id(), [circuit_through(relay)])
