"""Commitments to what was asked and answered, which show neither (docs/spec/session.md, section 3).

Both are HMAC-SHA256 under a 32-byte key that the client makes for one request: short prompts cannot be guessed from
them, equal ones not linked, and destroying the key erases what they could ever prove.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

COMMITMENT_KEY_BYTES: Final = 32
_HASHED_AT_ONCE_BYTES: Final = 8 * 1024
"""Most bytes of an answer that wait to be hashed."""


def request_commitment(key: bytes, body: bytes) -> bytes:
    """The commitment to a request's body, 32 bytes."""
    return hmac.digest(key, b"request\0" + body, hashlib.sha256)


class ResponseCommitment:
    """The running commitment to an answer: feed the bytes as they are delivered, read it at any point."""

    __slots__ = ("_mac", "_n_bytes", "_pieces")

    def __init__(self, key: bytes) -> None:
        self._mac = hmac.new(key, b"response\0", hashlib.sha256)
        self._pieces: list[bytes] = []
        self._n_bytes = 0

    def update(self, data: bytes) -> None:
        """More was delivered. Pieces of a few hundred bytes are hashed many at once."""
        self._pieces.append(data)
        self._n_bytes += len(data)
        if self._n_bytes >= _HASHED_AT_ONCE_BYTES:
            self._hash()

    def digest(self) -> bytes:
        """The commitment to all bytes so far, 32 bytes."""
        self._hash()
        return self._mac.digest()

    def _hash(self) -> None:
        self._mac.update(b"".join(self._pieces))
        self._pieces.clear()
        self._n_bytes = 0
