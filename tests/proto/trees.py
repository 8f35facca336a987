"""Trees by RFC 6962's own recursive definition, to hold the code against; and logs of a few entries."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from p2pgrid.proto.checkpoint import SignedCheckpoint, sign_checkpoint
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.merkle import HashAt
from tests.factories import PROVIDER

LEAF_INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
"""Of the reference tree of Certificate Transparency (transparency-dev/merkle, testonly/constants.go)."""


def tree_hash(entries: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(entries[:k]) + tree_hash(entries[k:])).digest()


def hash_at_of_entries(entries: Sequence[bytes]) -> HashAt:
    """Nodes of the tree over these entries."""

    def hash_at(level: int, index: int) -> bytes:
        covered = entries[index << level : (index + 1) << level]
        assert len(covered) == 1 << level, "the node is not complete"
        return tree_hash(covered)

    return hash_at


def entries_of(count: int, name: str = "entry") -> list[bytes]:
    """So many entries of 32 bytes."""
    return [hashlib.sha256(f"{name} {number}".encode()).digest() for number in range(count)]


def checkpoint_of(entries: Sequence[bytes], key: SecretKey = PROVIDER) -> SignedCheckpoint:
    """The log's checkpoint over these entries."""
    return sign_checkpoint(len(entries), tree_hash(entries), key)
