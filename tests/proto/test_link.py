"""The link's rules: two links on an in-memory wire, and one link against bytes that break the rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pgrid.errors import ProtocolViolation, Refused, RemoteError, Unreachable
from p2pgrid.proto import frame
from p2pgrid.proto.frame import GoawayCode, Kind, ResetCode, Terms, encode_frame
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.link import Link, Phase
from p2pgrid.proto.link_events import (
    Cut,
    Ended,
    Event,
    GoingAway,
    LinkLimits,
    Message,
    Opened,
    Proved,
    Ready,
    Writable,
)

PROVIDER = SecretKey(b"p" * 32)
CLIENT = SecretKey(b"c" * 32)
OTHER = SecretKey(b"o" * 32)
NONCE = bytes(range(32))
LIMITS = LinkLimits(max_streams=4, stream_credit_bytes=frame.MIN_STREAM_CREDIT_BYTES)
TERMS = Terms(max_streams=4, stream_credit_bytes=frame.MIN_STREAM_CREDIT_BYTES)
CONTROL, BULK = 16, 128


def new_pair(limits: LinkLimits = LIMITS, now_ms: int = 0) -> tuple[Link, Link]:
    dialler = Link.dialler(CLIENT, PROVIDER.public_key, limits=limits, now_ms=now_ms)
    listener = Link.listener(PROVIDER.public_key, NONCE, limits=limits, now_ms=now_ms)
    return dialler, listener


def open_pair(limits: LinkLimits = LIMITS) -> tuple[Link, Link]:
    dialler, listener = new_pair(limits)
    pass_over(listener, dialler)
    pass_over(dialler, listener)
    listener.accept()
    pass_over(listener, dialler)
    assert dialler.phase is listener.phase is Phase.OPEN
    return dialler, listener


def pass_over(sender: Link, receiver: Link, now_ms: int = 0) -> list[Event]:
    return list(receiver.receive(sender.data_to_send(), now_ms))


def wire(*frames: tuple[int, int, bytes]) -> bytes:
    return b"".join(encode_frame(stream_id, kind, payload) for stream_id, kind, payload in frames)


# -- handshake -------------------------------------------------------------------------------------------------


def test_the_handshake_proves_the_diallers_key() -> None:
    dialler, listener = new_pair()
    assert pass_over(listener, dialler) == []
    assert pass_over(dialler, listener) == [Proved(CLIENT.public_key)]
    assert listener.data_to_send() == b""
    listener.accept()
    assert pass_over(listener, dialler) == [Ready()]
    assert (dialler.peer, listener.peer) == (PROVIDER.public_key, CLIENT.public_key)


def test_the_hello_is_these_bytes() -> None:
    _, listener = new_pair()
    expected = "0000002a 00000000 00 0001" + NONCE.hex() + "00000004 00020000"
    assert listener.data_to_send() == bytes.fromhex(expected)


def proof(
    signer: SecretKey = CLIENT, claimed: SecretKey = CLIENT, provider: SecretKey = PROVIDER, nonce: bytes = NONCE
) -> bytes:
    signature = signer.sign(frame.proof_input(nonce, provider.public_key, claimed.public_key))
    return b"\0\1" + claimed.public_key.raw + signature + bytes.fromhex("00000004 00020000")


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (proof(provider=OTHER), "no signature over this link's nonce"),
        (proof(nonce=bytes(32)), "no signature over this link's nonce"),
        (proof(signer=OTHER), "no signature over this link's nonce"),
        (proof()[:-1], "a PROOF has"),
        (proof() + b"\0", "a PROOF has"),
        (b"\0", "no room for its version"),
        (b"\0\1\2" + proof()[3:], "not acceptable"),
        (b"\0\1\1" + bytes(32) + proof()[35:], "not acceptable"),
        (proof()[:-4] + b"\0\0\0\1", "of credit a stream"),
    ],
)
def test_a_bad_proof_is_refused(payload: bytes, says: str) -> None:
    _, listener = new_pair()
    listener.data_to_send()
    with pytest.raises(ProtocolViolation, match=says):
        list(listener.receive(wire((0, Kind.PROOF, payload)), 0))
    assert listener.phase is Phase.CLOSED
    assert listener.data_to_send()[8] == Kind.GOAWAY


def test_a_proof_made_for_one_provider_fails_at_another() -> None:
    """The provider OTHER passes PROVIDER's nonce on as its own, and the proof back."""
    victim = Link.listener(PROVIDER.public_key, NONCE, limits=LIMITS, now_ms=0)
    client = Link.dialler(CLIENT, OTHER.public_key, limits=LIMITS, now_ms=0)
    pass_over(victim, client)
    with pytest.raises(ProtocolViolation, match="no signature"):
        pass_over(client, victim)


@pytest.mark.parametrize("version", [0, 2, 65_535])
def test_another_version_is_refused_with_a_reason(version: int) -> None:
    dialler, listener = new_pair()
    hello = version.to_bytes(2, "big") + b"whatever that version has"
    with pytest.raises(Refused, match=f"link version {version}"):
        list(dialler.receive(wire((0, Kind.HELLO, hello)), 0))
    listener.data_to_send()
    events = list(listener.receive(dialler.data_to_send(), 0))
    assert [type(e) for e in events] == [GoingAway]
    assert events[0] == GoingAway(GoawayCode.VERSION, f"the peer speaks link version {version}, this side 1.")


@pytest.mark.parametrize("frames", [(0, Kind.PING, bytes(8)), (0, Kind.READY, b""), (1, Kind.OPEN, b""), (1, 16, b"x")])
def test_nothing_is_taken_before_the_proof(frames: tuple[int, int, bytes]) -> None:
    for make in (
        lambda: Link.dialler(CLIENT, PROVIDER.public_key, limits=LIMITS, now_ms=0),
        lambda: Link.listener(PROVIDER.public_key, NONCE, limits=LIMITS, now_ms=0),
    ):
        link = make()
        with pytest.raises(ProtocolViolation, match="while the link is in AWAIT"):
            list(link.receive(wire(frames), 0))


def test_nothing_is_taken_between_proof_and_acceptance() -> None:
    dialler, listener = new_pair()
    pass_over(listener, dialler)
    with pytest.raises(ProtocolViolation, match="AWAIT_ACCEPT"):
        list(listener.receive(dialler.data_to_send() + wire((1, Kind.OPEN, b"")), 0))


def test_a_handshake_has_a_time_limit() -> None:
    for link in new_pair(now_ms=5):
        deadline = link.tick(5)
        assert deadline == 5 + LIMITS.handshake_ms
        assert link.tick(deadline - 1) == deadline
        with pytest.raises(Unreachable, match="no handshake within"):
            link.tick(deadline)


# -- frames ----------------------------------------------------------------------------------------------------

OPENED = wire((1, Kind.OPEN, b""))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (frame.HEADER.pack(65_537, 1, 16), "a frame of 65537 bytes"),
        (wire((0, 10, b"")), "kind 10"),
        (wire((0, 15, b"")), "kind 15"),
        (wire((0, Kind.HELLO, bytes(42))), "kind 0"),
        (wire((0, Kind.PROOF, proof())), "kind 1"),
        (wire((0, Kind.READY, b"")), "kind 2"),
        (wire((1, Kind.PING, bytes(8))), "on stream 1"),
        (wire((0, Kind.PING, bytes(7))), "a PING or PONG has 8"),
        (wire((0, Kind.PONG, bytes(8))), "answers no PING"),
        (wire((0, Kind.OPEN, b"")), "on stream 0"),
        (wire((0, 16, b"")), "never opened"),
        (wire((1, 16, b"")), "never opened"),
        (wire((1, Kind.CREDIT, bytes(4))), "CREDIT of 0"),
        (wire((1, Kind.CREDIT, b"\0\0\0\1")), "never opened"),
        (wire((1, Kind.END, b"")), "never opened"),
        (wire((1, Kind.RESET, b"\0\0")), "never opened"),
        (wire((2, Kind.OPEN, b"")), "opened stream 2; 1"),
        (wire((3, Kind.OPEN, b"")), "opened stream 3; 1"),
        (wire((1, Kind.OPEN, b"x")), "carries no bytes"),
        (OPENED + OPENED, "opened stream 1; 3"),
        (OPENED + wire((1, Kind.END, b"x")), "carries no bytes"),
        (OPENED + wire((1, Kind.END, b""), (1, Kind.END, b"")), "a second END"),
        (OPENED + wire((1, Kind.END, b""), (1, 16, b"late")), "after its END"),
        (OPENED + wire((1, BULK, b"")), "0 credited bytes"),
        (OPENED + wire((1, BULK, bytes(65_536)), (1, BULK, bytes(65_536)), (1, BULK, b"x")), "1 credited bytes"),
        (OPENED + wire((1, Kind.CREDIT, b"\0\0\0\1")), "more than was ever used"),
        (OPENED + wire((1, Kind.CREDIT, b"\xff\0\0\0")), "CREDIT of"),
        (OPENED + wire((1, Kind.CREDIT, b"\0")), "CREDIT has 4"),
        (OPENED + wire((1, Kind.RESET, b"")), "RESET or GOAWAY has"),
        (OPENED + wire((1, Kind.RESET, bytes(259))), "RESET or GOAWAY has"),
        (OPENED + wire((0, Kind.RESET, b"\0\0")), "on stream 0"),
        (wire(*((n, Kind.OPEN, b"") for n in (1, 3, 5, 7, 9))), "more than the 4 streams"),
    ],
)
def test_a_violation_closes_the_link_and_says_why(data: bytes, says: str) -> None:
    _, listener = open_pair()
    with pytest.raises(ProtocolViolation, match=says):
        list(listener.receive(data, 0))
    assert listener.phase is Phase.CLOSED
    *_, goaway = split(listener.data_to_send())
    assert (goaway[1], goaway[2][:2]) == (Kind.GOAWAY, b"\0\2")
    assert list(listener.receive(wire((0, Kind.PING, bytes(8))), 0)) == []


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    found, at = [], 0
    while at < len(data):
        length, stream_id, kind = frame.HEADER.unpack_from(data, at)
        found.append((stream_id, kind, data[at + 9 : at + 9 + length]))
        at += 9 + length
    return found


def test_what_came_before_a_violation_counts() -> None:
    _, listener = open_pair()
    seen = []
    with pytest.raises(ProtocolViolation):
        for event in listener.receive(OPENED + wire((1, 16, b"voucher"), (0, 12, b"")), 0):
            seen.append(event)
    assert seen == [Opened(1), Message(1, 16, b"voucher")]


def test_a_reset_in_the_middle_of_a_read_holds_for_the_rest_of_it() -> None:
    _, listener = open_pair()
    seen = []
    for event in listener.receive(OPENED + wire((1, 16, b"a"), (1, 16, b"b"), (1, Kind.END, b"")), 0):
        seen.append(event)
        if type(event) is Message:
            listener.reset(1, ResetCode.CANCELLED, "enough")
    assert seen == [Opened(1), Message(1, 16, b"a")]


def test_the_texts_of_a_peer_are_fit_to_be_shown() -> None:
    dialler, listener = open_pair()
    evil = b"\0\0" + b"\x1b[2Jhi\n\xff"
    assert list(listener.receive(OPENED + wire((1, Kind.RESET, evil)), 0))[1] == Cut(1, 0, "\ufffd[2Jhi\ufffd\ufffd")
    dialler.reset(dialler.open_stream(), 7, "é" * 1000)
    assert len(split(dialler.data_to_send())[-1][2]) == 258


# -- streams ---------------------------------------------------------------------------------------------------


def test_streams_from_both_sides() -> None:
    dialler, listener = open_pair()
    assert [dialler.open_stream(), dialler.open_stream(), listener.open_stream()] == [1, 3, 2]
    dialler.send(3, 16, b"second first")
    dialler.send(1, 200, b"bulk")
    assert pass_over(dialler, listener) == [
        Opened(1),
        Opened(3),
        Message(3, 16, b"second first"),
        Message(1, 200, b"bulk"),
    ]
    assert pass_over(listener, dialler) == [Opened(2)]


def test_both_ends_close_a_stream_and_one_leaves_it_half_open() -> None:
    dialler, listener = open_pair()
    stream = dialler.open_stream()
    dialler.end(stream)
    dialler.end(stream)
    assert pass_over(dialler, listener) == [Opened(1), Ended(1)]
    listener.send(1, 16, b"still")
    listener.end(1)
    assert not listener.has_stream(1)
    assert pass_over(listener, dialler) == [Message(1, 16, b"still"), Ended(1)]
    assert not dialler.has_stream(1)
    assert dialler.n_streams == listener.n_streams == 0


def test_late_frames_on_a_dead_stream_are_ignored() -> None:
    dialler, listener = open_pair()
    dialler.open_stream()
    pass_over(dialler, listener)
    listener.reset(1, ResetCode.CANCELLED)
    dialler.send(1, 16, b"late")
    dialler.send(1, BULK, b"late")
    dialler.end(1)
    assert pass_over(dialler, listener) == []
    assert pass_over(listener, dialler) == [Cut(1, ResetCode.CANCELLED, "")]
    dialler.send(1, 16, b"too late, and nothing happens")
    dialler.consume(1, 5)
    dialler.reset(1, 0)
    assert dialler.data_to_send() == b""
    assert dialler.credit(1) == 0


def test_the_peers_cap_on_streams_is_kept_and_freed() -> None:
    dialler, listener = open_pair()
    ids = [dialler.open_stream() for _ in range(4)]
    with pytest.raises(Refused) as refused:
        dialler.open_stream()
    assert refused.value.code == "busy"
    dialler.reset(ids[0], 0)
    assert dialler.open_stream() == 9
    pass_over(dialler, listener)
    assert listener.n_streams == 4


def test_a_flood_of_resets_is_a_violation() -> None:
    dialler, listener = open_pair(LinkLimits(max_resets_per_10_s=10))
    for n in range(40):  # 10 in 10 s is allowed
        dialler.reset(dialler.open_stream(), 0)
        pass_over(dialler, listener, now_ms=1000 * n)
    for _ in range(11):
        dialler.reset(dialler.open_stream(), 0)
    with pytest.raises(ProtocolViolation, match="more than 10 streams in 10 s"):
        pass_over(dialler, listener, now_ms=100_000)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda link: link.send(1, 15, b""),
        lambda link: link.send(1, 256, b"x"),
        lambda link: link.send(1, 16, bytes(65_537)),
        lambda link: link.send(1, BULK, b""),
        lambda link: (link.send(1, BULK, bytes(65_536)), link.send(1, BULK, bytes(65_536)), link.send(1, BULK, b"x")),
        lambda link: (link.end(1), link.send(1, 16, b"")),
        lambda link: link.send(3, 16, b""),
        lambda link: link.send(2, 16, b""),
        lambda link: link.end(3),
        lambda link: link.consume(1, 1),
        lambda link: link.accept(),
    ],
)
def test_misuse_by_the_owner_is_a_value_error_and_sends_nothing_bad(misuse: Callable[[Link], object]) -> None:
    dialler, listener = open_pair()
    dialler.open_stream()
    with pytest.raises(ValueError):
        misuse(dialler)
    pass_over(dialler, listener)


# -- going away ------------------------------------------------------------------------------------------------


def test_a_shutdown_lets_streams_finish_and_refuses_new_ones() -> None:
    dialler, listener = open_pair()
    old = dialler.open_stream()
    pass_over(dialler, listener)
    listener.goaway(GoawayCode.SHUTDOWN, "bye")
    crossed = dialler.open_stream()
    dialler.send(crossed, 16, b"an order")
    assert pass_over(dialler, listener) == []
    assert pass_over(listener, dialler) == [
        GoingAway(GoawayCode.SHUTDOWN, "bye"),
        Cut(crossed, ResetCode.REFUSED, "this link is closing"),
    ]
    with pytest.raises(Refused) as refused:
        dialler.open_stream()
    assert refused.value.code == "going-away"
    dialler.send(old, 16, b"goes on")
    assert pass_over(dialler, listener) == [Message(old, 16, b"goes on")]


def test_any_other_goaway_closes() -> None:
    dialler, listener = open_pair()
    listener.goaway(GoawayCode.BUSY, "full")
    assert listener.phase is Phase.CLOSED
    assert pass_over(listener, dialler) == [GoingAway(GoawayCode.BUSY, "full")]


# -- credit and queues -----------------------------------------------------------------------------------------


def test_credit_runs_out_and_comes_back_in_halves() -> None:
    dialler, listener = open_pair()
    stream = dialler.open_stream()
    window = dialler.credit(stream)
    assert window == frame.MIN_STREAM_CREDIT_BYTES
    for _ in range(window // 1024):
        dialler.send(stream, BULK, bytes(1024))
    assert dialler.credit(stream) == 0
    dialler.send(stream, CONTROL, b"messages need none")
    assert len(pass_over(dialler, listener)) == 130
    listener.consume(stream, window // 2 - 1)
    assert pass_over(listener, dialler) == []
    listener.consume(stream, 1)
    assert pass_over(listener, dialler) == [Writable(stream)]
    assert dialler.credit(stream) == window // 2


def test_sending_where_there_is_credit_is_asking_for_credit_and_sending() -> None:
    (asked, _), (sure, _) = open_pair(), open_pair()
    stream, other = asked.open_stream(), sure.open_stream()
    for n_bytes in (1, 60_000, 0, 60_000, 11_000, 70_000, 5_000, 10_000):
        payload = bytes(n_bytes)
        if fits := 0 < n_bytes <= min(sure.credit(other), frame.MAX_PAYLOAD_BYTES):
            sure.send(other, BULK, payload)
        assert asked.send_if_credited(stream, BULK, payload) is fits
        assert asked.credit(stream) == sure.credit(other)
    assert asked.data_to_send() == sure.data_to_send()
    asked.end(stream)
    assert not asked.send_if_credited(stream, BULK, b"x") and not asked.send_if_credited(99, BULK, b"x")


def test_bulk_that_asks_waits_while_much_waits_for_the_road() -> None:
    link, _ = open_pair(dataclasses.replace(LIMITS, bulk_queue_bytes=100))
    stream = link.open_stream()
    sent = 0
    while link.send_if_credited(stream, BULK, bytes(10)):
        sent += 1
        assert link.queued_bytes < 130
    assert sent and link.credit(stream) == 0
    link.data_to_send()
    assert link.send_if_credited(stream, BULK, bytes(10))


def test_a_road_that_takes_nothing_ends_the_link_for_bulk_that_asks_too() -> None:
    link, _ = open_pair(dataclasses.replace(LIMITS, max_queued_bytes=300))
    stream = link.open_stream()
    with pytest.raises(Unreachable, match="reads too slowly"):
        link.send_if_credited(stream, BULK, bytes(400))
    assert link.phase is Phase.CLOSED


def test_one_streams_want_of_credit_is_not_anothers() -> None:
    dialler, _ = open_pair()
    a, b = dialler.open_stream(), dialler.open_stream()
    dialler.send(a, BULK, bytes(65_536))
    dialler.send(a, BULK, bytes(65_536))
    assert (dialler.credit(a), dialler.credit(b)) == (0, 131_072)


def test_bulk_waits_while_much_waits_for_the_road() -> None:
    limits = LinkLimits(bulk_queue_bytes=100_000)
    dialler, _ = open_pair(limits)
    a, b = dialler.open_stream(), dialler.open_stream()
    dialler.send(a, BULK, bytes(65_536))
    assert dialler.credit(b) > 0
    dialler.send(b, BULK, bytes(65_536))
    assert (dialler.credit(a), dialler.credit(b)) == (0, 0)
    dialler.data_to_send()
    assert dialler.credit(b) > 0


@pytest.mark.parametrize("limits", [LinkLimits(max_queued_bytes=5000), LinkLimits(max_queued_frames=50)])
def test_a_road_that_takes_nothing_ends_the_link(limits: LinkLimits) -> None:
    dialler, _ = open_pair(limits)
    stream = dialler.open_stream()
    with pytest.raises(Unreachable, match="reads too slowly"):
        for _ in range(100):
            dialler.send(stream, CONTROL, bytes(100))
    assert dialler.phase is Phase.CLOSED


def test_a_flood_of_pings_piles_nothing_up() -> None:
    _, listener = open_pair()
    for n in range(1000):
        list(listener.receive(wire((0, Kind.PING, n.to_bytes(8, "big"))), 0))
    assert split(listener.data_to_send()) == [(0, Kind.PONG, (999).to_bytes(8, "big"))]


# -- heartbeats ------------------------------------------------------------------------------------------------


def test_heartbeats_keep_a_quiet_link_alive_and_measure_it() -> None:
    dialler, listener = open_pair()
    now = 0
    for _ in range(20):
        now = min(dialler.tick(now), listener.tick(now))
        dialler.tick(now)
        listener.tick(now)
        pass_over(dialler, listener, now)
        pass_over(listener, dialler, now + 7)
        pass_over(dialler, listener, now + 7)
    assert now >= 10 * LIMITS.heartbeat_ms
    assert dialler.round_trip_ms == 7


def test_silence_is_found_at_dead_ms() -> None:
    dialler, _ = open_pair()
    assert dialler.tick(0) == LIMITS.heartbeat_ms
    assert dialler.tick(LIMITS.heartbeat_ms) == LIMITS.dead_ms
    assert split(dialler.data_to_send()) == [(0, Kind.PING, (1).to_bytes(8, "big"))]
    assert dialler.tick(LIMITS.dead_ms - 1) == LIMITS.dead_ms
    with pytest.raises(Unreachable, match="silent for 45000 ms"):
        dialler.tick(LIMITS.dead_ms)


def test_a_process_that_slept_gives_its_peer_the_time_to_answer() -> None:
    dialler, listener = open_pair()
    woken = 10 * LIMITS.dead_ms
    dialler.tick(woken)
    pass_over(dialler, listener, woken)
    pass_over(listener, dialler, woken + 20)
    assert dialler.tick(woken + 20) > woken + 20


# -- anything at all -------------------------------------------------------------------------------------------

FRAMES = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 3, 4, 2**31 - 1, 2**32 - 1]),
        st.one_of(st.integers(0, 10), st.sampled_from([16, 127, 128, 255])),
        st.one_of(st.binary(max_size=12), st.just(proof()), st.just(bytes(65_536))),
    ),
    max_size=12,
)


@settings(max_examples=300)
@given(data=st.one_of(st.binary(max_size=400), FRAMES.map(lambda frames: wire(*frames))), phase=st.integers(0, 3))
def test_no_bytes_raise_anything_but_the_peers_errors(data: bytes, phase: int) -> None:
    link = [*new_pair(), *open_pair()][phase]
    link.data_to_send()
    seen = 0
    try:
        for event in link.receive(data, 0):
            seen += 1
            if type(event) is Proved:
                link.accept()
    except RemoteError as error:
        assert isinstance(error, ProtocolViolation | Refused)
        assert link.phase is Phase.CLOSED
    assert link.n_streams <= LIMITS.max_streams


@settings(max_examples=60)
@given(cuts=st.lists(st.integers(1, 200), min_size=1))
def test_pieces_make_no_difference(cuts: list[int]) -> None:
    dialler, whole = open_pair()
    _, pieced = open_pair()
    for n in range(3):
        stream = dialler.open_stream()
        dialler.send(stream, 16 + n, bytes([n]) * 100 * n)
        dialler.send(stream, BULK, b"bulk" * 50)
    dialler.end(1)
    data = dialler.data_to_send()
    events, at, turn = [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        events += pieced.receive(data[at : at + size], 0)
        at, turn = at + size, turn + 1
    assert events == list(whole.receive(data, 0))


class TwoLinks(RuleBasedStateMachine):
    """Two links do whatever their owners may do, over a wire that delivers in arbitrary pieces, either way.

    Neither ever finds the other at fault; credit is never exceeded; every stream's frames arrive complete and in order.
    """

    @initialize()
    def start(self) -> None:
        self.links = open_pair()
        self.wires = [bytearray(), bytearray()]
        self.sent: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        self.got: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        self.held: dict[tuple[int, int], int] = {}
        self.ended: set[tuple[int, int]] = set()
        self.cut: set[int] = set()

    def streams(self, side: int) -> list[int]:
        return [n for n in self.links[side]._streams if (side, n) not in self.ended]

    @rule(side=st.integers(0, 1))
    def open(self, side: int) -> None:
        try:
            self.links[side].open_stream()
        except Refused as refused:
            assert refused.code == "busy"

    @rule(
        side=st.integers(0, 1),
        pick=st.integers(0, 7),
        kind=st.sampled_from([16, 127, 128, 255]),
        size=st.integers(1, 65_536),
    )
    def send(self, side: int, pick: int, kind: int, size: int) -> None:
        if not (streams := self.streams(side)):
            return
        stream_id = streams[pick % len(streams)]
        if kind >= BULK:
            size = min(size, self.links[side].credit(stream_id))
            if not size:
                return
        payload = bytes([size % 256]) * size
        self.links[side].send(stream_id, kind, payload)
        self.sent.setdefault((side, stream_id), []).append((kind, payload))

    @rule(side=st.integers(0, 1), pick=st.integers(0, 7))
    def end(self, side: int, pick: int) -> None:
        if streams := self.streams(side):
            stream_id = streams[pick % len(streams)]
            self.links[side].end(stream_id)
            self.ended.add((side, stream_id))

    @rule(side=st.integers(0, 1), pick=st.integers(0, 7))
    def reset(self, side: int, pick: int) -> None:
        if streams := list(self.links[side]._streams):
            stream_id = streams[pick % len(streams)]
            self.links[side].reset(stream_id, ResetCode.CANCELLED)
            self.cut.add(stream_id)

    @rule(side=st.integers(0, 1), share=st.floats(0, 1))
    def consume(self, side: int, share: float) -> None:
        for (who, stream_id), n_bytes in self.held.items():
            if who == side:
                self.links[side].consume(
                    stream_id, int(n_bytes * share) if self.links[side].has_stream(stream_id) else 0
                )
                self.held[who, stream_id] = n_bytes - int(n_bytes * share)

    @rule(side=st.integers(0, 1))
    def flush(self, side: int) -> None:
        self.wires[side] += self.links[side].data_to_send()

    @precondition(lambda self: self.wires[0] or self.wires[1])
    @rule(side=st.integers(0, 1), share=st.floats(0, 1))
    def deliver(self, side: int, share: float) -> None:
        size = int(len(self.wires[side]) * share) + 1
        data = bytes(self.wires[side][:size])
        del self.wires[side][:size]
        other = 1 - side
        for event in self.links[other].receive(data, 0):
            if type(event) is Message:
                self.got.setdefault((side, event.stream), []).append((event.kind, event.payload))
                if event.kind >= BULK:
                    self.held[other, event.stream] = self.held.get((other, event.stream), 0) + len(event.payload)

    @invariant()
    def windows_add_up(self) -> None:
        for link in self.links:
            for stream in link._streams.values():
                assert 0 <= stream.sendable <= TERMS.stream_credit_bytes
                assert stream.receivable + stream.held + stream.consumed == TERMS.stream_credit_bytes
                assert stream.receivable >= 0

    @invariant()
    def frames_arrive_in_order(self) -> None:
        for key, got in self.got.items():
            assert self.sent[key][: len(got)] == got

    def teardown(self) -> None:
        if not hasattr(self, "links"):
            return
        for _ in range(3):
            for side in (0, 1):
                self.flush(side)
                if self.wires[side]:
                    self.deliver(side, 1.0)
        for key, sent in self.sent.items():
            if key[1] not in self.cut:
                assert self.got.get(key) == sent
        assert self.links[0]._streams.keys() == self.links[1]._streams.keys()


TwoLinks.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTwoLinks = TwoLinks.TestCase
