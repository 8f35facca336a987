"""An operator's next card, made from the one before (docs/spec/card.md, section 2). Nothing is lost by accident: terms
and revocations go on unless they are changed."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from p2pgrid.errors import UsageError
from p2pgrid.proto.card import Card, PeerKey, Revocation
from p2pgrid.proto.card_chain import CardChain
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Role, Signed, sign_message

MAX_PEERS: Final = 64


def first_card(key: SecretKey, *, now_ms: int, valid_until_ms: int, **fields: Any) -> Signed[Card]:
    """The first card of an operator; `fields` are the Card's. Raises InvalidRecord for what no card may say."""
    message = Card(
        operator=key.public_key.raw, sequence=1, valid_from_ms=now_ms, valid_until_ms=valid_until_ms, **fields
    )
    return sign_message(message, Role.OPERATOR, key)


def next_card(
    chain: CardChain, key: SecretKey, *, now_ms: int, valid_until_ms: int | None = None, **changes: Any
) -> Signed[Card]:
    """The card after the chain's last, with `changes` to its fields; it ends as the last one did if nothing is said.

    Raises UsageError for a key that may not sign it, InvalidRecord for what no card may say.
    """
    last = chain[-1].message
    own = key.public_key.raw
    if own not in (last.operator, last.successor):
        raise UsageError(
            f"the key {key.public_key} may not sign the next card: it is neither the operator's nor its successor's.",
            hint="Name the operator's key file with --operator-key.",
        )
    if own == last.successor:
        changes = {"successor": b"", **changes}
    message = msgspec.structs.replace(
        last,
        operator=own,
        sequence=last.sequence + 1,
        valid_from_ms=now_ms,
        valid_until_ms=max(last.valid_until_ms, now_ms + 1) if valid_until_ms is None else valid_until_ms,
        previous=chain[-1].id,
        **changes,
    )
    return sign_message(message, Role.OPERATOR, key)


def with_peer(peers: tuple[PeerKey, ...], key: bytes, until_ms: int, now_ms: int) -> tuple[PeerKey, ...]:
    """The peers with `key` among them up to `until_ms`. One that is renewed keeps its beginning.

    Where there are too many, those whose term ended first are left out: an earlier card has them. Raises UsageError if
    all are in force.
    """
    known = next((peer for peer in peers if peer.key == key), None)
    from_ms = known.valid_from_ms if known is not None else now_ms
    others = [peer for peer in peers if peer.key != key]
    while len(others) >= MAX_PEERS:
        first = min(others, key=lambda peer: peer.valid_until_ms)
        if first.valid_until_ms >= now_ms:
            raise UsageError(f"a card names at most {MAX_PEERS} peers.", hint="Use an operator key for each group.")
        others.remove(first)
    return (*others, PeerKey(key=key, valid_from_ms=from_ms, valid_until_ms=max(until_ms, from_ms + 1)))


def with_revocation(revoked: tuple[Revocation, ...], key: bytes, since_ms: int, reason: str) -> tuple[Revocation, ...]:
    """The revocations with `key` among them. One that was revoked already stays so from the earlier time."""
    known = next((one for one in revoked if one.key == key), None)
    if known is not None:
        since_ms = min(since_ms, known.since_ms)
    others = [one for one in revoked if one.key != key]
    return (*others, Revocation(key=key, since_ms=since_ms, reason=reason))
