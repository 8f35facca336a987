"""Whether a connection leads through a relay, and through which."""

from __future__ import annotations

from typing import Any

from libp2p.abc import ConnectionType

from p2pgrid.net.addresses import Circuit, split_circuit


def is_relayed(connection: Any) -> bool:
    """True for a connection of the swarm, or the muxed one within it, that runs over a circuit."""
    kind: ConnectionType = connection.get_connection_type()
    return kind is ConnectionType.RELAYED


def circuit_of(connection: Any) -> Circuit | None:
    """The circuit that the connection runs over; None for one that runs over none."""
    if not is_relayed(connection):
        return None
    addresses = connection.get_transport_addresses()
    return split_circuit(addresses[0]) if addresses else None
