"""Set-off between two, and rings of debts."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import date, timedelta
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import UsageError
from p2pgrid.settlement.payments.rings import MAX_STEPS, Owed, Ring, carried_out, find_rings, pairs
from p2pgrid.settlement.payments.setoff import Debt, set_off, spread
from tests.settlement.payments import vectors
from tests.settlement.payments.vectors import debt


def test_the_vectors_hold() -> None:
    assert vectors.SETOFFS.read_text() == vectors.as_text(vectors.setoffs())


debts = st.lists(
    st.builds(
        lambda n, side, cents, days: Debt(
            number=f"{'A' if side else 'B'}-{n}",
            debtor="b" if side else "a",
            creditor="a" if side else "b",
            open_cents=cents,
            due=date(2026, 11, 1) + timedelta(days),
        ),
        st.integers(0, 10**6),
        st.booleans(),
        st.integers(1, 100_000),
        st.integers(0, 60),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda one: one.number,
)


@settings(deadline=None)
@given(debts, st.randoms())
def test_set_off(given_debts: list[Debt], rng: random.Random) -> None:
    agreed = set_off(given_debts)
    owed = Counter[str]()
    for one in given_debts:
        owed[one.debtor] += one.open_cents
    assert agreed.cents == min(owed["a"], owed["b"])
    off = Counter[str]()
    for settled in agreed.settled:
        off[settled.debtor] += settled.cents
        assert settled.cents > 0
        assert settled.left_cents >= 0
    assert off["a"] == off["b"] == agreed.cents, "each side gives up what it is given"
    assert agreed.rest_cents == abs(owed["a"] - owed["b"])
    assert (owed[agreed.payer] > agreed.cents) if agreed.payer else (owed["a"] == owed["b"])
    by_number = {one.number: one for one in given_debts}
    touched = [by_number[s.number] for s in agreed.settled]
    for side in "ab":
        mine = [one for one in touched if one.debtor == side]
        assert mine == sorted(mine, key=lambda one: (one.due, one.number))
        untouched = [one for one in given_debts if one.debtor == side and one not in mine]
        assert all((one.due, one.number) > (mine[-1].due, mine[-1].number) for one in untouched if mine)
    mixed = list(given_debts)
    rng.shuffle(mixed)
    assert set_off(mixed) == agreed


def test_what_falls_due_later_is_left_out() -> None:
    both = [debt("A-1", "b", "a", 700, "2026-11-01"), debt("B-1", "a", "b", 700, "2026-12-01")]
    assert set_off(both).cents == 700
    assert set_off(both, due_by=date(2026, 11, 30)).cents == 0
    assert set_off(both, due_by=date(2026, 12, 1)).cents == 700


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [debt("A-1", "b", "a", 1, "2026-11-01"), debt("C-1", "b", "c", 1, "2026-11-01")],
        [debt("A-1", "b", "a", 1, "2026-11-01"), debt("A-1", "b", "a", 2, "2026-11-01")],
        [debt("A-1", "b", "a", 1, "2026-11-01"), replace(debt("B-1", "a", "b", 1, "2026-11-01"), currency="USD")],
    ],
)
def test_what_cannot_be_set_off(wrong: list[Debt]) -> None:
    with pytest.raises(UsageError):
        set_off(wrong)


def test_debts_that_are_none() -> None:
    for cents in (0, -1):
        with pytest.raises(UsageError, match="credit note"):
            debt("A-1", "b", "a", cents, "2026-11-01")
    with pytest.raises(UsageError, match="owes itself"):
        debt("A-1", "a", "a", 1, "2026-11-01")
    with pytest.raises(UsageError, match="more than is owed"):
        spread([debt("A-1", "b", "a", 1, "2026-11-01")], 2)


# -- rings ------------------------------------------------------------------------------------------------------------

names = st.sampled_from("abcdefg")
graphs = st.dictionaries(
    st.tuples(names, names).filter(lambda pair: pair[0] != pair[1]), st.integers(1, 1000), max_size=25
)


def net(owed: Owed) -> Counter[str]:
    found = Counter[str]()
    for (debtor, creditor), cents in owed.items():
        found[debtor] -= cents
        found[creditor] += cents
    return found


def best_by_trying_all(owed: Owed, most: int) -> int:
    """The largest sum of any ring, by trying every order of every party."""
    parties = sorted({name for pair in owed for name in pair})
    return max(
        (
            min(owed.get(pair, 0) for pair in pairs(order))
            for size in range(3, most + 1)
            for order in permutations(parties, size)
        ),
        default=0,
    )


@settings(deadline=None)
@given(graphs)
def test_rings_leave_every_net_position_as_it_was(owed: Owed) -> None:
    after = owed
    for ring in find_rings(owed):
        assert 3 <= len(ring.parties) <= 6
        assert len(set(ring.parties)) == len(ring.parties)
        assert all(after[pair] >= ring.cents > 0 for pair in pairs(ring.parties))
        after = carried_out(after, ring)
    assert all(cents > 0 for cents in after.values())
    before, now = net(owed), net(after)
    assert {name: before[name] for name in before} == {name: now[name] for name in before}
    assert not find_rings(after), "nothing is left to be found"


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde")).filter(lambda p: p[0] != p[1]),
        st.integers(1, 1000),
        max_size=16,
    )
)
def test_the_first_ring_is_the_largest(owed: Owed) -> None:
    rings = find_rings(owed, most_parties=5)
    assert (rings[0].cents if rings else 0) == best_by_trying_all(owed, 5)


@settings(deadline=None)
@given(graphs, names)
def test_rings_through_one_party(owed: Owed, party: str) -> None:
    assert all(party in ring.parties for ring in find_rings(owed, through=party))
    assert bool(find_rings(owed, through=party)) is any(
        party in ring.parties for size in (6,) for ring in _all_first_rings(owed, party, size)
    )


def _all_first_rings(owed: Owed, party: str, most: int) -> list[Ring]:
    """Some ring through the party, if there is any, by walking every path."""
    found: list[Ring] = []

    def walk(path: list[str]) -> None:
        for debtor, creditor in owed:
            if found or debtor != path[-1]:
                continue
            if creditor == party and len(path) >= 3:
                found.append(Ring(tuple(path), 1))
            elif creditor not in path and len(path) < most:
                walk([*path, creditor])

    walk([party])
    return found


def test_of_equal_sums_the_shortest_ring_comes_first() -> None:
    long_way = {("a", "b"): 7, ("b", "c"): 7, ("c", "d"): 7, ("d", "a"): 7, ("c", "a"): 7}
    assert find_rings(long_way)[0] == Ring(("a", "b", "c"), 7)
    long_first = {
        ("a", "b"): 7,
        ("b", "c"): 7,
        ("c", "e"): 7,
        ("e", "a"): 7,
        ("a", "d"): 7,
        ("d", "f"): 7,
        ("f", "a"): 7,
    }
    assert find_rings(long_first)[0] == Ring(("a", "d", "f"), 7)
    other_names = {("a", "d"): 7, ("d", "c"): 7, ("c", "b"): 7, ("b", "a"): 7, ("d", "b"): 7}
    assert find_rings(other_names)[0] == Ring(("a", "d", "b"), 7)


def test_small_rings_and_two_alone_are_let_be() -> None:
    two = {("a", "b"): 10, ("b", "a"): 10}
    assert not find_rings(two)
    three = {("a", "b"): 10, ("b", "c"): 7, ("c", "a"): 9}
    assert find_rings(three) == [Ring(("a", "b", "c"), 7)]
    assert not find_rings(three, least_cents=8)
    assert carried_out(three, Ring(("a", "b", "c"), 7)) == {("a", "b"): 3, ("c", "a"): 2}
    with pytest.raises(UsageError):
        carried_out(three, Ring(("a", "b", "c"), 8))
    with pytest.raises(UsageError):
        find_rings({("a", "b"): 0})


def test_a_made_up_graph_costs_no_more_than_its_bound() -> None:
    crowd = [f"p{n:03d}" for n in range(200)]
    owed = {(a, b): 5 for a in crowd for b in crowd if a < b}  # nobody owes backwards: no ring at all
    assert find_rings(owed, max_steps=MAX_STEPS) == []
