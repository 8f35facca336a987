"""Closed networks, written from docs/spec/network.md alone: nothing of p2pgrid is imported here."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

from tests.spec.reader import Refused, check_canonical, from_wire, signature_input, unpack, verify

NUMBERS = {"secret": 1, "members": 2, "group-key": 3}
TYPES = {"connection": "/p2pgrid/member-proof/1", "link": "/p2pgrid/link-member-proof/1"}


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


@dataclass
class Named:
    """Section 2."""

    name: str
    kind: str
    closed_by: bytes

    @property
    def root(self) -> bytes:
        told = bytes([NUMBERS[self.kind]]) + self.name.encode()
        return mac(self.closed_by, signature_input("/p2pgrid/closed-network/1", told))

    @property
    def scope(self) -> str:
        return mac(self.root, b"scope")[:20].hex()

    @property
    def credential_key(self) -> bytes:
        return mac(self.root, b"credential")

    def dht_key(self, key: str) -> bytes:
        return b"\x12\x20" + hashlib.sha256(self.scope.encode() + b"\0" + key.encode()).digest()


def credential(
    credential_key: bytes, on: str, side: str, nonces: tuple[bytes, bytes], keys: tuple[bytes, bytes]
) -> bytes:
    """Rule 7; nonces and keys are the called's and the caller's."""
    payload = bytes([["caller", "called"].index(side)]) + b"".join(nonces) + b"".join(keys)
    return mac(credential_key, signature_input(TYPES[on], payload))


def read_credentials(data: bytes, side: str) -> list[tuple[bytes, bytes]]:
    """Rule 10. Whatever is refused is a violation."""
    if len(data) > 16384:
        raise Refused("violation")
    value = unpack(data)
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], list):
        raise Refused("violation")
    nonce, credentials = value
    if not isinstance(nonce, bytes) or len(nonce) != (32 if side == "caller" else 0) or len(credentials) > 16:
        raise Refused("violation")
    for one in credentials:
        if not isinstance(one, list) or len(one) != 2 or not all(isinstance(part, bytes) for part in one):
            raise Refused("violation")
        if len(one[0]) != 32 or len(one[1]) > 512:
            raise Refused("violation")
    check_canonical(value, data)
    return [(shown, membership) for shown, membership in credentials]


def read_membership(wire: bytes, group: bytes, network: str, member: bytes, now_ms: int) -> None:
    """Rule 18."""
    if len(wire) > 512:
        raise Refused("oversize")
    record = from_wire(wire)
    if "operator" not in record.signatures:
        raise Refused("signature-missing")
    key, signature = record.signatures["operator"]
    if key != group:
        raise Refused("wrong-key")
    verify(group, signature_input(record.type, record.payload), signature)
    if record.type != "/p2pgrid/membership/1":
        raise Refused("wrong-type")
    if len(record.payload) > 256:
        raise Refused("oversize")
    fields: Any = unpack(record.payload)
    kinds = (bytes, str, bytes, int, int)
    if not isinstance(fields, list) or [type(one) for one in fields] != list(kinds):
        raise Refused("malformed")
    by, name, whose, from_ms, until_ms = fields
    if len(by) != 33 or len(whose) != 33 or not 1 <= len(name) <= 32 or min(from_ms, until_ms) < 0:
        raise Refused("malformed")
    check_canonical(fields, record.payload)
    if until_ms <= from_ms:
        raise Refused("out-of-range")
    if by != group:
        raise Refused("wrong-key")
    if name != network:
        raise Refused("wrong-network")
    if whose != member:
        raise Refused("wrong-key")
    if now_ms > until_ms or now_ms < from_ms - 120_000:
        raise Refused("not-in-force")
