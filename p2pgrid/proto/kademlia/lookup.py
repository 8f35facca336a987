"""One look-up: whom to ask next, what to make of an answer, when it is over. No network and no clock here.

What is built against peers that lie (docs/spec/discovery.md, section 7; what each is worth: docs/dht.md):

- Paths. The nodes to begin with are dealt out to several paths, which take turns. What a node names is known to its own
  path alone, and no node is asked on two, so that a liar misleads one path (S/Kademlia, section 4.4).
- Region. Beside the k closest, everybody is asked who lies within the distance at which k nodes are expected by the
  network's size. Peers made to lie closer to a key than all others do not fill that by themselves.
- Weight. In the region a path draws whom it asks. A node has the more weight, the more of those asked name it and the
  more they weigh themselves; each generation weighs less. So a thousand peers that name one another weigh no more
  together than the few that led to them.
- Prefixes. Every request to an IP prefix lowers the weight of the others in it. Of the k closest, `PER_GROUP` may be of
  one prefix while there are others.
- Credit. Of what a node named, a few are asked, and more as those answer; of a prefix in which none answers, a few.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from p2pgrid.proto.kademlia import MAX_REPLICAS, PER_GROUP, REPLICATION
from p2pgrid.proto.kademlia.places import Node

PATHS: Final = 8
PARALLEL: Final = 24
MAX_ASKS: Final = 160
MAX_ATTEMPTS: Final = 2
"""A node that did not answer is asked once more if somebody names another address of it."""
MAX_UNANSWERED: Final = 3
"""Requests to nodes that one node named, beyond which it has to have named more that answered."""
MAX_SILENT: Final = 4
"""The same of the nodes of an IP prefix: somebody may be naming a victim's addresses."""
GENERATION_WEIGHT: Final = 0.5
PREFIX_WEIGHT: Final = 0.25
STRAINED: Final = 0.75
"""Of the requests that a look-up may make."""
DOUBTFUL: Final = 1.5
"""Times a crowd."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a look-up may cost, and how it goes about it."""

    paths: int = PATHS
    parallel: int = PARALLEL
    """Requests under way at once, those not counted that are overdue."""
    asks: int = MAX_ASKS
    """Requests at one replica."""
    closest: int = REPLICATION
    region: int = REPLICATION
    """How many nodes are expected in the region; 0 for none."""
    replicas: int = MAX_REPLICAS


class _State(Enum):
    ASKED = "asked"
    OVERDUE = "overdue"
    ANSWERED = "answered"
    FAILED = "failed"


@dataclass(slots=True)
class _Path:
    """What one path knows, by peer."""

    under_way: int = 0
    nodes: dict[bytes, Node] = field(default_factory=dict)
    order: list[tuple[int, bytes]] = field(default_factory=list)
    """(distance, peer), closest first."""
    region: dict[bytes, None] = field(default_factory=dict)
    """Those of the region that may not have been asked yet, in the order in which they were named."""
    named_by: dict[bytes, list[bytes]] = field(default_factory=dict)
    weight: dict[bytes, float] = field(default_factory=dict)


class Lookup:
    """The state of one look-up for `target`.

    The caller asks whom `next` names and reports by `answered`, `failed` or, of a request that takes long, `overdue`.
    It is over when `next` gives None and `waiting` is 0.
    """

    def __init__(
        self,
        target: int,
        own: bytes,
        start: Sequence[Node],
        *,
        draw: Callable[[], float],
        radius: int = 0,
        crowd: int = 0,
        limits: Limits | None = None,
    ) -> None:
        """`draw` gives numbers from 0 up to 1 that others cannot guess; `radius` is the region's, 0 for none.

        `crowd`: more nodes than so many in the region are no chance.
        """
        self._target = target
        self._own = own
        self._draw = draw
        self._radius = radius
        self._crowd = crowd
        self._limits = limits or Limits()
        self._paths = [_Path() for _ in range(max(1, min(self._limits.paths, len(start))))]
        self._state: dict[bytes, _State] = {}
        self._path_of: dict[bytes, _Path] = {}
        self._tried: dict[bytes, list[tuple[bytes, ...]]] = {}
        self._found: dict[bytes, Node] = {}
        self._named_inside: set[bytes] = set()
        """Of the region."""
        self._asks = 0
        self._named_well: Counter[bytes] = Counter()
        self._unanswered: Counter[bytes] = Counter()
        self._asked_in: Counter[str] = Counter()
        self._answered_in: Counter[str] = Counter()
        self._failed_in: Counter[str] = Counter()
        """The last three by IP prefix."""
        for number, node in enumerate(sorted(start, key=self._distance)):
            path = self._paths[number % len(self._paths)]
            path.weight[node.peer] = 1.0
            self._learn(path, node)

    # -- what a caller asks ----------------------------------------------------------------------------------------

    @property
    def asks(self) -> int:
        """How many requests were made."""
        return self._asks

    @property
    def waiting(self) -> int:
        """How many requests are worth waiting for: those overdue, only while nobody has answered."""
        overdue = 0 if self._found else sum(state is _State.OVERDUE for state in self._state.values())
        return self._under_way + overdue

    @property
    def is_strained(self) -> bool:
        """Something may be wrong around the target: many more answered there than the network's size explains, or most
        requests are used up and it is not over."""
        return 0 < self._crowd < self._inside or self._asks > STRAINED * self._limits.asks

    @property
    def is_doubtful(self) -> bool:
        """Many more nodes were named around the target than there can be, be they there or not."""
        return 0 < DOUBTFUL * self._crowd < len(self._named_inside)

    def closest(self) -> list[Node]:
        """The k closest that answered, closest first."""
        return self._by_distance()[: self._limits.closest]

    def standing_of(self, node: Node) -> tuple[int, float]:
        """By which path a node was asked, as some number, and how much its word weighs beside others of the path."""
        path = self._path_of[node.peer]
        return id(path), path.weight[node.peer]

    def holders(self) -> list[Node]:
        """Who should hold a record of the target: the k closest, and all others of the region. Closest first."""
        return self._by_distance()[: max(self._limits.closest, self._inside)]

    # -- what a caller does ----------------------------------------------------------------------------------------

    def next(self) -> Node | None:
        """Whom to ask now; None if nobody, or not before something is heard."""
        if self._asks >= self._limits.asks or self._under_way >= self._limits.parallel:
            return None
        for path in sorted(self._paths, key=lambda path: path.under_way):
            node = self._choice_in_region(path) or self._choice_by_distance(path)
            if node is not None:
                self._paths.remove(path)
                self._paths.append(path)
                self._ask(path, node)
                return node
        return None

    def answered(self, node: Node, closer: Sequence[Node]) -> None:
        """It named these nodes as close to the target."""
        path = self._end(node, _State.ANSWERED)
        self._found[node.peer] = node
        for reporter in path.named_by.get(node.peer, ()):
            self._named_well[reporter] += 1
        share = path.weight[node.peer] * GENERATION_WEIGHT / REPLICATION
        for one in {one.peer: one for one in closer}.values():
            path.named_by.setdefault(one.peer, []).append(node.peer)
            path.weight[one.peer] = path.weight.get(one.peer, 0.0) + share
            self._learn(path, one)

    def failed(self, node: Node) -> None:
        """It gave no answer, or none that makes sense."""
        self._end(node, _State.FAILED)
        self._failed_in.update(node.groups)

    def overdue(self, node: Node) -> None:
        """It has not answered yet: somebody else may be asked meanwhile. Nothing is done of one that has."""
        if self._state[node.peer] is _State.ASKED:
            self._path_of[node.peer].under_way -= 1
            self._state[node.peer] = _State.OVERDUE

    # -- inside ----------------------------------------------------------------------------------------------------

    def _distance(self, node: Node) -> int:
        return node.place ^ self._target

    @property
    def _under_way(self) -> int:
        return sum(path.under_way for path in self._paths)

    @property
    def _inside(self) -> int:
        """How many of the region answered."""
        return sum(self._distance(node) <= self._radius for node in self._found.values())

    def _by_distance(self) -> list[Node]:
        return sorted(self._found.values(), key=self._distance)

    def _learn(self, path: _Path, node: Node) -> None:
        peer = node.peer
        if peer == self._own:
            return
        state = self._state.get(peer)
        if state is _State.FAILED and self._has_other_address(node):
            state = None
            del self._state[peer]
            for other in self._paths:
                if peer in other.nodes:
                    other.nodes[peer] = node
        if peer not in path.nodes:
            insort(path.order, (self._distance(node), peer))
            path.nodes[peer] = node
        if self._distance(node) <= self._radius:
            self._named_inside.add(peer)
            if state is None:
                path.region[peer] = None

    def _has_other_address(self, node: Node) -> bool:
        tried = self._tried[node.peer]
        return len(tried) < MAX_ATTEMPTS and node.addresses not in tried

    def _choice_in_region(self, path: _Path) -> Node | None:
        """One not asked yet, drawn by weight."""
        candidates: list[Node] = []
        weights: list[float] = []
        for peer in list(path.region):
            node = path.nodes[peer]
            if peer in self._state:
                del path.region[peer]
            elif self._is_credible(path, node):
                asked = max((self._asked_in[group] for group in node.groups), default=0)
                candidates.append(node)
                weights.append(path.weight[peer] * PREFIX_WEIGHT**asked)
        mark = self._draw() * sum(weights)
        for node, weight in zip(candidates, weights, strict=True):
            mark -= weight
            if mark < 0:
                return node
        return candidates[-1] if candidates else None

    def _choice_by_distance(self, path: _Path) -> Node | None:
        """The closest not asked yet of the k closest, of which few may be of one prefix while there are others."""
        counted, in_group, surplus = 0, Counter[str](), None
        for node in self._live(path):
            is_new = node.peer not in self._state
            if node.groups and max(in_group[group] for group in node.groups) >= PER_GROUP:
                surplus = surplus or (node if is_new else None)
                continue
            if is_new:
                return node
            in_group.update(node.groups)
            counted += 1
            if counted >= self._limits.closest:
                return None
        return surplus

    def _live(self, path: _Path) -> Iterator[Node]:
        for _, peer in path.order:
            node, state = path.nodes[peer], self._state.get(peer)
            if state is not _State.FAILED and (state is not None or self._is_credible(path, node)):
                yield node

    def _is_credible(self, path: _Path, node: Node) -> bool:
        """False if all who named it named more nodes that are silent than such that answer, or its prefix is silent."""
        if any(self._failed_in[g] >= MAX_SILENT and self._failed_in[g] > self._answered_in[g] for g in node.groups):
            return False
        reporters = path.named_by.get(node.peer)
        return not reporters or not all(
            self._unanswered[one] >= MAX_UNANSWERED and self._unanswered[one] > self._named_well[one]
            for one in reporters
        )

    def _ask(self, path: _Path, node: Node) -> None:
        self._asks += 1
        path.under_way += 1
        self._state[node.peer] = _State.ASKED
        self._path_of[node.peer] = path
        self._tried.setdefault(node.peer, []).append(node.addresses)
        self._asked_in.update(node.groups)
        self._unanswered.update(path.named_by.get(node.peer, ()))

    def _end(self, node: Node, state: _State) -> _Path:
        path, before = self._path_of[node.peer], self._state[node.peer]
        if before is _State.ASKED:
            path.under_way -= 1
        if state is _State.ANSWERED:
            self._answered_in.update(node.groups)
            self._unanswered.subtract(path.named_by.get(node.peer, ()))
        self._state[node.peer] = state
        return path
