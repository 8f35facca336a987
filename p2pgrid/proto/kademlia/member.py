"""One peer's part in a DHT: what it knows, what it asks, what it answers. Whoever has a wire makes a peer of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from p2pgrid.proto.kademlia import REPLICATION
from p2pgrid.proto.kademlia.lookup import Limits, Lookup
from p2pgrid.proto.kademlia.places import MAX_SEARCHED_BITS, Node, key_beside, place_of
from p2pgrid.proto.kademlia.records import ProviderRecords
from p2pgrid.proto.kademlia.replicas import ANNOUNCED, Search
from p2pgrid.proto.kademlia.size import SizeEstimate
from p2pgrid.proto.kademlia.table import RoutingTable
from p2pgrid.proto.kademlia.walk import Walk

MAINTENANCE_INTERVAL_S: Final = 300.0
SEEDS_INTERVAL_S: Final = 40.0
"""How often those are asked whom we began with, so that two halves of a network that was cut find one another again."""
SILENT_AFTER_S: Final = 600.0
"""A node of the table not heard for so long is asked whether it is there."""
REFRESH_AFTER_S: Final = 1800.0
"""A bucket into which nothing was looked up for so long is looked up."""
MAX_REFRESHED: Final = 4
"""Buckets in one round of maintenance."""


class Member:
    """The state of one peer, and its rules. Times are seconds on any clock that does not go back."""

    __slots__ = ("_draw", "limits", "own", "place", "records", "seeds", "silent_seeds", "size", "table")

    def __init__(self, own: bytes, draw: Callable[[], float], limits: Limits | None = None) -> None:
        """`own` is the peer id; `draw` gives numbers from 0 up to 1 that others cannot guess."""
        self.own = own
        self.place = place_of(own)
        self.table = RoutingTable(self.place)
        self.records = ProviderRecords()
        self.size = SizeEstimate()
        self.seeds: tuple[Node, ...] = ()
        """Whom to begin with while the table has few."""
        self.silent_seeds: set[bytes] = set()
        """Peers of `seeds` that did not answer when last asked: look-ups do not wait for them."""
        self.limits = limits or Limits()
        self._draw = draw

    def looking_around(self, key: bytes, now_s: float) -> Walk:
        """A look-up for a place that nobody could prepare for: one's own, or a random one. Ends in `looked_around`."""
        return self._walk(key, now_s, at_least=1, at_most=1)

    def joining(self, now_s: float) -> Walk:
        """As `looking_around` for one's own place, and asks the seeds in any case."""
        begin = partial(self._begin, now_s=now_s, with_seeds=True)
        return Walk(Search(self.own, begin, at_most=1), self.own)

    def is_news(self, nodes: Sequence[Node]) -> bool:
        """True if what a seed named as close to our own place has somebody whom the table would take."""
        return any(node.peer != self.own and self.table.has_room(node) for node in nodes)

    def looking_for_providers(self, key: bytes, now_s: float) -> Walk:
        """A look-up whose requests ask for providers; `providers` are who was named."""
        return self._walk(key, now_s, at_least=1, at_most=self.limits.replicas)

    def looking_for_holders(self, key: bytes, now_s: float) -> Walk:
        """A look-up for those who should hold a record of `key`. See `holders`."""
        return self._walk(key, now_s, at_least=ANNOUNCED, at_most=self.limits.replicas)

    @staticmethod
    def holders(walk: Walk) -> list[tuple[bytes, Node]]:
        """With whom to leave a record at the end of a look-up, and under which key."""
        return [(key, node) for key, lookup in walk.search.lookups.items() for node in lookup.holders()]

    def answered(self, node: Node, now_s: float) -> None:
        """It answered us, at one of these addresses."""
        self.silent_seeds.discard(node.peer)
        self.table.answered(node, now_s)

    def ended(self, walk: Walk) -> None:
        """A look-up is over or given up: who did not answer is noted, unless nobody did, which is our own fault."""
        if any(lookup.closest() for lookup in walk.search.lookups.values()):
            seeds = {seed.peer for seed in self.seeds}
            for node in walk.silent_nodes:
                self.table.failed(node)
                self.silent_seeds |= {node.peer} & seeds

    def looked_around(self, walk: Walk) -> None:
        """A walk of `looking_around` is over: `ended`, and the network's size follows from it."""
        self.ended(walk)
        for key, lookup in walk.search.lookups.items():
            self.size.add(place_of(key), lookup.closest())

    def silent(self, now_s: float) -> list[Node]:
        """Whom to ask, in a round of maintenance, whether they are there."""
        return self.table.silent(now_s, SILENT_AFTER_S)

    def refreshed(self, now_s: float, seed: bytes) -> list[bytes]:
        """What to look around for in a round of maintenance; `seed` is random."""
        unwalked = [bits for bits in self.table.unwalked(now_s, REFRESH_AFTER_S) if bits <= MAX_SEARCHED_BITS]
        return [self.own, *(key_beside(self.place, bits, seed) for bits in unwalked[:MAX_REFRESHED])]

    def closest(self, key: bytes, asker: bytes) -> list[Node]:
        """What to answer to whoever asks about `key`."""
        return self.table.closest(place_of(key), without=asker)

    def _walk(self, key: bytes, now_s: float, *, at_least: int, at_most: int) -> Walk:
        search = Search(key, partial(self._begin, now_s=now_s), at_least=at_least, at_most=at_most)
        return Walk(search, self.own)

    def _begin(self, key: bytes, *, now_s: float, with_seeds: bool = False) -> Lookup:
        place = place_of(key)
        start: Sequence[Node] = self.table.closest(place)
        if with_seeds or len(start) < REPLICATION:
            left_out = {node.peer for node in start} | (self.silent_seeds if start and not with_seeds else set())
            start = [*start, *(seed for seed in self.seeds if seed.peer not in left_out)]
        self.table.walked(place, now_s)
        return Lookup(
            place,
            self.own,
            start,
            draw=self._draw,
            radius=self.size.radius_of(self.limits.region),
            crowd=self.size.crowd_of(self.limits.region),
            limits=self.limits,
        )
