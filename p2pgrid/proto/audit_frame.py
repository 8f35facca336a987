"""What is known of bundles before any order is looked at: by it an audit of many processes is planned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2pgrid.proto.attachments import ProofFact
from p2pgrid.proto.bundles import Bundle, admit_frame, choose_channels, read_bundle
from p2pgrid.proto.card import Card
from p2pgrid.proto.dispute import Answer, Decision, Dispute, Opening
from p2pgrid.proto.evidence import Evidence, Held
from p2pgrid.proto.findings import Docket
from p2pgrid.proto.judgement import Case
from p2pgrid.proto.key_case import key_term_of
from p2pgrid.proto.key_rules import KeyTerm, chains_of
from p2pgrid.proto.log_case import ShownLogs, logs_shown
from p2pgrid.proto.messages import Channel, Offer
from p2pgrid.proto.owners import Owners
from p2pgrid.proto.record import Role
from p2pgrid.proto.set_off_rules import NAMING_TYPES, channels_named


@dataclass(frozen=True, slots=True)
class Frame:
    """What is known once every line outside of orders was read: which channels there are, and whose each bundle is."""

    channels: dict[bytes, Held[Channel]]
    offers: dict[bytes, Held[Offer]]
    sides: tuple[Role | None, ...]
    whole: frozenset[bytes]
    """Channels with records that no plain channel has: all their orders are to be judged in full."""
    wanted_orders: frozenset[tuple[bytes, int]]
    """Orders that a record beside them is about."""
    wanted_receipts: frozenset[tuple[bytes, int]]
    """Channel and number of receipts that a record beside them is about."""
    wanted_ids: frozenset[bytes]
    """Ids of receipts that a record beside them names."""
    has_continuations: bool
    """Some channel goes on from another."""
    credited: frozenset[bytes]
    """Channels with a dispute that was accepted: more than their credit limit may have been sold."""
    key_terms: dict[bytes, KeyTerm]
    """By offer, what the operator's cards say of the key that signed it, where they say anything."""
    suspects: tuple[tuple[bytes, ...], ...]
    """The signatures of each line that was altered."""
    proofs: dict[bytes, ProofFact]
    """Proofs of inclusion, by the attachment's id."""
    logs: dict[bytes, ShownLogs]
    """By record, the logs that proofs show it in."""


def frame_of(bundles: Iterable[Bundle]) -> Frame:
    """The frame of an audit, from the lines that are about no order. Nothing is reported."""
    evidence = Evidence(Docket())
    sources: list[str] = []
    stated: list[Role | None] = []
    for index, bundle in enumerate(bundles):
        sources.append(bundle.source)
        stated.append(bundle.side)
        read_bundle(evidence, index, bundle)
    admit_frame(evidence)
    channels = choose_channels(evidence, Docket())
    orders: set[tuple[bytes, int]] = set()
    receipts: set[tuple[bytes, int]] = set()
    whole: set[bytes] = set()
    credited: set[bytes] = set()
    ids = {held.message.continues for held in channels.values()} - {b""}
    has_continuations = bool(ids)
    for held in evidence.all():
        message = held.message
        if isinstance(message, Offer | Channel):
            continue
        if isinstance(message, Dispute | Answer):
            receipts.add((message.channel, message.receipt_number))
            ids |= {message.receipt} if isinstance(message, Dispute) else set()
            if isinstance(message, Answer) and message.decision is Decision.ACCEPTED:
                credited.add(message.channel)
        elif isinstance(message, Opening):
            orders.add((message.channel, message.order_number))
        elif isinstance(message, NAMING_TYPES):
            whole.update(channels_named(message))
        else:
            whole.add(getattr(message, "channel", b""))
    return Frame(
        channels,
        evidence.of(Offer),
        tuple(Owners(sources, stated, channels).sides),
        frozenset(whole),
        frozenset(orders),
        frozenset(receipts),
        frozenset(ids),
        has_continuations,
        frozenset(credited),
        _key_terms(evidence),
        evidence.suspects(),
        {proof_id: held.proof for proof_id, held in evidence.attachments.proofs.items()},
        logs_shown(evidence.attachments),
    )


def _key_terms(evidence: Evidence) -> dict[bytes, KeyTerm]:
    cards = evidence.of(Card)
    chains = chains_of({record_id: held.message for record_id, held in cards.items()})
    case = Case(Docket(), evidence.of(Offer), (), cards=cards, chains=chains)
    terms = {offer_id: key_term_of(case, offer_id) for offer_id in case.offers}
    return {offer_id: term for offer_id, term in terms.items() if term is not None}
