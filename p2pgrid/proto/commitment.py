"""Commitments to what was asked and answered, which show neither (docs/spec/session.md, section 3).

Both are HMAC-SHA256 under a 32-byte key that the client makes for one request: short prompts cannot be guessed from
them, equal ones not linked, and destroying the key erases what they could ever prove.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

COMMITMENT_KEY_BYTES: Final = 32


def request_commitment(key: bytes, body: bytes) -> bytes:
    """The commitment to a request's body, 32 bytes."""
    return hmac.digest(key, b"request\0" + body, hashlib.sha256)


class ResponseCommitment:
    """The running commitment to an answer: feed the bytes as they are delivered, read it at any point."""

    __slots__ = ("_mac", "update")

    def __init__(self, key: bytes) -> None:
        self._mac = hmac.new(key, b"response\0", hashlib.sha256)
        self.update = self._mac.update

    def digest(self) -> bytes:
        """The commitment to all bytes so far, 32 bytes."""
        return self._mac.digest()
