"""How a node is: what /health shows, and what the node's owner is told on the command socket."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from p2pgrid.desk.asks import Condition, Examine
from p2pgrid.errors import LocalError, P2pgridError
from p2pgrid.net.reach_watch import shown

if TYPE_CHECKING:
    from p2pgrid.provider.node import Provider


def health_of(node: Provider) -> dict[str, Any]:
    """What `/health` shows. `status` is `ok`, `degraded` (something is down) or `draining`."""
    models = {
        name: {
            "is_up": model.is_up,
            "running": model.running_in_all,
            "concurrency": model.concurrency,
            "detail": node.engines.health[name].detail if name in node.engines.health else "",
        }
        for name, model in node.engines.models.items()
    }
    network = node.network_health
    well = (
        all(model.is_up for model in node.engines.models.values())
        and not node.is_broken
        and node.offer is not None
        and not node.log.log.frozen
        and (network is None or (network.running and not network.stalled_s))
    )
    offer = node.offer
    return {
        "status": "draining" if node.is_draining else "ok" if well else "degraded",
        "peer_id": node.peer_id,
        "models": models,
        "ledger_writable": not node.is_broken,
        "offer_sequence": offer.message.sequence if offer else None,
        "offer_valid_until_ms": offer.message.valid_until_ms if offer else None,
        "channels": len(node.channels),
        "open_orders": node.open_orders,
        "links": node.links_by_road,
        "workers": {"running": len(node.worker_pids), "restarts": node.worker_restarts},
        "log": log_health(node),
        "network": None
        if network is None
        else {
            "running": network.running,
            "connected_peers": network.connected_peers,
            "routing_table_size": network.routing_table_size,
            "advertised_keys": network.advertised_keys,
            "restarts": network.restarts,
            "stalled_s": network.stalled_s,
            "networks": [asdict(one) for one in network.networks],
            "relay": {
                "wanted": network.relay.wanted,
                "reached_through": list(network.relay.relays),
                "reservations_given": network.relay.reservations,
                "circuits_carried": network.relay.circuits,
            },
        },
        "reachability": shown(node.reach),
    }


def log_health(node: Provider) -> dict[str, Any]:
    """What is said of the node's log."""
    own = node.log.log
    checkpoint = own.checkpoint
    return {
        "entries": checkpoint.size if checkpoint is not None else 0,
        "root": checkpoint.root.hex() if checkpoint is not None else None,
        "cosignatures": len(checkpoint.note.signatures) - 1 if checkpoint is not None else 0,
        "waiting": own.waiting,
        "frozen": own.frozen,
    }


async def condition_of(node: Provider, ask: Examine) -> Condition:
    """What the node's owner is told, after other peers were asked once more, if that is wished.

    Raises LocalError while the node starts.
    """
    if not node.is_serving:
        raise LocalError("the node is still starting.", hint="Its log says at what it is; an engine may take minutes.")
    if ask.ask_peers and node.reach is not None:
        try:
            await node.reach.ask_now()
        except P2pgridError:
            pass  # the network is down just now: the rest says so
    return Condition(
        health=health_of(node),
        addresses=node.offered_addresses,
        listening=node.listening,
        networks=node.entries,
    )
