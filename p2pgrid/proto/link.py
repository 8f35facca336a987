"""One link between two peers: many streams of small frames over any ordered, encrypted byte road (docs/spec/link.md).

There is no I/O in it. Bytes from the road go into `receive`, bytes for the road come out of `data_to_send`, time
comes in as milliseconds of any monotonic clock. Before it is open stands the handshake (`handshake`).

Flow control is per stream and direction, for credited kinds alone: the receiver grants what it has consumed.
Nothing stalls the link as a whole, because messages and the link's own frames need no credit; they are capped in
number and bytes where they wait to be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Final

from p2pgrid.errors import ProtocolViolation, Refused, Unreachable
from p2pgrid.proto import frame
from p2pgrid.proto.credentials import Credentials, Side, parse_credentials
from p2pgrid.proto.frame import GoawayCode, Kind, ResetCode
from p2pgrid.proto.frame_queue import FrameQueue
from p2pgrid.proto.handshake import DiallerHandshake, ListenerHandshake
from p2pgrid.proto.heartbeat import Heartbeat
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.link_events import (
    Claimed,
    Cut,
    Ended,
    Event,
    GoingAway,
    LinkLimits,
    Message,
    Moved,
    Opened,
    Proved,
    Ready,
    Writable,
)
from p2pgrid.proto.stream_table import StreamTable

Show = Callable[[bytes], bytes]
"""From the listener's nonce to the payload of a dialler's MEMBER."""


class Phase(Enum):
    AWAIT_HELLO = auto()
    AWAIT_PROOF = auto()
    AWAIT_ACCEPT = auto()
    AWAIT_READY = auto()
    OPEN = auto()
    CLOSED = auto()


class Link:
    """One side of a link. Make it with `dialler` or `listener`.

    `receive` and `tick` raise ProtocolViolation (the peer broke a rule), Refused (the peer or its version cannot
    serve us) or Unreachable (silence); the link is CLOSED then, and `data_to_send` may still hold the GOAWAY that
    says why. Misuse by the owner (an oversize payload, credit exceeded) is a ValueError.
    """

    def __init__(self, phase: Phase, limits: LinkLimits, now_ms: int) -> None:
        self.phase = phase
        self.limits = limits
        self.peer: PublicKey | None = None
        """The other side's key: known from the start to a dialler, with `Proved` to a listener."""
        self.shown: Credentials | None = None
        """What the other side shows of its membership, if it sent MEMBER; known with `Proved` and with `Ready`."""
        self._show: Show | None = None
        self._may_be_shown = phase is Phase.AWAIT_PROOF
        self.goaway_sent = False
        self.goaway_received = False
        self._bulk_queue_bytes = limits.bulk_queue_bytes
        self._queue = FrameQueue(limits.max_queued_bytes, limits.max_queued_frames)
        self._partial = bytearray()
        self._partial_needs = 0
        self._table = StreamTable(limits, is_dialler=phase is Phase.AWAIT_HELLO, now_ms=now_ms)
        self._streams = self._table.open
        self._now_ms = self._started_ms = now_ms
        self._heartbeat = Heartbeat(limits.heartbeat_ms, limits.dead_ms, now_ms)
        self._expected_move: bytes | None = None
        self._handshake: DiallerHandshake | ListenerHandshake

    @classmethod
    def dialler(
        cls,
        secret_key: SecretKey,
        provider: PublicKey,
        *,
        limits: LinkLimits,
        now_ms: int,
        show: Show | None = None,
    ) -> Link:
        """The side that dialled, once the road has proven that `provider` listens at its other end.

        `show` makes the payload of MEMBER for the listener's nonce; empty for none.
        """
        link = cls(Phase.AWAIT_HELLO, limits, now_ms)
        link.peer = provider
        link._show = show
        link._handshake = DiallerHandshake(secret_key, provider)
        return link

    @classmethod
    def claimant(
        cls, secret_key: SecretKey, provider: PublicKey, link: bytes, *, limits: LinkLimits, now_ms: int
    ) -> Link:
        """The dialler of another road for a link that there is, of the name `link`. It carries nothing of its own."""
        claimant = cls(Phase.AWAIT_HELLO, limits, now_ms)
        claimant.peer = provider
        claimant._handshake = DiallerHandshake(secret_key, provider, link)
        return claimant

    @classmethod
    def listener(cls, own_key: PublicKey, nonce: bytes, *, limits: LinkLimits, now_ms: int) -> Link:
        """The side that was dialled. `nonce` is 32 fresh random bytes, never used for another link."""
        link = cls(Phase.AWAIT_PROOF, limits, now_ms)
        link._handshake = handshake = ListenerHandshake(own_key, nonce)
        link._put(0, Kind.HELLO, handshake.hello(limits.terms))
        return link

    # -- bytes in ----------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now_ms: int) -> Iterator[Event]:
        """Bytes from the road, in any pieces. Iterate to the end: frames are judged one by one as you go.

        So a frame before a violation still counts, and what the owner does on one event (a reset, say) holds for
        the next frame already.
        """
        if self.phase is Phase.CLOSED:
            return
        self._now_ms = self._heartbeat.heard_ms = now_ms
        if self._partial:
            # A frame in many pieces is joined once, not once per piece.
            self._partial += data
            if len(self._partial) < self._partial_needs:
                return
            data = bytes(self._partial)
            self._partial.clear()
        at, end, need = 0, len(data), frame.HEADER_BYTES
        streams, unpack, header, longest = self._streams, frame.HEADER.unpack_from, need, frame.MAX_PAYLOAD_BYTES
        first_message, credited = frame.FIRST_MESSAGE_KIND, frame.FIRST_CREDITED_KIND
        try:
            while end - at >= header:
                length, stream_id, kind = unpack(data, at)
                if length > longest:
                    raise ProtocolViolation(
                        f"a frame of {length} bytes; at most {frame.MAX_PAYLOAD_BYTES} were expected."
                    )
                start = at + header
                stop = start + length
                if stop > end:
                    need = stop - at
                    break
                payload = data[start:stop]
                at = stop
                if kind < first_message:
                    event = self._own_frame(stream_id, kind, payload)
                    if event is not None:
                        if type(event) is Moved and at < end:
                            raise ProtocolViolation(f"{end - at} bytes came behind a MOVE.")
                        yield event
                    continue
                stream = streams.get(stream_id)
                if stream is None:
                    self._check_late(stream_id)
                    continue
                if stream.peer_ended:
                    raise ProtocolViolation(f"a frame of kind {kind} on stream {stream_id} after its END.")
                if kind >= credited:
                    stream.received(length)
                yield Message(stream_id, kind, payload)
        except ProtocolViolation as violation:
            self._abandon(GoawayCode.PROTOCOL, violation.message)
            raise
        except Refused as other_version:
            self._abandon(GoawayCode.VERSION, other_version.message)
            raise
        if at < end:
            self._partial += data[at:]
            self._partial_needs = need

    def _own_frame(self, stream_id: int, kind: int, payload: bytes) -> Event | None:
        if self.phase is Phase.CLOSED:
            return None
        rule = _RULES.get((self.phase, kind))
        if rule is None:
            raise ProtocolViolation(f"a frame of kind {kind} came while the link is in {self.phase.name}.")
        if (stream_id == 0) is Kind(kind).is_of_stream:
            raise ProtocolViolation(f"a frame of kind {kind} on stream {stream_id}.")
        return rule(self, stream_id, payload)

    def _check_late(self, stream_id: int) -> None:
        """A frame for a stream that is not open: late if it was once, else a violation."""
        if self.phase is Phase.CLOSED:
            return
        if self.phase is not Phase.OPEN:
            raise ProtocolViolation(f"a frame on stream {stream_id} came while the link is in {self.phase.name}.")
        if stream_id == 0 or not self._table.was_opened(stream_id):
            raise ProtocolViolation(f"a frame on stream {stream_id}, which was never opened.")

    def _on_hello(self, _stream_id: int, payload: bytes) -> Event | None:
        assert isinstance(self._handshake, DiallerHandshake)
        kind, answer, self._table.peer_terms = self._handshake.answer(payload, self.limits.terms)
        if self._show is not None and (shown := self._show(self.name)):
            self._may_be_shown = True
            self._put(0, Kind.MEMBER, shown)
        self._put(0, kind, answer)
        self.phase = Phase.AWAIT_READY
        return None

    def _on_member(self, _stream_id: int, payload: bytes) -> Event | None:
        if not self._may_be_shown:
            raise ProtocolViolation("a MEMBER came twice, or unasked.")
        self._may_be_shown = False
        self.shown = parse_credentials(payload, Side.CALLER if self.phase is Phase.AWAIT_PROOF else Side.CALLED)
        return None

    def _on_proof(self, _stream_id: int, payload: bytes) -> Event | None:
        assert isinstance(self._handshake, ListenerHandshake)
        self.peer, self._table.peer_terms = self._handshake.verify(payload)
        self.phase = Phase.AWAIT_ACCEPT
        return Proved(self.peer)

    def _on_claim(self, _stream_id: int, payload: bytes) -> Event | None:
        assert isinstance(self._handshake, ListenerHandshake)
        self.peer, link = self._handshake.verify_claim(payload)
        self.phase = Phase.AWAIT_ACCEPT
        return Claimed(self.peer, link)

    def _on_move(self, _stream_id: int, payload: bytes) -> Event | None:
        expected, self._expected_move = self._expected_move, None
        if frame.parse_move(payload) != expected:
            raise ProtocolViolation("a MOVE to a road that was not claimed for this link.")
        return Moved()

    def _on_ready(self, _stream_id: int, payload: bytes) -> Event | None:
        _expect_empty(Kind.READY, payload)
        self.phase = Phase.OPEN
        return Ready()

    def _on_goaway(self, _stream_id: int, payload: bytes) -> Event | None:
        code, text = frame.parse_reason(payload)
        self.goaway_received = True
        return GoingAway(code, text)

    def _on_ping(self, _stream_id: int, payload: bytes) -> Event | None:
        self._queue.put_pong(frame.encode_ping(frame.parse_ping(payload)))
        return None

    def _on_pong(self, _stream_id: int, payload: bytes) -> Event | None:
        self._heartbeat.answered(frame.parse_ping(payload), self._now_ms)
        return None

    def _on_open(self, stream_id: int, payload: bytes) -> Event | None:
        _expect_empty(Kind.OPEN, payload)
        if not self._table.open_peers(stream_id, is_closing=self.goaway_sent):
            self._put(stream_id, Kind.RESET, frame.encode_reason(ResetCode.REFUSED, "this link is closing"))
            return None
        return Opened(stream_id)

    def _on_credit(self, stream_id: int, payload: bytes) -> Event | None:
        n_bytes = frame.parse_credit(payload)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_late(stream_id)
            return None
        stream.granted(n_bytes)
        return None if stream.own_ended else Writable(stream_id)

    def _on_end(self, stream_id: int, payload: bytes) -> Event | None:
        _expect_empty(Kind.END, payload)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_late(stream_id)
            return None
        if stream.peer_ended:
            raise ProtocolViolation(f"a second END on stream {stream_id}.")
        stream.peer_ended = True
        if stream.own_ended:
            self._table.drop(stream_id)
        return Ended(stream_id)

    def _on_reset(self, stream_id: int, payload: bytes) -> Event | None:
        code, text = frame.parse_reason(payload)
        if stream_id not in self._streams:
            self._check_late(stream_id)
            return None
        self._table.reset_by_peer(stream_id, self._now_ms)
        return Cut(stream_id, code, text)

    # -- bytes out ---------------------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """Everything that waits, to leave in one write."""
        return self._queue.take()

    @property
    def queued_bytes(self) -> int:
        """What `data_to_send` would return."""
        return self._queue.n_bytes

    @property
    def name(self) -> bytes:
        """What CLAIM calls it: the nonce of its HELLO. Empty before that has come."""
        return self._handshake.nonce

    def expect_move(self, road: bytes | None) -> None:
        """The peer may move to the road whose HELLO had that nonce; None: to none any more."""
        self._expected_move = road

    def move(self, road: bytes) -> None:
        """Queue the last frame for the road that the link is on. What is queued from then on is for the other."""
        self._put(0, Kind.MOVE, road)

    def accept(self, shown: bytes = b"") -> None:
        """Let the proven dialler in (after `Proved`), or give its road to the link that it names (after `Claimed`).

        `shown`: the payload of MEMBER, to a dialler that sent it too.
        """
        if self.phase is not Phase.AWAIT_ACCEPT:
            raise ValueError(f"accept() in {self.phase.name}")
        if shown and self.shown is None:
            raise ValueError("credentials for a dialler that showed none")
        self.phase = Phase.OPEN
        if shown:
            self._put(0, Kind.MEMBER, shown)
        self._put(0, Kind.READY)

    def open_stream(self) -> int:
        """The id of a new stream. Raises Refused (`busy`, `going-away`) where the peer takes none now."""
        if self.goaway_received or self.goaway_sent or self._table.next_own_id > frame.MAX_STREAM_ID:
            raise Refused("going-away", "the link takes no new streams.", hint="Dial a new one.")
        if self.phase is not Phase.OPEN:
            raise Unreachable(f"the link is not open ({self.phase.name}).")
        stream_id = self._table.open_own()
        self._put(stream_id, Kind.OPEN)
        return stream_id

    def send(self, stream_id: int, kind: int, payload: bytes) -> None:
        """Queue a frame. On a stream that is gone (the peer reset it an instant ago) nothing happens.

        Raises Unreachable where the peer has let too much pile up, ValueError for what the owner must not do: kinds
        below 16, payloads over 64 KiB, more credited bytes than `credit`, frames after `end`.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_own(stream_id)
            return
        stream.check_may_send(len(payload))
        if kind >= frame.FIRST_CREDITED_KIND:
            if kind > frame.LAST_KIND:
                raise ValueError(f"kind {kind} does not fit in a byte")
            stream.sent(len(payload))
        elif kind < frame.FIRST_MESSAGE_KIND:
            raise ValueError(f"kind {kind} is the link's own")
        self._put(stream_id, kind, payload)

    def send_if_credited(self, stream_id: int, kind: int, payload: bytes) -> bool:
        """`send` of a credited kind where `credit` allows it now, in one step. False, and nothing sent, where not."""
        stream, queue, n_bytes = self._streams.get(stream_id), self._queue, len(payload)
        if (
            stream is None
            or stream.own_ended
            or queue.n_bytes >= self._bulk_queue_bytes
            or not 0 < n_bytes <= stream.sendable
            or n_bytes > frame.MAX_PAYLOAD_BYTES
        ):
            return False
        stream.sendable -= n_bytes
        try:
            queue.put(stream_id, kind, payload)
        except Unreachable:
            self.close()
            raise
        return True

    def credit(self, stream_id: int) -> int:
        """Credited bytes that may be sent now; 0 on a stream that is gone, and while much waits for the road."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.own_ended or self._queue.n_bytes >= self.limits.bulk_queue_bytes:
            return 0
        return stream.sendable

    def consume(self, stream_id: int, n_bytes: int) -> None:
        """Received credited bytes are used up: the peer may send as many again."""
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_own(stream_id)
            return
        if grant := stream.consume(n_bytes):
            self._put(stream_id, Kind.CREDIT, frame.encode_credit(grant))

    def end(self, stream_id: int) -> None:
        """Send no more on this stream. Done twice, or on a stream that is gone, it does nothing."""
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_own(stream_id)
        elif not stream.own_ended:
            stream.own_ended = True
            self._put(stream_id, Kind.END)
            if stream.peer_ended:
                self._table.drop(stream_id)

    def reset(self, stream_id: int, code: int, text: str = "") -> None:
        """Cut a stream in both directions. Frames still under way to us on it are ignored."""
        if stream_id not in self._streams:
            self._check_own(stream_id)
            return
        self._table.drop(stream_id)
        self._put(stream_id, Kind.RESET, frame.encode_reason(code, text))

    def goaway(self, code: int, text: str = "") -> None:
        """Take no new streams. With SHUTDOWN the open ones go on; with another code the link is CLOSED."""
        if code != GoawayCode.SHUTDOWN:
            self._abandon(code, text)
        elif self.phase is not Phase.CLOSED and not self.goaway_sent:
            self.goaway_sent = True
            self._put(0, Kind.GOAWAY, frame.encode_reason(code, text))

    def close(self) -> None:
        """The road is gone or given up: nothing more is read or queued. What is queued may still be sent."""
        self.phase = Phase.CLOSED
        self._table.clear()
        self._partial.clear()

    def has_stream(self, stream_id: int) -> bool:
        """False once both sides have ended, or one has reset."""
        return stream_id in self._streams

    @property
    def n_streams(self) -> int:
        return len(self._streams)

    # -- time --------------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> int:
        """Do what is due, and return when to call again. Raises Unreachable for a peer that has gone silent."""
        self._now_ms = now_ms
        if self.phase is Phase.CLOSED:
            return now_ms + self.limits.dead_ms
        if self.phase is Phase.OPEN:
            if self._heartbeat.is_dead(now_ms):
                raise self._timed_out(f"the peer has been silent for {now_ms - self._heartbeat.heard_ms} ms.")
            if self._heartbeat.is_due(now_ms):
                self._put(0, Kind.PING, frame.encode_ping(self._heartbeat.ping(now_ms)))
            return self._heartbeat.deadline_ms
        deadline = self._started_ms + self.limits.handshake_ms
        if now_ms >= deadline:
            raise self._timed_out(f"no handshake within {self.limits.handshake_ms} ms ({self.phase.name}).")
        return deadline

    @property
    def round_trip_ms(self) -> int | None:
        """Of the last answered PING."""
        return self._heartbeat.round_trip_ms

    def _timed_out(self, text: str) -> Unreachable:
        self._abandon(GoawayCode.TIMEOUT, text)
        return Unreachable(text)

    # -- inside ------------------------------------------------------------------------------------------------

    def _put(self, stream_id: int, kind: int, payload: bytes = b"") -> None:
        if self.phase is Phase.CLOSED:
            return
        try:
            self._queue.put(stream_id, kind, payload)
        except Unreachable:
            self.close()
            raise

    def _check_own(self, stream_id: int) -> None:
        if self.phase is not Phase.CLOSED and not self._table.was_opened(stream_id):
            raise ValueError(f"stream {stream_id} was never opened")

    def _abandon(self, code: int, text: str) -> None:
        """Say why, as far as there is room, and be CLOSED."""
        if self.phase is Phase.CLOSED:
            return
        self.goaway_sent = True
        self._queue.put_last(Kind.GOAWAY, frame.encode_reason(code, text))
        self.close()


def _expect_empty(kind: Kind, payload: bytes) -> None:
    if payload:
        raise ProtocolViolation(f"a {kind.name} carries no bytes, this one {len(payload)}.")


_Rule = Callable[[Link, int, bytes], Event | None]

# Which of the link's own frames may come when, and what they do. All others are violations.
_RULES: Final[dict[tuple[Phase, int], _Rule]] = {
    (Phase.AWAIT_HELLO, Kind.HELLO): Link._on_hello,
    (Phase.AWAIT_HELLO, Kind.GOAWAY): Link._on_goaway,
    (Phase.AWAIT_READY, Kind.READY): Link._on_ready,
    (Phase.AWAIT_READY, Kind.GOAWAY): Link._on_goaway,
    (Phase.AWAIT_READY, Kind.MEMBER): Link._on_member,
    (Phase.AWAIT_PROOF, Kind.MEMBER): Link._on_member,
    (Phase.AWAIT_PROOF, Kind.PROOF): Link._on_proof,
    (Phase.AWAIT_PROOF, Kind.CLAIM): Link._on_claim,
    (Phase.AWAIT_PROOF, Kind.GOAWAY): Link._on_goaway,
    (Phase.AWAIT_ACCEPT, Kind.GOAWAY): Link._on_goaway,
    (Phase.OPEN, Kind.GOAWAY): Link._on_goaway,
    (Phase.OPEN, Kind.PING): Link._on_ping,
    (Phase.OPEN, Kind.PONG): Link._on_pong,
    (Phase.OPEN, Kind.OPEN): Link._on_open,
    (Phase.OPEN, Kind.CREDIT): Link._on_credit,
    (Phase.OPEN, Kind.END): Link._on_end,
    (Phase.OPEN, Kind.RESET): Link._on_reset,
    (Phase.OPEN, Kind.MOVE): Link._on_move,
}
