"""A look-up over disjoint paths: it finds the closest, it ends, and those who lie get no further than their share."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.proto.kademlia import PER_GROUP, PLACE_BITS, REPLICATION
from p2pgrid.proto.kademlia.lookup import MAX_SILENT, MAX_UNANSWERED, Limits, Lookup
from p2pgrid.proto.kademlia.places import Node
from tests.proto.kademlia.answering import OWN, honest, look_up
from tests.proto.kademlia.nodes import closest, draws, node, places, spread

ALL = 1 << PLACE_BITS


@given(st.integers(1, 300), places, st.integers(1, 1000))
@settings(max_examples=60)
def test_it_finds_the_k_closest_and_asks_nobody_twice(count: int, target: int, seed: int) -> None:
    everybody = spread(count, seed)
    lookup, asked = look_up(target, everybody[:5], honest(everybody, target), seed=seed)
    # Nobody names itself, so that the closest are named by the others alone: all know all of the nearest.
    assert lookup.closest() == closest(everybody, target, REPLICATION)
    assert len(asked) == len(set(asked)) == lookup.asks <= Limits().asks


def test_everybody_in_the_region_is_asked_beside_the_k_closest() -> None:
    everybody = spread(400)
    inside = [one for one in everybody if one.place <= ALL // 10]
    assert len(inside) > REPLICATION
    says = honest(everybody, 0, 60)
    _, asked = look_up(0, everybody[:8], says, radius=ALL // 10)
    assert set(inside) <= set(asked)


def test_no_node_is_asked_on_two_paths_and_a_path_knows_what_it_was_told() -> None:
    """A liar on one path names its friends; the other paths never hear of them."""
    everybody, rng = spread(300), random.Random(5)
    friends = [node(rng.randrange(ALL >> 20), peer=b"friend %d" % n) for n in range(200)]
    liar = everybody[0]

    def says(asked: Node) -> Sequence[Node]:
        if asked is liar or asked in friends:
            return friends[:REPLICATION]
        return honest(everybody, 0)(asked)

    lookup, asked = look_up(0, everybody[:8], says)
    assert set(closest(everybody, 0, REPLICATION)) <= set(asked), "the honest are asked however close the friends are"
    standing = Counter(lookup.standing_of(one)[0] for one in asked if one in friends)
    assert len(standing) == 1


def test_on_one_path_the_same_liar_hides_everybody() -> None:
    """What the paths are for."""
    everybody = spread(300)
    friends = [node(n, peer=b"friend %d" % n) for n in range(2 * REPLICATION)]

    def says(asked: Node) -> Sequence[Node]:
        return friends[:REPLICATION] if asked in friends or asked is everybody[0] else honest(everybody, 0)(asked)

    lookup, _ = look_up(0, everybody[:8], says, limits=Limits(paths=1))
    assert set(lookup.closest()) == set(friends[:REPLICATION])


def test_a_crowd_that_names_one_another_is_drawn_no_more_than_who_led_to_it() -> None:
    """In the region those count for more whom many name: each generation of names weighs less."""
    everybody, rng = spread(1000), random.Random(3)
    radius = ALL // 40
    inside = [one for one in everybody if one.place <= radius]
    crowd = [node(rng.randrange(radius), peer=b"one of a crowd %d" % n) for n in range(1000)]
    known = honest(everybody, 0, 40)

    def says(asked: Node) -> Sequence[Node]:
        return rng.sample(crowd, REPLICATION) if asked in crowd else [*known(asked), *crowd[:2]]

    lookup, asked = look_up(0, everybody[:8], says, radius=radius, crowd=40)
    assert set(inside) <= set(asked)
    assert lookup.asks == Limits().asks and lookup.is_strained, "and it shows"


def test_few_of_one_prefix_are_asked_while_there_are_others() -> None:
    everybody = [node(one.place, f"8.{n // 250}.{n % 250}.0/24") for n, one in enumerate(spread(300))]
    crowd = [node(n, "9.9.9.0/24", peer=b"crowd %d" % n) for n in range(100)]
    _, asked = look_up(0, everybody[:1], honest([*everybody, *crowd], 0, 120), limits=Limits(paths=1))
    of_crowd = [one for one in asked if one in crowd]
    assert len(of_crowd) <= PER_GROUP + Limits().parallel
    assert len(set(closest(everybody, 0, REPLICATION - PER_GROUP)) - set(asked)) == 0


def test_of_those_that_one_node_named_and_are_silent_few_are_asked() -> None:
    honest_ones = spread(60)
    invented = [node(n, peer=b"nobody %d" % n) for n in range(500)]

    def says(asked: Node) -> Sequence[Node] | None:
        if asked in invented:
            return None
        return invented[:100] if asked is honest_ones[0] else honest(honest_ones, 0)(asked)

    _, asked = look_up(0, honest_ones[:1], says, limits=Limits(parallel=1))
    assert len([one for one in asked if one in invented]) == MAX_UNANSWERED
    _, asked = look_up(0, honest_ones[:4], says)
    assert set(closest(honest_ones, 0, REPLICATION)) <= set(asked)


def test_a_silent_prefix_is_let_alone() -> None:
    """Somebody names a victim's addresses; many servers believed it."""
    honest_ones = spread(60)
    victims = [node(n, "9.9.9.0/24", peer=b"victim %d" % n) for n in range(50)]

    def says(asked: Node) -> Sequence[Node] | None:
        if asked in victims:
            return None
        number = honest_ones.index(asked)
        return [*honest(honest_ones, 0)(asked), victims[number % 50]]

    _, asked = look_up(0, honest_ones[:4], says, limits=Limits(parallel=1))
    assert len([one for one in asked if one in victims]) == MAX_SILENT


def test_who_failed_is_asked_once_more_at_another_address() -> None:
    first, second, third = (node(7, peer=b"moved", at=at) for at in (b"a", b"b", b"c"))
    helpers = [node(ALL - 3 + n) for n in range(3)]
    named = {helpers[0]: [first], helpers[1]: [second], helpers[2]: [third]}
    lookup, asked = look_up(
        0,
        helpers,
        lambda one: named.get(one),
        limits=Limits(paths=1, parallel=1),
    )
    assert [one.addresses for one in asked if one.peer == b"moved"] == [(b"a",), (b"b",)], "and no third time"
    assert set(lookup.closest()) == set(helpers)


def test_it_does_not_ask_itself() -> None:
    everybody = spread(30)
    own = node(0, peer=OWN)
    _, asked = look_up(0, [own, *everybody[:3]], honest([own, *everybody], 0))
    assert own not in asked


def test_overdue_requests_let_others_be_made_and_are_waited_for_only_while_nobody_answered() -> None:
    everybody = spread(5)
    lookup = Lookup(0, OWN, everybody, draw=draws(), limits=Limits(parallel=2))
    first, second = lookup.next(), lookup.next()
    assert first and second and lookup.next() is None
    lookup.overdue(first)
    third = lookup.next()
    assert third and third not in (first, second)
    lookup.overdue(second)
    lookup.overdue(third)
    while (one := lookup.next()) is not None:
        lookup.overdue(one)
    assert lookup.waiting == 5
    lookup.answered(second, [])
    assert lookup.waiting == 0
    lookup.overdue(second)
    assert lookup.closest() == [second]


@pytest.mark.parametrize(("n", "is_strained"), [(10, False), (60, True)])
def test_more_answers_in_the_region_than_chance_explains_are_a_strain(n: int, is_strained: bool) -> None:
    crowd = [node(m, peer=b"%d" % m) for m in range(n)]
    lookup, _ = look_up(0, crowd[:8], honest([*crowd, *spread(50)], 0, 60), radius=1000, crowd=40)
    assert lookup.is_strained == is_strained
    assert len(lookup.holders()) == max(REPLICATION, n if n > REPLICATION else REPLICATION)


def test_named_and_silent_is_doubtful() -> None:
    invented = [node(m, peer=b"nobody %d" % m) for m in range(200)]
    honest_ones = spread(40)
    lookup, _ = look_up(
        0,
        honest_ones[:8],
        lambda one: None if one in invented else [*honest(honest_ones, 0)(one), *invented],
        radius=1000,
        crowd=40,
    )
    assert lookup.is_doubtful and not lookup.is_strained


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_whatever_they_answer_it_ends_within_its_means(data: st.DataObject) -> None:
    """Rubbish, silence, thousands of names: no crash, no node twice at one address, no more requests than allowed."""
    rng = random.Random(data.draw(st.integers(0, 10_000)))
    limits = Limits(
        paths=data.draw(st.integers(1, 10)), parallel=data.draw(st.integers(1, 30)), asks=data.draw(st.integers(1, 80))
    )
    known = [
        node(rng.getrandbits(PLACE_BITS) >> rng.randrange(PLACE_BITS), f"9.9.{rng.randrange(4)}.0/24", peer=b"%d" % n)
        for n in range(300)
    ]

    def says(_: Node) -> Sequence[Node] | None:
        kind = rng.random()
        if kind < 0.3:
            return None
        return [] if kind < 0.4 else rng.choices(known, k=rng.randrange(1, 100))

    start = rng.choices(known, k=data.draw(st.integers(0, 30)))
    lookup, asked = look_up(
        0, start, says, radius=ALL >> rng.randrange(PLACE_BITS), crowd=rng.randrange(50), limits=limits
    )
    assert len(asked) == lookup.asks <= limits.asks
    assert max(Counter((one.peer, one.addresses) for one in asked).values(), default=0) <= 1
    for one in lookup.holders():
        assert lookup.standing_of(one)[1] > 0
