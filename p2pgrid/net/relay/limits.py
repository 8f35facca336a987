"""What a relay gives away, at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """Sizes in bytes, times in seconds. An IPv6 caller counts by its /64."""

    reservations: int = 128
    """Peers that may be reached through this relay."""
    reservations_per_ip: int = 8
    reservation_s: int = 3600
    """How long a reservation lasts; its peer renews it before."""
    circuits: int = 256
    circuits_per_peer: int = 32
    """To one reserved peer."""
    circuits_per_ip: int = 32
    """From one caller's address, those that are still being made too."""
    circuit_s: int = 24 * 3600
    """How long one circuit may last; 0 for as long as it likes."""
    circuit_bytes_per_s: int = 2 * 1024 * 1024
    """Of one circuit, both directions together."""
    bytes_per_s: int = 16 * 1024 * 1024
    """Of all circuits together."""
    idle_s: float = 300.0
    idle_bytes: int = 2048
    """A circuit that carries fewer bytes than that in `idle_s` is cut: its ends' own heartbeats are about half."""
    window_bytes: int = 256 * 1024
    """What one end of a circuit may send ahead of what the other takes: the memory of one direction."""
    answer_s: float = 10.0
    """How long either end of a circuit to be may take to say what it has to."""
