"""How a node is: what /health shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        },
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
