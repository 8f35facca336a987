"""The routing table: for every distance, up to k servers that have answered, the longest known above all.

Only who answered a request of ours gets in, so that neither clients nor invented peers do. A newcomer does not
displace a server that answers (Kademlia, section 2.4: who has long been there is likely to stay, and an attacker's new
peers find no room) but waits as a spare. One exception: a bucket with many of one IP prefix makes room for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from p2pgrid.proto.kademlia import PER_GROUP, PLACE_BITS, REPLICATION
from p2pgrid.proto.kademlia.places import Node, shared_bits

SPARES: Final = 5
MAX_FAILURES: Final = 2
"""So many unanswered requests in a row, and a node is dropped even if none can take its place."""


class _Bucket:
    """Nodes that share so many leading bits with us, the longest known first."""

    __slots__ = ("failures", "heard_s", "nodes", "spares")

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.heard_s: list[float] = []
        self.failures: dict[bytes, int] = {}
        self.spares: list[Node] = []
        """The one heard last is at the end."""

    def index(self, peer: bytes) -> int:
        """Where a node is, or -1."""
        for index, node in enumerate(self.nodes):
            if node.peer == peer:
                return index
        return -1

    def put(self, node: Node, now_s: float) -> None:
        self.nodes.append(node)
        self.heard_s.append(now_s)

    def drop(self, index: int) -> Node:
        del self.heard_s[index]
        node = self.nodes.pop(index)
        self.failures.pop(node.peer, None)
        return node

    def keep_spare(self, node: Node) -> None:
        others = [spare for spare in self.spares if spare.peer != node.peer]
        self.spares = [*others[1 - SPARES :], node]

    def of_groups(self, groups: tuple[str, ...]) -> int:
        """How many nodes are in the fullest of these groups."""
        return max((sum(group in node.groups for node in self.nodes) for group in groups), default=0)

    def replaceable(self, newcomer: Node) -> int:
        """Whose place a newcomer to a full bucket may take, or -1."""
        for index, node in enumerate(self.nodes):
            if node.peer in self.failures:
                return index
        if self.of_groups(newcomer.groups) < PER_GROUP:
            for index in range(len(self.nodes) - 1, -1, -1):
                if self.of_groups(self.nodes[index].groups) > PER_GROUP:
                    return index
        return -1


class RoutingTable:
    """One peer's table. Times are seconds on any clock that does not go back."""

    __slots__ = ("_buckets", "_own_place", "_walked_s")

    def __init__(self, own_place: int) -> None:
        self._own_place = own_place
        self._buckets: dict[int, _Bucket] = {}
        self._walked_s: dict[int, float] = {}

    def __len__(self) -> int:
        return sum(len(bucket.nodes) for bucket in self._buckets.values())

    def __iter__(self) -> Iterator[Node]:
        for bucket in self._buckets.values():
            yield from bucket.nodes

    def get(self, node: Node) -> Node | None:
        """The node as the table has it, with what it was last dialled by."""
        bucket = self._buckets.get(shared_bits(node.place, self._own_place))
        index = bucket.index(node.peer) if bucket is not None else -1
        return bucket.nodes[index] if bucket is not None and index >= 0 else None

    def has_room(self, node: Node) -> bool:
        """True if a node that is not in the table would get in."""
        bits = shared_bits(node.place, self._own_place)
        bucket = self._buckets.get(bits)
        if bucket is None or bits == PLACE_BITS:
            return bits != PLACE_BITS
        return bucket.index(node.peer) < 0 and (len(bucket.nodes) < REPLICATION or bucket.replaceable(node) >= 0)

    def answered(self, node: Node, now_s: float) -> None:
        """It answered us: keep it, or what is new of it; as a spare where its bucket is full."""
        bits = shared_bits(node.place, self._own_place)
        if bits == PLACE_BITS:
            return
        bucket = self._buckets.get(bits)
        if bucket is None:
            bucket = self._buckets[bits] = _Bucket()
        index = bucket.index(node.peer)
        if index >= 0:
            bucket.nodes[index], bucket.heard_s[index] = node, now_s
            bucket.failures.pop(node.peer, None)
            return
        if len(bucket.nodes) >= REPLICATION:
            index = bucket.replaceable(node)
            if index < 0:
                bucket.keep_spare(node)
                return
            loser = bucket.nodes[index]
            if loser.peer not in bucket.failures:
                bucket.keep_spare(loser)
            bucket.drop(index)
        bucket.spares = [spare for spare in bucket.spares if spare.peer != node.peer]
        bucket.put(node, now_s)

    def failed(self, node: Node) -> None:
        """It did not answer: a spare takes its place. Without one it has another chance; others hear no more of it."""
        bucket = self._buckets.get(shared_bits(node.place, self._own_place))
        if bucket is None:
            return
        bucket.spares = [spare for spare in bucket.spares if spare.peer != node.peer]
        index = bucket.index(node.peer)
        if index < 0:
            return
        failures = bucket.failures.get(node.peer, 0) + 1
        if failures < MAX_FAILURES and not bucket.spares:
            bucket.failures[node.peer] = failures
            return
        bucket.drop(index)
        if bucket.spares:
            bucket.put(bucket.spares.pop(), float("-inf"))  # so that it is asked at the next round

    def closest(self, place: int, count: int = REPLICATION, *, without: bytes = b"") -> list[Node]:
        """The `count` nodes closest to `place`, closest first, of those that answered when last asked."""
        bits = shared_bits(place, self._own_place)
        found: list[Node] = []
        # All of our bucket `bits` are closer to the place than all others; then come those closer to us than it is;
        # then the buckets farther away, each closer to the place than the next.
        farther = sorted((b for b in self._buckets if b < bits), reverse=True)
        for group in ([bits], [b for b in self._buckets if b > bits], *([b] for b in farther)):
            if len(found) >= count:
                break
            nodes: list[Node] = []
            for one in group:
                bucket = self._buckets.get(one)
                if bucket is not None:
                    nodes += [n for n in bucket.nodes if n.peer not in bucket.failures and n.peer != without]
            nodes.sort(key=lambda node: node.place ^ place)
            found += nodes
        return found[:count]

    def silent(self, now_s: float, longer_than_s: float) -> list[Node]:
        """Nodes not heard for so long, or whose last request went unanswered."""
        return [
            node
            for bucket in self._buckets.values()
            for node, heard_s in zip(bucket.nodes, bucket.heard_s, strict=True)
            if now_s - heard_s > longer_than_s or node.peer in bucket.failures
        ]

    def walked(self, place: int, now_s: float) -> None:
        """A look-up for `place` was made."""
        self._walked_s[shared_bits(place, self._own_place)] = now_s

    def unwalked(self, now_s: float, longer_than_s: float) -> list[int]:
        """Buckets, as shared bits, into which no look-up went for so long (Kademlia, section 2.3).

        From the farthest to that of the closest node; the neighbourhood itself is looked up by one's own place.
        """
        deepest = max((bits for bits, bucket in self._buckets.items() if bucket.nodes), default=-1)
        longest_ago = now_s - longer_than_s
        return [bits for bits in range(deepest + 1) if self._walked_s.get(bits, longest_ago - 1) <= longest_ago]
