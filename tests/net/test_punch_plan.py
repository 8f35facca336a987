"""Which of a peer's places are tried: nobody is led to connect to what is inside somebody else's network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.net.punch_plan import MAX_PLACES, Place, own_places, punchable

HOME, WAN = ("192.168.1.5", 40_000), ("8.8.4.4", 51_000)
PEER = ("1.1.1.1", 6_000)


def test_a_peer_is_told_three_ways() -> None:
    assert own_places(HOME, WAN) == [WAN, ("8.8.4.4", 40_000), HOME]
    assert own_places(HOME, ("8.8.4.4", 40_000)) == [("8.8.4.4", 40_000), HOME]
    assert own_places(WAN, WAN) == [WAN]


@pytest.mark.parametrize(
    ("told", "local", "observed", "tried"),
    [
        ([PEER, ("1.1.1.1", 6_001)], HOME, WAN, [PEER, ("1.1.1.1", 6_001)]),
        ([PEER, ("192.168.1.7", 22)], HOME, WAN, [PEER]),  # our network is not its own
        ([("8.8.4.4", 6_000), ("192.168.1.7", 6_000)], HOME, WAN, [("8.8.4.4", 6_000), ("192.168.1.7", 6_000)]),
        ([("127.0.0.1", 22), ("0.0.0.0", 22), ("224.0.0.1", 22), ("169.254.169.254", 80)], HOME, WAN, []),
        ([("10.0.0.9", 6_000)], ("10.0.0.5", 1), ("10.0.0.5", 1), [("10.0.0.9", 6_000)]),  # a network without NAT
        ([("127.0.0.1", 6_000)], ("127.0.0.1", 1), ("127.0.0.1", 1), [("127.0.0.1", 6_000)]),
        ([("10.0.0.9", 6_000)], ("127.0.0.1", 1), ("127.0.0.1", 1), []),
        ([("127.0.0.1", 1)], ("127.0.0.1", 1), ("127.0.0.1", 1), []),  # ourselves
        ([("2606:4700::1", 6_000)], HOME, WAN, []),
        ([("2606:4700::1", 6_000), PEER], ("2a00::5", 1), ("2a00::5", 1), [("2606:4700::1", 6_000)]),
        ([PEER, PEER, ("no address", 1), ("1.1.1.1", 0), ("1.1.1.1", 65_536)], HOME, WAN, [PEER]),
        ([("1.1.1.1", n) for n in range(1, 99)], HOME, WAN, [("1.1.1.1", n) for n in range(1, MAX_PLACES + 1)]),
    ],
)
def test_what_is_tried(told: list[Place], local: Place, observed: Place, tried: list[Place]) -> None:
    assert punchable(told, local, observed) == tuple(tried)


PLACES = st.tuples(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str), st.integers(0, 70_000))


@given(st.lists(PLACES, max_size=12))
def test_behind_a_nat_nothing_private_is_tried_for_a_stranger(told: list[Place]) -> None:
    import ipaddress

    for ip, port in punchable([one for one in told if one[0] != WAN[0]], HOME, WAN):
        assert ipaddress.ip_address(ip).is_global and 0 < port < 65_536
