from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pgrid.errors import UsageError
from p2pgrid.net.addresses import (
    MAX_ADDRESS_BYTES,
    MAX_ADDRESS_CHARS,
    MAX_ADDRESSES_PER_PEER,
    Circuit,
    announced,
    full_multiaddr,
    is_circuit,
    parse_announce_address,
    parse_listen_address,
    parse_peer_multiaddr,
    split_circuit,
    usable_addresses,
    without_peer_id,
)
from p2pgrid.proto.keys import SecretKey

PEER = SecretKey(bytes(31) + b"\x01").public_key.peer_id
OTHER = SecretKey(bytes(31) + b"\x02").public_key.peer_id


@pytest.mark.parametrize("text", ["/ip4/0.0.0.0/tcp/0", "/ip4/127.0.0.1/tcp/4001", "/ip6/::/tcp/4001"])
def test_listen_addresses(text: str) -> None:
    assert str(parse_listen_address(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1:4001", "/ip4/127.0.0.1", "/ip4/999.0.0.1/tcp/1", "/ip4/1.2.3.4/tcp/70000", "/dns4/a.b/tcp/1",
     "/ip4/127.0.0.1/udp/4001/quic-v1", f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}", "/tcp/4001", "/"],
)  # fmt: skip
def test_what_cannot_be_listened_on_is_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_listen_address(text)
    assert repr(text) in caught.value.message
    assert "/ip4/" in caught.value.hint


def test_a_peer_is_an_address_and_a_name() -> None:
    peer_id, address = parse_peer_multiaddr(f"/dns4/example.org/tcp/4001/p2p/{PEER}")
    assert (peer_id, str(address)) == (PEER, "/dns4/example.org/tcp/4001")
    assert full_multiaddr(address, peer_id) == f"/dns4/example.org/tcp/4001/p2p/{PEER}"


@pytest.mark.parametrize(
    "text",
    ["", "x", "/ip4/1.2.3.4/tcp/4001", f"/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/0/p2p/{PEER}",
     f"/ip4/0.0.0.0/tcp/1/p2p/{PEER}",
     "/ip4/1.2.3.4/tcp/4001/p2p/12D3KooW", "/ip4/1.2.3.4/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"],
)  # fmt: skip
def test_what_names_no_peer_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_peer_multiaddr(text)


def test_announced_addresses_lose_their_peer_id() -> None:
    assert str(parse_announce_address(f"/dns4/example.org/tcp/4001/p2p/{PEER}")) == "/dns4/example.org/tcp/4001"
    with pytest.raises(UsageError):
        parse_announce_address("/ip4/0.0.0.0/tcp/4001")


def test_hostile_addresses_are_dropped() -> None:
    good = "/ip4/192.0.2.1/tcp/4001"
    sent: list[bytes | str] = [
        b"",
        b"\xff" * 20,
        b"\x04" * (MAX_ADDRESS_BYTES + 1),
        "/dns4/" + "a" * MAX_ADDRESS_CHARS + "/tcp/1",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip4/224.0.0.1/tcp/4001",
        "/ip4/192.0.2.1/udp/4001/quic-v1",
        "/unix/tmp%2fsocket",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{OTHER}",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{OTHER}/p2p-circuit/p2p/{PEER}",
        f"{good}/p2p/{PEER}",
        good,
        Multiaddr(good).to_bytes(),
    ]
    assert [str(a) for a in usable_addresses(sent, PEER)] == [good]


def test_the_number_of_addresses_is_capped() -> None:
    many = [f"/ip4/192.0.2.1/tcp/{n}" for n in range(1, 100)]
    assert len(usable_addresses(many, PEER)) == MAX_ADDRESSES_PER_PEER
    assert usable_addresses([*[b"\xff"] * 1000, many[0]], PEER) == []


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_no_bytes_raise(sent: list[bytes]) -> None:
    usable_addresses(sent, PEER)


def test_a_wildcard_becomes_own_addresses() -> None:
    own = [str(a) for a in announced([Multiaddr("/ip4/0.0.0.0/tcp/4001")])]
    assert own[-1] == "/ip4/127.0.0.1/tcp/4001"
    assert "/ip4/0.0.0.0/tcp/4001" not in own
    assert announced([Multiaddr("/ip4/192.0.2.1/tcp/1")]) == [Multiaddr("/ip4/192.0.2.1/tcp/1")]


def test_without_peer_id_leaves_others_alone() -> None:
    address = Multiaddr("/ip4/192.0.2.1/tcp/1")
    assert without_peer_id(address) == address
    assert without_peer_id(Multiaddr(f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}")) == address


@pytest.mark.parametrize("parse", [parse_listen_address, parse_announce_address, parse_peer_multiaddr])
@pytest.mark.parametrize("part", ["/ip4/1.2.3.4", "/tcp/1", "/p2p-circuit", "x"])
def test_a_text_too_long_for_an_address_is_refused_unread(parse: Callable[[str], object], part: str) -> None:
    with pytest.raises(UsageError, match="too long") as caught:
        parse(part * 100_000)
    assert len(caught.value.message) < 200


def test_only_so_many_of_a_peers_addresses_are_parsed() -> None:
    """Each costs a tenth of a millisecond, and an answer of the DHT may hold thousands."""
    good = [Multiaddr(f"/ip4/192.0.2.7/tcp/{port}").to_bytes() for port in range(1, 40)]
    unfit = [Multiaddr(f"/ip4/0.0.0.0/tcp/{port}").to_bytes() for port in range(1, 13)]
    other = [Multiaddr(f"/ip4/192.0.2.7/udp/{port}/quic-v1").to_bytes() for port in range(1, 31)]
    assert usable_addresses([*other, good[0]], PEER) == [Multiaddr(good[0])]
    assert usable_addresses([good[0]] * 30 + [good[1]], PEER) == [Multiaddr(good[0]), Multiaddr(good[1])]
    assert usable_addresses([*unfit, good[0]], PEER) == []
    assert usable_addresses([*other, *other, good[0]], PEER) == []
    assert len(usable_addresses(good, PEER)) == MAX_ADDRESSES_PER_PEER


@pytest.mark.parametrize("host", ["ip4/192.0.2.7", "ip6/2001:db8::1", "dns/a.example", "dns4/a.example", "dns6/a.b"])
@pytest.mark.parametrize("end", ["", f"/p2p/{PEER}"])
def test_every_shape_of_ours_is_taken_from_bytes_and_text(host: str, end: str) -> None:
    text = f"/{host}/tcp/4001"
    assert usable_addresses([text + end, Multiaddr(text + end).to_bytes()], PEER) == [Multiaddr(text)]


RELAY = SecretKey(bytes(31) + b"\x03").public_key.peer_id
CIRCUIT = f"/ip4/192.0.2.7/tcp/4803/p2p/{RELAY}/p2p-circuit"


@pytest.mark.parametrize("host", ["ip4/192.0.2.7", "ip6/2001:db8::1", "dns/a.example"])
@pytest.mark.parametrize("end", ["", f"/p2p/{PEER}"])
def test_circuit_addresses_are_taken_where_they_are_asked_for(host: str, end: str) -> None:
    text = f"/{host}/tcp/4803/p2p/{RELAY}/p2p-circuit"
    sent = [text + end, Multiaddr(text + end).to_bytes()]
    assert usable_addresses(sent, PEER, circuits=True) == [Multiaddr(text)]
    assert usable_addresses(sent, PEER) == []


@pytest.mark.parametrize(
    "text",
    [
        f"{CIRCUIT}/p2p/{OTHER}",  # leads to somebody else
        f"{CIRCUIT}/p2p/{OTHER}/p2p-circuit/p2p/{PEER}",  # a relay of a relay
        f"{CIRCUIT}/p2p-circuit/p2p/{PEER}",
        f"{CIRCUIT}/ip4/192.0.2.8/tcp/1",
        f"/ip4/192.0.2.7/tcp/4803/p2p/{PEER}/p2p-circuit",  # its own relay
        f"/ip4/192.0.2.7/tcp/0/p2p/{RELAY}/p2p-circuit",
        f"/ip4/224.0.0.1/tcp/1/p2p/{RELAY}/p2p-circuit",
        f"/ip4/192.0.2.7/udp/4803/quic-v1/p2p/{RELAY}/p2p-circuit",
        f"/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
        "/ip4/192.0.2.7/tcp/4803/p2p-circuit",
        "/ip4/192.0.2.7/tcp/4803/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit",
    ],
)
def test_no_other_way_through_a_relay_is_taken(text: str) -> None:
    assert usable_addresses([text, Multiaddr(text).to_bytes()], PEER, circuits=True) == []


def test_a_circuit_address_has_two_parts() -> None:
    circuit = split_circuit(Multiaddr(CIRCUIT))
    assert circuit == Circuit(RELAY, Multiaddr("/ip4/192.0.2.7/tcp/4803"))
    assert circuit is not None and circuit.address == Multiaddr(CIRCUIT)
    assert is_circuit(Multiaddr(CIRCUIT)) and not is_circuit(Multiaddr("/ip4/192.0.2.7/tcp/4803"))
    for other in ("/ip4/192.0.2.7/tcp/4803", f"{CIRCUIT}/p2p/{PEER}", f"{CIRCUIT}/p2p/{OTHER}/p2p-circuit"):
        assert split_circuit(Multiaddr(other)) is None


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_no_bytes_raise_where_circuits_are_taken(sent: list[bytes]) -> None:
    head = Multiaddr(CIRCUIT).to_bytes()
    usable_addresses([*sent, *(head + one for one in sent), *(one + head for one in sent)], PEER, circuits=True)
