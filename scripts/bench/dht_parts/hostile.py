"""Peers that lie: what they answer, and where they have put themselves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from p2pgrid.proto.kademlia import PLACE_BITS, REPLICATION
from p2pgrid.proto.kademlia.claims import Address, Claim
from p2pgrid.proto.kademlia.places import Node, place_of
from p2pgrid.proto.kademlia.records import MAX_PROVIDERS_PER_ANSWER
from p2pgrid.proto.kademlia.replicas import replica_key

from .population import Peer, Population
from .wire import Answer

ALIKE: Final = "alike"
"""Half of each of the following."""
ONE_ANOTHER: Final = "one another"
"""They name the liars closest to the key, who are there and answer the same."""
NOBODY: Final = "nobody"
"""They name peers beside the key who do not exist."""


class Liars:
    """Hostile peers that act together. They keep no record, and name 60 invented providers to whoever asks for some."""

    def __init__(self, population: Population, peers: Sequence[Peer], what: str = ALIKE) -> None:
        self._rng = population.rng
        self._size = len(population)
        self._what = what
        self._nodes = [peer.node for peer in peers]
        self._closest: dict[bytes, list[Node]] = {}
        for peer in peers:
            peer.liar = True

    def answer(self, server: Peer, key: bytes, asker: bytes) -> Answer:
        """What any of them says."""
        place = place_of(key)
        friends = self._friends(key, place)
        if self._what == ONE_ANOTHER:
            named = friends
        elif self._what == NOBODY:
            named = self._invented(place, REPLICATION)
        else:
            named = friends[: REPLICATION // 2] + self._invented(place, REPLICATION // 2)
        return named, [self._claim() for _ in range(MAX_PROVIDERS_PER_ANSWER)]

    def _friends(self, key: bytes, place: int) -> list[Node]:
        """Liars close to the key: of a crowd each time others, so that an asker goes on for as long as it can."""
        closest = self._closest.get(key)
        if closest is None:
            if len(self._closest) > 256:
                self._closest.clear()
            closest = sorted(self._nodes, key=lambda node: node.place ^ place)[:1000]
            radius = 2 * REPLICATION * (1 << PLACE_BITS) // self._size
            crowd = sum(node.place ^ place <= radius for node in closest)
            closest = self._closest[key] = closest[: max(REPLICATION, crowd)]
        return self._rng.sample(closest, min(REPLICATION, len(closest)))

    def _invented(self, place: int, count: int) -> list[Node]:
        radius = REPLICATION * (1 << PLACE_BITS) // self._size
        return [_invented_node(self._rng, place ^ self._rng.randrange(radius)) for _ in range(count)]

    def _claim(self) -> Claim:
        node = _invented_node(self._rng, 0)
        raw = node.addresses[0]
        return Claim(node.peer, (Address(".".join(map(str, raw[1:5])), raw),), 1)


def surround(
    population: Population, key: bytes, count: int, *, replicas: int, reach: float, prefixes: int
) -> list[Peer]:
    """Sybils beside the replicas of a key, `count` in all.

    `reach` says how far from it, in the mean distance between neighbours: 1 for closer than the closest honest peer,
    20 to be spread over the whole region in which the key's records are.
    """
    radius = int(reach * (1 << PLACE_BITS) / len(population))
    sybils = []
    for number in range(count):
        place = place_of(replica_key(key, number % replicas))
        peer = population.add_beside(place, radius, prefixes=prefixes)
        peer.is_sybil = True
        sybils.append(peer)
    return sybils


def _invented_node(rng: random.Random, place: int) -> Node:
    ip = bytes([rng.randrange(100, 120), *rng.randbytes(3)])
    group = f"{ip[0]}.{ip[1]}.{ip[2]}.0/24"
    return Node(rng.randbytes(38), place, (group,), (b"\x04" + ip + b"\x06\x0f\xa1",))
