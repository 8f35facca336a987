"""What a peer that is asked to dial back allows itself."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.net.reach_asking import in_turn
from p2pgrid.net.reach_rules import Allowance, ProbeLimits, chosen, dial_of, is_local, prefix_of
from p2pgrid.net.reach_wire import RoadName, parse_target

ip = ipaddress.ip_address


@pytest.mark.parametrize(
    ("address", "seen", "resolved", "is_dialled"),
    [
        ("/ip4/203.0.113.9/tcp/4801/tls", "203.0.113.9", [], True),
        ("/ip4/0.0.0.0/tcp/4801/tls", "203.0.113.9", [], True),
        ("/ip6/2001:db8::9/tcp/4801", "2001:db8::9", [], True),
        ("/ip6/::/tcp/4801", "2001:db8::9", [], True),
        ("/ip4/127.0.0.1/tcp/4801", "127.0.0.1", [], True),
        ("/ip4/192.168.1.5/tcp/4801", "192.168.1.5", [], True),
        ("/dns/a/tcp/4801", "203.0.113.9", ["203.0.113.9", "198.51.100.7"], True),
        # Somebody else's address, however it is written.
        ("/ip4/198.51.100.7/tcp/4801", "203.0.113.9", [], False),
        ("/ip6/2001:db8::7/tcp/4801", "2001:db8::9", [], False),
        ("/ip6/::/tcp/4801", "203.0.113.9", [], False),
        ("/ip4/0.0.0.0/tcp/4801", "2001:db8::9", [], False),
        ("/ip4/127.0.0.1/tcp/4801", "203.0.113.9", [], False),
        ("/ip4/127.0.0.2/tcp/4801", "127.0.0.1", [], False),
        ("/ip4/192.168.1.5/tcp/4801", "203.0.113.9", [], False),
        ("/ip4/169.254.169.254/tcp/80", "203.0.113.9", [], False),
        ("/ip6/fe80::1/tcp/4801", "2001:db8::9", [], False),
        ("/dns/a/tcp/4801", "203.0.113.9", ["198.51.100.7"], False),
        ("/dns/a/tcp/4801", "203.0.113.9", ["127.0.0.1"], False),
        ("/dns/a/tcp/4801", "203.0.113.9", [], False),
    ],
)
def test_only_the_askers_own_address_is_dialled(address: str, seen: str, resolved: list[str], is_dialled: bool) -> None:
    target = parse_target(address)
    assert target is not None
    found = dial_of(target, ip(seen), [ip(one) for one in resolved])
    assert found == ((target.road, target.port) if is_dialled else None)


def test_few_are_dialled_and_none_twice() -> None:
    dials = [None, *((RoadName.DIRECT, port) for port in (1, 1, 2, 3, 4, 5)), (RoadName.LIBP2P, 1)]
    assert chosen(dials, 4) == [(RoadName.DIRECT, port) for port in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.1.2.3", True),
        ("172.31.255.255", True),
        ("172.32.0.0", False),
        ("192.168.0.1", True),
        ("100.64.0.1", True),
        ("100.128.0.1", False),
        ("127.9.9.9", True),
        ("169.254.1.1", True),
        ("::1", True),
        ("fd00::1", True),
        ("fe80::1", True),
        ("2001:db8::1", False),
        ("8.8.8.8", False),
        ("203.0.113.9", False),
    ],
)
def test_local_addresses(address: str, expected: bool) -> None:
    assert is_local(ip(address)) is expected


def test_prefixes() -> None:
    assert prefix_of(ip("203.0.113.9")) == prefix_of(ip("203.0.9.9")) != prefix_of(ip("203.1.113.9"))
    assert prefix_of(ip("2001:db8::9")) == prefix_of(ip("2001:db8:1::9")) != prefix_of(ip("2001:db9::9"))


LIMITS = ProbeLimits(per_peer=2, per_ip=3, in_all=5, window_s=10)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("a", "1", 0), ("a", "1", 1), ("a", "1", 2)], [True, True, False]),
        ([("a", "1", 0), ("a", "2", 1), ("a", "3", 2)], [True, True, False]),  # another address does not help
        ([(f"{n}", "1", 0) for n in range(4)], [True, True, True, False]),  # nor does another key
        ([(f"{n}", f"{n}", 0) for n in range(6)], [True] * 5 + [False]),
        ([("a", "1", 0), ("a", "1", 9), ("a", "1", 10), ("a", "1", 11)], [True, True, True, False]),
        ([("a", "1", 0)] + [("a", "1", 0)] * 3 + [("a", "1", 10.5)], [True, True, False, False, True]),
    ],
)
def test_floods_are_refused(calls: list[tuple[str, str, float]], expected: list[bool]) -> None:
    allowance = Allowance(LIMITS)
    assert [allowance.take(*call) for call in calls] == expected


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("123"), st.integers(0, 4)), max_size=60))
def test_no_window_of_time_has_more_than_its_limits(steps: list[tuple[str, str, int]]) -> None:
    allowance, now, taken = Allowance(LIMITS), 0.0, list[tuple[float, str, str]]()
    for peer, address, pause in steps:
        now += pause
        if allowance.take(peer, address, now):
            taken.append((now, peer, address))
        window = [one for one in taken if one[0] > now - LIMITS.window_s]
        assert len(window) <= LIMITS.in_all
        assert max(Counter(one[1] for one in window).values(), default=0) <= LIMITS.per_peer
        assert max(Counter(one[2] for one in window).values(), default=0) <= LIMITS.per_ip
        assert len(allowance._by_peer) + len(allowance._by_ip) <= 2 * LIMITS.in_all, "it forgets"


@given(st.integers())
def test_whom_to_ask_first(seed: int) -> None:
    candidates = [
        ("near", ip("192.168.1.9")),
        ("nowhere", None),
        *((f"crowd{n}", ip(f"203.0.113.{n}")) for n in range(20)),
        ("b", ip("198.51.100.7")),
        ("c", ip("2001:db8::1")),
    ]
    order = in_turn(candidates, random.Random(seed))
    assert sorted(order) == sorted(name for name, _ in candidates)
    first = {name.rstrip("0123456789") for name in order[:3]}
    assert first == {"crowd", "b", "c"}, "three prefixes before one of them again"
    assert set(order[-2:]) == {"near", "nowhere"}
