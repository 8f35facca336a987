"""One side of a link, written from docs/spec/link.md alone: nothing of p2pgrid is imported here."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import nacl.bindings

from tests.spec.network_reader import read_credentials
from tests.spec.reader import Refused, peer_id, signature_input, verify

HELLO, PROOF, READY, GOAWAY, PING, PONG, OPEN, CREDIT, END, RESET, CLAIM, MOVE, MEMBER = range(13)


class Closed(Exception):
    """The link is closed: `fault`, and the code of the GOAWAY that says so."""

    def __init__(self, fault: str, goaway: int) -> None:
        self.fault, self.goaway = fault, goaway


def violation() -> Closed:
    return Closed("violation", 2)


@dataclass
class Stream:
    sendable: int
    receivable: int
    consumed: int = 0
    own_ended: bool = False
    peer_ended: bool = False


@dataclass
class LinkSide:
    """`side` is L or D; `seed` is D's, or L's."""

    side: str
    seed: bytes
    listener: bytes
    nonce: bytes
    streams_allowed: int
    credit: int
    credentials: bytes = b""
    """What D sends as MEMBER (network.md, rule 14)."""
    may_hear_member: bool = False
    phase: str = "HANDSHAKE"
    out: bytes = b""
    buffer: bytes = b""
    streams: dict[int, Stream] = field(default_factory=dict)
    peer_streams: int = 0
    peer_credit: int = 0
    pings: int = 0
    ponged: int = 0
    heard_ms: int = 0
    pinged_ms: int | None = None
    is_leaving: bool = False
    claimed: bytes | None = None

    def __post_init__(self) -> None:
        self.own_next, self.peer_next = (2, 1) if self.side == "L" else (1, 2)
        self.may_hear_member = self.side == "L"
        if self.side == "L":
            self._put(0, HELLO, struct.pack(">H32sII", 1, self.nonce, self.streams_allowed, self.credit))

    def take_out(self) -> bytes:
        out, self.out = self.out, b""
        return out

    def _put(self, stream: int, kind: int, payload: bytes = b"") -> None:
        self.out += struct.pack(">IIB", len(payload), stream, kind) + payload

    # -- what arrives ----------------------------------------------------------------------------------------------

    def receive(self, data: bytes, events: list[Any]) -> None:
        self.buffer += data
        pong = None
        while len(self.buffer) >= 9:
            length, stream, kind = struct.unpack(">IIB", self.buffer[:9])
            if length > 65536:
                raise violation()
            if len(self.buffer) < 9 + length:
                break
            payload, self.buffer = self.buffer[9 : 9 + length], self.buffer[9 + length :]
            if kind == PING and self.phase == "OPEN" and stream == 0 and length == 8:
                pong = payload
            else:
                self._frame(stream, kind, payload, events)
            if kind == MOVE and self.buffer:
                raise violation()
            if kind == MOVE:
                events.append(["moved"])
        if pong is not None:
            self._put(0, PONG, pong)

    def _frame(self, stream: int, kind: int, payload: bytes, events: list[Any]) -> None:
        if kind == GOAWAY and stream == 0:
            code, text = self._reason(payload)
            events.append(["goingaway", code, text])
        elif self.phase != "OPEN":
            self._handshake(stream, kind, payload, events)
        elif kind == PONG and stream == 0:
            number = int.from_bytes(payload)
            if len(payload) != 8 or not self.ponged < number <= self.pings:
                raise violation()
            self.ponged, self.pinged_ms = number, None
        elif kind == MOVE and stream == 0 and len(payload) == 32 and payload == self.claimed:
            self.claimed = None
        elif kind == OPEN:
            self._opened(stream, payload, events)
        elif CREDIT <= kind <= RESET or kind >= 16:
            self._on_stream(stream, kind, payload, events)
        else:
            raise violation()

    def _handshake(self, stream: int, kind: int, payload: bytes, events: list[Any]) -> None:
        if kind == MEMBER and stream == 0 and (self.side, self.phase) in (("L", "HANDSHAKE"), ("D", "PROVEN")):
            if not self.may_hear_member:
                raise violation()
            self.may_hear_member = False
            try:
                read_credentials(payload, "caller" if self.side == "L" else "called")
            except Refused:
                raise violation() from None
            return
        wanted = {("L", "HANDSHAKE"): (PROOF, CLAIM), ("D", "HANDSHAKE"): (HELLO,), ("D", "PROVEN"): (READY,)}
        if stream != 0 or kind not in wanted.get((self.side, self.phase), ()):
            raise violation()
        if kind == READY:
            if payload:
                raise violation()
            self.phase = "OPEN"
            events.append(["ready"])
            return
        if len(payload) < 2:
            raise violation()
        if payload[:2] != b"\0\1":
            raise Closed("version", 1)
        if len(payload) != {PROOF: 107, HELLO: 42, CLAIM: 131}[kind]:
            raise violation()
        if kind == CLAIM:
            name, key, signature = payload[2:34], payload[34:67], payload[67:]
            try:
                verify(
                    key, signature_input("/p2pgrid/link-claim/1", self.nonce + name + self.listener + key), signature
                )
            except Refused:
                raise violation() from None
            events.append(["claimed", peer_id(key), name.hex()])
            self.phase = "PROVEN"
            return
        self.peer_streams, self.peer_credit = struct.unpack(">II", payload[-8:])
        if not 131072 <= self.peer_credit < 2**31:
            raise violation()
        if kind == PROOF:
            key, signature = payload[2:35], payload[35:99]
            try:
                verify(key, self._proof_input(self.nonce, key), signature)
            except Refused:
                raise violation() from None
            events.append(["proved", peer_id(key)])
        else:
            public, secret = nacl.bindings.crypto_sign_seed_keypair(self.seed)
            key = b"\1" + public
            signature = nacl.bindings.crypto_sign(self._proof_input(payload[2:34], key), secret)[:64]
            if self.credentials:
                self.may_hear_member = True
                self._put(0, MEMBER, self.credentials)
            self._put(0, PROOF, b"\0\1" + key + signature + struct.pack(">II", self.streams_allowed, self.credit))
        self.phase = "PROVEN"

    def _proof_input(self, nonce: bytes, dialler: bytes) -> bytes:
        return signature_input("/p2pgrid/link-proof/1", nonce + self.listener + dialler)

    def _opened(self, stream: int, payload: bytes, events: list[Any]) -> None:
        if payload or stream != self.peer_next:
            raise violation()
        self.peer_next += 2
        if self.is_leaving:
            self._put(stream, RESET, b"\0\2this link is closing")
            return
        if sum(one % 2 == stream % 2 for one in self.streams) >= self.streams_allowed:
            raise violation()
        self.streams[stream] = Stream(self.peer_credit, self.credit)
        events.append(["opened", stream])

    def _on_stream(self, number: int, kind: int, payload: bytes, events: list[Any]) -> None:
        credit = int.from_bytes(payload)
        if kind == CREDIT and (len(payload) != 4 or not 0 < credit < 2**31):
            raise violation()
        reason = self._reason(payload) if kind == RESET else ()
        if kind == END and payload:
            raise violation()
        stream = self.streams.get(number)
        if stream is None:
            if number == 0 or number >= (self.own_next if number % 2 == self.own_next % 2 else self.peer_next):
                raise violation()
            return
        if stream.peer_ended and kind not in (CREDIT, RESET):
            raise violation()
        if kind == CREDIT:
            stream.sendable += credit
            if stream.sendable > self.peer_credit:
                raise violation()
            if not stream.own_ended:
                events.append(["writable", number])
        elif kind == END:
            stream.peer_ended = True
            events.append(["ended", number])
            self._drop(number)
        elif kind == RESET:
            del self.streams[number]
            events.append(["cut", number, *reason])
        else:
            if kind >= 128:
                if not 0 < len(payload) <= stream.receivable:
                    raise violation()
                stream.receivable -= len(payload)
            events.append(["message", number, kind, payload])

    def _reason(self, payload: bytes) -> tuple[int, str]:
        if not 2 <= len(payload) <= 258:
            raise violation()
        text = payload[2:].decode("utf-8", "replace")
        return int.from_bytes(payload[:2]), "".join(c if c.isprintable() else "\ufffd" for c in text)

    def _drop(self, number: int) -> None:
        if self.streams[number].own_ended and self.streams[number].peer_ended:
            del self.streams[number]

    # -- what the owner does ------------------------------------------------------------------------------------------

    def do(self, what: str, *given: Any) -> None:
        getattr(self, f"do_{what}")(*given)

    def do_accept(self, credentials: str = "") -> None:
        self.phase = "OPEN"
        if credentials:
            self._put(0, MEMBER, bytes.fromhex(credentials))
        self._put(0, READY)

    def do_open(self) -> None:
        self.streams[self.own_next] = Stream(self.peer_credit, self.credit)
        self._put(self.own_next, OPEN)
        self.own_next += 2

    def do_send(self, stream: int, kind: int, payload: str) -> None:
        data = bytes.fromhex(payload)
        self.streams[stream].sendable -= len(data) if kind >= 128 else 0
        self._put(stream, kind, data)

    def do_consume(self, number: int, count: int) -> None:
        stream = self.streams[number]
        stream.consumed += count
        if stream.consumed >= self.credit / 2 and not stream.peer_ended:
            self._put(number, CREDIT, stream.consumed.to_bytes(4))
            stream.receivable, stream.consumed = stream.receivable + stream.consumed, 0

    def do_end(self, stream: int) -> None:
        self.streams[stream].own_ended = True
        self._put(stream, END)
        self._drop(stream)

    def do_reset(self, stream: int, code: int, text: str) -> None:
        del self.streams[stream]
        self._put(stream, RESET, code.to_bytes(2) + text.encode())

    def do_goaway(self, code: int, text: str) -> None:
        self.is_leaving = True
        self._put(0, GOAWAY, code.to_bytes(2) + text.encode())

    def do_expect_move(self, road: str | None) -> None:
        self.claimed = bytes.fromhex(road) if road is not None else None

    def do_move(self, road: str) -> None:
        self._put(0, MOVE, bytes.fromhex(road))

    def do_tick(self, now_ms: int) -> None:
        if self.phase != "OPEN":
            if now_ms >= 10_000:
                raise Closed("silent", 5)
            return
        if self.pinged_ms is None and now_ms >= self.heard_ms + 15_000:
            self.pings, self.pinged_ms = self.pings + 1, now_ms
            self._put(0, PING, self.pings.to_bytes(8))
        elif self.pinged_ms is not None and now_ms >= self.pinged_ms + 30_000:
            raise Closed("silent", 5)
