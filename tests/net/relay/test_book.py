"""What a relay gives away, counted: against a model, whatever is asked in whatever order."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.net.relay.book import RelayBook
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.pace import Bucket
from p2pgrid.net.relay.status import RelayRefusal, Status, status_name

LIMITS = RelayLimits(
    reservations=3, reservations_per_ip=2, reservation_s=100, circuits=4, circuits_per_peer=2, circuits_per_ip=3
)


def refused(status: Status) -> contextlib.AbstractContextManager[object]:
    return pytest.raises(RelayRefusal, check=lambda refusal: refusal.status is status)


def test_reservations_are_capped_in_all_and_by_address() -> None:
    book = RelayBook(LIMITS)
    book.reserve("a", "1", 0)
    book.reserve("b", "1", 0)
    with refused(Status.RESERVATION_REFUSED):
        book.reserve("c", "1", 0)
    book.reserve("c", "2", 0)
    with refused(Status.RESERVATION_REFUSED):
        book.reserve("d", "3", 0)
    book.release("a")
    book.reserve("d", "3", 0)
    assert book.reserved(0) == ["b", "c", "d"]


def test_a_peer_renews_where_there_is_no_room_for_others() -> None:
    book = RelayBook(LIMITS)
    for peer, ip in (("a", "1"), ("b", "1"), ("c", "2")):
        book.reserve(peer, ip, 0)
    book.reserve("a", "1", 90)
    assert [book.holds("a", now_s) for now_s in (99, 101, 189, 191)] == [True, True, True, False]
    assert book.reserved(101) == ["a"]


def test_a_reservation_ends_in_time_and_makes_room() -> None:
    book = RelayBook(LIMITS)
    for peer, ip in (("a", "1"), ("b", "2"), ("c", "3")):
        book.reserve(peer, ip, 0)
    with refused(Status.RESERVATION_REFUSED):
        book.reserve("d", "4", 99)
    book.reserve("d", "4", 100)
    assert not book.holds("a", 100) and book.holds("d", 199)


def test_circuits_are_capped_in_all_by_peer_and_by_caller() -> None:
    book = RelayBook(LIMITS)
    for peer in ("a", "b", "c"):
        book.reserve(peer, peer, 0)
    with contextlib.ExitStack() as open_circuits:
        open_circuits.enter_context(book.circuit("x", "a", 0))
        open_circuits.enter_context(book.circuit("x", "a", 0))
        with refused(Status.RESOURCE_LIMIT_EXCEEDED), book.circuit("y", "a", 0):
            pass
        open_circuits.enter_context(book.circuit("x", "b", 0))
        with refused(Status.RESOURCE_LIMIT_EXCEEDED), book.circuit("x", "c", 0):
            pass
        open_circuits.enter_context(book.circuit("y", "c", 0))
        with refused(Status.RESOURCE_LIMIT_EXCEEDED), book.circuit("z", "b", 0):
            pass
        assert book.n_circuits == 4
    assert book.n_circuits == 0
    with refused(Status.NO_RESERVATION), book.circuit("x", "d", 0):
        pass
    with refused(Status.NO_RESERVATION), book.circuit("x", "a", 100):
        pass


STEPS = st.lists(
    st.tuples(st.sampled_from(["reserve", "release", "open", "close"]), st.integers(0, 5), st.integers(0, 3)),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=150)
def test_no_order_of_requests_gets_past_a_limit(steps: list[tuple[str, int, int]]) -> None:
    book, circuits = RelayBook(LIMITS), list[tuple[str, str, contextlib.ExitStack]]()
    ips: dict[str, str] = {}
    for now_s, (what, n, ip) in enumerate(steps):
        peer, at = f"peer {n}", f"ip {ip}"
        with contextlib.suppress(RelayRefusal):
            if what == "reserve":
                book.reserve(peer, at, now_s)
                ips[peer] = at
            elif what == "release":
                book.release(peer)
            elif what == "open":
                stack = contextlib.ExitStack()
                stack.enter_context(book.circuit(at, peer, now_s))
                circuits.append((peer, at, stack))
            elif circuits:
                circuits.pop(n % len(circuits))[2].close()
        held = book.reserved(now_s)
        assert len(held) <= LIMITS.reservations
        assert max(Counter(ips[one] for one in held).values(), default=0) <= LIMITS.reservations_per_ip
        assert book.n_circuits == len(circuits) <= LIMITS.circuits
        assert max(Counter(one[0] for one in circuits).values(), default=0) <= LIMITS.circuits_per_peer
        assert max(Counter(one[1] for one in circuits).values(), default=0) <= LIMITS.circuits_per_ip
    for _, _, stack in circuits:
        stack.close()
    assert book.n_circuits == 0 and not book._circuits_to and not book._circuits_from


@given(st.integers(1, 10_000), st.lists(st.tuples(st.integers(0, 5_000), st.floats(0, 3)), max_size=50))
def test_a_bucket_never_lets_more_through_than_its_pace(rate: int, takes: list[tuple[int, float]]) -> None:
    bucket, now_s, sent = Bucket(rate, 0.0), 0.0, 0
    for n_bytes, pause_s in takes:
        now_s += pause_s
        now_s += bucket.take(n_bytes, now_s)  # whoever takes waits as long as it is told
        sent += n_bytes
        assert sent <= rate * (now_s + 1.0) * 1.000001 + 1e-6
    assert bucket.take(0, now_s) <= 1e-9


def test_a_bucket_that_is_full_makes_nobody_wait() -> None:
    bucket = Bucket(1000, 0.0)
    assert bucket.take(1000, 0.0) == 0
    assert bucket.take(500, 0.0) == 0.5
    assert bucket.take(1000, 1000.0) == 0


@pytest.mark.parametrize(("number", "name"), [(100, "ok"), (204, "no reservation"), (7, "status 7")])
def test_a_status_has_a_name(number: int, name: str) -> None:
    assert status_name(number) == name
