"""A network that knows its members by their keys: a node that runs is asked how it fares there."""

from __future__ import annotations

from typing import Any

from p2pgrid.doctor.check import Check, fault, ok, skipped


def judge_closed(name: str, shown: dict[str, Any] | None) -> Check:
    """`shown`: the network's row in the node's /health; None where the node says nothing of it."""
    check = f"network {name}"
    if shown is None:
        return skipped(check, "only members may look, and the node that runs was not asked about it.")
    if shown["bootstrap_reached"] is False:
        return fault(
            check,
            "the node that runs reaches none of its bootstrap peers, or they do not take it for a member.",
            "See the node's log for which it is, and `p2pgrid network list` for its membership.",
        )
    if shown["bootstrap_reached"] is None and not shown["routing_table_size"]:
        return skipped(check, "there is nobody to join through.")
    n_peers = shown["routing_table_size"]
    return ok(check, f"the node that runs is in it, and knows {n_peers} peer{'' if n_peers == 1 else 's'} there.")
