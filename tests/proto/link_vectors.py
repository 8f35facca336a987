"""What stands in tests/vectors/link.json: one side of a link, what it is told and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pgrid.errors import ProtocolViolation, Refused, Unreachable
from p2pgrid.proto import frame
from p2pgrid.proto.frame import GoawayCode, Kind, ResetCode, Terms, encode_frame, encode_reason
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import Event, LinkLimits
from tests.proto.squeezed import squeezed

LISTENER, DIALLER = SecretKey(b"p" * 32), SecretKey(b"c" * 32)
NONCE = bytes(range(32))
CREDIT = frame.MIN_STREAM_CREDIT_BYTES
LIMITS = LinkLimits(max_streams=4, stream_credit_bytes=CREDIT)
TERMS = Terms(max_streams=4, stream_credit_bytes=CREDIT)
SMALL_ORDER = b"\x01\x01" + bytes(31)

Step = tuple[Any, ...]
"""What happens: `in` with bytes that arrive, else what the side's owner does."""


def link_vectors() -> dict[str, Any]:
    """The two parties, and the cases."""
    return {
        "listener_seed": LISTENER.expose_seed().hex(),
        "dialler_seed": DIALLER.expose_seed().hex(),
        "nonce": NONCE.hex(),
        "terms": {"streams": LIMITS.max_streams, "credit": CREDIT},
        "cases": [_played(*case) for case in (*_handshakes(), *_open_links(), *_diallers(), *_moves())],
    }


def _played(name: str, side: str, steps: Sequence[Step]) -> dict[str, Any]:
    key = LISTENER.public_key
    if side == "L":
        link = Link.listener(key, NONCE, limits=LIMITS, now_ms=0)
    else:
        link = Link.dialler(DIALLER, key, limits=LIMITS, now_ms=0)
    return told_case(name, side, link, link.data_to_send(), steps)


def told_case(name: str, side: str, link: Link, started: bytes, steps: Sequence[Step]) -> dict[str, Any]:
    """A case as it stands in the file, played on a link."""
    told = [_step(link, step) for step in steps]
    assert not any(one["fault"] for one in told[:-1]), name
    return {"case": name, "side": side, "start": squeezed(started), "steps": told}


def _step(link: Link, step: Step) -> dict[str, Any]:
    what, *given = step
    events: list[list[Any]] = []
    fault = ""
    try:
        if what == "in":
            events += (_event(event) for event in link.receive(given[0], 0))
        else:
            _do(link, what, given)
    except ProtocolViolation:
        fault = "violation"
    except Refused as refused:
        fault = refused.code
    except Unreachable:
        fault = "silent"
    out, code = _without_words(link.data_to_send())
    shown = [_shown(one) for one in given]
    return {"do": [what, *shown], "events": events, "out": squeezed(out), "goaway": code, "fault": fault}


def _without_words(out: bytes) -> tuple[bytes, int | None]:
    """The frames before a GOAWAY, and its code: its words are for people."""
    at = 0
    while at < len(out):
        length, stream, kind = frame.HEADER.unpack_from(out, at)
        if (stream, kind) == (0, Kind.GOAWAY):
            return out[:at], int.from_bytes(out[at + frame.HEADER_BYTES :][:2])
        at += frame.HEADER_BYTES + length
    return out, None


def _do(link: Link, what: str, given: list[Any]) -> None:
    actions: dict[str, Any] = {
        "accept": link.accept,
        "open": link.open_stream,
        "send": link.send,
        "consume": link.consume,
        "end": link.end,
        "reset": link.reset,
        "goaway": link.goaway,
        "expect_move": link.expect_move,
        "move": link.move,
        "tick": link.tick,
    }
    actions[what](*given)


def _event(event: Event) -> list[Any]:
    values = [getattr(event, name) for name in event.__struct_fields__]
    return [type(event).__name__.lower(), *map(_shown, values)]


def _shown(value: Any) -> Any:
    if isinstance(value, PublicKey):
        return value.peer_id
    return squeezed(value) if isinstance(value, bytes) else value


def _frame(stream: int, kind: int, payload: bytes = b"") -> bytes:
    return encode_frame(stream, kind, payload)


def _proof(nonce: bytes = NONCE, to: SecretKey = LISTENER, terms: Terms = TERMS) -> bytes:
    return frame.encode_proof(DIALLER, to.public_key, nonce, terms)


def _claim(nonce: bytes = NONCE, to: SecretKey = LISTENER) -> bytes:
    return frame.encode_claim(DIALLER, to.public_key, nonce, LINK_NAME)


LINK_NAME, ROAD = bytes(range(32, 64)), bytes(range(64, 96))
PROOF = _frame(0, Kind.PROOF, _proof())
HELLO = _frame(0, Kind.HELLO, frame.encode_hello(NONCE, TERMS))
READY = _frame(0, Kind.READY)
NO_MEMBER = _frame(0, Kind.GOAWAY, encode_reason(GoawayCode.NOT_A_MEMBER, "no member"))
Case = tuple[str, str, list[Step]]


def _handshakes() -> list[Case]:
    proof = _proof()
    altered = proof[:40] + bytes([proof[40] ^ 1]) + proof[41:]
    cases: list[Case] = [
        ("a listener", "L", [("in", PROOF), ("accept",)]),
        ("a listener that is shown its frames byte by byte", "L", [*(("in", bytes([b])) for b in PROOF), ("accept",)]),
        ("a listener that refuses", "L", [("in", PROOF), ("goaway", GoawayCode.REFUSED.value, "no")]),
        ("a dialler", "D", [("in", HELLO), ("in", READY), ("open",), ("send", 1, 16, b"order")]),
        ("a dialler that is refused", "D", [("in", HELLO), ("in", _frame(0, Kind.GOAWAY, encode_reason(3, "no")))]),
    ]
    proofs = {
        "another nonce": _proof(nonce=bytes(32)),
        "another listener": _proof(to=SecretKey(b"o" * 32)),
        "a signature that does not fit": altered,
        "a key of small order": proof[:2] + SMALL_ORDER + proof[35:],
        "a key of another algorithm": proof[:2] + b"\x02" + proof[3:],
        "a byte too few": proof[:-1],
        "a byte too many": proof + b"\0",
        "no version": b"\0",
        "version 2, of another length": b"\0\2" + bytes(200),
        "version 0": b"\0\0" + proof[2:],
        "streams 0": _proof(terms=Terms(max_streams=0, stream_credit_bytes=CREDIT)),
        "a credit of 131071": _proof(terms=Terms(max_streams=4, stream_credit_bytes=CREDIT - 1)),
        "a credit of 2^31 - 1": _proof(terms=Terms(max_streams=4, stream_credit_bytes=2**31 - 1)),
        "a credit of 2^31": _proof(terms=Terms(max_streams=4, stream_credit_bytes=2**31)),
    }
    cases += [(f"PROOF: {name}", "L", [("in", _frame(0, Kind.PROOF, p))]) for name, p in proofs.items()]
    cases += [
        ("PROOF on stream 1", "L", [("in", _frame(1, Kind.PROOF, proof))]),
        ("PROOF twice", "L", [("in", PROOF), ("in", PROOF)]),
        ("OPEN before PROOF", "L", [("in", _frame(1, Kind.OPEN))]),
        ("PING before PROOF", "L", [("in", _frame(0, Kind.PING, bytes(8)))]),
        ("OPEN behind PROOF", "L", [("in", PROOF), ("in", _frame(1, Kind.OPEN))]),
        ("HELLO to a listener", "L", [("in", HELLO)]),
        ("GOAWAY before PROOF", "L", [("in", _frame(0, Kind.GOAWAY, encode_reason(0, "")))]),
        ("no PROOF within 10 s", "L", [("tick", 9_999), ("tick", 10_000)]),
        ("READY before HELLO", "D", [("in", READY)]),
        ("HELLO twice", "D", [("in", HELLO), ("in", HELLO)]),
        ("HELLO of version 2", "D", [("in", _frame(0, Kind.HELLO, b"\0\2" + bytes(9)))]),
        ("HELLO a byte too few", "D", [("in", HELLO[:3] + b"\x29" + HELLO[4:-1])]),
        ("READY with a payload", "D", [("in", HELLO), ("in", _frame(0, Kind.READY, b"\0"))]),
        ("a message before READY", "D", [("in", HELLO), ("in", _frame(2, 16))]),
    ]
    return cases


FULL, BULK = bytes(65_536), 128


def _open_links() -> list[Case]:
    opened: list[Step] = [("in", PROOF), ("accept",)]
    one: list[Step] = [*opened, ("in", _frame(1, Kind.OPEN))]

    def told(name: str, *frames: bytes, start: list[Step] | None = None) -> Case:
        return name, "L", [*(one if start is None else start), *(("in", each) for each in frames)]

    return [
        *_on_an_open_stream("L", one),
        told("PROOF again", PROOF),
        told("OPEN out of turn", _frame(3, Kind.OPEN), start=opened),
        told("OPEN of an even stream by the dialler", _frame(2, Kind.OPEN), start=opened),
        told("OPEN twice", _frame(1, Kind.OPEN)),
        told("OPEN with a payload", _frame(3, Kind.OPEN, b"\0")),
        told("as many streams as the terms say, and one more", *(_frame(n, Kind.OPEN) for n in (3, 5, 7, 9))),
        ("GOAWAY sent, then OPEN", "L", [*one, ("goaway", 0, ""), ("in", _frame(3, Kind.OPEN)), ("in", _frame(1, 16))]),
        (
            "streams of both sides",
            "L",
            [*one, ("open",), ("send", 2, 16, b"x"), ("in", _frame(2, 16)), ("open",), ("in", _frame(4, Kind.END))],
        ),
    ]


def _diallers() -> list[Case]:
    """The same rules, for the side that opened the stream."""
    one: list[Step] = [("in", HELLO), ("in", READY), ("open",)]
    cases = [(f"to a dialler: {name}", side, steps) for name, side, steps in _on_an_open_stream("D", one)]
    return [
        *cases,
        ("HELLO again", "D", [*one, ("in", HELLO)]),
        ("OPEN of an odd stream by the listener", "D", [*one, ("in", _frame(3, Kind.OPEN))]),
    ]


def _on_an_open_stream(side: str, one: list[Step]) -> list[Case]:
    """Stream 1 is open after the steps `one`; what either side may be told on it."""

    def told(name: str, *frames: bytes) -> Case:
        return name, side, [*one, *(("in", each) for each in frames)]

    full, bulk = FULL, BULK
    return [
        told("a message", _frame(1, 16, b"x"), _frame(1, 127)),
        told("65536 bytes", _frame(1, 16, full)),
        told("65537 bytes", _frame(1, 16, full + b"\0")),
        *(told(f"kind {kind}", _frame(1, kind)) for kind in (10, 15)),
        *(told(f"kind {kind} on stream 0", _frame(0, kind)) for kind in (6, 8, 16, 128)),
        *(told(f"kind {kind} on stream 1", _frame(1, kind, bytes(8))) for kind in (3, 4)),
        told("READY again", READY),
        told(
            "three PINGs in one read: the last is answered",
            b"".join(_frame(0, 4, bytes(7) + bytes([n])) for n in (1, 2, 3)),
        ),
        told("PING of 7 bytes", _frame(0, Kind.PING, bytes(7))),
        told("PONG unasked", _frame(0, Kind.PONG, bytes(7) + b"\1")),
        (
            "silence: PING after 15 s, given up 30 s later",
            side,
            [*one, ("tick", 14_999), ("tick", 15_000), ("tick", 44_999), ("tick", 45_000)],
        ),
        ("PONG", side, [*one, ("tick", 15_000), ("in", _frame(0, Kind.PONG, bytes(7) + b"\1"))]),
        ("PONG twice", side, [*one, ("tick", 15_000), *(("in", _frame(0, Kind.PONG, bytes(7) + b"\1")),) * 2]),
        told("a message on a stream that was never opened", _frame(3, 16)),
        told("a message on the listener's stream that was never opened", _frame(2, 16)),
        told("CREDIT on a stream that was never opened", _frame(3, Kind.CREDIT, b"\0\0\0\1")),
        told("a message after END", _frame(1, Kind.END), _frame(1, 16)),
        told("END twice", _frame(1, Kind.END), _frame(1, Kind.END)),
        told("END with a payload", _frame(1, Kind.END, b"\0")),
        told("RESET after END", _frame(1, Kind.END), _frame(1, Kind.RESET, encode_reason(0, ""))),
        told("a message after RESET", _frame(1, Kind.RESET, encode_reason(0, "")), _frame(1, 16)),
        (
            "CREDIT after END",
            side,
            [
                *one,
                ("send", 1, bulk, b"data"),
                ("in", _frame(1, Kind.END)),
                ("in", _frame(1, Kind.CREDIT, b"\0\0\0\4")),
            ],
        ),
        ("a message after both ENDs", side, [*one, ("end", 1), ("in", _frame(1, Kind.END)), ("in", _frame(1, 16))]),
        (
            "a message after its own RESET",
            side,
            [*one, ("reset", 1, ResetCode.CANCELLED.value, ""), ("in", _frame(1, 16))],
        ),
        *(
            told(f"RESET {code}", _frame(1, Kind.RESET, code.to_bytes(2) + text))
            for code, text in ((63, b""), (64, b"mine"), (65535, b"a" * 256), (1, b"\xff\n"))
        ),
        told("RESET with a text of 257 bytes", _frame(1, Kind.RESET, b"\0\0" + b"a" * 257)),
        told("RESET of one byte", _frame(1, Kind.RESET, b"\0")),
        told("bulk up to the credit", _frame(1, bulk, full), _frame(1, 255, full)),
        told("bulk over the credit", _frame(1, bulk, full), _frame(1, bulk, full), _frame(1, bulk, b"\0")),
        told("empty bulk", _frame(1, bulk)),
        (
            "half the window consumed: CREDIT",
            side,
            [
                *one,
                ("in", _frame(1, bulk, full)),
                ("in", _frame(1, bulk, full)),
                ("consume", 1, 65_535),
                ("consume", 1, 1),
            ],
        ),
        *(
            told(f"CREDIT {credit.hex()}", _frame(1, Kind.CREDIT, credit))
            for credit in (b"\0\0\0\0", b"\0\0\0\1", b"\x80\0\0\0", b"\0\0\1")
        ),
        *(
            (
                f"4 bytes sent, CREDIT {credit}",
                side,
                [*one, ("send", 1, bulk, b"data"), ("in", _frame(1, Kind.CREDIT, credit.to_bytes(4)))],
            )
            for credit in (4, 5)
        ),
        *(told(f"GOAWAY {code}", _frame(0, Kind.GOAWAY, encode_reason(code, "bye"))) for code in (0, 2, 999)),
        told("two frames in one read, the second of them forbidden", _frame(1, 16, b"x") + _frame(3, 16)),
    ]


def _moves() -> list[Case]:
    claim = _claim()
    claims = {
        "another nonce": _claim(nonce=bytes(32)),
        "another listener": _claim(to=SecretKey(b"o" * 32)),
        "another link": claim[:2] + bytes(32) + claim[34:],
        "a signature that does not fit": claim[:80] + bytes([claim[80] ^ 1]) + claim[81:],
        "a key of small order": claim[:34] + SMALL_ORDER + claim[67:],
        "the signature of a PROOF": claim[:67] + _proof()[35:99],
        "a byte too few": claim[:-1],
        "a byte too many": claim + b"\0",
        "version 2": b"\0\2" + claim[2:],
    }
    claimed = ("in", _frame(0, Kind.CLAIM, claim))
    one: list[Step] = [("in", PROOF), ("accept",), ("in", _frame(1, Kind.OPEN))]
    expected: list[Step] = [*one, ("expect_move", ROAD)]
    move = _frame(0, Kind.MOVE, ROAD)
    return [
        ("CLAIM", "L", [claimed, ("accept",)]),
        ("CLAIM that is refused", "L", [claimed, ("goaway", GoawayCode.REFUSED.value, "no")]),
        *((f"CLAIM: {name}", "L", [("in", _frame(0, Kind.CLAIM, c))]) for name, c in claims.items()),
        ("CLAIM on stream 1", "L", [("in", _frame(1, Kind.CLAIM, claim))]),
        ("CLAIM behind CLAIM", "L", [claimed, claimed]),
        ("CLAIM behind PROOF", "L", [("in", PROOF), claimed]),
        ("CLAIM on an open link", "L", [*one, claimed]),
        ("CLAIM to a dialler", "D", [claimed]),
        (
            "MOVE, answered, and what comes on the other road",
            "L",
            [*expected, ("send", 1, 16, b"before"), ("in", move), ("move", ROAD), ("in", _frame(1, 16, b"x"))],
        ),
        ("MOVE that nothing was claimed for", "L", [*one, ("in", move)]),
        ("MOVE that is expected no more", "L", [*expected, ("expect_move", None), ("in", move)]),
        ("MOVE to another road", "L", [*expected, ("in", _frame(0, Kind.MOVE, bytes(32)))]),
        ("MOVE of 31 bytes", "L", [*expected, ("in", _frame(0, Kind.MOVE, ROAD[:-1]))]),
        ("MOVE on stream 1", "L", [*expected, ("in", _frame(1, Kind.MOVE, ROAD))]),
        ("MOVE twice", "L", [*expected, ("in", move), ("in", move)]),
        ("MOVE before PROOF", "L", [("in", move)]),
        ("a message behind MOVE", "L", [*expected, ("in", move + _frame(1, 16, b"x"))]),
        ("a message before MOVE in one read", "L", [*expected, ("in", _frame(1, 16, b"x") + move)]),
        (
            "a dialler moves",
            "D",
            [("in", HELLO), ("in", READY), ("open",), ("expect_move", ROAD), ("move", ROAD), ("in", move)],
        ),
    ]
