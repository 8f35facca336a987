"""Signed records: payload type, payload bytes, signatures (docs/spec/record.md).

What is signed, stored and hashed is the payload as received, never a re-encoding of it. The signature input is that
of libp2p RFC 0002 (signed envelopes): domain, payload type and payload, each with its length before it. A record's id
is the SHA-256 of the signature input, so that parties who sign the same bytes make one record with two signatures.

`Record` is unchecked. `Signed[M]` is checked, and only `verify_record` and `sign_message` make one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from enum import StrEnum
from functools import cache, lru_cache
from typing import Annotated, ClassVar, Final, Generic, NamedTuple, Self, TypeVar

import msgspec

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, PublicKey, SecretKey, parse_public_key

DOMAIN: Final = "p2pgrid"
MAX_RECORD_BYTES: Final = 128 * 1024
MAX_SIGNATURES: Final = 8


class Role(StrEnum):
    """In what capacity a key signs."""

    PROVIDER = "provider"
    CLIENT = "client"
    OPERATOR = "operator"
    """The key that stands for a company, where it is not a node's: it signs Cards."""


PARTIES: Final = (Role.PROVIDER, Role.CLIENT)
"""The roles of a channel."""


class Message(msgspec.Struct, array_like=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that is signed. On the wire: a MessagePack array of the fields in order."""

    payload_type: ClassVar[str]
    max_payload_bytes: ClassVar[int] = 1024
    optional_field: ClassVar[str] = ""
    """The last field, where the array ends before it if it has its default (docs/spec/messages.md, rule 1)."""

    def check(self) -> None:
        """Rules between fields, beyond each field's type and range. Raises InvalidRecord (`out-of-range`)."""


M = TypeVar("M", bound=Message)
M_co = TypeVar("M_co", bound=Message, covariant=True)


class Signature(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One party's signature over a record."""

    role: Role
    key: Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class Record(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A payload and its signatures, as received: nothing in it is believed yet."""

    payload_type: Annotated[str, msgspec.Meta(max_length=64)]
    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)]
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=MAX_SIGNATURES)]

    @property
    def id(self) -> bytes:
        """SHA-256 of the signature input, 32 bytes."""
        return record_id(self.payload_type, self.payload)

    def signature_of(self, role: Role) -> Signature | None:
        """The signature in that role, if there is one."""
        for signature in self.signatures:
            if signature.role is role:
                return signature
        return None

    def with_signature(self, signature: Signature) -> Record:
        """The same record with one more signature; an earlier one in the same role is replaced."""
        others = tuple(s for s in self.signatures if s.role is not signature.role)
        return Record(self.payload_type, self.payload, (*others, signature))

    def to_bytes(self) -> bytes:
        """The wire form: a MessagePack array of type, payload and signatures."""
        return msgspec.msgpack.encode(self)

    def to_json_line(self) -> bytes:
        """The text form: one JSON object without a line feed, bytes in base64 (docs/spec/record.md, section 5)."""
        text = _TextRecord(
            type=self.payload_type,
            payload=_to_base64(self.payload),
            signatures=tuple(
                _TextSignature(role=s.role, key=_to_base64(s.key), signature=_to_base64(s.signature))
                for s in self.signatures
            ),
        )
        return msgspec.json.encode(text)


class Signed(Generic[M_co]):
    """A message whose record was checked: canonical bytes, admitted keys, good signatures of the roles in `signers`."""

    __slots__ = ("id", "message", "record", "signers")

    def __init__(self, message: M_co, record: Record, record_id: bytes, signers: Mapping[Role, PublicKey]) -> None:
        """For `verify_record` and `sign_message` alone."""
        self.message: Final = message
        self.record: Final = record
        self.id: Final = record_id
        self.signers: Final = signers

    def countersigned(self, role: Role, key: SecretKey) -> Self:
        """The same record, also signed by `key` in `role`."""
        signature = Signature(role, key.public_key.raw, key.sign(signature_input_of(self.record)))
        signers = {**self.signers, role: key.public_key}
        return type(self)(self.message, self.record.with_signature(signature), self.id, signers)


def signature_input(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: domain, payload type, payload, each after its unsigned varint length."""
    return signature_head(payload_type, len(payload)) + payload


@lru_cache(maxsize=4096)
def signature_head(payload_type: str, payload_bytes: int) -> bytes:
    """What stands before the payload in `signature_input`, for a payload of so many bytes."""
    kind = payload_type.encode()
    return b"".join((_DOMAIN_PREFIX, _uvarint(len(kind)), kind, _uvarint(payload_bytes)))


def signature_input_of(record: Record) -> bytes:
    """`signature_input` of a record."""
    return signature_input(record.payload_type, record.payload)


def record_id(payload_type: str, payload: bytes) -> bytes:
    """A record's id: SHA-256 of its signature input."""
    return hashlib.sha256(signature_input(payload_type, payload)).digest()


def parse_record(data: bytes) -> Record:
    """Turn untrusted wire bytes into an unchecked record.

    Raises InvalidRecord: `oversize`, `malformed` (also two signatures in one role), or `not-canonical` when other
    bytes would encode the same record.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidRecord("oversize", f"a record has at most {MAX_RECORD_BYTES} bytes, this has {len(data)}.")
    try:
        record = _record_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRecord("malformed", f"these bytes are no record: {error}.") from None
    if record.to_bytes() != data:
        raise InvalidRecord("not-canonical", "the record is not in its one canonical MessagePack encoding.")
    return _with_one_signature_a_role(record)


def parse_json_line(line: bytes) -> Record:
    """Turn one line of a bundle into an unchecked record. Raises InvalidRecord (`oversize`, `malformed`)."""
    if len(line) > 2 * MAX_RECORD_BYTES:
        raise InvalidRecord("oversize", f"a line has at most {2 * MAX_RECORD_BYTES} bytes, this has {len(line)}.")
    try:
        text = _text_decoder.decode(line)
        signatures = tuple(Signature(s.role, _from_base64(s.key), _from_base64(s.signature)) for s in text.signatures)
        record = Record(text.type, _from_base64(text.payload), signatures)
    except (msgspec.MsgspecError, binascii.Error, UnicodeError, RecursionError) as error:
        raise InvalidRecord("malformed", f"the line is no record: {error}.") from None
    for signature in signatures:
        if len(signature.key) != PUBLIC_KEY_BYTES or len(signature.signature) != SIGNATURE_BYTES:
            raise InvalidRecord("malformed", "the line is no record: a key has 33 bytes and a signature 64.")
    if len(record.payload) > MAX_RECORD_BYTES:
        raise InvalidRecord("oversize", f"a payload has at most {MAX_RECORD_BYTES} bytes.")
    return _with_one_signature_a_role(record)


def encode_payload(message: Message) -> bytes:
    """The message's one canonical encoding."""
    payload = msgspec.msgpack.encode(message)
    if not message.optional_field:
        return payload
    tail = _tail_of(type(message))
    if getattr(message, message.optional_field) != tail.default:
        return payload
    return tail.head + payload[len(tail.head) : -tail.n_bytes]


class _Tail(NamedTuple):
    """The optional last field of a type of message, as it stands in a payload that would have it with its default."""

    default: object
    n_bytes: int
    head: bytes
    """The head of the array without it, as long as that of the array with it."""


@cache
def _tail_of(message_type: type[Message]) -> _Tail:
    fields = msgspec.structs.fields(message_type)
    n, last = len(fields) - 1, fields[-1]
    assert last.name == message_type.optional_field, "it is the last field"
    assert n != 15, "the array's head would not be as long without it"
    head = bytes([0x90 + n]) if n < 16 else b"\xdc" + n.to_bytes(2)
    return _Tail(last.default, len(msgspec.msgpack.encode(last.default)), head)


def parse_message(record: Record, message_type: type[M]) -> M:
    """The payload as a message, its form checked and its signatures not.

    Raises InvalidRecord: `wrong-type`, `oversize`, `malformed`, `not-canonical`, `out-of-range`.
    """
    if record.payload_type != message_type.payload_type:
        raise InvalidRecord(
            "wrong-type", f"the record is {record.payload_type!r}; {message_type.payload_type!r} was expected."
        )
    if len(record.payload) > message_type.max_payload_bytes:
        raise InvalidRecord(
            "oversize",
            f"the payload has {len(record.payload)} bytes; {record.payload_type} has at most "
            f"{message_type.max_payload_bytes}.",
        )
    decoder = _decoders.get(message_type)
    if decoder is None:
        decoder = _decoders[message_type] = msgspec.msgpack.Decoder(message_type)
    try:
        message = decoder.decode(record.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRecord("malformed", f"the payload is no {record.payload_type}: {error}.") from None
    encoded = encode_payload(message)
    if encoded != record.payload:
        if msgspec.msgpack.decode(encoded) != msgspec.msgpack.decode(record.payload):
            raise InvalidRecord("malformed", f"the payload is no {record.payload_type}: a field is left out.")
        raise InvalidRecord("not-canonical", "the payload is not in its one canonical MessagePack encoding.")
    message.check()
    checked: M = message
    return checked


def verify_record(record: Record, message_type: type[M], keys: Mapping[Role, PublicKey]) -> Signed[M]:
    """Check that each of `keys` signed the record in its role, then read it.

    Signatures in other roles are ignored: `Signed.signers` names only those that were checked.
    Raises InvalidRecord: `signature-missing`, `wrong-key`, `bad-signature`, and what `parse_message` raises.
    """
    signed_bytes = signature_input_of(record)
    for role, key in keys.items():
        _verify_signature(record, signed_bytes, role, key)
    message = parse_message(record, message_type)
    return Signed(message, record, hashlib.sha256(signed_bytes).digest(), dict(keys))


def verify_countersigned(record: Record, standing: Signed[M], role: Role, key: PublicKey) -> Signed[M]:
    """The record that `standing` is, as it came back with one more signature: that one alone is checked.

    The signatures that were checked on `standing` must be on it, byte for byte; the payload must be the same. Raises
    InvalidRecord: `wrong-type` for another record, `signature-missing`, `wrong-key`, `bad-signature`.
    """
    if (record.payload_type, record.payload) != (standing.record.payload_type, standing.record.payload):
        raise InvalidRecord("wrong-type", "another record came back than the one that was sent.")
    for known in standing.signers:
        if record.signature_of(known) != standing.record.signature_of(known):
            code = "signature-missing" if record.signature_of(known) is None else "bad-signature"
            what = f"the {known}'s signature on the {record.payload_type} is not the one it was sent with."
            raise InvalidRecord(code, what)
    _verify_signature(record, signature_input_of(record), role, key)
    return Signed(standing.message, record, standing.id, {**standing.signers, role: key})


def verify_self_signed(record: Record, message_type: type[M], role: Role) -> Signed[M]:
    """As `verify_record`, for a record that itself names its signer: the key beside the signature is used.

    The caller compares that key with the one the message names.
    """
    signature = record.signature_of(role)
    if signature is None:
        raise InvalidRecord("signature-missing", f"the {role} has not signed this {record.payload_type}.")
    return verify_record(record, message_type, {role: parse_public_key(signature.key)})


def sign_message(message: M, role: Role, key: SecretKey) -> Signed[M]:
    """Encode and sign. Raises InvalidRecord, as `parse_message` does, for what no peer would accept."""
    payload = encode_payload(message)
    signed_bytes = signature_input(message.payload_type, payload)
    # Constructing a struct checks no range; reading it back does, and nothing is signed that fails.
    parse_message(Record(message.payload_type, payload, ()), type(message))
    signature = Signature(role, key.public_key.raw, key.sign(signed_bytes))
    record = Record(message.payload_type, payload, (signature,))
    return Signed(message, record, hashlib.sha256(signed_bytes).digest(), {role: key.public_key})


def _verify_signature(record: Record, signed_bytes: bytes, role: Role, key: PublicKey) -> None:
    """Raises InvalidRecord unless `key` signed the record in that role."""
    signature = record.signature_of(role)
    if signature is None:
        raise InvalidRecord("signature-missing", f"the {role} has not signed this {record.payload_type}.")
    if signature.key != key.raw:
        raise InvalidRecord("wrong-key", f"signed as {role} by another key than {key.peer_id}'s.")
    if not key.verify(signed_bytes, signature.signature):
        raise InvalidRecord("bad-signature", f"the {role}'s signature does not fit this {record.payload_type}.")


class _TextSignature(msgspec.Struct, forbid_unknown_fields=True):
    role: Role
    key: str
    signature: str


class _TextRecord(msgspec.Struct, forbid_unknown_fields=True):
    type: Annotated[str, msgspec.Meta(max_length=64)]
    payload: str
    signatures: Annotated[tuple[_TextSignature, ...], msgspec.Meta(max_length=MAX_SIGNATURES)]


def _with_one_signature_a_role(record: Record) -> Record:
    """Refuse two signatures in one role: readers that take the first and the last would differ on who signed."""
    roles = {s.role for s in record.signatures}
    if len(roles) != len(record.signatures):
        raise InvalidRecord("malformed", "the record has two signatures in one role.")
    return record


def _uvarint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _to_base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _from_base64(text: str) -> bytes:
    raw = base64.b64decode(text.encode("ascii"), validate=True)
    if _to_base64(raw) != text:
        raise binascii.Error("base64 is not canonical")
    return raw


_DOMAIN_PREFIX: Final = _uvarint(len(DOMAIN)) + DOMAIN.encode()
_record_decoder: Final = msgspec.msgpack.Decoder(Record)
_text_decoder: Final = msgspec.json.Decoder(_TextRecord)
_decoders: Final[dict[type[Message], msgspec.msgpack.Decoder]] = {}  # type: ignore[type-arg]

SHORTEST_LINE_BYTES: Final = len(Record("", b"", ()).to_json_line())
TOO_SHORT: Final = InvalidRecord("malformed", "the line is no record: it is too short for one.")
"""What there is to say of a shorter line. Made once, for there may be millions of them."""
