"""What the network tells its users: where a peer may be reached, and how the network itself fares. No libp2p here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer says it listens. A claim: only a handshake with the peer proves it."""

    peer_id: str
    """base58 (`12D3KooW...`)."""
    addresses: tuple[str, ...]
    """Full multiaddrs, `/ip4/.../tcp/.../p2p/12D3KooW...`, the most credible first."""


@dataclass(frozen=True, slots=True)
class Health:
    """A snapshot of one's own place in the network."""

    running: bool
    """False while the libp2p host is down between a crash and its restart."""
    connected_peers: int
    routing_table_size: int
    """Peers known to answer look-ups."""
    bootstrap_reached: bool | None
    """None where there is no bootstrap peer to reach."""
    advertised_keys: int
    restarts: int
    """How often the libp2p host crashed and was started anew."""
    stalled_s: float = 0.0
    """For how long the host has taken no turn, so that nobody gets an answer; 0 while it takes them."""
