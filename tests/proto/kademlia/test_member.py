"""One peer: where it begins, whom it remembers as silent, what it looks after."""

from __future__ import annotations

from p2pgrid.proto.kademlia import REPLICATION
from p2pgrid.proto.kademlia.member import MAX_REFRESHED, REFRESH_AFTER_S, Member
from p2pgrid.proto.kademlia.places import Node, place_of, shared_bits
from p2pgrid.proto.kademlia.walk import LINGER_S, OVERDUE_S, Walk
from tests.proto.kademlia.nodes import draws, node, spread

OWN = b"own"


def member(*known: Node, seeds: tuple[Node, ...] = ()) -> Member:
    one = Member(OWN, draws())
    one.seeds = seeds
    for each in known:
        one.answered(each, 0.0)
    return one


def asked_first(walk: Walk) -> set[Node]:
    return {request.node for request in walk.due(0.0)}


def carry_out(walk: Walk, *, silent: tuple[Node, ...] = ()) -> None:
    """All answer at once and name nobody, save those who are silent to the end."""
    now_s = 0.0
    while not walk.is_over:
        for request in walk.due(now_s):
            if request.node not in silent:
                walk.answered(request, request.node, [])
        now_s += OVERDUE_S / 2
        assert now_s < 5 * (OVERDUE_S + LINGER_S)


def test_it_begins_with_the_closest_it_knows_and_with_seeds_while_they_are_few() -> None:
    few, seeds = spread(3), tuple(spread(2, seed=9))
    assert asked_first(member(*few, seeds=seeds).looking_for_providers(b"k", 0.0)) == {*few, *seeds}
    many = member(*spread(200), seeds=seeds)
    assert not asked_first(many.looking_for_providers(b"k", 0.0)) & set(seeds)
    joined = asked_first(many.joining(0.0))
    assert set(seeds) <= joined and len(joined) == REPLICATION + 2, "who joins asks them in any case"


def test_look_ups_do_not_wait_for_a_seed_that_was_silent() -> None:
    seeds, known = tuple(spread(2, seed=9)), node(3)
    one = member(known, seeds=seeds)
    walk = one.joining(0.0)
    carry_out(walk, silent=seeds[:1])
    one.looked_around(walk)
    assert asked_first(one.looking_for_providers(b"k", 0.0)) == {known, seeds[1]}
    assert set(seeds) <= asked_first(one.joining(0.0))
    one.answered(seeds[0], 1.0)
    assert seeds[0] in asked_first(one.looking_for_providers(b"k", 0.0))


def test_where_nobody_answers_it_is_our_own_fault() -> None:
    known = node(3)
    one = member(known)
    walk = one.looking_for_providers(b"k", 0.0)
    for request in walk.due(0.0):
        walk.silent(request)
    one.ended(walk)
    assert one.closest(b"k", b"") == [known]


def test_who_was_silent_is_named_to_nobody() -> None:
    known, silent = spread(2)
    one = member(known, silent)
    walk = one.looking_for_providers(b"k", 0.0)
    carry_out(walk, silent=(silent,))
    one.ended(walk)
    assert one.closest(b"k", b"") == [known]


def test_records_are_left_with_the_closest_under_the_replicas_keys() -> None:
    one = member(*spread(40))
    walk = one.looking_for_holders(b"k", 0.0)
    carry_out(walk)
    holders = Member.holders(walk)
    assert {key for key, _ in holders} == set(walk.search.lookups) and len(walk.search.lookups) == 2
    for key in walk.search.lookups:
        nodes = [each for of, each in holders if of == key]
        assert nodes == sorted(nodes, key=lambda each: each.place ^ place_of(key))[:REPLICATION]


def test_a_round_of_maintenance_looks_around_itself_and_into_buckets_in_turn() -> None:
    one = member(*spread(200))
    rounds: list[set[int]] = []
    for number in range(4):
        keys = one.refreshed(number * 300.0, bytes(16))
        assert keys[0] == OWN and len(keys) <= 1 + MAX_REFRESHED
        rounds.append({shared_bits(place_of(key), one.place) for key in keys[1:]})
        for key in keys:
            carry_out(one.looking_around(key, number * 300.0))
    assert not rounds[0] & rounds[1] and set.union(*rounds) >= set(range(5))
    assert one.refreshed(REFRESH_AFTER_S + 301, bytes(16))[1:], "and again"


def test_what_is_news_to_it() -> None:
    known, full = spread(2), member(*spread(500))
    one = member(*known)
    assert not one.is_news([*known, Node(OWN, place_of(OWN))])
    assert one.is_news([node(12345)])
    assert not full.is_news([node(full.place ^ 1 << 255, peer=b"far away, where all places are taken")])


def test_the_size_follows_from_looking_around() -> None:
    everybody = spread(300)
    one = member(*everybody)
    assert one.size.size is None
    for seed in range(5):
        walk = one.looking_around(b"place %d" % seed, 0.0)
        carry_out(walk)
        one.looked_around(walk)
    assert one.size.size is not None
