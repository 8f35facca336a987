"""What can be proven of a peer or a domain, in plain words: `p2pgrid card check`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from p2pgrid.client.domains import DomainChecker
from p2pgrid.client.offer_store import verify_offer
from p2pgrid.errors import InvalidRecord, RemoteError
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.printable import printable
from p2pgrid.proto.card import Card
from p2pgrid.proto.card_chain import CardChain, KeyState, key_state, key_term, unpack_cards
from p2pgrid.proto.keys import parse_peer_id, parse_public_key
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Signed
from p2pgrid.proto.well_known import PATH, WellKnown


class Finder(Protocol):
    """`p2pgrid.net.network.Network` is one."""

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes: ...

    async def fetch_cards(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes: ...


@dataclass(slots=True)
class CardReport:
    """What was looked at, and what came of it."""

    subject: str
    proven: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """What should hold and does not: with one of these, the whole does not."""
    unproven: list[str] = field(default_factory=list)
    """What nobody can tell from here."""
    card: Card | None = None

    @property
    def holds(self) -> bool:
        """True if nothing failed."""
        return not self.failed

    def to_object(self) -> dict[str, Any]:
        """For programs."""
        card = self.card
        return {
            "subject": self.subject,
            "holds": self.holds,
            "proven": self.proven,
            "failed": self.failed,
            "unproven": self.unproven,
            "legal_name": card.legal_name if card else None,
            "vat_id": card.vat_id if card else None,
            "country": card.country if card else None,
            "parent_country": card.parent_country if card else None,
            "domain": card.domain if card else None,
            "operator": parse_public_key(card.operator).peer_id if card else None,
        }


async def check_peer(
    finder: Finder, domains: DomainChecker, peer: PeerAddress, now_ms: Callable[[], int]
) -> CardReport:
    """Ask a peer for its offer and its cards, and its domain for its file. Raises Unreachable if the peer is not there.

    All else that goes wrong is in the report.
    """
    report = CardReport(peer.peer_id)
    offer = await _offer_of(finder, peer, report, now_ms())
    try:
        chain = unpack_cards(await finder.fetch_cards(peer))
    except (RemoteError, InvalidRecord) as error:
        report.failed.append(f"It has no card that holds: {printable(error.message)}")
        return report
    if not chain:
        report.failed.append("It shows no card: nobody says who stands behind it.")
        return report
    card = _read_chain(chain, report, now_ms())
    if offer is not None and any(one.id == offer.message.card for one in chain):
        report.proven.append("The peer's own offer, which it has signed, names this operator's card.")
    elif offer is not None:
        report.failed.append("The peer's own offer does not name this card: it may be somebody else's.")
    _read_term(chain, peer.peer_id, report, now_ms())
    if card.domain:
        check = await domains.check(card.domain, peer.peer_id)
        if check.names_peer:
            report.proven.append(f"https://{card.domain}{PATH} names this peer: who runs that domain stands behind it.")
        else:
            report.failed.append(f"The domain {card.domain} is not proven: {printable(check.reason)}")
    else:
        report.unproven.append("The card names no domain: nothing ties the operator to one.")
    _add_own_word(card, report)
    return report


async def check_domain(domains: DomainChecker, domain: str, now_ms: int) -> CardReport:
    """Read a domain's file, and the cards in it. Raises Refused, Unreachable where there is none, InvalidRecord where
    it is nonsense."""
    report = CardReport(domain)
    known, chain = await domains.fetch(domain)
    report.proven.append(f"https://{domain}{PATH} was read over HTTPS: who runs that domain says what follows.")
    if not chain:
        report.failed.append("The file holds no card.")
        return report
    card = _read_chain(chain, report, now_ms)
    if card.domain == domain:
        report.proven.append(f"The card names the domain {domain}, and the domain the card's operator: both agree.")
    else:
        report.failed.append(f"The card in the file names {printable(card.domain) or 'no domain'}, and not {domain}.")
    _read_listed(known, chain, card, report, now_ms)
    report.unproven.append("Whether these peers are up, and name this card too: check each with its peer id.")
    _add_own_word(card, report)
    return report


async def _offer_of(finder: Finder, peer: PeerAddress, report: CardReport, now_ms: int) -> Signed[Offer] | None:
    try:
        offer = verify_offer(await finder.fetch_offer(peer), peer.peer_id, now_ms)
    except InvalidRecord as error:
        report.failed.append(f"Its offer does not hold: {printable(error.message)}")
        return None
    report.proven.append("The peer holds the key of its peer id: the connection proved it.")
    return offer


def _read_chain(chain: CardChain, report: CardReport, now_ms: int) -> Card:
    card = report.card = chain[-1].message
    operator = parse_public_key(card.operator).peer_id
    whole = "" if not chain[0].message.previous else ", as far as it was shown"
    report.proven.append(
        f"The operator key {operator} has signed card {card.sequence}; the chain of {len(chain)} holds{whole}."
    )
    if now_ms > card.valid_until_ms:
        report.failed.append(f"The card ended on {_day(card.valid_until_ms)}.")
    return card


def _read_term(chain: CardChain, peer_id: str, report: CardReport, now_ms: int) -> None:
    key = parse_peer_id(peer_id).raw
    state = key_state(chain, key, now_ms)
    if state is KeyState.BOUND:
        term = key_term(chain, key)
        assert term is not None
        until_ms = min(term.valid_until_ms, chain[-1].message.valid_until_ms)
        report.proven.append(f"The card names this peer as the operator's, until {_day(until_ms)}.")
    elif state is KeyState.REVOKED:
        reasons = [one.reason for card in chain for one in card.message.revoked if one.key == key]
        report.failed.append(
            f"The operator has revoked this peer's key: {printable(reasons[-1]) or 'no reason given'}."
        )
    else:
        report.failed.append(f"The card does not name this peer as the operator's now ({state}).")


def _read_listed(known: WellKnown, chain: CardChain, card: Card, report: CardReport, now_ms: int) -> None:
    if known.operator != parse_public_key(card.operator).peer_id:
        report.failed.append("The file names another operator key than its card.")
    for peer_id in known.peers:
        state = key_state(chain, parse_peer_id(peer_id).raw, now_ms)
        if state is KeyState.BOUND:
            report.proven.append(f"The peer {peer_id} is the domain's and the operator's.")
        else:
            report.failed.append(f"The peer {peer_id} is in the file, and not in force on the card ({state}).")
    if not known.peers:
        report.failed.append("The file names no peer.")


def _add_own_word(card: Card, report: CardReport) -> None:
    said = [f"legal name {printable(card.legal_name)!r}"]
    said += [f"VAT id {printable(card.vat_id)!r}"] if card.vat_id else []
    said += [f"country {card.country}", f"parent's seat {card.parent_country}"]
    report.unproven.append(f"The operator's own word, and no more: {', '.join(said)}.")
    if card.vat_id:
        report.unproven.append("Who has that VAT id says the tax office: https://ec.europa.eu/taxation_customs/vies")


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d")
