"""What parties tell one another of their debts, so that somebody finds a cycle: a file that goes round by hand.

A line is a question, not a claim: nothing in it is signed, and a debt that was made up is signed by nobody later. It
names a neighbour by its key, and a sum that is rounded down. Who writes none tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.proto.cycle import Cycle, CycleDebt
from p2pgrid.proto.keys import parse_peer_id, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.settlement.payments.rings import Owed, Ring, find_rings, pairs

MOST_OFFERS: Final = 10_000
DEFAULT_ROUND_CENTS: Final = 100
"""Sums are told in whole euros unless asked otherwise."""

_HEX: Final = r"\A[0-9a-f]{64}\Z"


class DebtOffer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One debt, told by one of its parties."""

    channel: Annotated[str, Meta(pattern=_HEX)]
    """Its id, in hex."""
    creditor: Annotated[str, Meta(max_length=64)]
    """Peer id: the channel's provider. So is the next, its client."""
    debtor: Annotated[str, Meta(max_length=64)]
    currency: Annotated[str, Meta(pattern=r"\A[A-Z]{3}\Z")]
    cents: Annotated[int, Meta(ge=1, le=10**15)]
    operator: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """Peer ids of all keys of whoever tells it, where it sells and buys with different ones."""
    card: Annotated[str, Meta(max_length=64)] = ""
    """With `operator`: the id of the card that names them, in hex."""


@dataclass(frozen=True, slots=True)
class FoundCycle:
    """A ring among the debts that were told, and a channel for each of them."""

    debts: tuple[DebtOffer, ...]
    """Each one's creditor is the debtor of the next."""
    cents: int


def offer_of(channel: Channel, cents: int, *, round_to: int = DEFAULT_ROUND_CENTS) -> DebtOffer | None:
    """What is open in a channel, rounded down to a multiple of `round_to`; None if that is nothing."""
    told = cents // round_to * round_to
    if told <= 0:
        return None
    return DebtOffer(
        channel=channel.channel.hex(),
        creditor=parse_public_key(channel.provider).peer_id,
        debtor=parse_public_key(channel.client).peer_id,
        currency=channel.currency,
        cents=told,
    )


def to_line(offer: DebtOffer) -> bytes:
    """As the file has it, without a line feed."""
    return msgspec.json.encode(offer)


def read_offers(lines: Iterable[bytes]) -> list[DebtOffer]:
    """Every line of a file that went round. Raises UsageError, with the line."""
    found: list[DebtOffer] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(found) == MOST_OFFERS:
            raise UsageError(f"the file has more than {MOST_OFFERS} debts.", hint="Begin a new one.")
        try:
            offer = _decoder.decode(line)
            for peer in (offer.creditor, offer.debtor, *offer.operator):
                parse_peer_id(peer)
            bytes.fromhex(offer.card)
        except (msgspec.MsgspecError, InvalidRecord, ValueError) as error:
            raise UsageError(
                f"line {number} tells of no debt: {error}.", hint="`set-off cycles offer` writes such lines."
            ) from None
        if offer.creditor == offer.debtor or len(offer.card) not in (0, 64):
            raise UsageError(
                f"line {number} tells of no debt: of one party, or with half a card.", hint="Leave it out."
            )
        found.append(offer)
    return found


def find_cycles(offers: Sequence[DebtOffer], *, through: str, currency: str, least_cents: int = 1) -> list[FoundCycle]:
    """Cycles through a party (one of its peer ids) among what was told, that can all be carried out, the largest first.

    Between two parties the channel with the largest sum counts: a leg is of one channel.
    """
    party = _parties(offers)
    largest: dict[tuple[str, str], DebtOffer] = {}
    for offer in offers:
        pair = party.get(offer.debtor, offer.debtor), party.get(offer.creditor, offer.creditor)
        if offer.currency == currency and pair[0] != pair[1]:
            known = largest.get(pair)
            if known is None or (offer.cents, offer.channel) > (known.cents, known.channel):
                largest[pair] = offer
    owed: Owed = {pair: offer.cents for pair, offer in largest.items()}
    rings: list[Ring] = find_rings(owed, through=party.get(through, through), least_cents=least_cents)
    return [FoundCycle(tuple(largest[pair] for pair in pairs(ring.parties)), ring.cents) for ring in rings]


def make_cycle(
    found: FoundCycle,
    offers: Sequence[DebtOffer],
    *,
    proposer: bytes,
    timekeeper: bytes,
    cents: int | None = None,
    now_ms: int,
    deadline_ms: int,
    nonce: bytes,
) -> Cycle:
    """The proposal of a cycle that was found, of its sum or of less. Raises UsageError where a card is missing."""
    debts = []
    for debt, following in zip(found.debts, (*found.debts[1:], found.debts[0]), strict=True):
        card = b"" if debt.creditor == following.debtor else _card_of(offers, debt.creditor, following.debtor)
        debts.append(
            CycleDebt(
                channel=bytes.fromhex(debt.channel),
                creditor=parse_peer_id(debt.creditor).raw,
                debtor=parse_peer_id(debt.debtor).raw,
                card=card,
            )
        )
    at = min(range(len(debts)), key=lambda n: debts[n].channel)
    return Cycle(
        proposer=proposer,
        debts=(*debts[at:], *debts[:at]),
        currency=found.debts[0].currency,
        amount_cents=found.cents if cents is None else min(cents, found.cents),
        deadline_ms=deadline_ms,
        timekeeper=timekeeper,
        proposed_ms=now_ms,
        nonce=nonce,
    )


def _parties(offers: Iterable[DebtOffer]) -> dict[str, str]:
    """For each peer id of an operator with several the one that stands for all."""
    stands: dict[str, str] = {}

    def root(peer: str) -> str:
        while stands.get(peer, peer) != peer:
            peer = stands[peer]
        return peer

    for offer in offers:
        roots = sorted({root(peer) for peer in offer.operator})
        for peer in roots:
            stands[peer] = roots[0]
    return {peer: root(peer) for peer in list(stands)}


def _card_of(offers: Sequence[DebtOffer], sells: str, buys: str) -> bytes:
    for offer in offers:
        if offer.card and {sells, buys} <= set(offer.operator):
            return bytes.fromhex(offer.card)
    raise UsageError(
        f"nobody has told of a card that names both {sells} and {buys}.", hint="Its owner tells it with its debts."
    )


_decoder: Final = msgspec.json.Decoder(DebtOffer)
