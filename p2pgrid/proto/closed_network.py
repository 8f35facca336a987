"""What a closed network is named by, and what its members make proofs with (docs/spec/network.md, sections 1 and 2).

Both are derived from the network's name and from what closes it, so that who knows the name alone can neither name
the network's protocols and keys nor make a credential.

| kind | closed by | derived from | who is a member |
|---|---|---|---|
| `secret` | 32 random bytes that all members hold | name and secret | who holds the secret |
| `members` | a list that each member keeps | name alone | who is on the list of the one who asks |
| `group-key` | a key of the group's choosing | name and public key | who shows a Membership of that key, in force |
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.record import signature_input

SECRET_BYTES: Final = 32
SCOPE_BYTES: Final = 20
"""40 characters in hex: more than an open network's name may have, so that neither is ever taken for the other."""
_TYPE: Final = "/p2pgrid/closed-network/1"


class Kind(StrEnum):
    """What closes a network."""

    SECRET = "secret"  # noqa: S105 (a word of the configuration)
    MEMBERS = "members"
    GROUP_KEY = "group-key"


_NUMBERS: Final = {Kind.SECRET: 1, Kind.MEMBERS: 2, Kind.GROUP_KEY: 3}


@dataclass(frozen=True, slots=True)
class ClosedNetwork:
    """One closed network, as each of its members derives it. `secret_network` and the others make it."""

    name: str
    kind: Kind
    scope: str
    """What stands for the name in protocol ids and DHT keys: 40 hex digits."""
    credential_key: bytes = field(repr=False)
    """What credentials are made with: 32 bytes, as secret as what closes the network."""
    group: PublicKey | None = None
    """Whose memberships count, where the kind is GROUP_KEY."""


def secret_network(name: str, secret: bytes) -> ClosedNetwork:
    """The network of those who hold `secret`. Raises ValueError unless it has 32 bytes."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a network's secret has {SECRET_BYTES} bytes, this has {len(secret)}")
    return _derive(name, Kind.SECRET, secret)


def listed_network(name: str) -> ClosedNetwork:
    """The network of those on a list. The list changes, and each keeps its own, so nothing is derived from it."""
    return _derive(name, Kind.MEMBERS, b"")


def group_network(name: str, group: PublicKey) -> ClosedNetwork:
    """The network of those to whom the holder of `group` gave a Membership."""
    return _derive(name, Kind.GROUP_KEY, group.raw, group)


def _derive(name: str, kind: Kind, closed_by: bytes, group: PublicKey | None = None) -> ClosedNetwork:
    root = _hmac(closed_by, signature_input(_TYPE, bytes([_NUMBERS[kind]]) + name.encode()))
    return ClosedNetwork(name, kind, _hmac(root, b"scope")[:SCOPE_BYTES].hex(), _hmac(root, b"credential"), group)


def _hmac(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA-256 (RFC 2104)."""
    return hmac.digest(key, data, hashlib.sha256)
