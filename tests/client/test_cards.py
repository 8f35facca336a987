"""Who stands behind an offer: the operator's word and the provider's, both, and what the domain says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.card_check import check_domain, check_peer
from p2pgrid.client.cards import RETRY_MS, CardBook
from p2pgrid.client.choice import unwanted_operator
from p2pgrid.client.domains import DomainChecker
from p2pgrid.client.operator import Operator, operator_object
from p2pgrid.client.wishes import Wishes
from p2pgrid.errors import Refused, Unreachable
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.card import Card, PeerKey, Revocation
from p2pgrid.proto.card_chain import CardChain, pack_cards
from p2pgrid.proto.card_signing import next_card
from p2pgrid.proto.messages import DataTerms, Offer
from p2pgrid.proto.record import Signed
from p2pgrid.proto.well_known import well_known_of
from tests.client.web import Everywhere, Web, file, serving
from tests.factories import DAY_MS, NOW_MS, OPERATOR, PROVIDER, make_card, make_offer, secret_key

DOMAIN = "compute.example"
OTHER = secret_key("other node")
PEER = PROVIDER.public_key.peer_id


class Clock:
    now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


class Peers:
    """Peers that show what a test says, by peer id."""

    def __init__(self) -> None:
        self.cards: dict[str, bytes | Exception] = {}
        self.offers: dict[str, Signed[Offer]] = {}
        self.asked: list[str] = []

    async def fetch_cards(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        self.asked.append(peer.peer_id)
        shown = self.cards.get(peer.peer_id, Unreachable("nobody is there."))
        if isinstance(shown, Exception):
            raise shown
        return shown

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        if peer.peer_id not in self.offers:
            raise Unreachable("nobody is there.")
        return self.offers[peer.peer_id].record.to_bytes()


def address(offer: Signed[Offer]) -> PeerAddress:
    return PeerAddress(next(iter(offer.signers.values())).peer_id, ())


def follow(chain: CardChain, **changes: Any) -> CardChain:
    return (*chain, next_card(chain, OPERATOR, now_ms=NOW_MS, **changes))


def term(key: bytes) -> PeerKey:
    return PeerKey(key=key, valid_from_ms=NOW_MS - DAY_MS, valid_until_ms=NOW_MS + 100 * DAY_MS)


FIRST: CardChain = (make_card(peers=(term(PROVIDER.public_key.raw), term(OTHER.public_key.raw))),)
OFFER = make_offer(card=FIRST[0].id)


async def learned(shown: Any, offer: Signed[Offer] = OFFER, **options: Any) -> tuple[Operator | None, CardBook, Peers]:
    peers = Peers()
    peers.cards[address(offer).peer_id] = shown if isinstance(shown, bytes | Exception) else pack_cards(shown)
    book = CardBook(peers, now_ms=Clock(), **options)
    return await book.learn(address(offer), offer), book, peers


async def test_both_words_bind() -> None:
    operator, book, peers = await learned(FIRST)
    assert operator is not None and operator.card == FIRST[0].message and not operator.fault
    assert not operator.has_domain, "nobody asked the domain"
    await book.learn(address(OFFER), OFFER)
    assert peers.asked == [PEER], "a card is asked for once"


@pytest.mark.parametrize(
    ("shown", "offer", "fault"),
    [
        ((), OFFER, "does not show"),
        ((make_card(sequence=9),), OFFER, "does not show"),
        (b"\xc1", OFFER, "Cards"),
        (b"\x00" * 70_000, OFFER, "at most"),
        (Unreachable("nobody is there."), OFFER, "nobody"),
        (Refused("no-card", "none."), OFFER, "none"),
        ((make_card(peers=()),), make_offer(card=make_card(peers=()).id), "does not name the provider now (unknown)"),
    ],
)
async def test_a_card_that_does_not_hold(shown: Any, offer: Signed[Offer], fault: str) -> None:
    operator, _, _ = await learned(shown, offer)
    assert operator is not None and fault in operator.fault and not operator.is_disowned
    assert not operator.has_domain


async def test_an_offer_without_a_card_asks_nobody() -> None:
    operator, _, peers = await learned(FIRST, make_offer())
    assert operator is None and peers.asked == []


async def test_a_peer_that_fails_is_asked_again_later() -> None:
    _, book, peers = await learned(Unreachable("away."))
    await book.refresh([(address(OFFER), OFFER)])
    assert len(peers.asked) == 1
    clock = book._now_ms
    assert isinstance(clock, Clock)
    clock.now_ms += RETRY_MS
    peers.cards[PEER] = pack_cards(FIRST)
    await book.refresh([(address(OFFER), OFFER)])
    operator = book.operator_of(OFFER)
    assert operator is not None and not operator.fault


async def test_another_operators_card_does_not_disown() -> None:
    """Anyone may write a card that names and revokes a stranger's key: it means nothing until the stranger names it."""
    enemy = make_card(
        secret_key("enemy"),
        peers=(term(OTHER.public_key.raw), term(PROVIDER.public_key.raw)),
        revoked=(Revocation(key=PROVIDER.public_key.raw, since_ms=1),),
    )
    _, book, peers = await learned(FIRST)
    theirs = make_offer(OTHER, card=enemy.id)
    peers.cards[OTHER.public_key.peer_id] = pack_cards((enemy,))
    await book.learn(address(theirs), theirs)
    operator = book.operator_of(OFFER)
    assert operator is not None and not operator.is_disowned


async def test_a_revocation_that_another_node_shows_disowns_the_thief() -> None:
    _, book, peers = await learned(FIRST)
    second = follow(FIRST, revoked=(Revocation(key=PROVIDER.public_key.raw, since_ms=NOW_MS, reason="stolen"),))
    sister = make_offer(OTHER, card=second[-1].id)
    peers.cards[OTHER.public_key.peer_id] = pack_cards(second)
    await book.learn(address(sister), sister)
    for thief in (OFFER, make_offer(sequence=2)):
        operator = book.operator_of(thief)
        assert operator is not None and operator.is_disowned
        assert unwanted_operator(thief, operator, Wishes()) == ("card", operator.fault)
    operator = book.operator_of(sister)
    assert operator is not None and not operator.fault


async def test_a_fork_of_the_chain_is_a_fault() -> None:
    _, book, peers = await learned(follow(FIRST, legal_name="One"))
    other = follow(FIRST, legal_name="Another")
    offer = make_offer(sequence=2, card=other[-1].id)
    peers.cards[PEER] = pack_cards(other)
    operator = await book.learn(address(offer), offer)
    assert operator is not None and "two cards" in operator.fault


async def test_a_longer_chain_is_gone_on_with() -> None:
    _, book, peers = await learned(FIRST)
    chain = FIRST
    for number in range(3):
        chain = follow(chain, legal_name=f"Name {number}")
    offer = make_offer(sequence=2, card=chain[-1].id)
    peers.cards[PEER] = pack_cards(chain[2:])
    operator = await book.learn(address(offer), offer)
    assert operator is not None and operator.card == chain[-1].message and not operator.fault
    assert OTHER.public_key.raw in book.other_keys(PEER) and PROVIDER.public_key.raw not in book.other_keys(PEER)


async def test_the_cards_of_a_provider_that_is_bought_from_are_kept(tmp_path: Path) -> None:
    _, book, _ = await learned(FIRST, folder=tmp_path / "cards")
    assert not (tmp_path / "cards").exists()
    await book.keep(PEER)
    await book.keep(PEER)
    # After a restart the kept cards are the beginning of the chain.
    second = follow(FIRST)
    offer = make_offer(sequence=2, card=second[-1].id)
    _, again, _ = await learned(second[1:], offer, folder=tmp_path / "cards")
    assert [card.id for card in again.chain_of(PEER)] == [card.id for card in second]


def domains(server: Web) -> DomainChecker:
    return DomainChecker(Clock(), resolver=Everywhere(), trusted=server.trusted, port=server.port, timeout_s=2.0)


def well_known(chain: CardChain) -> str:
    return json.dumps(well_known_of(chain, NOW_MS))


async def test_the_domain_is_asked() -> None:
    async with serving(DOMAIN, page=file(well_known(FIRST))) as server:
        operator, _, _ = await learned(FIRST, domains=domains(server))
        assert operator is not None and operator.has_domain
        shown = operator_object(operator)
        assert (shown["legal_name"], shown["parent_country"], shown["domain"], shown["domain_checked"]) == (
            "Vilnius Compute UAB",
            "LT",
            DOMAIN,
            True,
        )
        server.page = file(well_known((make_card(peers=(term(OTHER.public_key.raw),)),)))
        operator, _, _ = await learned(FIRST, domains=domains(server))
        assert operator is not None and not operator.has_domain and operator.domain_check is not None


async def test_the_domain_tells_of_a_revocation_that_the_node_does_not_show() -> None:
    second = follow(FIRST, revoked=(Revocation(key=PROVIDER.public_key.raw, since_ms=NOW_MS),))
    async with serving(DOMAIN, page=file(well_known(second))) as server:
        operator, _, _ = await learned(FIRST, domains=domains(server))
        assert operator is not None and operator.is_disowned


PROVEN = Operator(card=FIRST[0].message)
NO_DOMAIN = Operator(card=make_card(domain="", parent_country="US").message)
BAD = Operator(card=FIRST[0].message, fault="it has ended.")


@pytest.mark.parametrize(
    ("operator", "wishes", "test"),
    [
        (None, Wishes(), None),
        (BAD, Wishes(), None),
        (None, Wishes(verify_domains=True), "card"),
        (BAD, Wishes(verify_domains=True), "card"),
        (BAD, Wishes(parent_countries=frozenset({"LT"})), "card"),
        (PROVEN, Wishes(parent_countries=frozenset({"LT"})), None),
        (NO_DOMAIN, Wishes(parent_countries=frozenset({"LT"})), "parent-country"),
        (NO_DOMAIN, Wishes(verify_domains=True), "domain"),
        (PROVEN, Wishes(verify_domains=True), "domain"),
        (Operator(fault="revoked", is_disowned=True), Wishes(), "card"),
        (PROVEN, Wishes(countries=frozenset({"FR"})), "country"),
    ],
)
def test_whom_a_client_buys_from(operator: Operator | None, wishes: Wishes, test: str | None) -> None:
    unwanted = unwanted_operator(make_offer(data_terms=DataTerms(country="LT")), operator, wishes)
    assert (unwanted[0] if unwanted else None) == test


# -- card check ------------------------------------------------------------------------------------------------------


async def report_of(
    server: Web, chain: tuple[Signed[Card], ...] = FIRST, offer: Signed[Offer] = OFFER
) -> tuple[bool, str, str, str]:
    peers = Peers()
    peers.cards[PEER], peers.offers[PEER] = pack_cards(chain), offer
    report = await check_peer(peers, domains(server), PeerAddress(PEER, ()), Clock())
    json.dumps(report.to_object())
    return report.holds, " ".join(report.proven), " ".join(report.failed), " ".join(report.unproven)


async def test_a_peer_whose_card_holds() -> None:
    async with serving(DOMAIN, page=file(well_known(FIRST))) as server:
        holds, proven, failed, unproven = await report_of(server)
        assert holds and not failed
        assert "names this operator's card" in proven and DOMAIN in proven
        assert "own word" in unproven and "Vilnius Compute UAB" in unproven and "VAT id" in unproven


async def test_a_peer_whose_card_does_not_hold() -> None:
    async with serving(DOMAIN, page=file(well_known(FIRST))) as server:
        assert "does not name this card" in (await report_of(server, offer=make_offer()))[2]
        revoked = follow(FIRST, revoked=(Revocation(key=PROVIDER.public_key.raw, since_ms=1, reason="stolen"),))
        assert "stolen" in (await report_of(server, revoked))[2]
        assert "nobody says who" in (await report_of(server, ()))[2]
        ended = (make_card(valid_until_ms=NOW_MS - 1),)
        assert "ended" in (await report_of(server, ended))[2]
        server.page = file("")
        assert "not proven" in (await report_of(server))[2]
    no_domain = (make_card(domain=""),)
    holds, _, _, unproven = await report_of(server, no_domain, make_offer(card=no_domain[0].id))
    assert holds and "names no domain" in unproven


async def test_a_domain_is_checked() -> None:
    async with serving(DOMAIN, "other.example", page=file(well_known(FIRST))) as server:
        report = await check_domain(domains(server), DOMAIN, NOW_MS)
        assert report.holds and PEER in " ".join(report.proven), report
        other = await check_domain(domains(server), "other.example", NOW_MS)
        assert not other.holds and "other.example" in " ".join(other.failed)
        content = json.loads(well_known(FIRST))
        server.page = file(json.dumps({**content, "peers": [secret_key("x").public_key.peer_id]}))
        assert "not in force" in " ".join((await check_domain(domains(server), DOMAIN, NOW_MS)).failed)
        server.page = file(json.dumps({**content, "cards": []}))
        assert "no card" in " ".join((await check_domain(domains(server), DOMAIN, NOW_MS)).failed)
        server.page = file("{}")
        with pytest.raises(Exception, match="well-known"):
            await check_domain(domains(server), DOMAIN, NOW_MS)
