"""The frames of a link: their layout, kinds and codes, and the payloads of the link's own (docs/spec/link.md, 2 and 3).

A frame is a nine-byte header (payload length u32, stream id u32, kind u8, big-endian) and its payload.

| kinds   | whose          | rule                                                              |
|---------|----------------|-------------------------------------------------------------------|
| 0-15    | the link's own | fixed payloads, listed in `Kind`; the unlisted are a violation     |
| 16-127  | messages       | small, never held back by credit                                  |
| 128-255 | credited       | bulk bytes: each payload byte takes one from the stream's credit  |

The parsers here take untrusted bytes and raise ProtocolViolation and nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.proto.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, PublicKey, SecretKey, parse_public_key

LINK_VERSION: Final = 1
HEADER: Final = struct.Struct(">IIB")
HEADER_BYTES: Final = HEADER.size
MAX_PAYLOAD_BYTES: Final = 65_536
FIRST_MESSAGE_KIND: Final = 16
FIRST_CREDITED_KIND: Final = 128
LAST_KIND: Final = 255
MAX_STREAM_ID: Final = 2**31 - 1
MAX_CREDIT_BYTES: Final = 2**31 - 1
MIN_STREAM_CREDIT_BYTES: Final = 2 * MAX_PAYLOAD_BYTES
"""Credit comes back in halves of the window, so with this much any frame can be sent in the end."""
NONCE_BYTES: Final = 32
MAX_TEXT_BYTES: Final = 256


class Kind(IntEnum):
    """The link's own frames. OPEN to RESET travel on the stream that they are about, the others on stream 0."""

    HELLO = 0
    PROOF = 1
    READY = 2
    GOAWAY = 3
    PING = 4
    PONG = 5
    OPEN = 6
    CREDIT = 7
    END = 8
    RESET = 9
    CLAIM = 10
    MOVE = 11
    MEMBER = 12
    """Before PROOF and before READY, between members of a closed network: what the sender shows of its membership."""

    @property
    def is_of_stream(self) -> bool:
        """True for a frame about one stream."""
        return Kind.OPEN <= self <= Kind.RESET


class ResetCode(IntEnum):
    """Why a stream was cut. 64 and above belong to the layer above the link; an unknown code means INTERNAL."""

    CANCELLED = 0
    INTERNAL = 1
    REFUSED = 2
    """Nothing was done with this stream: the same may be asked of another peer."""
    OVERLOADED = 3
    """More messages came than the receiver keeps."""


class GoawayCode(IntEnum):
    """Why a link ends. After SHUTDOWN open streams may finish; after every other code the link closes at once."""

    SHUTDOWN = 0
    VERSION = 1
    PROTOCOL = 2
    REFUSED = 3
    BUSY = 4
    TIMEOUT = 5
    NOT_A_MEMBER = 6
    """The other side has not shown that it is in a closed network with this one."""


def reset_name(code: int) -> str:
    """`cancelled`, `refused`, ...; `reset-77` for a code of the layer above."""
    return _RESET_NAMES.get(code, f"reset-{code}")


def goaway_name(code: int) -> str:
    """`shutdown`, `busy`, ...; `goaway-77` for a code that this version does not know."""
    return _GOAWAY_NAMES.get(code, f"goaway-{code}")


_RESET_NAMES: Final[dict[int, str]] = {code: code.name.lower() for code in ResetCode}
_GOAWAY_NAMES: Final[dict[int, str]] = {code: code.name.lower().replace("_", "-") for code in GoawayCode}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What one side lets the other do: streams open at once, and credited bytes ahead of consumption a stream."""

    max_streams: int
    stream_credit_bytes: int


_HELLO: Final = struct.Struct(f">H{NONCE_BYTES}sII")
_PROOF: Final = struct.Struct(f">H{PUBLIC_KEY_BYTES}s{SIGNATURE_BYTES}sII")
_CLAIM: Final = struct.Struct(f">H{NONCE_BYTES}s{PUBLIC_KEY_BYTES}s{SIGNATURE_BYTES}s")
_VERSION: Final = struct.Struct(">H")
_CODE: Final = struct.Struct(">H")
_CREDIT: Final = struct.Struct(">I")
_PING: Final = struct.Struct(">Q")

# libp2p RFC 0002: domain, payload type and payload, each behind its length. No record has this type, so no
# signature over a record can serve as a proof, nor a proof as a record.
_PROOF_TYPE: Final = b"/p2pgrid/link-proof/1"
_PROOF_PREFIX: Final = b"\x07p2pgrid" + bytes([len(_PROOF_TYPE)]) + _PROOF_TYPE
_PROOF_BYTES: Final = bytes([NONCE_BYTES + 2 * PUBLIC_KEY_BYTES])
_CLAIM_TYPE: Final = b"/p2pgrid/link-claim/1"
_CLAIM_PREFIX: Final = b"\x07p2pgrid" + bytes([len(_CLAIM_TYPE)]) + _CLAIM_TYPE
_CLAIM_BYTES: Final = b"\x82\x01"  # 2 nonces and 2 keys are 130 bytes: two in a varint


def encode_frame(stream_id: int, kind: int, payload: bytes = b"") -> bytes:
    """One frame as it stands on the wire. The caller keeps to the caps."""
    return HEADER.pack(len(payload), stream_id, kind) + payload


def parse_version(payload: bytes) -> int:
    """The version in front of a HELLO or a PROOF, whatever follows it."""
    if len(payload) < _VERSION.size:
        raise ProtocolViolation(f"a HELLO or PROOF of {len(payload)} bytes has no room for its version.")
    (version,) = _VERSION.unpack_from(payload)
    return int(version)


def encode_hello(nonce: bytes, terms: Terms) -> bytes:
    """The listener's first frame: version, nonce (32 bytes), terms."""
    return _HELLO.pack(LINK_VERSION, nonce, terms.max_streams, terms.stream_credit_bytes)


def parse_hello(payload: bytes) -> tuple[bytes, Terms]:
    """Nonce and terms of a HELLO of this version."""
    if len(payload) != _HELLO.size:
        raise ProtocolViolation(f"a HELLO has {_HELLO.size} bytes, this has {len(payload)}.")
    _version, nonce, max_streams, credit = _HELLO.unpack(payload)
    return nonce, _terms(max_streams, credit)


def encode_proof(secret_key: SecretKey, provider: PublicKey, nonce: bytes, terms: Terms) -> bytes:
    """The dialler's answer to a HELLO: version, its key, its signature for this listener alone, terms."""
    signature = secret_key.sign(proof_input(nonce, provider, secret_key.public_key))
    return _PROOF.pack(LINK_VERSION, secret_key.public_key.raw, signature, terms.max_streams, terms.stream_credit_bytes)


def verify_proof(payload: bytes, nonce: bytes, provider: PublicKey) -> tuple[PublicKey, Terms]:
    """The dialler's proven key and its terms. ProtocolViolation where the proof is not for this nonce and listener."""
    if len(payload) != _PROOF.size:
        raise ProtocolViolation(f"a PROOF has {_PROOF.size} bytes, this has {len(payload)}.")
    _version, raw_key, signature, max_streams, credit = _PROOF.unpack(payload)
    try:
        client = parse_public_key(raw_key)
    except InvalidRecord as error:
        raise ProtocolViolation(f"the PROOF's key is not acceptable: {error.message}") from error
    if not client.verify(proof_input(nonce, provider, client), signature):
        raise ProtocolViolation(f"the PROOF of {client} is no signature over this link's nonce and both keys.")
    return client, _terms(max_streams, credit)


def proof_input(nonce: bytes, provider: PublicKey, client: PublicKey) -> bytes:
    """The bytes a dialler signs: the nonce it was given, the listener's key, its own key, behind domain and type."""
    return _PROOF_PREFIX + _PROOF_BYTES + nonce + provider.raw + client.raw


def encode_claim(secret_key: SecretKey, provider: PublicKey, nonce: bytes, link: bytes) -> bytes:
    """The dialler's answer to the HELLO of a road that is to carry a link of its: version, link, key, signature.

    `nonce` is that HELLO's, `link` the nonce of the link's own HELLO.
    """
    signature = secret_key.sign(claim_input(nonce, link, provider, secret_key.public_key))
    return _CLAIM.pack(LINK_VERSION, link, secret_key.public_key.raw, signature)


def verify_claim(payload: bytes, nonce: bytes, provider: PublicKey) -> tuple[PublicKey, bytes]:
    """Who claims which link. ProtocolViolation where the claim is not for this nonce and listener."""
    if len(payload) != _CLAIM.size:
        raise ProtocolViolation(f"a CLAIM has {_CLAIM.size} bytes, this has {len(payload)}.")
    _version, link, raw_key, signature = _CLAIM.unpack(payload)
    try:
        client = parse_public_key(raw_key)
    except InvalidRecord as error:
        raise ProtocolViolation(f"the CLAIM's key is not acceptable: {error.message}") from error
    if not client.verify(claim_input(nonce, link, provider, client), signature):
        raise ProtocolViolation(f"the CLAIM of {client} is no signature over both nonces and both keys.")
    return client, link


def claim_input(nonce: bytes, link: bytes, provider: PublicKey, client: PublicKey) -> bytes:
    """The bytes that a claimant signs: both nonces, the listener's key, its own, behind domain and type."""
    return _CLAIM_PREFIX + _CLAIM_BYTES + nonce + link + provider.raw + client.raw


def parse_move(payload: bytes) -> bytes:
    """The nonce of the road on which all goes on."""
    if len(payload) != NONCE_BYTES:
        raise ProtocolViolation(f"a MOVE has {NONCE_BYTES} bytes, this has {len(payload)}.")
    return payload


def encode_reason(code: int, text: str) -> bytes:
    """The payload of a RESET or GOAWAY: a code for programs, a short text for people (cut at 256 bytes)."""
    return _CODE.pack(code) + text.encode("utf-8", "replace")[:MAX_TEXT_BYTES]


def parse_reason(payload: bytes) -> tuple[int, str]:
    """Code and text of a RESET or GOAWAY. The text has no unprintable characters, so it may be logged and shown."""
    if not _CODE.size <= len(payload) <= _CODE.size + MAX_TEXT_BYTES:
        raise ProtocolViolation(
            f"a RESET or GOAWAY has {_CODE.size} to {_CODE.size + MAX_TEXT_BYTES} bytes, this has {len(payload)}."
        )
    (code,) = _CODE.unpack_from(payload)
    text = payload[_CODE.size :].decode("utf-8", "replace")
    return code, "".join(c if c.isprintable() else "\ufffd" for c in text)


def encode_credit(n_bytes: int) -> bytes:
    """The payload of a CREDIT: how many more credited bytes may come."""
    return _CREDIT.pack(n_bytes)


def parse_credit(payload: bytes) -> int:
    """The bytes that a CREDIT grants: 1 to 2^31 - 1."""
    if len(payload) != _CREDIT.size:
        raise ProtocolViolation(f"a CREDIT has {_CREDIT.size} bytes, this has {len(payload)}.")
    (n_bytes,) = _CREDIT.unpack(payload)
    if not 0 < n_bytes <= MAX_CREDIT_BYTES:
        raise ProtocolViolation(f"a CREDIT of {n_bytes} bytes; 1 to {MAX_CREDIT_BYTES} were expected.")
    return int(n_bytes)


def encode_ping(number: int) -> bytes:
    """The payload of a PING, which its PONG repeats."""
    return _PING.pack(number)


def parse_ping(payload: bytes) -> int:
    """The number of a PING or PONG."""
    if len(payload) != _PING.size:
        raise ProtocolViolation(f"a PING or PONG has {_PING.size} bytes, this has {len(payload)}.")
    (number,) = _PING.unpack(payload)
    return int(number)


def _terms(max_streams: int, credit: int) -> Terms:
    if not MIN_STREAM_CREDIT_BYTES <= credit <= MAX_CREDIT_BYTES:
        raise ProtocolViolation(
            f"the peer offers {credit} bytes of credit a stream; "
            f"{MIN_STREAM_CREDIT_BYTES} to {MAX_CREDIT_BYTES} were expected."
        )
    return Terms(max_streams=max_streams, stream_credit_bytes=credit)
