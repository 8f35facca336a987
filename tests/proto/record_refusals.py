"""Cases of refused.json about keys, peer ids, signatures, the wire form and the text form (docs/spec/record.md)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import base58
import msgspec
import nacl.bindings

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import PublicKey, parse_peer_id, parse_public_key
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.record import (
    MAX_RECORD_BYTES,
    Record,
    Role,
    Signature,
    parse_json_line,
    parse_record,
    sign_message,
    verify_record,
)
from tests import factories
from tests.proto.speccheck import speccheck_vectors
from tests.proto.squeezed import squeezed


def code_of(parse: Callable[[], object]) -> str:
    """The code that `parse` refuses with; empty if it takes what it is given."""
    try:
        parse()
    except InvalidRecord as invalid:
        return invalid.code
    return ""


# -- keys and peer ids --------------------------------------------------------------------------------------------


def key_cases() -> list[dict[str, str]]:
    """Keys of 33 bytes, as records hold them."""
    good = factories.PROVIDER.public_key.raw
    small_and_mixed = dict.fromkeys(
        bytes.fromhex(case["public_key"]) for case in speccheck_vectors() if not case["key_admitted"]
    )
    p = 2**255 - 19
    cases = [
        ("as it should be", good),
        ("32 bytes", good[1:]),
        ("34 bytes", good + b"\0"),
        ("no bytes", b""),
        *((f"the first byte is {first}", bytes([first]) + good[1:]) for first in (0, 2, 0xED)),
        *((f"point {number} of ed25519-speccheck", b"\x01" + key) for number, key in enumerate(small_and_mixed)),
        ("the identity", b"\x01\x01" + bytes(31)),
        ("y = 0, of order 4", b"\x01" + bytes(32)),
        ("y = p + 1: the identity, not canonical", b"\x01" + (p + 1).to_bytes(32, "little")),
        ("y = 2: no point of the curve", b"\x01" + (2).to_bytes(32, "little")),
        ("the good point and one of small order", b"\x01" + _mixed(good[1:])),
    ]
    return [{"case": name, "key": key.hex(), "code": code_of(lambda k=key: parse_public_key(k))} for name, key in cases]


def _mixed(point: bytes) -> bytes:
    order_two = bytes.fromhex("ec" + "ff" * 30 + "7f")
    mixed: bytes = nacl.bindings.crypto_core_ed25519_add(point, order_two)
    return mixed


def peer_id_cases() -> list[dict[str, str]]:
    """Texts that are, or are not, the peer id of an admitted key."""
    key = factories.PROVIDER.public_key
    right, prefix = key.peer_id, bytes.fromhex("002408011220")
    cid = b"\x01\x72" + prefix + key.raw[1:]
    cases = [
        ("as it should be", right),
        ("nothing", ""),
        ("white space before", f" {right}"),
        ("white space after", f"{right} "),
        ("a leading 1 more", f"1{right}"),
        ("a character that base58 has not", f"{right[:-1]}0"),
        ("as CIDv1 in base32", "b" + base64.b32encode(cid).decode().lower().rstrip("=")),
        ("as CIDv1 in base58", "z" + base58.b58encode(cid).decode()),
        ("of an RSA key", base58.b58encode(bytes.fromhex("1220") + factories.digest("rsa")).decode()),
        ("of a secp256k1 key", base58.b58encode(bytes.fromhex("00250802122103") + key.raw[1:]).decode()),
        ("a byte short", base58.b58encode(prefix + key.raw[1:-1]).decode()),
        ("a byte long", base58.b58encode(prefix + key.raw[1:] + b"\0").decode()),
        ("of a key of small order", PublicKey(b"\x01\x01" + bytes(31)).peer_id),
    ]
    return [{"case": n, "peer_id": text, "code": code_of(lambda t=text: parse_peer_id(t))} for n, text in cases]


# -- wire form ----------------------------------------------------------------------------------------------------


def _meter() -> Record:
    dealings = factories.Dealings()
    return dealings.meter(dealings.order()).record


def _signature(role: str = "provider", key: int = 33, signature: int = 64) -> list[Any]:
    return [role, b"\1" * key, b"\2" * signature]


def wire_cases() -> list[dict[str, str]]:
    """Records as they travel. Signatures are not checked here."""
    return [
        {"case": name, "wire": squeezed(wire), "code": code_of(lambda w=wire: parse_record(w))}
        for name, wire in _wires()
    ]


def _wires() -> Iterator[tuple[str, bytes]]:
    record = _meter()
    right, pack = record.to_bytes(), msgspec.msgpack.encode
    yield "as it should be", right
    yield "without signatures", pack([record.payload_type, record.payload, []])
    for size in (MAX_RECORD_BYTES, MAX_RECORD_BYTES + 1):
        empty = len(pack(["x", bytes(70_000), []])) - 70_000
        yield f"{size} bytes", pack(["x", bytes(size - empty), []])
    yield "nothing", b""
    yield "a byte after the end", right + b"\0"
    yield "cut off", right[:-1]
    for count in (2, 4):
        yield f"{count} items", pack([record.payload_type, record.payload, [], 0][:count])
    yield "a map", pack({"type": "x", "payload": b"", "signatures": []})
    yield "type as bytes", pack([b"x", b"", []])
    yield "payload as text", pack(["x", "", []])
    yield "signatures nil", pack(["x", b"", None])
    for text in ("", "a" * 64, "a" * 65, "𝄞" * 64, "𝄞" * 65):
        yield f"a type of {len(text)} characters, {len(text.encode())} bytes", pack([text, b"", []])
    yield "a type that is no UTF-8", b"\x93\xa1\xff\xc4\x00\x90"
    for role in ("provider", "client", "operator", "witness", "Provider", ""):
        yield f"signed as {role!r}", pack(["x", b"", [_signature(role)]])
    for size in (32, 34):
        yield f"a key of {size} bytes", pack(["x", b"", [_signature(key=size)]])
    for size in (63, 65):
        yield f"a signature of {size} bytes", pack(["x", b"", [_signature(signature=size)]])
    yield "a signature of two items", pack(["x", b"", [_signature()[:2]]])
    yield "a signature of four items", pack(["x", b"", [[*_signature(), 0]]])
    yield "one signature in each role", pack(["x", b"", [_signature(r) for r in ("operator", "client", "provider")]])
    yield "two signatures in one role", pack(["x", b"", [_signature(), _signature()]])
    yield "nine signatures", pack(["x", b"", [_signature()] * 9])
    yield "array with a 16-bit length", b"\xdc\x00\x03" + right[1:]
    yield "text with an 8-bit length", b"\x93\xd9\x01x\xc4\x00\x90"
    yield "bytes with a 16-bit length", b"\x93\xa1x\xc5\x00\x00\x90"
    yield "signatures with a 16-bit length", b"\x93\xa1x\xc4\x00\xdc\x00\x00"
    twice = pack(["x", b"", [_signature(), _signature()]])
    yield "two signatures in one role, and not canonical: that is said first", b"\xdc\x00\x03" + twice[1:]


# -- text form ----------------------------------------------------------------------------------------------------


def line_cases() -> list[dict[str, str]]:
    """Lines of a bundle, without their line feed, as bytes. Signatures are not checked here."""
    return [
        {"case": name, "line": squeezed(line), "code": code_of(lambda x=line: parse_json_line(x))}
        for name, line in _lines()
    ]


def _lines() -> Iterator[tuple[str, bytes]]:
    right = _meter().to_json_line()
    read = json.loads(right)

    def line(**changes: Any) -> bytes:
        fields = {"type": "x", "payload": "", "signatures": [], **changes}
        return json.dumps({k: v for k, v in fields.items() if v is not Ellipsis}, separators=(",", ":")).encode()

    def signed(**changes: Any) -> bytes:
        one = {**read["signatures"][0], **changes}
        return line(signatures=[{k: v for k, v in one.items() if v is not Ellipsis}])

    yield "as it should be", right
    yield (
        "fields in another order, with white space",
        json.dumps(dict(reversed(read.items())), indent=1).encode().replace(b"\n", b" "),
    )
    yield "white space about it, and a carriage return", b"\t " + right + b" \r"
    for size in (2 * MAX_RECORD_BYTES, 2 * MAX_RECORD_BYTES + 1):
        yield f"{size} bytes", line() + b" " * (size - len(line()))
    for size in (MAX_RECORD_BYTES, MAX_RECORD_BYTES + 1):
        yield f"a payload of {size} bytes", line(payload=base64.b64encode(bytes(size)).decode())
    yield "cut off", right[:-10]
    yield "no object", b"[]"
    yield "two objects", line() + line()
    yield "a byte order mark before it", b"\xef\xbb\xbf" + line()
    yield "a type with the character 0", line(type="\0")
    yield "a type with half a surrogate pair", b'{"type":"\\ud800","payload":"","signatures":[]}'
    yield "a type with a surrogate pair", b'{"type":"\\ud834\\udd1e","payload":"","signatures":[]}'
    yield "a type that is no UTF-8", b'{"type":"\xff","payload":"","signatures":[]}'
    for text in ("a" * 64, "a" * 65, "𝄞" * 64, "𝄞" * 65):
        yield f"a type of {len(text)} characters, {len(text.encode())} bytes", line(type=text)
    yield "a field more", line(note="")
    yield "a field more in a signature", signed(note="")
    for name in ("type", "payload", "signatures"):
        yield f"no {name}", line(**{name: ...})
        yield f"{name} null", line(**{name: None})
    for name in ("role", "key", "signature"):
        yield f"a signature without {name}", signed(**{name: ...})
    yield (
        "a name twice: the last counts",
        b'{"type":"x","payload":"","signatures":[],"type":"\xff"}'.replace(b"\xff", b"y"),
    )
    for role in ("operator", "witness"):
        yield f"signed as {role!r}", signed(role=role)
    yield "two signatures in one role", line(signatures=read["signatures"] * 2)
    for name, size in (("key", 32), ("key", 34), ("signature", 63), ("signature", 65)):
        yield f"a {name} of {size} bytes", signed(**{name: base64.b64encode(bytes(size)).decode()})
    for name, text in (
        ("without padding", "AA"),
        ("with surplus padding", "AA==="),
        ("with bits beyond the end", "AB=="),
        ("with white space", "AA =="),
        ("with a line feed", "AA==\n"),
        ("of another alphabet", "-_=="),
        ("with a character that is none", "A*=="),
        ("with a character beyond ASCII", "é==="),
        ("of one letter", "A"),
        ("as it should be", "AA=="),
        ("as it should be, + and /", "+/8="),
    ):
        yield f"base64 {name}", line(payload=text)


# -- signatures ---------------------------------------------------------------------------------------------------


def signed_cases() -> list[dict[str, Any]]:
    """Records in wire form, and the keys that a reader wants in which roles."""
    return [_signed_case(*case) for case in _signed()]


def _signed_case(name: str, record: Record, keys: dict[Role, PublicKey]) -> dict[str, Any]:
    message_type = MESSAGE_TYPES[record.payload_type]
    return {
        "case": name,
        "wire": squeezed(record.to_bytes()),
        "keys": {role.value: key.raw.hex() for role, key in keys.items()},
        "code": code_of(lambda: verify_record(record, message_type, keys)),
    }


def _signed() -> Iterator[tuple[str, Record, dict[Role, PublicKey]]]:
    dealings = factories.Dealings()
    order = dealings.order()
    proposal = dealings.proposal(order)
    receipt = proposal.countersigned(Role.CLIENT, dealings.client)
    provider, client = dealings.provider.public_key, dealings.client.public_key
    alone, both = {Role.PROVIDER: provider}, {Role.PROVIDER: provider, Role.CLIENT: client}
    small = Signature(Role.CLIENT, b"\x01\x01" + bytes(31), bytes(64))
    unfit = Signature(Role.CLIENT, client.raw, bytes(64))
    yield "signed by both, both wanted", receipt.record, both
    yield "signed by both, one wanted", receipt.record, alone
    yield "signed by one, both wanted", proposal.record, both
    yield "signed by nobody", Record(proposal.record.payload_type, proposal.record.payload, ()), alone
    yield "signed by the other alone", order.record, {Role.PROVIDER: client}
    yield "signed in the role by another key", proposal.record, {Role.PROVIDER: client}
    yield "a signature that does not fit", proposal.record.with_signature(unfit), both
    yield "a signature that does not fit, in a role that is not wanted", proposal.record.with_signature(unfit), alone
    yield "a key of small order, in a role that is not wanted", proposal.record.with_signature(small), alone
    yield "a key of small order, in a role that is wanted of another", proposal.record.with_signature(small), both
    other = sign_message(msgspec.structs.replace(proposal.message, total_ms=1), Role.PROVIDER, dealings.provider)
    moved = Record(proposal.record.payload_type, proposal.record.payload, other.record.signatures)
    yield "a signature over another payload", moved, alone
    voucher = Record("/p2pgrid/voucher/1", order.record.payload, order.record.signatures)
    yield "a signature over another type", voucher, {Role.CLIENT: client}
    wrong = Record(order.record.payload_type, order.record.payload[:-1], ())
    yield "a payload cut off, and no signature: that is said first", wrong, {Role.CLIENT: client}
