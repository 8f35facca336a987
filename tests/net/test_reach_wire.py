"""What is said about reachability, and what is refused of it; the example of the specification."""

from __future__ import annotations

import ipaddress
import re
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.reach_wire import (
    MAX_ADDRESSES,
    MAX_MESSAGE_BYTES,
    Outcome,
    ReachAnswer,
    ReachRequest,
    RoadName,
    ip_of,
    parse_seen,
    parse_target,
)
from p2pgrid.proto.wire.base import parse_frame

SPEC = (Path(__file__).parents[2] / "docs" / "spec" / "reachability.md").read_text()


def example(who: str) -> bytes:
    """What one side sends in the first fenced block, its length before it."""
    words = [line.split()[1:] for line in SPEC.split("```")[1].splitlines() if line.startswith(who)]
    hexes = [takewhile(lambda word: re.fullmatch("[0-9a-f]+", word), line) for line in words]
    return bytes.fromhex("".join(word for line in hexes for word in line))


def test_the_example_is_true() -> None:
    request, answer = example("A"), example("B")
    assert int.from_bytes(request[:4]) == len(request) - 4
    assert int.from_bytes(answer[:4]) == len(answer) - 4
    assert parse_frame(request[4:], ReachRequest) == ReachRequest(
        addresses=("/ip4/0.0.0.0/tcp/4801/tls", "/ip4/192.168.1.5/tcp/4801/tls")
    )
    assert parse_frame(answer[4:], ReachAnswer) == ReachAnswer(
        seen="/ip4/203.0.113.9/tcp/50412",
        now_ms=1_767_225_600_000,
        outcomes=(Outcome.TIMED_OUT, Outcome.NOT_TRIED),
    )


def test_the_tables_name_every_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", SPEC, flags=re.MULTILINE))
    assert rows == {str(int(one)): one.name for one in Outcome}


@pytest.mark.parametrize(
    ("text", "host", "port", "road"),
    [
        ("/ip4/192.0.2.7/tcp/4801/tls", "192.0.2.7", 4801, RoadName.DIRECT),
        ("/ip4/192.0.2.7/tcp/65535", "192.0.2.7", 65535, RoadName.LIBP2P),
        ("/ip6/2001:db8::1/tcp/1", "2001:db8::1", 1, RoadName.LIBP2P),
        ("/ip6/::/tcp/4801/tls", "::", 4801, RoadName.DIRECT),
        ("/dns/node.example.org/tcp/4801/tls", "node.example.org", 4801, RoadName.DIRECT),
        ("/dns6/a/tcp/80", "a", 80, RoadName.LIBP2P),
    ],
)
def test_addresses(text: str, host: str, port: int, road: RoadName) -> None:
    target = parse_target(text)
    assert target is not None
    assert (target.host, target.port, target.road) == (host, port, road)
    assert target.address == text
    assert (target.ip is None) is text.startswith("/dns")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/tls",
        "/ip4/192.0.2.7/tcp/0",
        "/ip4/192.0.2.7/tcp/65536",
        "/ip4/192.0.2.7/tcp/080",
        "/ip4/192.0.2.7/tcp/+80",
        "/ip4/192.0.2.7/tcp/٣",
        "/ip4/192.0.2.07/tcp/80",
        "/ip4/3221225991/tcp/80",
        "/ip4/192.0.2.7/udp/80",
        "/ip4/192.0.2.7/tcp/80/ws",
        "/ip4/192.0.2.7/tcp/80/p2p/12D3KooW",
        "/ip4/192.0.2.7/tcp/80/tls/tls",
        "/ip4/192.0.2.7/tcp/80\n",
        "/ip4/224.0.0.1/tcp/80",
        "/ip4/255.255.255.255/tcp/80",
        "/ip4/::1/tcp/80",
        "/ip6/192.0.2.7/tcp/80",
        "/ip6/::ffff:192.0.2.7/tcp/80",
        "/ip6/2001:DB8::1/tcp/80",
        "/ip6/fe80::1%eth0/tcp/80",
        "/ip6/ff02::1/tcp/80",
        "/dns/a b/tcp/80",
        "/dns/-a/tcp/80",
        "/dns//tcp/80",
        "/dns/a..b/tcp/80",
        "/dns/" + "a" * 64 + "/tcp/80",
        "/dns/" + "a." * 127 + "ab/tcp/80",
        "x" * 10_000,
    ],
)
def test_what_is_no_address(text: str) -> None:
    assert parse_target(text) is None


@given(st.text(max_size=80) | st.from_regex(r"/(ip4|ip6|dns)/[0-9a-f:.%-]{1,20}/tcp/[0-9]{1,6}(/tls)?", fullmatch=True))
def test_an_address_is_its_own_text(text: str) -> None:
    """What is taken is written in one way alone: so that two texts never hide one port."""
    target = parse_target(text)
    if target is not None:
        assert target.address == text
        assert target.ip is None or str(target.ip) == target.host


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/ip4/192.0.2.7/tcp/50000", (ipaddress.ip_address("192.0.2.7"), 50000)),
        ("/ip4/192.0.2.7/tcp/50000/tls", None),
        ("/ip4/0.0.0.0/tcp/50000", None),
        ("/dns/a/tcp/50000", None),
        ("somewhere", None),
    ],
)
def test_where_one_is_seen(text: str, expected: object) -> None:
    assert parse_seen(text) == expected


@pytest.mark.parametrize(
    ("host", "ip"),
    [("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("fe80::1%eth0", "fe80::1"), ("x", None)],
)
def test_a_sockets_peer(host: str, ip: str | None) -> None:
    assert ip_of(host) == (ipaddress.ip_address(ip) if ip else None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x92\x90",
        ReachRequest(addresses=("/ip4/192.0.2.7/tcp/1",) * (MAX_ADDRESSES + 1)).to_bytes(),
        ReachRequest(addresses=("x" * 301,)).to_bytes(),
        ReachRequest(addresses=("",)).to_bytes(),
        ReachRequest(addresses=("\x80",)).to_bytes().replace(b"\xc2\x80", b"\xff\xff"),
        ReachRequest(addresses=()).to_bytes() + b"\xc0",
        b"\x92" + ReachRequest(addresses=()).to_bytes()[1:] + b"\xc0",
    ],
)
def test_requests_that_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_frame(data, ReachRequest)


@pytest.mark.parametrize(
    "data",
    [
        ReachAnswer(seen="", now_ms=0, outcomes=(Outcome.REACHED,) * 9).to_bytes(),
        ReachAnswer(seen="", now_ms=0, outcomes=(Outcome.NOT_TRIED,)).to_bytes().replace(b"\x91\x04", b"\x91\x05"),
        ReachAnswer(seen="x" * 301, now_ms=0).to_bytes(),
        ReachAnswer(seen="", now_ms=-1).to_bytes(),
        ReachAnswer(seen="", now_ms=2**60).to_bytes(),
    ],
)
def test_answers_that_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_frame(data, ReachAnswer)


def test_the_largest_messages_fit() -> None:
    assert len(ReachRequest(addresses=("x" * 300,) * MAX_ADDRESSES).to_bytes()) < MAX_MESSAGE_BYTES
    assert len(ReachAnswer(seen="x" * 300, now_ms=0, outcomes=(Outcome.NOT_TRIED,) * 8).to_bytes()) < MAX_MESSAGE_BYTES
