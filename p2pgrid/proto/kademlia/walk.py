"""A search on its way, with the time: which requests to make now, which are overdue, when it is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from p2pgrid.proto.kademlia.claims import Claim, Claims, Provider, Voice
from p2pgrid.proto.kademlia.lookup import Lookup
from p2pgrid.proto.kademlia.places import Node
from p2pgrid.proto.kademlia.replicas import Request, Search

OVERDUE_S: Final = 1.0
"""A request that takes longer does not keep others from being made."""
LINGER_S: Final = 2.0
"""How long overdue requests are waited for when there is nothing else to do."""
MAX_UNDER_WAY: Final = 48
HAND_ON_INTERVAL_S: Final = 0.2
"""How often a look-up says what it has found so far: among liars each time costs 10 ms."""


class Walk:
    """Times are seconds on any clock that does not go back.

    The caller makes the requests of `due`, reports each by `answered` or `silent`, and calls `due` again after every
    report, or when `wakes_at_s` has come. Once `is_over`, requests still under way are to be given up.
    """

    def __init__(self, search: Search, own: bytes) -> None:
        """`own` is the peer id of who looks: not a provider to be found."""
        self.search = search
        self._own = own
        self._claims: list[tuple[Lookup | None, Node | None, Sequence[Claim]]] = []
        self.silent_nodes: list[Node] = []
        """Who did not answer, or not by the end though there was time enough."""
        self.is_over = False
        self.wakes_at_s = float("inf")
        self._under_way: dict[int, tuple[float, Request]] = {}
        """By `id`: when the request was made, and itself; in this order."""
        self._overdue: set[int] = set()
        self._give_up_at_s: float | None = None

    def due(self, now_s: float) -> list[Request]:
        """The requests to make now."""
        self._note_overdue(now_s)
        requests: list[Request] = []
        while len(self._under_way) < MAX_UNDER_WAY and (request := self.search.next()) is not None:
            requests.append(request)
            self._under_way[id(request)] = (now_s, request)
        if not self._under_way:
            self.is_over = True
        elif self.search.waiting:
            self._give_up_at_s = None
        else:
            self._give_up_at_s = self._give_up_at_s or now_s + LINGER_S
            if now_s >= self._give_up_at_s:
                self._give_up(now_s)
        first = next((made_s for key, (made_s, _) in self._under_way.items() if key not in self._overdue), None)
        self.wakes_at_s = min(float("inf") if first is None else first + OVERDUE_S, self._give_up_at_s or float("inf"))
        return requests

    def answered(self, request: Request, node: Node, closer: Sequence[Node], claims: Sequence[Claim] = ()) -> None:
        """`node` is the one asked, as it is to be dialled from now on; it named `closer`, and providers."""
        self._end(request)
        if claims:
            self._claims.append((request.lookup, request.node, claims))
        request.lookup.answered(node, closer)

    def silent(self, request: Request) -> None:
        """There was no answer, or none that makes sense."""
        self._end(request)
        self.silent_nodes.append(request.node)
        request.lookup.failed(request.node)

    def knows(self, claims: Sequence[Claim]) -> None:
        """Providers that whoever looks has records of."""
        self._claims.append((None, None, claims))

    def providers(self, limit: int, draw: Callable[[], float]) -> list[Provider]:
        """At most `limit` of the providers named so far, the most credible first."""
        found = Claims(self._own)
        numbers = {id(lookup): number for number, lookup in enumerate(self.search.lookups.values())}
        holders = {id(lookup): {n.peer for n in lookup.holders()} for lookup in self.search.lookups.values()}
        for lookup, node, claims in self._claims:
            if lookup is None or node is None:
                found.add(claims, Voice(replica=-1))
            else:
                path, weight = lookup.standing_of(node)
                found.add(claims, Voice(numbers[id(lookup)], path, weight, node.peer in holders[id(lookup)]))
        return found.chosen(limit, draw)

    def _end(self, request: Request) -> None:
        self._under_way.pop(id(request), None)
        self._overdue.discard(id(request))

    def _give_up(self, now_s: float) -> None:
        self.is_over = True
        long_ago_s = now_s - OVERDUE_S - LINGER_S
        self.silent_nodes += [request.node for made_s, request in self._under_way.values() if made_s <= long_ago_s]

    def _note_overdue(self, now_s: float) -> None:
        for key, (made_s, request) in self._under_way.items():
            if made_s + OVERDUE_S > now_s:
                return
            if key not in self._overdue:
                self._overdue.add(key)
                request.lookup.overdue(request.node)
