"""How large the network is, as one peer can tell."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.proto.kademlia import PLACE_BITS, REPLICATION
from p2pgrid.proto.kademlia.size import SizeEstimate, size_around
from tests.proto.kademlia.nodes import closest, node, spread


@given(st.integers(1, 2000), st.sampled_from([50, 500, 5000]))
@settings(max_examples=25, deadline=None)
def test_several_places_give_the_size_within_a_half(seed: int, size: int) -> None:
    # Places of their own: the seed's first numbers are the nodes' places, at which a node lies by no chance.
    rng, nodes, estimate = random.Random(f"places {seed}"), spread(size, seed), SizeEstimate()
    for _ in range(9):
        place = rng.getrandbits(PLACE_BITS)
        estimate.add(place, closest(nodes, place, REPLICATION))
    assert estimate.size is not None
    assert 0.5 < estimate.size / size < 2


def test_one_crowded_place_does_not_move_it() -> None:
    rng, nodes, estimate = random.Random("places"), spread(1000), SizeEstimate()
    for _ in range(8):
        place = rng.getrandbits(PLACE_BITS)
        estimate.add(place, closest(nodes, place, REPLICATION))
    before = estimate.size
    estimate.add(0, [node(n) for n in range(1, 21)])
    assert before is not None and estimate.size is not None
    assert 0.7 < estimate.size / before < 1.4


@pytest.mark.parametrize("found", [0, 1])
def test_too_few_say_nothing(found: int) -> None:
    estimate = SizeEstimate()
    estimate.add(0, spread(found))
    assert (estimate.size, estimate.radius_of(20), estimate.crowd_of(20)) == (None, 0, 0)


def test_a_radius_holds_so_many_and_a_crowd_is_more_than_chance() -> None:
    nodes, estimate, rng = spread(2000), SizeEstimate(), random.Random(2)
    for _ in range(9):
        place = rng.getrandbits(PLACE_BITS)
        estimate.add(place, closest(nodes, place, REPLICATION))
    radius, crowd = estimate.radius_of(REPLICATION), estimate.crowd_of(REPLICATION)
    inside = [
        sum(one.place ^ place <= radius for one in nodes) for place in (rng.getrandbits(PLACE_BITS) for _ in range(200))
    ]
    assert 14 < sum(inside) / len(inside) < 28
    assert sum(count > crowd for count in inside) <= 2, "a false alarm costs a second look-up"


def test_a_peer_beside_the_place_is_no_division_by_zero() -> None:
    assert size_around(5, [node(5), node(6)])
