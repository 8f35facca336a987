"""A key's replicas, and when a search goes on to the next."""

from __future__ import annotations

import hashlib

from p2pgrid.proto.kademlia import MAX_REPLICAS, REPLICATION
from p2pgrid.proto.kademlia.lookup import Lookup
from p2pgrid.proto.kademlia.places import Node
from p2pgrid.proto.kademlia.replicas import Search, replica_key
from tests.proto.kademlia.answering import OWN, honest
from tests.proto.kademlia.nodes import draws, node, spread

KEY = b"\x12\x20" + bytes(32)
EVERYBODY = spread(60)


def test_the_key_of_a_replica() -> None:
    assert replica_key(KEY, 0) == KEY
    assert replica_key(KEY, 3) == b"\x12\x20" + hashlib.sha256(KEY + b"\x03").digest()
    assert len({replica_key(KEY, n) for n in range(MAX_REPLICAS)}) == MAX_REPLICAS


def search(nodes: list[Node], *, crowd: int = 0, at_least: int = 1, at_most: int = MAX_REPLICAS) -> Search:
    """Carried out where every node names every other, and all places are near 0."""

    def begin(_: bytes) -> Lookup:
        return Lookup(0, OWN, nodes[:8], draw=draws(), radius=1 << 200 if crowd else 0, crowd=crowd)

    one, says = Search(KEY, begin, at_least=at_least, at_most=at_most), honest(nodes, 0, 60)
    while (request := one.next()) is not None:
        request.lookup.answered(request.node, says(request.node))
    assert one.waiting == 0
    return one


def test_where_nothing_is_wrong_one_is_looked_at() -> None:
    assert list(search(EVERYBODY).lookups) == [KEY]


def test_who_announces_uses_two_where_the_first_is_full() -> None:
    assert list(search(EVERYBODY, at_least=2).lookups) == [KEY, replica_key(KEY, 1)]
    assert list(search(EVERYBODY[: REPLICATION - 1], at_least=2).lookups) == [KEY], "there, all hold the first"


def test_a_strain_leads_to_the_next_and_so_on() -> None:
    crowd = [node(n, peer=b"%d" % n) for n in range(50)]
    assert list(search(crowd, crowd=40).lookups) == [replica_key(KEY, n) for n in range(MAX_REPLICAS)]
    assert len(search(crowd, crowd=40, at_most=3).lookups) == 3
