"""Keys judged: cards, the offers that name them, what a bound key signed, channels after a change of keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from p2pgrid.proto.channel_book import Book, report_rivals, roles_of
from p2pgrid.proto.codes import Party
from p2pgrid.proto.evidence import Held, by_slot
from p2pgrid.proto.findings import Absence, Draft
from p2pgrid.proto.judgement import Case, shortened
from p2pgrid.proto.key_rules import (
    KeyTerm,
    faults_of_card,
    faults_of_card_keys,
    faults_of_key,
    faults_of_offer_card,
    key_term,
    names_all,
)
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import PARTIES, Role
from p2pgrid.proto.rules import Fault


def judge_cards(case: Case) -> None:
    """Cards (`two-records-one-slot`, `broken-card-chain`, `key-not-admissible`), then offers (`key-not-bound`,
    `card-missing`)."""
    rivals_of: set[bytes] = set()
    for rivals in by_slot(case.cards.values()).values():
        if len(rivals) > 1:
            rivals.sort(key=lambda h: h.record_id)
            report_rivals(rivals, case.docket, code="two-records-one-slot", channel=b"")
            rivals_of.update(held.record_id for held in rivals)
    followed: dict[bytes, Held[Any]] = {}
    for held in sorted(case.cards.values(), key=lambda h: (h.message.sequence, h.record_id)):
        before = case.cards.get(held.message.previous)
        faults = faults_of_card(held.message, before=before.message) if before is not None else []
        first = followed.setdefault(held.message.previous, held) if before is not None and not faults else held
        if first is not held and not rivals_of.issuperset((first.record_id, held.record_id)):
            sentence = f"Card {held.message.sequence} follows the same card as card {first.message.sequence} does."
            faults = [Fault("broken-card-chain", sentence)]
        for fault in [*faults, *faults_of_card_keys(held.message)]:
            case.docket.add(_about_card(held, fault))
    for offer in sorted(case.offers.values(), key=lambda h: h.record_id):
        if not offer.message.card:
            continue
        card = case.cards.get(offer.message.card)
        if card is None:
            sentence = f"No bundle holds the card that {offer} names, {offer.message.card.hex()}."
            case.docket.add(Draft("card-missing", sentence, offer.places[:1], record_id=offer.record_id))
            continue
        for fault in faults_of_offer_card(offer.message, card.message):
            signers = {Role.PROVIDER: offer.message.provider}
            case.docket.add(Draft(fault.code, fault.sentence, offer.places, record_id=offer.record_id, signers=signers))


def _about_card(held: Held[Any], fault: Fault) -> Draft:
    signers = {Role.OPERATOR: held.message.operator}
    return Draft(
        fault.code, fault.sentence, held.places, fault.party, held.record_id, signers=signers, convinces=fault.proven
    )


def key_term_of(case: Case, offer_id: bytes) -> KeyTerm | None:
    """The term of the key that signed an offer, by the card that the offer names; None if no card speaks of it."""
    if offer_id not in case.key_terms:
        offer = case.offers.get(offer_id)
        term = None
        card = case.cards.get(offer.message.card) if offer is not None else None
        if offer is not None and card is not None and not faults_of_offer_card(offer.message, card.message):
            term = key_term(case.chains[card.record_id], offer.message.provider)
        case.key_terms[offer_id] = term
    return case.key_terms[offer_id]


def judge_keys(case: Case, book: Book) -> None:
    """What the provider's key signed outside of its term: `key-expired`, `key-revoked`, once for each channel."""
    found: dict[str, list[tuple[Held[Any], Fault]]] = defaultdict(list)
    for held, offer_id, time_ms in _signed_by_provider(book):
        term = key_term_of(case, offer_id)
        for fault in faults_of_key(term, time_ms, str(held)) if term is not None else []:
            found[fault.code].append((held, fault))
    for faults in found.values():
        held, fault = faults[0]
        more = [str(other) for other, _ in faults[1:]]
        sentence = f"{fault.sentence} So it is with {shortened(more)}." if more else fault.sentence
        case.report(book, held, Fault(fault.code, sentence))


def _signed_by_provider(book: Book) -> Iterable[tuple[Held[Any], bytes, int]]:
    """Receipts with their offers and times; of an order without one, its first meter."""
    billed = set()
    for number in sorted(book.receipts):
        held = book.receipts[number]
        billed.add(held.message.order_number)
        yield held, held.message.offer, held.message.issued_ms
    for number in sorted(set(book.meters) - billed):
        orders = book.orders.get(number, {})
        for order in [orders[i] for i in sorted(orders)][:1]:
            meter = book.meters[number][min(book.meters[number])]
            yield meter, order.message.offer, meter.message.metered_ms


def judge_continuation(case: Case, book: Book) -> None:
    """A channel that goes on from another: `record-missing`, `broken-link`, `key-not-bound`."""
    wanted = book.channel.message.continues
    if not wanted:
        return
    earlier = case.heads.get(wanted)
    if earlier is None or earlier is book:
        sentence = f"No bundle holds what the channel goes on from, {wanted.hex()}."
        draft = Draft(
            "record-missing", sentence, book.channel.places, None, book.channel.record_id, book.id, holders=book.bundles
        )
        proof = f"It stands where the record {wanted.hex()} is missing, from which a channel goes on."
        case.docket.add_absence(
            Absence(Receipt.payload_type, (), "what the channel goes on from", draft, book.bundles, wanted, proof=proof)
        )
        return
    last = earlier.receipts[max(earlier.receipts)] if earlier.receipts else None
    if last is not None and last.record_id != wanted:
        sentence = f"The channel does not go on from the last receipt of the one before, {last.message.receipt_number}."
        # The old key may have been stolen: what it signed later is no word of whoever signs with the new one.
        case.report(book, book.channel, Fault("broken-link", sentence, proven=False))
    _judge_changed_keys(case, book, earlier)


def _judge_changed_keys(case: Case, book: Book, earlier: Book) -> None:
    old, new = roles_of(earlier.channel.message), roles_of(book.channel.message)
    for role in PARTIES:
        keys = old[role], new[role]
        if keys[0] == keys[1]:
            continue
        if role is Role.PROVIDER:
            named = {h.message.card for h in case.offers.values() if h.message.provider in keys}
            chains = [case.chains[card] for card in sorted(named) if card in case.chains]
        else:  # a client makes no offer: any operator's cards that name both keys will do
            chains = list(case.chains.values())
        if any(names_all(chain, keys) for chain in chains):
            continue
        if not any(names_all(chain, [key]) for chain in chains for key in keys):
            sentence = f"No bundle holds a card that names the {role}'s keys, the old one and the new."
            about = book.channel.record_id, book.id
            case.docket.add(Draft("card-missing", sentence, book.channel.places[:1], Party(role.value), *about))
            continue
        sentence = f"The channel goes on under another key of the {role}'s, and no operator's cards name both keys."
        case.report(book, book.channel, Fault("key-not-bound", sentence, Party(role.value), proven=False))
