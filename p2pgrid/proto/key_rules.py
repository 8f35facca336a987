"""What an operator's cards say of the keys that sign for it (docs/spec/audit.md, section 7).

Anyone can write any key on a card. Cards speak of a provider's key only where the key itself agrees: its offer names
one of them. From that one on, those that follow it by its operator's own word are one chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.card import Card
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.codes import Party
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.rules import Fault


class KeyState(StrEnum):
    """What a chain of cards says of a key at a time."""

    BOUND = "bound"
    NOT_YET = "not yet"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NOT_NAMED = "not named"


@dataclass(frozen=True, slots=True)
class KeyTerm:
    """When a key acted for its operator, by the whole chain; clocks apart."""

    from_ms: int
    until_ms: int
    revoked_ms: int | None
    """From then on it is revoked; None if it is not."""

    def state_at(self, time_ms: int) -> KeyState:
        """The state at a time that one clock shows: only what is out by more than clocks may differ counts."""
        early, late = time_ms - CLOCK_TOLERANCE_MS, time_ms + CLOCK_TOLERANCE_MS
        if self.revoked_ms is not None and early >= self.revoked_ms:
            return KeyState.REVOKED
        if early > self.until_ms:
            return KeyState.EXPIRED
        return KeyState.NOT_YET if late < self.from_ms else KeyState.BOUND


def faults_of_card_keys(card: Card) -> list[Fault]:
    """Is every key in the card one that can sign? `key-not-admissible`, once."""
    keys = [*(peer.key for peer in card.peers), *(one.key for one in card.revoked)]
    for key in [*keys, *([card.successor] if card.successor else [])]:
        try:
            parse_public_key(key)
        except InvalidRecord as error:
            sentence = f"A key in card {card.sequence} is not admissible: {error.message}"
            return [Fault(error.code, sentence, Party.OPERATOR)]
    return []


def faults_of_card(card: Card, *, before: Card) -> list[Fault]:
    """Does the card follow the one that it names? `broken-card-chain`."""
    if card.operator not in (before.operator, before.successor):
        sentence = (
            f"Card {card.sequence} is signed by a key that card {before.sequence} names neither as its own nor next."
        )
        return [Fault("broken-card-chain", sentence)]
    if card.sequence <= before.sequence:
        sentence = f"Card {card.sequence} names card {before.sequence} as the one before it."
        return [Fault("broken-card-chain", sentence)]
    return []


def chains_of(cards: Mapping[bytes, Card]) -> dict[bytes, tuple[Card, ...]]:
    """For each card, by its record id: the cards before and after it that follow one another, by their numbers."""
    linked: dict[bytes, list[bytes]] = {record_id: [] for record_id in cards}
    for record_id, card in cards.items():
        before = cards.get(card.previous)
        if before is not None and not faults_of_card(card, before=before):
            linked[card.previous].append(record_id)
            linked[record_id].append(card.previous)
    chains: dict[bytes, tuple[Card, ...]] = {}
    for record_id in cards:
        if record_id in chains:
            continue
        found, waiting = {record_id}, [record_id]
        while waiting:
            new = [neighbour for neighbour in linked[waiting.pop()] if neighbour not in found]
            found.update(new)
            waiting += new
        chain = tuple(sorted((cards[i] for i in found), key=lambda card: (card.sequence, card.operator)))
        chains.update(dict.fromkeys(found, chain))
    return chains


def key_term(chain: Sequence[Card], key: bytes) -> KeyTerm | None:
    """The key's term; None if no card of the chain names it.

    The last card that names the key decides on its term. Nothing is bound beyond the end of the chain's last card. A
    revocation counts, whichever card says it.
    """
    peer = next((peer for card in reversed(chain) for peer in card.peers if peer.key == key), None)
    if peer is None:
        return None
    revoked = [one.since_ms for card in chain for one in card.revoked if one.key == key]
    until_ms = min(peer.valid_until_ms, chain[-1].valid_until_ms)
    return KeyTerm(peer.valid_from_ms, until_ms, min(revoked) if revoked else None)


def faults_of_offer_card(offer: Offer, card: Card) -> list[Fault]:
    """Does the card that an offer names list the offer's key? `key-not-bound`."""
    if any(peer.key == offer.provider for peer in card.peers):
        return []
    return [Fault("key-not-bound", f"Offer {offer.sequence} names card {card.sequence}, which does not name its key.")]


def faults_of_key(term: KeyTerm, time_ms: int, what: str) -> list[Fault]:
    """Might the provider's key sign `what` at that time? `key-expired`, `key-revoked`.

    A revocation does not touch what was signed before it.
    """
    match term.state_at(time_ms):
        case KeyState.REVOKED:
            return [Fault("key-revoked", f"The operator had revoked the key that signed {what}, by then.")]
        case KeyState.EXPIRED:
            return [Fault("key-expired", f"The term that the operator's cards give the key had ended before {what}.")]
        case KeyState.NOT_YET:
            return [Fault("key-expired", f"The term that the operator's cards give the key begins after {what}.")]
        case _:
            return []


def names_all(chain: Iterable[Card], keys: Iterable[bytes]) -> bool:
    """True if the cards of one chain name every one of the keys."""
    return {peer.key for card in chain for peer in card.peers}.issuperset(keys)
