"""Whether strangers reach the node: what is asked about, and how /health shows the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2pgrid.net.network import Network
from p2pgrid.net.reach_text import listens_at, verdict_text
from p2pgrid.net.reach_watch import ReachWatch

if TYPE_CHECKING:
    from p2pgrid.provider.node import Provider


def watch_of(node: Provider, network: Network) -> ReachWatch:
    """A watch over both roads of a node that has joined the network."""
    return ReachWatch(
        lambda: network.reachability(node.addresses),
        addresses=lambda: node.offered_addresses,
        listening=lambda: listens_at(node.listening),
    )


def shown(watch: ReachWatch | None) -> dict[str, Any] | None:
    """For programs; None where the network was not joined, or nothing is known yet."""
    if watch is None or (current := watch.current) is None:
        return None
    return {
        "reach": current.reach.value,
        "text": verdict_text(current),
        "roads": current.roads(),
        "addresses": [
            {
                "address": one.address,
                "road": one.road.value,
                "reach": one.reach.value,
                "announced": one.is_announced,
                "outcomes": one.outcomes,
                "disputed": one.is_disputed,
            }
            for one in current.addresses
        ],
        "seen": list(current.seen),
        "clock_ms": current.clock_ms,
        "newer": list(current.newer),
        "peers_asked": current.asked,
        "peers_silent": current.silent,
        "peers_answered": current.answered,
        "peers_outside": current.answered_outside,
        "checked_ms": current.checked_ms,
        "advice": watch.advice,
    }
