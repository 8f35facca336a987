"""One verdict out of what several peers say, some of whom may lie; and what it means in words."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.net.reach_text import ListensAt, advice, has_ip, listens_at, verdict_text
from p2pgrid.net.reach_wire import Outcome, RoadName
from p2pgrid.net.reachability import PeerView, Reach, Reachability, addresses_to_ask, judge

PUBLIC = "/ip4/203.0.113.9/tcp/4801/tls"
PORT = "/ip4/0.0.0.0/tcp/4801/tls"
PRIVATE = "/ip4/192.168.1.5/tcp/4801/tls"
LIBP2P = "/ip4/203.0.113.9/tcp/4802"
YES, NO, LATE, WRONG, SKIPPED = (
    Outcome.REACHED,
    Outcome.REFUSED,
    Outcome.TIMED_OUT,
    Outcome.WRONG_PEER,
    Outcome.NOT_TRIED,
)


def view(outcomes: dict[str, Outcome], asked: list[str], *, ip: str = "198.51.100.7", seen: str = "203.0.113.9") -> Any:
    """A peer's answer: what is left out was not tried."""
    return PeerView(
        ip=ipaddress.ip_address(ip),
        seen=ipaddress.ip_address(seen) if seen else None,
        outcomes=tuple(outcomes.get(address, SKIPPED) for address in asked),
    )


def verdict(
    announced: list[str], *said: dict[str, Outcome] | tuple[dict[str, Outcome], dict[str, str]]
) -> Reachability:
    asked = addresses_to_ask(announced)
    views = [view(one[0], asked, **one[1]) if isinstance(one, tuple) else view(one, asked) for one in said]
    return judge(asked, announced, views, n_asked=len(said))


def both(outcome: Outcome) -> dict[str, Outcome]:
    """What an honest peer says that sees us at the public address: both are one dial."""
    return {PUBLIC: outcome, PORT: outcome}


LAN = {"ip": "192.168.1.9", "seen": "192.168.1.5"}


@pytest.mark.parametrize(
    ("said", "expected", "is_disputed"),
    [
        ([], Reach.UNKNOWN, False),
        ([both(YES)], Reach.OUTSIDE, False),
        ([both(YES)] * 3, Reach.OUTSIDE, False),
        ([both(LATE)] * 3, Reach.NOT, False),
        ([both(NO), both(WRONG)], Reach.NOT, False),
        ([both(YES), both(YES), both(LATE)], Reach.OUTSIDE, True),
        ([both(YES), both(LATE), both(LATE)], Reach.NOT, True),
        ([both(YES), both(LATE)], Reach.NOT, True),  # one of two does not decide either
        # A peer that lies about where it sees us, and says that we are reached there, is not believed.
        ([(both(YES), {"seen": "198.51.100.66"}), both(LATE), both(LATE)], Reach.NOT, True),
        ([({PUBLIC: YES}, {"seen": "198.51.100.66"}), {}, {}], Reach.NOT, False),
        # Peers of the local network alone.
        ([({PORT: YES}, LAN)], Reach.LOCAL, False),
        ([({PORT: LATE}, LAN)], Reach.NOT, False),
        ([({PORT: YES}, LAN), both(LATE)], Reach.LOCAL, False),
        ([({PORT: YES}, LAN), both(YES)], Reach.OUTSIDE, False),
        # One behind the same translation is no stranger.
        ([(both(YES), {"ip": "203.0.113.9"})], Reach.LOCAL, False),
        # Nor is one that reaches us through a relay, or by the other version of IP, and so could not try.
        ([({}, {"seen": ""})], Reach.UNKNOWN, False),
        ([({}, {"seen": "2001:db8::9"})], Reach.UNKNOWN, False),
        ([({}, {"seen": "2001:db8::9"}), both(YES)], Reach.OUTSIDE, False),
    ],
)
def test_one_address(said: list[Any], expected: Reach, is_disputed: bool) -> None:
    found = verdict([PUBLIC], *said)
    assert found.reach is expected
    assert found.is_disputed is is_disputed
    assert found.of_road(RoadName.DIRECT) in (expected, None)
    assert found.of_road(RoadName.LIBP2P) is None


@given(
    st.lists(st.sampled_from(Outcome), min_size=3, max_size=3), st.sampled_from(["203.0.113.9", "198.51.100.66", ""])
)
@pytest.mark.parametrize("honest", [YES, NO])
def test_a_liar_in_the_minority_does_not_decide(honest: Outcome, lie: list[Outcome], seen: str) -> None:
    """Whatever it says of where it sees us, and of each address: the verdict is that of the two others."""
    announced = [PUBLIC, "/dns/node.example.org/tcp/4801/tls"]
    asked = addresses_to_ask(announced)
    said = dict.fromkeys(asked, honest)
    liar = view(dict(zip(asked, lie, strict=True)), asked, seen=seen)
    found = judge(asked, announced, [liar, view(said, asked), view(said, asked)], n_asked=3)
    expected = Reach.OUTSIDE if honest is YES else Reach.NOT
    assert {one.reach for one in found.addresses if one.is_announced} == {expected}
    assert found.reach is expected
    assert found.seen[0] == "203.0.113.9"
    assert all(found.unannounced(road) is None for road in RoadName)


def test_a_liar_invents_no_address_to_announce() -> None:
    liar = ({PORT: YES}, {"seen": "198.51.100.66"})
    found = verdict([PRIVATE], liar, {PORT: LATE}, {PORT: LATE})
    assert found.unannounced(RoadName.DIRECT) is None


def test_a_port_that_is_forwarded_and_not_announced() -> None:
    found = verdict([PRIVATE], {PORT: YES}, {PORT: YES})
    assert found.reach is Reach.NOT, "clients are told an address that leads nowhere"
    assert found.unannounced(RoadName.DIRECT) == PUBLIC
    assert verdict_text(found) == (
        "strangers can reach this node, but not at the addresses that they are told "
        "(direct road: reached at another address; 2 peers answered)"
    )
    assert advice(found, [ListensAt(RoadName.DIRECT, "0.0.0.0", 4801)]) == [
        "direct road: strangers reach it at 203.0.113.9:4801, which others are not told: --announce 203.0.113.9:4801, "
        "or announce in config.toml."
    ]


def test_a_name_counts_by_all_that_were_asked() -> None:
    name = "/dns4/node.example.org/tcp/4801/tls"
    assert verdict([name], {name: YES}, {name: YES}, {}).reach is Reach.OUTSIDE
    assert verdict([name], {name: YES}, {}, {}).reach is Reach.NOT


def test_roads_are_judged_apart() -> None:
    port = "/ip4/0.0.0.0/tcp/4802"
    found = verdict([PUBLIC, LIBP2P], *[{PUBLIC: LATE, PORT: LATE, LIBP2P: YES, port: YES}] * 3)
    assert found.roads() == {"direct": "unreachable", "libp2p": "outside"}
    assert found.reach is Reach.OUTSIDE
    text = verdict_text(found)
    assert text == "strangers can reach this node (direct road: timed out; libp2p: reached; 3 peers answered)"
    listening = [ListensAt(RoadName.DIRECT, "203.0.113.9", 4801), ListensAt(RoadName.LIBP2P, "203.0.113.9", 4802)]
    assert advice(found, listening, is_own_ip=lambda ip: ip == "203.0.113.9") == [
        "direct road: let TCP port 4801 in to 203.0.113.9 in this machine's firewall (and your provider's). "
        "What tried heard nothing: a firewall drops it."
    ]


def test_without_libp2p_nobody_finds_the_node() -> None:
    found = verdict([PUBLIC, LIBP2P], *[{PUBLIC: YES, PORT: YES, LIBP2P: NO, "/ip4/0.0.0.0/tcp/4802": NO}] * 3)
    assert verdict_text(found) == (
        "strangers can reach this node's direct road, but not libp2p, over which they would find it "
        "(direct road: reached; libp2p: refused; 3 peers answered)"
    )


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (NO, "What tried was refused: a firewall rejects it, or nothing listens there."),
        (LATE, "What tried heard nothing: a firewall drops it."),
        (WRONG, "Something else answers there: check where the port is forwarded to."),
    ],
)
def test_behind_a_translation_the_router_is_named(outcome: Outcome, why: str) -> None:
    found = verdict([PRIVATE], *[{PORT: outcome}] * 2)
    [line] = advice(found, [ListensAt(RoadName.DIRECT, "192.168.1.5", 4801)], is_own_ip=lambda ip: False)
    assert line == (
        "direct road: let TCP port 4801 in to 192.168.1.5 in this machine's firewall (and your provider's); others see "
        "this machine at 203.0.113.9, which is not its own address: have the router forward TCP port 4801 to "
        f"192.168.1.5, and tell others: --announce 203.0.113.9:4801, or announce in config.toml. {why}"
    )


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ([], "nobody could be asked whether strangers can reach this node"),
        ([both(YES)], "strangers can reach this node (direct road: reached; one peer answered)"),
        (
            [both(YES), both(YES), both(NO)],
            "strangers can reach this node (direct road: reached, peers disagree; 3 peers answered)",
        ),
        ([both(NO)] * 2, "strangers cannot reach this node (direct road: refused; 2 peers answered)"),
        (
            [({PORT: YES}, LAN)],
            "this node is reachable from its local network; nobody outside of it could be asked "
            "(direct road: reached from here; one peer answered)",
        ),
        (
            [({PORT: YES}, LAN), both(LATE)],
            "strangers cannot reach this node; peers on its local network can "
            "(direct road: reached from here; 2 peers answered)",
        ),
        (
            [({PORT: LATE}, LAN)],
            "not even peers on its local network can reach this node (direct road: timed out; one peer answered)",
        ),
    ],
)
def test_in_words(said: list[Any], text: str) -> None:
    assert verdict_text(verdict([PUBLIC], *said)) == text


def test_where_no_stranger_was_asked_nothing_need_be_opened() -> None:
    assert advice(verdict([PUBLIC], ({PORT: LATE}, LAN)), [ListensAt(RoadName.DIRECT, "0.0.0.0", 4801)]) == []


def test_what_is_asked() -> None:
    announced = [PRIVATE, "/ip4/127.0.0.1/tcp/4802", "/ip6/2001:db8::9/tcp/4802", "/dns/a/tcp/1/tls", "nonsense"]
    assert addresses_to_ask(announced) == [
        PORT,
        "/ip4/0.0.0.0/tcp/4802",
        "/ip6/::/tcp/4802",
        PRIVATE,
        "/ip6/2001:db8::9/tcp/4802",
        "/dns/a/tcp/1/tls",
    ]
    assert len(addresses_to_ask([f"/ip4/203.0.113.{n}/tcp/{n}" for n in range(1, 50)])) == 8


def test_a_node_on_loopback_alone() -> None:
    """The grid of one machine: what is announced is loopback, and peers see us there."""
    announced = ["/ip4/127.0.0.1/tcp/4801/tls"]
    found = verdict(announced, ({PORT: YES}, {"ip": "127.0.0.1", "seen": "127.0.0.1"}))
    assert found.reach is Reach.LOCAL
    assert [(one.address, one.is_announced) for one in found.addresses] == [(announced[0], True)]


@pytest.mark.parametrize(("clocks", "expected"), [([], None), ([5], 5), ([-9_000, 10, 12], 10), ([0, 10**12, 3], 3)])
def test_the_clock_in_the_middle(clocks: list[int], expected: int | None) -> None:
    views = [PeerView(ip=None, seen=None, outcomes=(), clock_ms=one) for one in clocks]
    assert judge([], [], views, n_asked=len(views)).clock_ms == expected


def test_it_travels_as_json() -> None:
    found = verdict([PUBLIC, LIBP2P], both(YES), both(NO))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Reachability) == found


def test_ports_and_own_addresses() -> None:
    assert listens_at(["/ip4/0.0.0.0/tcp/4801/tls", "/ip6/::/tcp/4802", "/dns/a/tcp/1"]) == [
        ListensAt(RoadName.DIRECT, "0.0.0.0", 4801),
        ListensAt(RoadName.LIBP2P, "::", 4802),
    ]
    assert has_ip("127.0.0.1")
    assert not has_ip("203.0.113.9")
