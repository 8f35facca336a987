"""Seats and rates, as pure rules."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.net.limits import Allowance, Rates, Seats, TimeShare


@pytest.mark.parametrize(
    ("callers", "let_in"),
    [
        ([("a", "1")] * 3, [True, True, False]),  # a peer's cap
        ([("a", "1"), ("a", "2"), ("a", "3"), ("a", "4"), ("a", "5")], [True, True, True, True, False]),  # an address's
        ([(str(n), str(n)) for n in range(18)], [True] * 16 + [False] * 2),  # of all
    ],
)
def test_seats_are_capped_by_peer_by_address_and_over_all(callers: list[tuple[str, str]], let_in: list[bool]) -> None:
    seats = Seats(Allowance(total=16, per_address=4, per_peer=2))
    assert [seats.take(*caller) for caller in callers] == let_in
    assert seats.refused == let_in.count(False)


def test_where_half_is_taken_an_address_gets_less() -> None:
    seats = Seats(Allowance(total=64, per_address=16, crowded_per_address=2))
    for address in ("a", "b"):
        assert [seats.take(address) for _ in range(17)] == [True] * 16 + [False]
    assert [seats.take("c") for _ in range(3)] == [True, True, False]
    seats.leave("a")
    assert [seats.take("c") for _ in range(14)] == [False] * 14
    assert seats.take("d")


def test_an_address_without_a_cap_may_take_what_all_may() -> None:
    seats = Seats(Allowance(total=8, per_address=2), uncapped=["a"])
    assert [seats.take("b") for _ in range(3)] == [True, True, False]
    assert [seats.take("a") for _ in range(7)] == [True] * 6 + [False]


def test_a_seat_that_is_left_is_free_and_nothing_is_remembered() -> None:
    seats = Seats(Allowance(total=4, per_address=2, per_peer=1))
    for n in range(1000):
        assert seats.take(f"address {n}", f"peer {n}")
        assert not seats.take(f"address {n}", f"peer {n}")
        seats.leave(f"address {n}", f"peer {n}")
    assert seats.taken == 0
    assert not seats._by_address
    assert not seats._by_peer


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123"), st.booleans()), max_size=60))
def test_seats_never_pass_their_caps(steps: list[tuple[str, str, bool]]) -> None:
    allowance = Allowance(total=5, per_address=3, per_peer=2)
    seats, held = Seats(allowance), list[tuple[str, str]]()
    for address, peer, leaves in steps:
        if leaves and (address, peer) in held:
            held.remove((address, peer))
            seats.leave(address, peer)
        elif seats.take(address, peer):
            held.append((address, peer))
        assert len(held) == seats.taken <= 5
        assert all(sum(a == one for a, _ in held) == seats.held_by(one) <= 3 for one in "abc")
        assert all(sum(p == one for _, p in held) <= 2 for one in "123")


def test_a_rate_gives_its_burst_and_then_so_many_a_second() -> None:
    rates = Rates(10, 2)
    assert [rates.take("a", 0.0) for _ in range(11)] == [True] * 10 + [False]
    assert rates.take("b", 0.0), "each key has a bucket of its own"
    assert [rates.take("a", 1.0) for _ in range(3)] == [True, True, False]
    assert [rates.take("a", 1e6) for _ in range(11)] == [True] * 10 + [False]


def test_who_spends_more_than_is_there_waits_for_it() -> None:
    rates = Rates(10, 2)
    assert rates.spend("a", 0.0, 10) == 0
    assert rates.spend("a", 0.0, 1) == 0.5
    assert rates.spend("a", 0.0, 1) == 1.0
    assert rates.spend("a", 1.0, 0) == 0
    assert rates.spend("a", 1.0, 10**9) == 10.0, "no debt is longer than ten seconds"


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 5)), min_size=1, max_size=50))
def test_on_average_the_rate_is_kept(steps: list[tuple[float, float]]) -> None:
    """Whoever waits as long as it is told."""
    rates, now_s, spent = Rates(10, 2), 0.0, 0.0
    for pause_s, n in steps:
        now_s += pause_s
        now_s += rates.spend("a", now_s, n)
        spent += n
        assert spent <= 10 + 2 * now_s + 1e-6


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    rates = Rates(2, 1)
    assert rates.take("a", 100.0)
    assert rates.take("a", 50.0)
    assert not rates.take("a", 50.0)


def test_memory_is_bounded_and_no_debt_is_forgotten() -> None:
    rates = Rates(4, 1, max_keys=100)
    tracemalloc.start()
    assert [rates.take("debtor", 0.0) for _ in range(5)] == [True] * 4 + [False]
    for n in range(50_000):
        rates.take(f"newcomer {n}", 0.5)
    assert len(rates) <= 101
    assert tracemalloc.get_traced_memory()[0] < 1_000_000
    tracemalloc.stop()
    assert not rates.take("debtor", 0.5)
    assert not rates.take("one more", 0.5), "newcomers share a bucket, and it is empty"
    assert rates.take("one more", 60.0), "buckets that are full again make room"


def test_the_share_of_time() -> None:
    share = TimeShare(0.5, burst_s=1.0)
    assert share.spend("a", 0.0, 0.9) == 0
    assert share.spend("a", 0.0, 0.2) == pytest.approx(0.2)
    assert share.spend("b", 0.0, 0.5) == 0
