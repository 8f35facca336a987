"""The routing table: who gets in, who stays, who is named."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.kademlia import PER_GROUP, PLACE_BITS, REPLICATION
from p2pgrid.proto.kademlia.places import Node
from p2pgrid.proto.kademlia.table import MAX_FAILURES, SPARES, RoutingTable
from tests.proto.kademlia.nodes import closest, node, places, spread

FAR = 1 << (PLACE_BITS - 1)
"""The bucket of those who share no bit with place 0."""


def far(count: int, *groups: str, begin: int = 0) -> list[Node]:
    return [node(FAR + begin + n, *groups) for n in range(count)]


def table_of(*nodes: Node, own: int = 0, now_s: float = 0.0) -> RoutingTable:
    table = RoutingTable(own)
    for one in nodes:
        table.answered(one, now_s)
    return table


def test_a_full_bucket_takes_no_newcomer_and_keeps_it_as_a_spare() -> None:
    first, newcomer = far(REPLICATION), node(FAR + 1000)
    table = table_of(*first)
    assert not table.has_room(newcomer)
    table.answered(newcomer, 1.0)
    assert set(table) == set(first)
    table.failed(first[3])
    assert set(table) == {*first, newcomer} - {first[3]}


def test_the_spare_heard_last_comes_first_and_few_are_kept() -> None:
    first, spares = far(REPLICATION), far(SPARES + 2, begin=100)
    table = table_of(*first, *spares)
    for number, one in enumerate(first[: SPARES + 1], 1):
        table.failed(one)
        if number <= SPARES:
            assert spares[-number] in set(table)
    assert len(table) == REPLICATION, "the last failure left a node with another chance"
    assert not set(spares[:2]) & set(table)


def test_without_a_spare_a_node_has_another_chance_and_is_not_named_meanwhile() -> None:
    one, other = far(2)
    table = table_of(one, other)
    for _ in range(MAX_FAILURES - 1):
        table.failed(one)
        assert table.closest(FAR) == [other]
        assert one in table.silent(0.0, 600)
    table.answered(one, 1.0)
    assert table.closest(FAR) == [one, other]
    for _ in range(MAX_FAILURES):
        table.failed(one)
    assert list(table) == [other]


def test_who_failed_makes_room() -> None:
    first, newcomer = far(REPLICATION), node(FAR + 1000)
    table = table_of(*first)
    table.failed(first[0])
    assert table.has_room(newcomer)
    table.answered(newcomer, 1.0)
    assert set(table) == {*first[1:], newcomer}


def test_a_bucket_with_many_of_one_prefix_makes_room_for_others() -> None:
    crowd = far(REPLICATION, "9.9.9.0/24")
    table = table_of(*crowd)
    assert set(table) == set(crowd), "while nobody else wants in"
    assert not table.has_room(node(FAR + 500, "9.9.9.0/24"))
    others = [node(FAR + 1000 + n, f"8.8.{n}.0/24") for n in range(REPLICATION)]
    for other in others:
        table.answered(other, 1.0)
    assert set(table) == {*crowd[:PER_GROUP], *others[: REPLICATION - PER_GROUP]}


def test_the_longest_known_of_a_prefix_stay() -> None:
    others = [node(FAR + n, f"8.8.{n}.0/24") for n in range(REPLICATION)]
    table = table_of(*others)
    for sybil in far(50, "9.9.9.0/24", begin=1000):
        table.answered(sybil, 1.0)
    assert set(table) == set(others)


def test_an_answer_renews_what_is_known() -> None:
    old, new = node(FAR, at=b"old"), node(FAR, at=b"new")
    table = table_of(old)
    table.answered(new, 700.0)
    assert table.get(old) == new
    assert table.silent(1000.0, 600) == []
    assert table.silent(1400.0, 600) == [new]
    assert table.get(node(FAR + 1)) is None


def test_one_self_is_not_in_it() -> None:
    table = table_of(node(5), own=5)
    assert len(table) == 0
    assert not table.has_room(node(5))


@given(places, places, st.integers(0, 80), st.integers(1, 30), st.randoms(use_true_random=False))
def test_the_closest_are_those_closest_of_all_that_it_knows(
    own: int, target: int, count: int, wanted: int, rng: random.Random
) -> None:
    nodes = [node(own ^ rng.getrandbits(PLACE_BITS) >> rng.randrange(PLACE_BITS), peer=b"%d" % n) for n in range(count)]
    table = table_of(*nodes, own=own)
    known = list(table)
    assert [one.place for one in table.closest(target, wanted)] == [one.place for one in closest(known, target, wanted)]
    for bits in {(one.place ^ own).bit_length() for one in known}:
        assert sum((one.place ^ own).bit_length() == bits for one in known) <= REPLICATION


@given(
    st.lists(
        st.tuples(st.sampled_from(["answered", "failed"]), st.integers(0, 40), st.integers(0, 3)),
        max_size=200,
    )
)
def test_whatever_happens_a_bucket_is_bounded_and_holds_nobody_twice(happened: list[tuple[str, int, int]]) -> None:
    table = RoutingTable(0)
    answered: set[bytes] = set()
    for now_s, (what, number, group) in enumerate(happened):
        one = node(FAR + number, f"9.9.{group}.0/24")
        if what == "answered":
            answered.add(one.peer)
            table.answered(one, now_s)
        else:
            table.failed(one)
        peers = [each.peer for each in table]
        assert len(peers) == len(set(peers)) <= REPLICATION
        assert set(peers) <= answered, "only who answered gets in"


def test_who_asks_is_not_named_to_itself() -> None:
    nodes = spread(5)
    assert nodes[0] not in table_of(*nodes).closest(0, without=nodes[0].peer)


@pytest.mark.parametrize(("walked_s", "now_s", "is_due"), [(None, 0.0, True), (0.0, 100.0, False), (0.0, 1800.0, True)])
def test_a_bucket_is_looked_into_when_nothing_was_looked_up_there(
    walked_s: float | None, now_s: float, is_due: bool
) -> None:
    table = table_of(node(FAR))
    if walked_s is not None:
        table.walked(FAR + 12345, walked_s)
    assert table.unwalked(now_s, 1800.0) == ([0] if is_due else [])


def test_all_buckets_up_to_the_closest_node_are_looked_into() -> None:
    assert table_of(node(1 << (PLACE_BITS - 4))).unwalked(0.0, 1800.0) == [0, 1, 2, 3]
    assert RoutingTable(0).unwalked(0.0, 1800.0) == []
