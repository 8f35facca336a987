"""What a node relays for others, by its configuration. A bootstrap peer, which sells nothing, asks here too."""

from __future__ import annotations

from p2pgrid.config import RelayConfig
from p2pgrid.net.relay.limits import RelayLimits


def relay_limits_of(config: RelayConfig) -> RelayLimits:
    """`[relay]`, in the units of the relay."""
    return RelayLimits(
        reservations=config.reservations,
        reservations_per_ip=config.reservations_per_ip,
        reservation_s=config.reservation_minutes * 60,
        circuits=config.circuits,
        circuits_per_peer=config.circuits_per_peer,
        circuits_per_ip=config.circuits_per_ip,
        circuit_s=config.circuit_minutes * 60,
        circuit_bytes_per_s=config.circuit_kib_per_s * 1024,
        bytes_per_s=config.kib_per_s * 1024,
        idle_s=config.idle_s,
    )
