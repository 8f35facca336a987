"""The audit's rules, pure: bundles of records in, findings out (docs/spec/audit.md).

Nothing is asked of anybody: public keys, which stand in the records, are all it takes. The same records give the same
findings in any order of lines; only the places differ.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.channel_book import Book, open_book, report_rivals, roles_of
from p2pgrid.proto.codes import CODES, Party, Weight
from p2pgrid.proto.comparison import compare_sides
from p2pgrid.proto.evidence import Evidence, Held, by_slot
from p2pgrid.proto.findings import Absence, Docket, Draft, Finding, Place
from p2pgrid.proto.judgement import Case, judge_channel
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import PARTIES, Record, Role


@dataclass(slots=True)
class Bundle:
    """What one party handed over."""

    source: str
    """The file's name, as findings show it."""
    entries: Iterable[tuple[int, Record | InvalidRecord]]
    """Line numbers from 1, with what stands there. Read once."""
    side: Role | None = None
    """Whose export it is, if whoever asks for the audit says so."""


class BundleSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle as it was read."""

    source: str
    side: Role | None
    """As said, or as its channels show."""
    lines: int
    records: int
    """Lines that were records, good or not."""


class ChannelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One channel's sums over its receipts, those with both signatures apart."""

    channel: str
    provider: str
    client: str
    operator: str
    """The provider's name by its latest offer; empty if there is none."""
    currency: str
    orders: int
    receipts: int
    countersigned: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    amount_pico: int
    countersigned_pico: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit says."""

    clean: bool
    """True if there are no findings. Notes do not count."""
    bundles: tuple[BundleSummary, ...]
    channels: tuple[ChannelSummary, ...]
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]


def audit_records(bundles: Iterable[Bundle]) -> Verdict:
    """Check everything that the bundles hold, each by itself and one against the other.

    Raises nothing for whatever the records say; what a bundle's own iterator raises passes through.
    """
    docket = Docket()
    evidence = Evidence(docket)
    sources: list[str] = []
    stated: list[Role | None] = []
    sizes: list[tuple[int, int]] = []
    for index, bundle in enumerate(bundles):
        sources.append(bundle.source)
        stated.append(bundle.side)
        sizes.append(_read(evidence, index, bundle))
    _admit_all(evidence)
    channels = _choose_channels(evidence, docket)
    owners = _Owners(sources, stated, channels)
    books = _open_books(evidence, channels, docket)
    _note_repeats(evidence, docket, sources)
    evidence.name_originals(sources)
    _judge_offers(evidence, docket)
    case = Case(docket, evidence.of(Offer), tuple(owners.sides))
    for book in books:
        judge_channel(case, book)
        compare_sides(case, book, sources)
    drafts = [(draft, owners.finding(draft)) for draft in docket.settle()]
    drafts.sort(key=lambda pair: (pair[0].places, pair[0].code, pair[0].record_id, pair[0].sentence))
    by_weight: dict[Weight, list[Finding]] = defaultdict(list)
    for draft, finding in drafts:
        by_weight[CODES[draft.code].weight].append(finding)
    summaries = (
        BundleSummary(source=s, side=side, lines=lines, records=records)
        for s, side, (lines, records) in zip(sources, owners.sides, sizes, strict=True)
    )
    operators = _operators(evidence)
    return Verdict(
        clean=not by_weight[Weight.FAULT],
        bundles=tuple(summaries),
        channels=tuple(_summary(book, operators.get(book.channel.message.provider, "")) for book in books),
        findings=tuple(by_weight[Weight.FAULT]),
        notes=tuple(by_weight[Weight.NOTE]),
    )


def _read(evidence: Evidence, index: int, bundle: Bundle) -> tuple[int, int]:
    lines = records = 0
    for number, entry in bundle.entries:
        lines += 1
        records += isinstance(entry, Record)
        evidence.take(Place(index, number), entry)
    return lines, records


def _admit_all(evidence: Evidence) -> None:
    for offer in list(evidence.of(Offer).values()):
        evidence.admit(offer, {Role.PROVIDER: offer.message.provider})
    for channel in list(evidence.of(Channel).values()):
        evidence.admit(channel, roles_of(channel.message))


def _choose_channels(evidence: Evidence, docket: Docket) -> dict[bytes, Held[Channel]]:
    """Channels by id. Of two records with one channel id the one with most signatures counts, and both are reported."""
    chosen = {}
    for rivals in by_slot(evidence.of(Channel).values()).values():
        rivals.sort(key=lambda h: (-len(h.signers), h.record_id))
        first = rivals[0]
        if len(rivals) > 1:
            report_rivals(rivals, docket, code="two-records-one-slot", channel=first.message.channel)
        chosen[first.message.channel] = first
    return chosen


def _open_books(evidence: Evidence, channels: dict[bytes, Held[Channel]], docket: Docket) -> list[Book]:
    sorted_out: dict[bytes, dict[type[Any], list[Held[Any]]]] = defaultdict(lambda: defaultdict(list))
    orphans: dict[bytes, list[Held[Any]]] = defaultdict(list)
    in_channels: tuple[Mapping[bytes, Held[Any]], ...] = (
        evidence.of(Order),
        evidence.of(Meter),
        evidence.of(Voucher),
        evidence.of(Receipt),
    )
    for held in [held for records in in_channels for held in records.values()]:
        channel = channels.get(held.message.channel)
        if channel is None:
            orphans[held.message.channel].append(held)
        elif evidence.admit(held, roles_of(channel.message)):
            sorted_out[held.message.channel][type(held.message)].append(held)
    for channel_id in sorted(orphans):
        _miss_channel(channel_id, orphans[channel_id], docket)
    books = []
    for channel_id in sorted(channels, key=lambda c: (channels[c].message.opened_ms, c)):
        of_type = sorted_out[channel_id]
        parts = of_type[Order], of_type[Meter], of_type[Voucher], of_type[Receipt]
        books.append(open_book(channels[channel_id], *parts, docket))
    return books


def _miss_channel(channel_id: bytes, orphans: list[Held[Any]], docket: Docket) -> None:
    places = sorted(place for held in orphans for place in held.places)
    bundles = tuple(sorted({place.bundle for place in places}))
    sentence = f"No bundle holds channel {channel_id.hex()}; its {len(orphans)} records cannot be checked."
    draft = Draft("record-missing", sentence, tuple(places[:1]), channel=channel_id, holders=bundles)
    proof = f"It stands where channel {channel_id.hex()} is missing."
    docket.add_absence(Absence(Channel.payload_type, (channel_id,), "the channel", draft, bundles, proof=proof))


def _judge_offers(evidence: Evidence, docket: Docket) -> None:
    for rivals in by_slot(evidence.of(Offer).values()).values():
        if len(rivals) > 1:
            rivals.sort(key=lambda h: h.record_id)
            report_rivals(rivals, docket, code="two-offers-one-number", channel=b"")


def _note_repeats(evidence: Evidence, docket: Docket, sources: Sequence[str]) -> None:
    repeats: dict[int, list[Place]] = defaultdict(list)
    for held in evidence.all():
        seen: set[int] = set()
        for place in held.places:
            if place.bundle in seen:
                repeats[place.bundle].append(place)
            seen.add(place.bundle)
    for bundle, places in repeats.items():
        sentence = f"In {sources[bundle]} {len(places)} lines repeat records that stand in it already."
        docket.add(Draft("same-record-twice", sentence, (min(places),)))


def _operators(evidence: Evidence) -> dict[bytes, str]:
    offers = sorted(evidence.of(Offer).values(), key=lambda h: h.message.sequence)
    return {h.message.provider: h.message.operator for h in offers}


def _summary(book: Book, operator: str) -> ChannelSummary:
    channel = book.channel.message
    receipts = [(h.message, Role.CLIENT in h.signers) for h in book.receipts.values()]
    tokens: Counter[str] = Counter()
    for receipt, _ in receipts:
        usage = receipt.usage
        tokens.update(prompt=usage.prompt_tokens, cached=usage.cached_tokens, output=usage.output_tokens)
    return ChannelSummary(
        channel=channel.channel.hex(),
        provider=_peer_id(channel.provider),
        client=_peer_id(channel.client),
        operator=operator,
        currency=channel.currency,
        orders=len(book.order_numbers()),
        receipts=len(receipts),
        countersigned=sum(final for _, final in receipts),
        prompt_tokens=tokens["prompt"],
        cached_tokens=tokens["cached"],
        output_tokens=tokens["output"],
        amount_pico=sum(receipt.amount_pico for receipt, _ in receipts),
        countersigned_pico=sum(receipt.amount_pico for receipt, final in receipts if final),
    )


class _Owners:
    """Whose export each bundle is, and so who answers for what is wrong with the file."""

    def __init__(self, sources: list[str], stated: list[Role | None], channels: dict[bytes, Held[Channel]]) -> None:
        self._sources = sources
        self._channels = channels
        held: list[list[Channel]] = [[] for _ in sources]
        for channel in channels.values():
            for bundle in sorted({place.bundle for place in channel.places}):
                held[bundle].append(channel.message)
        self.sides = [side or _common_side(held[i]) for i, side in enumerate(stated)]
        self._keys = [_only({roles_of(c)[side] for c in held[i]}) if side else b"" for i, side in enumerate(self.sides)]

    def finding(self, draft: Draft) -> Finding:
        """The draft with its party resolved and named."""
        party, keys = self._blame(draft)
        return Finding(
            code=draft.code,
            party=party,
            peer_ids=tuple(_peer_id(key) for key in keys if key),
            record_id=draft.record_id.hex(),
            where=", ".join(f"{self._sources[p.bundle]}:{p.line}" for p in draft.places),
            sentence=draft.sentence,
            convinces=draft.proves and CODES[draft.code].weight is Weight.FAULT,
        )

    def _blame(self, draft: Draft) -> tuple[Party, list[bytes]]:
        party = draft.blamed
        channel = self._channels.get(draft.channel)
        if party is Party.SIGNER:
            roles = sorted(draft.signers, reverse=True)
            party = Party.BOTH if len(roles) > 1 else Party(roles[0]) if roles else Party.UNCLEAR
            return party, [draft.signers[role] for role in roles]
        own_keys: dict[Role, bytes] = {}
        if party is Party.HOLDER:
            bundles = draft.holders or tuple(sorted({place.bundle for place in draft.places}))
            sides = {self.sides[bundle] for bundle in bundles}
            own_keys = {side: self._keys[b] for b in bundles if (side := self.sides[b]) is not None}
            side = next(iter(sides))
            party = Party.UNCLEAR if None in sides else Party.BOTH if len(sides) > 1 else Party(str(side))
        keys = roles_of(channel.message) if channel is not None else {**own_keys, **draft.signers}
        wanted = list(PARTIES) if party is Party.BOTH else [Role(party)] if party is not Party.UNCLEAR else []
        return party, [keys.get(role, b"") for role in wanted]


def _common_side(channels: list[Channel]) -> Role | None:
    """The side of the one key that all channels of a bundle share, if there are several and only one is."""
    sides = [role for role in PARTIES if len({roles_of(c)[role] for c in channels}) == 1]
    return sides[0] if len(channels) > 1 and len(sides) == 1 else None


def _only(keys: set[bytes]) -> bytes:
    return next(iter(keys)) if len(keys) == 1 else b""


def _peer_id(raw: bytes) -> str:
    key: PublicKey
    try:
        key = parse_public_key(raw)
    except InvalidRecord:
        return raw.hex()
    return key.peer_id
