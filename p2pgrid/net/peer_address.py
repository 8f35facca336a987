"""What the network tells its users: where a peer may be reached, and how the network itself fares. No libp2p here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer says it listens. A claim: only a handshake with the peer proves it."""

    peer_id: str
    """base58 (`12D3KooW...`)."""
    addresses: tuple[str, ...]
    """Full multiaddrs, `/ip4/.../tcp/.../p2p/12D3KooW...`, the most credible first."""
    networks: tuple[str, ...] = ()
    """Those of our networks in which a look-up led to it; none where no look-up did."""


OnFound = Callable[[Sequence[PeerAddress]], None]
"""Called during a look-up with all that was found so far, the most credible first."""


@dataclass(frozen=True, slots=True)
class RelayHealth:
    """What relays do for us, and what we relay for others."""

    wanted: bool
    """True while we are to be reached through relays."""
    relays: tuple[str, ...]
    """Peer ids of the relays through which we are reached."""
    reservations: int | None
    """Of others, here; None where this peer relays nothing."""
    circuits: int | None
    """Of others, through here; None where this peer relays nothing."""


@dataclass(frozen=True, slots=True)
class BootstrapState:
    """Whether a bootstrap peer introduces, just now."""

    network: str
    """The one to which it should introduce, as the user calls it."""
    peer_id: str
    addresses: tuple[str, ...]
    fault: str
    """Why it does not; empty if it does."""


@dataclass(frozen=True, slots=True)
class NetworkHealth:
    """How one of the networks that we are in fares."""

    name: str
    kind: str
    """`open`, or what closes it: `secret`, `members`, `group-key`."""
    bootstrap_reached: bool | None
    routing_table_size: int


@dataclass(frozen=True, slots=True)
class Health:
    """A snapshot of one's own place in the network."""

    running: bool
    """False while the libp2p host is down between a crash and its restart."""
    connected_peers: int
    routing_table_size: int
    """Peers known to answer look-ups."""
    bootstrap_reached: bool | None
    """None where there is no bootstrap peer to reach; of several networks, False if one has reached none."""
    advertised_keys: int
    relay: RelayHealth
    restarts: int
    """How often the libp2p host crashed and was started anew."""
    stalled_s: float = 0.0
    """For how long the host has taken no turn, so that nobody gets an answer; 0 while it takes them."""
    networks: tuple[NetworkHealth, ...] = ()
