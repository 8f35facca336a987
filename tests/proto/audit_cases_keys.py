"""Cases of cards, keys and channels that go on from others; see `audit_cases`."""

from __future__ import annotations

from typing import Any

from p2pgrid.proto.card import Card, PeerKey, Revocation
from p2pgrid.proto.codes import Party
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Signed
from tests.factories import make_card
from tests.proto.audit_cases import BOTH, UNCLEAR, USAGE, C, P, both, vector
from tests.proto.chains import DAY_MS, START_MS, Dealings, LinesBundle, digest, key

TERM = {"valid_from_ms": START_MS - 10 * DAY_MS, "valid_until_ms": START_MS + 300 * DAY_MS}
OPERATOR = key("operator")


def peer(secret: SecretKey, **term: int) -> PeerKey:
    return PeerKey(key=secret.public_key.raw, **{**TERM, **term})


def card(signer: SecretKey = OPERATOR, **changes: Any) -> Signed[Card]:
    """The card of the provider's operator."""
    return make_card(signer, **{**TERM, "peers": (peer(key("provider")),), **changes})


def sold_under(named: Signed[Card], *others: Signed[Card], after_ms: int = 0) -> Dealings:
    """A channel under an offer that names a card. All the cards are in both bundles."""
    grid = Dealings(offer_changes={"card": named.id, "valid_until_ms": START_MS + 60 * DAY_MS})
    for each in (named, *others):
        grid.keep(each)
    grid.deal(output=200)
    grid.now_ms += after_ms
    grid.deal(output=200)
    return grid


@vector("key-not-bound", P)
def card_without_the_key() -> list[LinesBundle]:
    return both(sold_under(card(peers=(peer(key("another node")),))))


@vector("key-expired", P)
def key_s_term_over() -> list[LinesBundle]:
    ends = peer(key("provider"), valid_until_ms=START_MS + DAY_MS)
    return both(sold_under(card(peers=(ends,)), after_ms=2 * DAY_MS))


@vector("key-expired", P)
def card_s_term_over() -> list[LinesBundle]:
    return both(sold_under(card(valid_until_ms=START_MS + DAY_MS), after_ms=2 * DAY_MS))


@vector("key-expired", P)
def key_s_term_not_begun() -> list[LinesBundle]:
    begins = peer(key("provider"), valid_from_ms=START_MS + DAY_MS)
    return both(sold_under(card(peers=(begins,)), after_ms=2 * DAY_MS))


@vector("key-revoked", P)
def key_revoked_by_a_later_card() -> list[LinesBundle]:
    first = card()
    gone = Revocation(key=key("provider").public_key.raw, since_ms=START_MS + DAY_MS, reason="stolen")
    second = card(sequence=2, previous=first.id, peers=(), revoked=(gone,))
    return both(sold_under(first, second, after_ms=2 * DAY_MS))


@vector("broken-card-chain", Party.OPERATOR, operator="stranger")
def card_by_a_stranger() -> list[LinesBundle]:
    first = card()
    stranger = key("stranger")
    forged = card(stranger, operator=stranger.public_key.raw, sequence=2, previous=first.id)
    return both(sold_under(first, forged))


@vector("broken-card-chain", Party.OPERATOR)
def card_number_falls() -> list[LinesBundle]:
    first = card(sequence=5)
    return both(sold_under(first, card(sequence=4, previous=first.id)))


@vector("broken-card-chain", Party.OPERATOR)
def two_cards_after_one() -> list[LinesBundle]:
    first = card()
    return both(sold_under(first, *(card(sequence=n, previous=first.id) for n in (2, 3))))


@vector("key-not-admissible", Party.OPERATOR)
def card_with_a_key_that_is_none() -> list[LinesBundle]:
    return both(sold_under(card(successor=b"\x01" + b"\x01" + bytes(31))))


@vector("two-records-one-slot", Party.OPERATOR)
def two_cards_with_one_number() -> list[LinesBundle]:
    return both(sold_under(card(), card(domain="elsewhere.example")))


@vector("card-missing", UNCLEAR)
def card_not_there() -> list[LinesBundle]:
    grid = Dealings(offer_changes={"card": digest("card")})
    grid.deal(output=200)
    return both(grid)


# -- channels after a change of keys ------------------------------------------------------------------------------


def rotated(*cards: Signed[Card], orders: int = 2, at: int = -1, **changes: Any) -> Dealings:
    """A channel under the provider's old key, and one that goes on from it; the offer names the first card."""
    old = Dealings(provider=key("old node"), nonce="old")
    for _ in range(orders):
        old.deal(output=200)
    new = Dealings(
        offer_changes={"card": cards[0].id} if cards else {},
        channel_changes={"continues": old.receipts[at].id if orders else old.channel.id, **changes},
    )
    new.now_ms = old.now_ms
    new.deal(output=200)
    for each in (*old.client_has, *cards):
        new.keep(each)
    return new


def both_keys() -> Signed[Card]:
    return card(peers=(peer(key("provider")), peer(key("old node"))))


@vector("record-missing", BOTH)
def goes_on_from_nothing() -> list[LinesBundle]:
    return both(rotated(both_keys(), continues=digest("nothing")))


@vector("broken-link", P, proven=False)
def goes_on_from_a_receipt_that_is_not_the_last() -> list[LinesBundle]:
    return both(rotated(both_keys(), at=0))


@vector("key-not-bound", P, proven=False)
def new_key_on_another_card() -> list[LinesBundle]:
    return both(rotated(card()))


@vector("key-not-bound", C, proven=False)
def new_client_on_another_card() -> list[LinesBundle]:
    return both(with_new_client(card(peers=(peer(key("client")), peer(key("another"))))))


@vector("card-missing", P)
def new_key_without_a_card() -> list[LinesBundle]:
    return both(rotated())


@vector("card-missing", C)
def new_client_without_a_card() -> list[LinesBundle]:
    return both(with_new_client())


def with_new_client(*cards: Signed[Card]) -> Dealings:
    """As `rotated`, where it is the client that has another key."""
    old = Dealings(client=key("old client"), nonce="old")
    old.deal(output=200)
    new = Dealings(channel_changes={"continues": old.receipts[-1].id})
    new.now_ms = old.now_ms
    new.receipt(new.order(), USAGE)
    for each in (*old.client_has, *cards):
        new.keep(each)
    return new
