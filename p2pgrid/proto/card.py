"""The operator's card (docs/spec/card.md): who stands behind which keys. Signed by the operator's own key."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.fields import CountryCode, Digest, Key, Nested, Number, ShortText, TimeMs
from p2pgrid.proto.record import Message

_DOMAIN: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")


def is_domain(text: str) -> bool:
    """True for a DNS name in lower case with at least two labels; an IP address is none."""
    return len(text) <= 253 and _DOMAIN.fullmatch(text) is not None


class PeerKey(Nested, frozen=True, kw_only=True):
    """A node's key that acts for the operator, from `valid_from_ms` up to and with `valid_until_ms`."""

    key: Key
    valid_from_ms: TimeMs
    valid_until_ms: TimeMs


class Revocation(Nested, frozen=True, kw_only=True):
    """A key that acts for the operator no more. What it signed before `since_ms` stands."""

    key: Key
    since_ms: TimeMs
    reason: ShortText = ""


class Card(Message, frozen=True, kw_only=True):
    """Who an operator is in law, and which keys are its nodes'. Cards of one operator form a chain."""

    payload_type: ClassVar[str] = "/p2pgrid/card/1"
    max_payload_bytes: ClassVar[int] = 16 * 1024

    operator: Key
    """The signer: the operator's identity, kept apart from its nodes' keys where there are several."""
    sequence: Number
    valid_from_ms: TimeMs
    valid_until_ms: TimeMs
    legal_name: ShortText
    vat_id: Annotated[str, Meta(max_length=32)]
    country: CountryCode
    parent_country: CountryCode
    """The seat of the ultimate parent, ISO 3166-1: whose law can reach the operator."""
    domain: Annotated[str, Meta(max_length=253)]
    """A DNS name that the operator controls, in lower case; empty if it names none."""
    peers: Annotated[tuple[PeerKey, ...], Meta(max_length=64)]
    revoked: Annotated[tuple[Revocation, ...], Meta(max_length=64)] = ()
    previous: Digest = b""
    """The id of the card before; empty for the first."""
    successor: Annotated[bytes, Meta(max_length=33)] = b""
    """The operator key that may sign the next card in place of this one; empty if none is named."""

    def check(self) -> None:
        if self.valid_until_ms <= self.valid_from_ms:
            raise InvalidRecord("out-of-range", "the card ends before it begins.")
        if any(peer.valid_until_ms <= peer.valid_from_ms for peer in self.peers):
            raise InvalidRecord("out-of-range", "a peer key's term ends before it begins.")
        if len({peer.key for peer in self.peers}) != len(self.peers):
            raise InvalidRecord("out-of-range", "the card names one peer key twice.")
        if len({revocation.key for revocation in self.revoked}) != len(self.revoked):
            raise InvalidRecord("out-of-range", "the card revokes one key twice.")
        if len(self.previous) not in (0, 32) or len(self.successor) not in (0, 33):
            raise InvalidRecord("out-of-range", "an id has 32 bytes and a key 33, or none where there is none.")
        if self.domain and not is_domain(self.domain):
            raise InvalidRecord("out-of-range", "the card's domain is no DNS name in lower case.")
