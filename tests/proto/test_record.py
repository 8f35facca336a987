"""Signed records: what is signed, what is refused, the text form."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from libp2p.peer.envelope import make_unsigned

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Meter, Offer, Receipt, Voucher
from p2pgrid.proto.record import (
    MAX_RECORD_BYTES,
    MAX_SIGNATURES,
    Record,
    Role,
    Signature,
    Signed,
    parse_json_line,
    parse_message,
    parse_record,
    record_id,
    sign_message,
    signature_input,
    verify_countersigned,
    verify_record,
    verify_self_signed,
)
from tests.proto.simulation import CLIENT, NOW_MS, PROVIDER, STRANGER, make_offer, usage

METER = Meter(
    channel=bytes(32),
    order_number=1,
    tick=2,
    usage=usage(10, 8),
    amount_pico=6_800_000,
    response_commitment=bytes(32),
    metered_ms=NOW_MS,
)
SIGNED = sign_message(METER, Role.PROVIDER, PROVIDER)
WIRE = SIGNED.record.to_bytes()


def code_of(data: bytes, parse: Any = parse_record) -> str:
    with pytest.raises(InvalidRecord) as invalid:
        parse(data)
    return invalid.value.code


@given(st.text(max_size=64), st.binary(max_size=300))
def test_signature_input_is_libp2ps_envelope(payload_type: str, payload: bytes) -> None:
    assert signature_input(payload_type, payload) == make_unsigned("p2pgrid", payload_type.encode(), payload)


def test_signature_input_byte_by_byte() -> None:
    assert signature_input("/t/1", b"\xab" * 200) == b"\x07p2pgrid" + b"\x04/t/1" + b"\xc8\x01" + b"\xab" * 200


def test_id_is_the_hash_of_what_is_signed() -> None:
    signed_bytes = signature_input(SIGNED.record.payload_type, SIGNED.record.payload)
    assert SIGNED.id == SIGNED.record.id == hashlib.sha256(signed_bytes).digest()
    assert record_id("a", b"b") != record_id("ab", b"")


def test_round_trip() -> None:
    assert parse_record(WIRE) == SIGNED.record
    assert parse_json_line(SIGNED.record.to_json_line()) == SIGNED.record
    assert verify_record(SIGNED.record, Meter, {Role.PROVIDER: PROVIDER.public_key}).message == METER


def test_both_sign_the_same_bytes() -> None:
    both = SIGNED.countersigned(Role.CLIENT, CLIENT)
    assert both.id == SIGNED.id and both.record.payload == SIGNED.record.payload
    assert set(both.signers) == {Role.PROVIDER, Role.CLIENT}
    keys = {Role.PROVIDER: PROVIDER.public_key, Role.CLIENT: CLIENT.public_key}
    assert verify_record(parse_record(both.record.to_bytes()), Meter, keys).signers == keys
    assert both.countersigned(Role.CLIENT, STRANGER).record.signature_of(Role.CLIENT) != both.record.signatures[1]
    assert len(both.countersigned(Role.CLIENT, STRANGER).record.signatures) == 2


def encoded(payload_type: Any, payload: Any, signatures: Any, *more: Any) -> bytes:
    return msgspec.msgpack.encode([payload_type, payload, signatures, *more])


_SIGNATURE = ["provider", PROVIDER.public_key.raw, bytes(64)]

NOT_RECORDS: list[tuple[str, bytes, str]] = [
    ("empty", b"", "malformed"),
    ("nil", b"\xc0", "malformed"),
    ("a map", b"\x80", "malformed"),
    ("too few items", msgspec.msgpack.encode(["t", b""]), "malformed"),
    ("surplus item", encoded("t", b"", [], 1), "malformed"),
    ("surplus item in a signature", encoded("t", b"", [[*_SIGNATURE, 1]]), "malformed"),
    ("payload is text", encoded("t", "x", []), "malformed"),
    ("type is bytes", encoded(b"t", b"", []), "malformed"),
    ("type too long", encoded("t" * 65, b"", []), "malformed"),
    ("bad UTF-8", b"\x93\xa1\xff\xc4\x00\x90", "malformed"),
    ("bad UTF-8 in a role", b"\x93\xa1t\xc4\x00\x91\x93\xa2\xff\xfe\xc4\x00\xc4\x00", "malformed"),
    ("unknown role", encoded("t", b"", [["witness", *_SIGNATURE[1:]]]), "malformed"),
    ("short key", encoded("t", b"", [["provider", bytes(32), bytes(64)]]), "malformed"),
    ("short signature", encoded("t", b"", [["provider", bytes(33), bytes(63)]]), "malformed"),
    ("two of one role", encoded("t", b"", [_SIGNATURE, ["provider", CLIENT.public_key.raw, bytes(64)]]), "malformed"),
    ("the same twice", encoded("t", b"", [_SIGNATURE, _SIGNATURE]), "malformed"),
    ("nine signatures", encoded("t", b"", [_SIGNATURE] * (MAX_SIGNATURES + 1)), "malformed"),
    ("trailing bytes", WIRE + b"\x00", "malformed"),
    ("text of 1 byte in a long form", b"\x93\xd9\x01t\xc4\x00\x90", "not-canonical"),
    ("bytes in a long form", b"\x93\xa1t\xc5\x00\x00\x90", "not-canonical"),
    ("array in a long form", b"\xdc\x00\x03\xa1t\xc4\x00\x90", "not-canonical"),
    ("oversize", b"\x93" + bytes(MAX_RECORD_BYTES), "oversize"),
    ("deep", b"\x91" * 100_000, "malformed"),
    ("deep inside", b"\x93\xa1t\xc4\x00" + b"\x91" * 100_000, "malformed"),
    ("a promise of 4 GB", b"\x93\xa1t\xc6\xff\xff\xff\xff", "malformed"),
    ("a promise of 4 G items", b"\x93\xa1t\xc4\x00\xdd\xff\xff\xff\xff", "malformed"),
]


@pytest.mark.parametrize(("data", "code"), [x[1:] for x in NOT_RECORDS], ids=[x[0] for x in NOT_RECORDS])
def test_what_is_no_record(data: bytes, code: str) -> None:
    assert code_of(data) == code


def test_truncated_anywhere() -> None:
    line = SIGNED.record.to_json_line()
    for at in range(len(WIRE)):
        assert code_of(WIRE[:at]) == "malformed"
    for at in range(len(line)):
        assert code_of(line[:at], parse_json_line) == "malformed"
    for at in range(len(SIGNED.record.payload)):
        cut = Record(METER.payload_type, SIGNED.record.payload[:at], ())
        assert code_of(b"", lambda _, cut=cut: parse_message(cut, Meter)) == "malformed"


def meter_payload(**changes: Any) -> list[Any]:
    fields = {**{f: getattr(METER, f) for f in METER.__struct_fields__}, "usage": [10, 0, 8], **changes}
    return list(fields.values())


NOT_METERS: list[tuple[str, bytes, str]] = [
    ("minimal", msgspec.msgpack.encode(meter_payload()), ""),
    ("integer in a long form", SIGNED.record.payload.replace(b"\x01\x02\x93", b"\xcc\x01\x02\x93"), "not-canonical"),
    ("negative zero width", SIGNED.record.payload.replace(b"\x01\x02\x93", b"\xd0\x01\x02\x93"), "not-canonical"),
    ("surplus item", msgspec.msgpack.encode([*meter_payload(), 0]), "malformed"),
    ("surplus nested item", msgspec.msgpack.encode(meter_payload(usage=[10, 0, 8, 0])), "malformed"),
    ("a default left out", msgspec.msgpack.encode(meter_payload(usage=[10, 0])), "malformed"),
    ("missing item", msgspec.msgpack.encode(meter_payload()[:-1]), "malformed"),
    ("trailing byte", SIGNED.record.payload + b"\xc0", "malformed"),
    ("float", msgspec.msgpack.encode(meter_payload(amount_pico=1.0)), "malformed"),
    ("boolean", msgspec.msgpack.encode(meter_payload(tick=True)), "malformed"),
    ("text", msgspec.msgpack.encode(meter_payload(tick="1")), "malformed"),
    ("negative", msgspec.msgpack.encode(meter_payload(amount_pico=-1)), "malformed"),
    ("over 63 bits", msgspec.msgpack.encode(meter_payload(amount_pico=2**63)), "malformed"),
    ("over 53 bits", msgspec.msgpack.encode(meter_payload(order_number=2**53 + 1)), "malformed"),
    ("number 0", msgspec.msgpack.encode(meter_payload(order_number=0)), "malformed"),
    ("year 10000", msgspec.msgpack.encode(meter_payload(metered_ms=253_402_300_800_000)), "malformed"),
    ("short id", msgspec.msgpack.encode(meter_payload(channel=bytes(31))), "malformed"),
    ("a map", msgspec.msgpack.encode({"channel": bytes(32)}), "malformed"),
    ("oversize", bytes(1025), "oversize"),
]


@pytest.mark.parametrize(("payload", "code"), [x[1:] for x in NOT_METERS], ids=[x[0] for x in NOT_METERS])
def test_payloads(payload: bytes, code: str) -> None:
    record = Record(METER.payload_type, payload, ())
    try:
        message = parse_message(record, Meter)
    except InvalidRecord as invalid:
        assert invalid.code == code
    else:
        assert code == "" and message == METER


def test_wrong_type() -> None:
    with pytest.raises(InvalidRecord) as invalid:
        parse_message(SIGNED.record, Voucher)
    assert invalid.value.code == "wrong-type"


def test_verify_record_says_what_is_wrong() -> None:
    record = SIGNED.record

    def code(record: Record, **keys: Any) -> str:
        with pytest.raises(InvalidRecord) as invalid:
            verify_record(record, Meter, {Role(role): key for role, key in keys.items()})
        return invalid.value.code

    assert code(record, client=CLIENT.public_key) == "signature-missing"
    assert code(record, provider=CLIENT.public_key) == "wrong-key"
    forged = Signature(Role.PROVIDER, PROVIDER.public_key.raw, bytes(64))
    assert code(record.with_signature(forged), provider=PROVIDER.public_key) == "bad-signature"
    other = msgspec.structs.replace(record, payload=record.payload[:-1] + b"\x01")
    assert code(other, provider=PROVIDER.public_key) == "bad-signature"
    moved = msgspec.structs.replace(record, payload_type="/p2pgrid/voucher/1")
    assert code(moved, provider=PROVIDER.public_key) == "bad-signature"


def test_every_bit_of_a_record_matters() -> None:
    for at in range(len(WIRE)):
        for bit in range(8):
            flipped = WIRE[:at] + bytes([WIRE[at] ^ 1 << bit]) + WIRE[at + 1 :]
            with pytest.raises(InvalidRecord):
                verify_record(parse_record(flipped), Meter, {Role.PROVIDER: PROVIDER.public_key})


def test_self_signed() -> None:
    offer = make_offer()
    assert verify_self_signed(offer.record, Offer, Role.PROVIDER).signers[Role.PROVIDER] == PROVIDER.public_key
    with pytest.raises(InvalidRecord) as invalid:
        verify_self_signed(offer.record, Offer, Role.CLIENT)
    assert invalid.value.code == "signature-missing"
    small = Signature(Role.PROVIDER, b"\x01\x01" + bytes(31), bytes(64))
    with pytest.raises(InvalidRecord) as invalid:
        verify_self_signed(offer.record.with_signature(small), Offer, Role.PROVIDER)
    assert invalid.value.code == "key-not-admissible"


@pytest.mark.parametrize(
    "changes",
    [{"amount_pico": -1}, {"amount_pico": 2**63}, {"tick": 0}, {"channel": b""}, {"usage": usage(-1, 0)}],
)
def test_nothing_is_signed_that_no_peer_would_take(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord):
        sign_message(msgspec.structs.replace(METER, **changes), Role.PROVIDER, PROVIDER)


def test_an_oversize_offer_is_not_signed() -> None:
    entry = make_offer().message.models[0]
    models = tuple(msgspec.structs.replace(entry, model=f"{i:0>128}", engine="x" * 128) for i in range(64))
    gpus = tuple("ł" * 128 for _ in range(64))
    with pytest.raises(InvalidRecord) as invalid:
        make_offer(models=models, gpus=gpus)
    assert invalid.value.code == "oversize"


# -- the text form ------------------------------------------------------------------------------------------------

LINE = json.loads(SIGNED.record.to_json_line())


def changed(**changes: Any) -> bytes:
    return json.dumps({**LINE, **changes}).encode()


def with_signature(**changes: Any) -> bytes:
    return changed(signatures=[{**LINE["signatures"][0], **changes}])


NOT_LINES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("no object", b"[]"),
    ("unknown field", changed(more=1)),
    ("unknown field in a signature", with_signature(more=1)),
    ("missing field", b'{"type": "t", "payload": ""}'),
    ("payload is no base64", changed(payload="!!!!")),
    ("base64 with a line feed", changed(payload=LINE["payload"][:8] + "\n" + LINE["payload"][8:])),
    ("base64 without padding", changed(payload="QQ")),
    ("base64 with loose bits", changed(payload="QR==")),
    ("base64 of the URL kind", changed(payload="-_-_")),
    ("base64 beyond ASCII", changed(payload="łłłł")),
    ("short key", with_signature(key=base64.b64encode(bytes(32)).decode())),
    ("short signature", with_signature(signature="")),
    ("unknown role", with_signature(role="witness")),
    ("two of one role", changed(signatures=LINE["signatures"] * 2)),
    ("two lines", SIGNED.record.to_json_line() + b"\n" + SIGNED.record.to_json_line()),
    ("bad UTF-8", b'{"type": "\xff"}'),
    ("half a surrogate pair", b'{"type": "\\ud800", "payload": "", "signatures": []}'),
    ("deep", b"[" * 100_000),
    ("deep inside", b'{"type": ' + b"[" * 100_000),
    ("long type", changed(type="t" * 65)),
]


@pytest.mark.parametrize("line", [x[1] for x in NOT_LINES], ids=[x[0] for x in NOT_LINES])
def test_what_is_no_line(line: bytes) -> None:
    assert code_of(line, parse_json_line) == "malformed"


def test_a_line_has_a_cap() -> None:
    assert code_of(b" " * (2 * MAX_RECORD_BYTES + 1), parse_json_line) == "oversize"
    payload = base64.b64encode(bytes(MAX_RECORD_BYTES + 1)).decode()
    assert code_of(changed(payload=payload), parse_json_line) == "oversize"


def test_any_json_writer_may_write_a_line() -> None:
    spaced = json.dumps(LINE, indent=2, sort_keys=True, ensure_ascii=True).encode()
    assert parse_json_line(spaced) == SIGNED.record


records = st.builds(
    Record,
    st.text(max_size=64),
    st.binary(max_size=200),
    st.lists(
        st.builds(
            Signature, st.sampled_from(Role), st.binary(min_size=33, max_size=33), st.binary(min_size=64, max_size=64)
        ),
        max_size=2,
        unique_by=lambda s: s.role,
    ).map(tuple),
)


@given(records)
def test_both_forms_keep_any_record(record: Record) -> None:
    assert parse_record(record.to_bytes()) == record
    assert parse_json_line(record.to_json_line()) == record


@given(st.binary(max_size=400))
@example(b"\x93\xa1\xff\xc4\x00\x90")
def test_arbitrary_bytes_raise_nothing_but_invalid_record(data: bytes) -> None:
    for parse in (parse_record, parse_json_line):
        try:
            record = parse(data)
        except InvalidRecord:
            continue
        assert isinstance(record, Record)


def damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """Valid bytes with a few of them changed, cut out or put in."""
    edit = st.tuples(st.integers(0, len(valid)), st.integers(0, 4), st.binary(max_size=4))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = valid
        for at, gone, new in edits:
            data = data[:at] + new + data[at + gone :]
        return data

    return st.lists(edit, min_size=1, max_size=3).map(apply)


@given(damaged(WIRE), damaged(SIGNED.record.to_json_line()), damaged(SIGNED.record.payload))
def test_damaged_bytes_raise_nothing_but_invalid_record(wire: bytes, line: bytes, payload: bytes) -> None:
    for parse, data in ((parse_record, wire), (parse_json_line, line)):
        try:
            parse(data)  # type: ignore[operator]
        except InvalidRecord:
            pass
    try:
        assert msgspec.msgpack.encode(parse_message(Record(METER.payload_type, payload, ()), Meter)) == payload
    except InvalidRecord:
        pass


@given(st.sampled_from(sorted(MESSAGE_TYPES)), st.binary(max_size=300))
def test_arbitrary_payloads_raise_nothing_but_invalid_record(name: str, payload: bytes) -> None:
    try:
        parse_message(Record(name, payload, ()), MESSAGE_TYPES[name])
    except InvalidRecord:
        pass


def test_caps_of_messages() -> None:
    assert {t.__name__: t.max_payload_bytes for t in MESSAGE_TYPES.values()} == {
        "Offer": 32 * 1024,
        "Channel": 1024,
        "Order": 1024,
        "Meter": 1024,
        "Voucher": 1024,
        "Receipt": 6144,
        "Dispute": 1024,
        "Answer": 1024,
        "Card": 16 * 1024,
        "Opening": 97 * 1024,
        "Statement": 32 * 1024,
        "Invoice": 1024,
        "Payment": 1024,
        "SetOff": 24 * 1024,
        "Cycle": 2048,
        "Leg": 1024,
        "CycleVerdict": 1024,
        "Default": 16 * 1024,
        "Withdrawal": 1024,
    }
    assert issubclass(Receipt, msgspec.Struct) and isinstance(SIGNED, Signed)


def test_a_countersignature_is_checked_and_the_rest_compared() -> None:
    keys = {Role.PROVIDER: PROVIDER.public_key, Role.CLIENT: CLIENT.public_key}
    both = SIGNED.countersigned(Role.CLIENT, CLIENT).record
    checked = verify_countersigned(both, SIGNED, Role.CLIENT, CLIENT.public_key)
    whole = verify_record(both, type(SIGNED.message), keys)
    assert (checked.message, checked.record, checked.id) == (whole.message, whole.record, whole.id)
    assert dict(checked.signers) == dict(whole.signers)
    provider, client = both.signatures
    other = SIGNED.countersigned(Role.CLIENT, STRANGER).record.signatures[1]
    for record, code in [
        (Record(both.payload_type, both.payload, (provider,)), "signature-missing"),
        (Record(both.payload_type, both.payload, (client,)), "signature-missing"),
        (
            Record(both.payload_type, both.payload, (Signature(Role.PROVIDER, provider.key, bytes(64)), client)),
            "bad-signature",
        ),
        (
            Record(both.payload_type, both.payload, (provider, Signature(Role.CLIENT, client.key, bytes(64)))),
            "bad-signature",
        ),
        (Record(both.payload_type, both.payload, (provider, other)), "wrong-key"),
        (Record(both.payload_type, both.payload + b"\x00", both.signatures), "wrong-type"),
        (Record("/p2pgrid/voucher/1", both.payload, both.signatures), "wrong-type"),
    ]:
        with pytest.raises(InvalidRecord) as caught:
            verify_countersigned(record, SIGNED, Role.CLIENT, CLIENT.public_key)
        assert caught.value.code == code
