"""A network of servers that know one another: whoever is asked names the k closest that it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from p2pgrid.proto.kademlia import REPLICATION
from p2pgrid.proto.kademlia.lookup import Limits, Lookup
from p2pgrid.proto.kademlia.places import Node
from tests.proto.kademlia.nodes import closest, draws

OWN = b"who looks"
Says = Callable[[Node], Sequence[Node] | None]
"""What a node names; None where it is silent."""


def honest(everybody: Iterable[Node], target: int, count: int = REPLICATION) -> Callable[[Node], Sequence[Node]]:
    """All of them know all of them."""
    nearest = closest(everybody, target, count + 1)
    return lambda asked: [one for one in nearest if one is not asked][:count]


def look_up(
    target: int,
    start: Sequence[Node],
    says: Says,
    *,
    radius: int = 0,
    crowd: int = 0,
    limits: Limits | None = None,
    seed: int = 1,
) -> tuple[Lookup, list[Node]]:
    """Carry one out; it, and who was asked, in this order."""
    lookup = Lookup(target, OWN, start, draw=draws(seed), radius=radius, crowd=crowd, limits=limits)
    asked: list[Node] = []
    waiting: list[Node] = []
    while True:
        while (node := lookup.next()) is not None:
            asked.append(node)
            waiting.append(node)
        if not waiting:
            assert lookup.waiting == 0
            return lookup, asked
        node = waiting.pop(0)
        named = says(node)
        if named is None:
            lookup.failed(node)
        else:
            lookup.answered(node, named)
