"""CLAIM and MOVE: who gets a road for which link, and that the frames are the same stream on either side of a move."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto import frame
from p2pgrid.proto.frame import Kind, encode_frame
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.link import Link, Phase
from p2pgrid.proto.link_events import Claimed, Event, LinkLimits, Message, Moved, Ready

PROVIDER, CLIENT = SecretKey(b"p" * 32), SecretKey(b"c" * 32)
LIMITS = LinkLimits(max_streams=4, stream_credit_bytes=frame.MIN_STREAM_CREDIT_BYTES)
NAME, ROAD = bytes(range(32)), bytes(range(32, 64))


def pass_over(sender: Link, receiver: Link) -> list[Event]:
    return list(receiver.receive(sender.data_to_send(), 0))


def open_pair() -> tuple[Link, Link]:
    dialler = Link.dialler(CLIENT, PROVIDER.public_key, limits=LIMITS, now_ms=0)
    listener = Link.listener(PROVIDER.public_key, NAME, limits=LIMITS, now_ms=0)
    pass_over(listener, dialler)
    pass_over(dialler, listener)
    listener.accept()
    pass_over(listener, dialler)
    return dialler, listener


def claimed_road() -> tuple[Link, Link, list[Event]]:
    """Both ends of the handshake on a new road, up to the CLAIM."""
    claimant = Link.claimant(CLIENT, PROVIDER.public_key, NAME, limits=LIMITS, now_ms=0)
    road = Link.listener(PROVIDER.public_key, ROAD, limits=LIMITS, now_ms=0)
    pass_over(road, claimant)
    return claimant, road, pass_over(claimant, road)


def test_both_sides_call_a_link_by_its_nonce() -> None:
    dialler, listener = open_pair()
    assert dialler.name == listener.name == NAME


def test_a_claim_names_the_link_and_who_claims_it() -> None:
    claimant, road, events = claimed_road()
    assert events == [Claimed(CLIENT.public_key, NAME)]
    assert road.peer == CLIENT.public_key
    road.accept()
    assert pass_over(road, claimant) == [Ready()]


def test_a_claim_is_good_for_one_road_one_listener_and_one_link() -> None:
    claim = frame.encode_claim(CLIENT, PROVIDER.public_key, ROAD, NAME)
    assert frame.verify_claim(claim, ROAD, PROVIDER.public_key) == (CLIENT.public_key, NAME)
    for nonce, key in ((NAME, PROVIDER), (ROAD, SecretKey(b"o" * 32))):
        with pytest.raises(ProtocolViolation):
            frame.verify_claim(claim, nonce, key.public_key)
    for at in range(2, len(claim)):
        with pytest.raises(ProtocolViolation):
            frame.verify_claim(claim[:at] + bytes([claim[at] ^ 1]) + claim[at + 1 :], ROAD, PROVIDER.public_key)
    proof = frame.encode_proof(CLIENT, PROVIDER.public_key, ROAD, LIMITS.terms)
    with pytest.raises(ProtocolViolation):
        frame.verify_claim(claim[:67] + proof[35:99], ROAD, PROVIDER.public_key)


def test_a_dialler_says_nothing_before_the_road_is_given() -> None:
    claimant, road, _ = claimed_road()
    assert claimant.data_to_send() == b""
    assert road.phase is Phase.AWAIT_ACCEPT
    with pytest.raises(ProtocolViolation):
        list(road.receive(encode_frame(1, Kind.OPEN), 0))


@pytest.mark.parametrize("expected", [None, NAME])
def test_a_move_that_was_not_claimed_for_is_a_violation(expected: bytes | None) -> None:
    _, listener = open_pair()
    listener.expect_move(expected)
    with pytest.raises(ProtocolViolation, match="not claimed"):
        list(listener.receive(encode_frame(0, Kind.MOVE, ROAD), 0))


def test_nothing_may_come_behind_a_move() -> None:
    dialler, listener = open_pair()
    stream = dialler.open_stream()
    listener.expect_move(ROAD)
    dialler.send(stream, 16, b"before")
    dialler.move(ROAD)
    dialler.send(stream, 16, b"behind")
    events = []
    with pytest.raises(ProtocolViolation, match="behind a MOVE"):
        events.extend(listener.receive(dialler.data_to_send(), 0))
        for event in listener.receive(dialler.data_to_send(), 0):
            events.append(event)


class Side:
    """A link with its end of two roads: what waits on each, and which one it reads and writes."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.roads = [bytearray(), bytearray()]
        """What this side has put on each, and the other has not read."""
        self.writes = self.reads = 0
        self.got: list[bytes] = []
        self.sent: list[bytes] = []

    def say(self, payload: bytes) -> None:
        self.link.send(1, 16, payload)
        self.sent.append(payload)

    def leave(self) -> None:
        self.link.move(ROAD)
        self.flush()
        self.writes = 1

    def flush(self) -> None:
        self.roads[self.writes] += self.link.data_to_send()

    def read(self, other: Side, n_bytes: int) -> None:
        data = bytes(other.roads[self.reads][:n_bytes])
        del other.roads[self.reads][:n_bytes]
        for event in self.link.receive(data, 0):
            if type(event) is Message:
                self.got.append(event.payload)
            elif type(event) is Moved:
                if not self.writes:
                    self.leave()
                self.reads = 1


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("sfrrr"), st.integers(1, 400)), max_size=200), st.data())
@settings(max_examples=200)
def test_wherever_the_move_falls_all_arrives_once_and_in_order(
    steps: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    dialler, listener = map(Side, open_pair())
    dialler.link.open_stream()
    pass_over(dialler.link, listener.link)
    both = dialler, listener
    at = data.draw(st.integers(0, len(steps)))
    for n, (who, what, size) in enumerate(steps):
        if n == at:
            listener.link.expect_move(ROAD)
            dialler.link.expect_move(ROAD)
            dialler.leave()
        if what == "s":
            both[who].say(size.to_bytes(2) + bytes(size))
        elif what == "f":
            both[who].flush()
        else:
            both[who].read(both[1 - who], size)
    if at == len(steps):
        listener.link.expect_move(ROAD)
        dialler.link.expect_move(ROAD)
        dialler.leave()
    for _ in range(4):
        for one, other in (both, both[::-1]):
            one.flush()
            other.read(one, 10**6)
    assert listener.got == dialler.sent
    assert dialler.got == listener.sent
    assert [side.writes for side in both] == [side.reads for side in both] == [1, 1]
    assert not any(road for side in both for road in side.roads)
