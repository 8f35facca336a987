"""Reading an operator's cards (docs/spec/card.md): one signature, one chain, and what the chain says of a key.

Cards of one operator form a chain: each names the one before it, and is signed by the same operator key or by the
successor that the one before named. Whoever holds the last few can go on from there; a chain need not be whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.proto.card import Card, PeerKey
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.record import Record, Role, Signed, parse_record, verify_self_signed
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.offers import MAX_CARDS_BYTES, Cards

MAX_CARDS: Final = 64
"""In one message."""
_CARD_OVERHEAD_BYTES: Final = 8

CardChain = tuple[Signed[Card], ...]
"""Cards of one operator, verified, each following the one before it. Not empty unless nothing is known."""


class KeyState(StrEnum):
    """What a chain of cards says of a key at a time."""

    BOUND = "bound"
    """The key acted for the operator."""
    EXPIRED = "expired"
    """Its term, or that of the last card, had ended."""
    REVOKED = "revoked"
    """It was revoked by then."""
    UNKNOWN = "unknown"
    """No card names it, or its term had not begun."""


def verify_card(record: Record) -> Signed[Card]:
    """A card that the operator it names has signed; every key in it is admissible.

    Raises InvalidRecord: `wrong-key`, `key-not-admissible`, and what `verify_self_signed` raises.
    """
    signed = verify_self_signed(record, Card, Role.OPERATOR)
    card = signed.message
    if card.operator != signed.signers[Role.OPERATOR].raw:
        raise InvalidRecord("wrong-key", "the card is signed by another key than the operator it names.")
    keys = [*(peer.key for peer in card.peers), *(revocation.key for revocation in card.revoked)]
    for key in [*keys, *([card.successor] if card.successor else [])]:
        parse_public_key(key)
    return signed


def check_follows(before: Signed[Card], card: Signed[Card]) -> None:
    """Raises InvalidRecord unless `card` may come right after `before`.

    `two-records-one-slot`: the operator signed two cards under one number. `broken-card-chain`: it names another card
    before it, its number is lower, or neither the operator nor the successor that it had named has signed.
    """
    old, new = before.message, card.message
    if new.sequence == old.sequence and card.id != before.id:
        raise InvalidRecord("two-records-one-slot", f"the operator signed two cards under number {new.sequence}.")
    if new.sequence <= old.sequence or new.previous != before.id:
        raise InvalidRecord("broken-card-chain", f"card {new.sequence} does not follow card {old.sequence}.")
    if new.operator not in (old.operator, old.successor):
        raise InvalidRecord(
            "broken-card-chain",
            f"card {new.sequence} is signed by a key that card {old.sequence} does not name as successor.",
        )


def verify_chain(records: Iterable[Record]) -> CardChain:
    """Cards in the order of their numbers, each verified and following the one before it. The first may be any.

    Raises InvalidRecord, as `verify_card` and `check_follows` do.
    """
    chain: list[Signed[Card]] = []
    for record in records:
        card = verify_card(record)
        if chain:
            check_follows(chain[-1], card)
        chain.append(card)
    return tuple(chain)


def join_chains(known: CardChain, new: CardChain) -> CardChain:
    """What both say together, the longest. Raises InvalidRecord where they contradict each other.

    `two-records-one-slot` for two cards under one number; `broken-card-chain` where nothing links them.
    """
    if not known or not new:
        return known or new
    first, later = (known, new) if known[0].message.sequence <= new[0].message.sequence else (new, known)
    by_number = {card.message.sequence: card for card in first}
    for card in later:
        if (same := by_number.get(card.message.sequence)) is not None and same.id != card.id:
            check_follows(same, card)
    joined = list(first)
    for card in later:
        if card.message.sequence > joined[-1].message.sequence:
            check_follows(joined[-1], card)
            joined.append(card)
        elif card.message.sequence not in by_number:
            raise InvalidRecord(
                "broken-card-chain", f"card {card.message.sequence} is no part of the chain that is known."
            )
    return tuple(joined)


def key_state(cards: Sequence[Signed[Card]], key: bytes, time_ms: int) -> KeyState:
    """What a chain says of a peer key (33 bytes) at a time; of a revocation, whichever card says it.

    The last card that names the key decides on its term. Nothing is bound beyond the end of the chain's last card.
    """
    if any(one.key == key and one.since_ms <= time_ms for card in cards for one in card.message.revoked):
        return KeyState.REVOKED
    term = key_term(cards, key)
    if term is None or time_ms < term.valid_from_ms:
        return KeyState.UNKNOWN
    if time_ms > min(term.valid_until_ms, cards[-1].message.valid_until_ms):
        return KeyState.EXPIRED
    return KeyState.BOUND


def key_term(cards: Sequence[Signed[Card]], key: bytes) -> PeerKey | None:
    """The key's term, as the last card that names it has it; None if no card does."""
    return next((peer for card in reversed(cards) for peer in card.message.peers if peer.key == key), None)


def named_keys(cards: Sequence[Signed[Card]]) -> frozenset[bytes]:
    """Every peer key that any of the cards names."""
    return frozenset(peer.key for card in cards for peer in card.message.peers)


def pack_cards(cards: Sequence[Signed[Card]]) -> bytes:
    """The wire form of a chain: a Cards message with the last cards, as many as it holds."""
    packed: list[bytes] = []
    room = MAX_CARDS_BYTES
    for card in reversed(cards[-MAX_CARDS:]):
        record = card.record.to_bytes()
        room -= len(record) + _CARD_OVERHEAD_BYTES
        if room < 0:
            break
        packed.append(record)
    return Cards(cards=tuple(reversed(packed))).to_bytes()


def unpack_cards(data: bytes) -> CardChain:
    """A peer's chain, verified. Raises ProtocolViolation for what is no Cards message, InvalidRecord as `verify_chain`.

    Each card is the operator's word alone: whether it speaks of the peer, only the peer's own offer says.
    """
    if len(data) > MAX_CARDS_BYTES:
        raise ProtocolViolation(f"{len(data)} bytes of cards came; at most {MAX_CARDS_BYTES} were expected.")
    return verify_chain(map(parse_record, parse_frame(data, Cards).cards))
