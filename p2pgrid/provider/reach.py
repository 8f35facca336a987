"""Whether strangers reach the node: what is asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pgrid.net.network import Network
from p2pgrid.net.reach_text import listens_at
from p2pgrid.net.reach_watch import ReachWatch

if TYPE_CHECKING:
    from p2pgrid.provider.node import Provider


def watch_of(node: Provider, network: Network) -> ReachWatch:
    """A watch over both roads of a node that has joined the network."""
    return ReachWatch(
        lambda: network.reachability(node.addresses),
        # Relays that come and go are no change of the node's own ports.
        addresses=lambda: [address for address in node.offered_addresses if "/p2p-circuit/" not in address],
        listening=lambda: listens_at(node.listening),
        on_verdict=network.set_reachable,
    )
