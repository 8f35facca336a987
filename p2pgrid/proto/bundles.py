"""From bundles to books: what parties handed over becomes evidence, and evidence the books of its channels.

The frame is admitted first, which are the records that belong to no channel's dealings: offers, the channels
themselves, cards, set-offs. It says which channels there are, and between whom.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.card import Card
from p2pgrid.proto.channel_book import Book, open_book, report_rivals, roles_of
from p2pgrid.proto.cycle import Cycle, Leg
from p2pgrid.proto.default import Default
from p2pgrid.proto.dispute import Answer, Dispute, Opening
from p2pgrid.proto.elided import Elided, ElidedOrphans
from p2pgrid.proto.evidence import Alike, Evidence, Held, by_slot
from p2pgrid.proto.findings import Absence, Docket, Draft, Place
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import Record, Role
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import NAMING_TYPES, channels_named, signer_keys
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.withdrawal import Withdrawal


@dataclass(slots=True)
class Bundle:
    """What one party handed over."""

    source: str
    """The file's name, as findings show it."""
    entries: Iterable[tuple[int, Record | InvalidRecord]]
    """Line numbers from 1, with what stands there. Read once."""
    side: Role | None = None
    """Whose export it is, if whoever asks for the audit says so."""
    more: Mapping[str, Alike] = field(default_factory=dict, kw_only=True)
    """By code, lines that cannot be read beyond the first `findings.MOST_ALIKE`, where they are not among `entries`."""


def read_bundle(evidence: Evidence, index: int, bundle: Bundle) -> tuple[int, int]:
    """Take every line of a bundle into the evidence. How many lines, and how many of them records."""
    lines = records = 0
    for number, entry in bundle.entries:
        lines += 1
        records += isinstance(entry, Record)
        evidence.take(Place(index, number), entry)
    for code, alike in bundle.more.items():
        evidence.take_more(index, code, alike)
        lines += alike.count
    return lines, records


def admit_frame(evidence: Evidence) -> None:
    """Hold the signatures of the records that say themselves who must have signed them against those keys."""
    for offer in list(evidence.of(Offer).values()):
        evidence.admit(offer, {Role.PROVIDER: offer.message.provider})
    for channel in list(evidence.of(Channel).values()):
        evidence.admit(channel, roles_of(channel.message))
    for card in list(evidence.of(Card).values()):
        evidence.admit(card, {Role.OPERATOR: card.message.operator})
    for withdrawal in list(evidence.of(Withdrawal).values()):
        evidence.admit(withdrawal, {Role.PROVIDER: withdrawal.message.provider})
    for message_type in NAMING_TYPES:
        for held in list(evidence.of(message_type).values()):
            evidence.admit(held, signer_keys(held.message))


def choose_channels(evidence: Evidence, docket: Docket) -> dict[bytes, Held[Channel]]:
    """Channels by id. Of two records with one channel id the one with most signatures counts, and both are reported."""
    chosen = {}
    for rivals in by_slot(evidence.of(Channel).values()).values():
        rivals.sort(key=lambda h: (-len(h.signers), h.record_id))
        first = rivals[0]
        if len(rivals) > 1:
            report_rivals(rivals, docket, code="two-records-one-slot", channel=first.message.channel)
        chosen[first.message.channel] = first
    return chosen


def open_books(evidence: Evidence, channels: dict[bytes, Held[Channel]], docket: Docket, elided: Elided) -> list[Book]:
    """The channels' books, the oldest first. Records whose channel is not there are reported."""
    sorted_out: dict[bytes, dict[type[Any], list[Held[Any]]]] = defaultdict(lambda: defaultdict(list))
    orphans: dict[bytes, list[Held[Any]]] = defaultdict(list)
    in_channels: tuple[Mapping[bytes, Held[Any]], ...] = (
        evidence.of(Order),
        evidence.of(Meter),
        evidence.of(Voucher),
        evidence.of(Receipt),
        evidence.of(Dispute),
        evidence.of(Answer),
        evidence.of(Opening),
        evidence.of(Statement),
        evidence.of(Invoice),
        evidence.of(Payment),
        evidence.of(Default),
    )
    for held in [held for records in in_channels for held in records.values()]:
        channel = channels.get(held.message.channel)
        if channel is None:
            orphans[held.message.channel].append(held)
        elif evidence.admit(held, roles_of(channel.message)):
            sorted_out[held.message.channel][type(held.message)].append(held)
    for channel_id, one in _of_several(evidence, channels):
        if channel_id in channels:
            sorted_out[channel_id][type(one.message)].append(one)
        else:
            orphans[channel_id].append(one)
    for channel_id in sorted({*orphans, *elided.orphans}):
        _miss_channel(channel_id, orphans[channel_id], elided.orphans.get(channel_id, ElidedOrphans()), docket)
    books = []
    for channel_id in sorted(channels, key=lambda c: (channels[c].message.opened_ms, c)):
        of_type = sorted_out[channel_id]
        parts = of_type[Order], of_type[Meter], of_type[Voucher], of_type[Receipt]
        books.append(open_book(channels[channel_id], *parts, docket, elided.channels.get(channel_id), of_type))
    return books


def _of_several(evidence: Evidence, channels: Mapping[bytes, Held[Channel]]) -> Iterable[tuple[bytes, Held[Any]]]:
    """Set-offs and legs with each channel of theirs that is there, or with the first if none is.

    The legs of a cycle are all in each party's bundle: where the cycle is there, nobody misses their channels.
    """
    for set_off in evidence.of(SetOff).values():
        named = channels_named(set_off.message)
        for channel_id in [channel for channel in named if channel in channels] or named[:1]:
            yield channel_id, set_off
    for leg in evidence.of(Leg).values():
        if leg.message.channel in channels or leg.message.cycle not in evidence.of(Cycle):
            yield leg.message.channel, leg


def _miss_channel(channel_id: bytes, orphans: list[Held[Any]], others: ElidedOrphans, docket: Docket) -> None:
    places = sorted([*(place for held in orphans for place in held.places), *([others.first] if others.first else [])])
    bundles = tuple(sorted({place.bundle for place in places} | others.bundles))
    count = len(orphans) + others.records
    sentence = f"No bundle holds channel {channel_id.hex()}; its {count} records cannot be checked."
    draft = Draft("record-missing", sentence, tuple(places[:1]), channel=channel_id, holders=bundles)
    proof = f"It stands where channel {channel_id.hex()} is missing."
    docket.add_absence(Absence(Channel.payload_type, (channel_id,), "the channel", draft, bundles, proof=proof))
