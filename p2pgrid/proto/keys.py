"""Ed25519 keys, their admission, and peer ids (docs/spec/record.md, section 2).

A public key on the wire is 33 bytes: one algorithm byte (1, the number libp2p gives Ed25519) and the 32 bytes
of RFC 8032. Only canonical encodings of points of the prime-order subgroup are admitted, and verification is the
cofactorless one, which compares R byte by byte, and refuses an R of small order (libsodium): so two auditors with
different libraries reach one verdict. A cofactored verifier would also take signatures whose R has a small-order
part; OpenSSL takes R = identity, with which a signer gives its secret key away.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import base58
import nacl.bindings
import nacl.exceptions

from p2pgrid.errors import InvalidRecord

try:  # what `nacl.bindings` itself calls, and no public name of PyNaCl's: it may be gone from a later one
    from nacl import _sodium
except ImportError:
    _sodium = None

ALGORITHM_ED25519: Final = 1
PUBLIC_KEY_BYTES: Final = 33
SIGNATURE_BYTES: Final = 64
SEED_BYTES: Final = 32
_REMEMBERED: Final = 16_384

_library: Final[Any] = getattr(_sodium, "lib", None)
_NULL: Final = _library and _sodium.ffi.NULL

# libp2p's PublicKey message {Type = Ed25519, Data = 32 bytes}, and the identity multihash around it.
_LIBP2P_PUBLIC_KEY_PREFIX: Final = b"\x08\x01\x12\x20"
_PEER_ID_PREFIX: Final = b"\x00\x24" + _LIBP2P_PUBLIC_KEY_PREFIX


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An admitted public key. The only way to make one is `parse_public_key`, or a secret key's `public_key`."""

    raw: bytes
    """33 bytes: the algorithm byte and the key."""

    @property
    def peer_id(self) -> str:
        """The libp2p peer id (`12D3KooW...`), as the peer-ids spec derives it from an Ed25519 key."""
        return _peer_id(self.raw)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """True if `signature` (64 bytes, RFC 8032) is this key's over `message`."""
        return len(signature) == SIGNATURE_BYTES and is_signed(signature + message, self.raw[1:])

    def __str__(self) -> str:
        return self.peer_id


class SecretKey:
    """An Ed25519 secret key. It never shows itself: neither `repr` nor pickling reveals the seed."""

    __slots__ = ("_expanded", "_seed", "public_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"an Ed25519 seed has {SEED_BYTES} bytes, this has {len(seed)}")
        public, self._expanded = nacl.bindings.crypto_sign_seed_keypair(seed)
        self._seed = seed
        self.public_key: Final = PublicKey(bytes([ALGORITHM_ED25519]) + public)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of `message` (RFC 8032, deterministic)."""
        signed: bytes = nacl.bindings.crypto_sign(message, self._expanded)
        return signed[:SIGNATURE_BYTES]

    def expose_seed(self) -> bytes:
        """The 32-byte seed itself, for the key file and for libp2p's own handshakes. Never log it."""
        return self._seed

    def __repr__(self) -> str:
        return f"SecretKey({self.public_key.peer_id})"

    def __reduce__(self) -> str:
        raise TypeError("a secret key is not pickled")


def is_signed_by_binding(signed: bytes, point: bytes) -> bool:
    """`is_signed`, by what PyNaCl offers to everybody."""
    try:
        nacl.bindings.crypto_sign_open(signed, point)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


def is_signed_by_library(signed: bytes, point: bytes) -> bool:
    """`is_signed`, by libsodium itself. The binding copies each message twice, and nobody reads the copies."""
    opened: int = _library.crypto_sign_open(_NULL, _NULL, signed, len(signed), point)
    return opened == 0


is_signed: Final = is_signed_by_binding if _library is None else is_signed_by_library
"""True if `signed`, 64 bytes of signature and then the message, opens under an admitted key's 32 bytes."""


def parse_public_key(raw: bytes) -> PublicKey:
    """Admit 33 untrusted bytes as a public key, or raise InvalidRecord (`key-not-admissible`)."""
    if len(raw) != PUBLIC_KEY_BYTES:
        raise InvalidRecord("key-not-admissible", f"a public key has {PUBLIC_KEY_BYTES} bytes, this has {len(raw)}.")
    if raw[0] != ALGORITHM_ED25519:
        raise InvalidRecord("key-not-admissible", f"key algorithm {raw[0]} is unknown; 1 (Ed25519) was expected.")
    return _admitted(bytes(raw))


@functools.lru_cache(maxsize=_REMEMBERED)
def _admitted(raw: bytes) -> PublicKey:
    """Looking at the point costs as much as a verification, and the same few thousand keys come again and again."""
    if not nacl.bindings.crypto_core_ed25519_is_valid_point(raw[1:]):
        raise InvalidRecord("key-not-admissible", "the key is no canonical point of the prime-order subgroup.")
    return PublicKey(raw)


@functools.lru_cache(maxsize=_REMEMBERED)
def _peer_id(raw: bytes) -> str:
    return base58.b58encode(_PEER_ID_PREFIX + raw[1:]).decode()


def peer_id_or_hex(raw: bytes) -> str:
    """How a key is shown that was never admitted: by its peer id, or in hex if it has none."""
    try:
        return parse_public_key(raw).peer_id
    except InvalidRecord:
        return raw.hex()


def parse_peer_id(text: str) -> PublicKey:
    """The public key inside a libp2p peer id in base58 (`12D3KooW...`), or InvalidRecord (`key-not-admissible`)."""
    if len(text) > 64:
        raise InvalidRecord("key-not-admissible", f"a peer id of {len(text)} characters is too long.")
    try:
        raw = base58.b58decode(text)
    except ValueError:
        raise InvalidRecord("key-not-admissible", f"{text!r} is no peer id: it is not base58.") from None
    if len(raw) != len(_PEER_ID_PREFIX) + 32 or not raw.startswith(_PEER_ID_PREFIX):
        raise InvalidRecord("key-not-admissible", f"{text!r} is no peer id of an Ed25519 key (12D3KooW...).")
    key = parse_public_key(bytes([ALGORITHM_ED25519]) + raw[len(_PEER_ID_PREFIX) :])
    if key.peer_id != text:
        raise InvalidRecord("key-not-admissible", f"{text!r} is not how that peer id is written.")
    return key
