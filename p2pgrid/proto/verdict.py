"""The audit's rules, pure: bundles of records in, findings out (docs/spec/audit.md).

Nothing is asked of anybody: public keys, which stand in the records, are all it takes. The same records give the same
findings in any order of lines; only the places differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.attachments import ProofFact
from p2pgrid.proto.billing_case import judge_numbers
from p2pgrid.proto.card import Card
from p2pgrid.proto.channel_book import Book, open_book, report_rivals, roles_of
from p2pgrid.proto.codes import CODES, Party, Weight
from p2pgrid.proto.comparison import compare_sides
from p2pgrid.proto.credit_case import judge_credit
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.default import Default
from p2pgrid.proto.dispute import Answer, Decision, Dispute, Opening
from p2pgrid.proto.dispute_case import judge_disputes
from p2pgrid.proto.elided import Elided, ElidedOrphans, Sums, note_activity, note_repeats
from p2pgrid.proto.evidence import Alike, Evidence, Held, by_slot, time_of
from p2pgrid.proto.findings import Absence, Docket, Draft, Finding, Place
from p2pgrid.proto.judgement import Case, judge_channel
from p2pgrid.proto.key_case import judge_cards, judge_continuation, judge_keys, key_term_of
from p2pgrid.proto.key_rules import KeyTerm, chains_of
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.log_case import NO_DEMANDS, LogDemands, ShownLogs, judge_logs, logs_shown
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.opening_case import Opened, judge_openings
from p2pgrid.proto.record import PARTIES, Record, Role
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_case import SetOffRecords, judge_set_offs
from p2pgrid.proto.set_off_rules import NAMING_TYPES, channels_named, signer_keys
from p2pgrid.proto.settlement_case import judge_settlement, miss_statement
from p2pgrid.proto.settlement_summary import ChannelSettlement, settlements_of
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.withdrawal import Withdrawal

MOST_PLACES: Final = 16
"""Lines that a finding names; of more it says how many."""


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
    credited_pico: int
    """What accepted disputes take off."""
    disputed_pico: int
    """What other disputes contest: unanswered, or rejected."""
    owed_pico: int
    """The receipts' amounts less what is credited; payments are not taken off."""


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """What was billed in one hour for one model."""

    hour_ms: int
    """The hour's beginning, Unix milliseconds; by the receipts' `issued_ms`."""
    currency: str
    model: str
    receipts: int
    prompt_tokens: int
    output_tokens: int
    amount_pico: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit says."""

    clean: bool
    """True if there are no findings. Notes do not count."""
    unjudged: int = 0
    """Orders in which something is wrong beyond the most that one audit judges one by one. They are in no sum."""
    unjudged_records: int = 0
    """Records about no order beyond the most that one audit looks at: nothing is said of them."""
    bundles: tuple[BundleSummary, ...]
    channels: tuple[ChannelSummary, ...]
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    activity: tuple[Activity, ...] = ()
    """By hour, currency and model."""
    opened: tuple[Opened, ...] = ()
    """Commitments that a party opened, and that are over what it shows."""
    at_ms: int = 0
    """The time that terms were held against."""
    settlement: tuple[ChannelSettlement, ...] = ()
    """Of each channel that has statements, invoices or payments."""


Observe = Callable[["Judged"], None]


def audit_records(
    bundles: Iterable[Bundle],
    elided: Elided | None = None,
    *,
    now_ms: int | None = None,
    log_demands: LogDemands = NO_DEMANDS,
    observe: Observe | None = None,
) -> Verdict:
    """Check everything that the bundles hold, each by itself and one against the other.

    `now_ms`: when the audit is made; None for the latest time that a receipt or a later record shows.
    `log_demands`: what must be shown of providers' logs. `elided` speaks for records that were found plain and are left
    out of `bundles`: the verdict is that of all. `observe` is given what was judged, and the verdict.
    Raises nothing for whatever the records say; what a bundle's own iterator raises passes through.
    """
    elided = elided or Elided()
    docket = Docket()
    evidence = Evidence(docket, elided.proofs)
    sources: list[str] = []
    stated: list[Role | None] = []
    sizes: list[tuple[int, int]] = []
    for index, bundle in enumerate(bundles):
        sources.append(bundle.source)
        stated.append(bundle.side)
        sizes.append(_read(evidence, index, bundle))
    evidence.sum_up()
    sizes = sizes if elided.sizes is None else elided.sizes
    _admit_all(evidence)
    channels = _choose_channels(evidence, docket)
    owners = _Owners(sources, stated, channels)
    books = _open_books(evidence, channels, docket, elided)
    _note_repeats(evidence, docket, sources, elided)
    evidence.name_originals(sources)
    _judge_offers(evidence, docket)
    case = Case(
        docket,
        evidence.of(Offer),
        tuple(owners.sides),
        _latest_ms(books) if now_ms is None else now_ms,
        evidence.of(Card),
        chains_of({record_id: held.message for record_id, held in evidence.of(Card).items()}),
        {**evidence.of(Dispute), **evidence.of(Answer)},
        _heads(books),
        {record_id: held.message.channel for record_id, held in evidence.of(Statement).items()},
    )
    judge_cards(case)
    judge_set_offs(case, _set_offs(evidence), {book.id: book for book in books})
    for book in books:
        judge_openings(case, book)
        judge_channel(case, book)
        judge_keys(case, book)
        judge_continuation(case, book)
        judge_disputes(case, book)
        judge_settlement(case, book)
        judge_credit(case, book)
        compare_sides(case, book, sources)
    judge_numbers(case, books)
    _miss_statements(case, evidence, channels)
    judge_logs(case, evidence.attachments, books, evidence.of(Offer), log_demands)
    times_ms = {held.record_id: time_of(held.message) for held in evidence.all()}
    drafts = [(draft, owners.finding(draft, times_ms)) for draft in docket.settle()]
    drafts.sort(key=lambda pair: (pair[0].places, pair[0].code, pair[0].record_id, pair[0].sentence))
    by_weight: dict[Weight, list[Finding]] = defaultdict(list)
    for draft, finding in drafts:
        by_weight[CODES[draft.code].weight].append(finding)
    summaries = (
        BundleSummary(source=s, side=side, lines=lines, records=records)
        for s, side, (lines, records) in zip(sources, owners.sides, sizes, strict=True)
    )
    operators = _operators(evidence)
    verdict = Verdict(
        clean=not (by_weight[Weight.FAULT] or elided.unjudged or elided.unjudged_records),
        unjudged=elided.unjudged,
        unjudged_records=elided.unjudged_records,
        bundles=tuple(summaries),
        channels=tuple(_summary(book, operators.get(book.channel.message.provider, "")) for book in books),
        findings=tuple(by_weight[Weight.FAULT]),
        notes=tuple(by_weight[Weight.NOTE]),
        activity=_activity(books, elided),
        opened=_opened(case, sources),
        at_ms=case.now_ms,
        settlement=settlements_of(books, now_ms=case.now_ms),
    )
    if observe is not None:
        observe(Judged(case, books, verdict))
    return verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """What an audit judged: every record that stands, its signatures checked, and the verdict about all."""

    case: Case
    books: Sequence[Book]
    verdict: Verdict


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
        _read(evidence, index, bundle)
    _admit_all(evidence)
    channels = _choose_channels(evidence, Docket())
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
        tuple(_Owners(sources, stated, channels).sides),
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


def _read(evidence: Evidence, index: int, bundle: Bundle) -> tuple[int, int]:
    lines = records = 0
    for number, entry in bundle.entries:
        lines += 1
        records += isinstance(entry, Record)
        evidence.take(Place(index, number), entry)
    for code, alike in bundle.more.items():
        evidence.take_more(index, code, alike)
        lines += alike.count
    return lines, records


def _admit_all(evidence: Evidence) -> None:
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


def _latest_ms(books: Iterable[Book]) -> int:
    """The latest time that a receipt, or what comes after receipts, shows."""
    times = [time for book in books for time in (book.elided.sums.latest_ms, book.latest_ms)]
    return max(times, default=0)


def _heads(books: Iterable[Book]) -> dict[bytes, Book]:
    """For what channels go on from: the book that it is in."""
    wanted = {book.channel.message.continues for book in books} - {b""}
    return {
        held.record_id: book for book in (books if wanted else ()) for held in book.chained if held.record_id in wanted
    }


def _miss_statements(case: Case, evidence: Evidence, channels: Collection[bytes]) -> None:
    orphans: dict[bytes, list[Held[Any]]] = defaultdict(list)
    billing: list[Held[Any]] = [*evidence.of(Invoice).values(), *evidence.of(Payment).values()]
    for held in billing:
        if held.message.statement and held.message.statement not in evidence.of(Statement):
            orphans[held.message.statement].append(held)
    for set_off in evidence.of(SetOff).values():
        for side in set_off.message.sides:
            if side.channel in channels:
                for statement in {claim.statement for claim in side.claims} - evidence.of(Statement).keys():
                    orphans[statement].append(set_off)
    for statement_id in sorted(orphans):
        miss_statement(case, statement_id, sorted(orphans[statement_id], key=lambda h: h.record_id))


def _set_offs(evidence: Evidence) -> SetOffRecords:
    return SetOffRecords(evidence.of(SetOff), evidence.of(Cycle), evidence.of(Leg), evidence.of(CycleVerdict))


def _opened(case: Case, sources: Sequence[str]) -> tuple[Opened, ...]:
    found = [
        Opened(
            channel=held.message.channel.hex(),
            order_number=held.message.order_number,
            subject=held.message.subject,
            by=Party(held.message.by.value),
            of=of,
            content_bytes=len(held.message.content),
            where=", ".join(f"{sources[p.bundle]}:{p.line}" for p in held.places),
        )
        for held, of in case.opened
    ]
    return tuple(sorted(found, key=lambda o: (o.channel, o.order_number, o.subject, o.by, o.where)))


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


def _open_books(evidence: Evidence, channels: dict[bytes, Held[Channel]], docket: Docket, elided: Elided) -> list[Book]:
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


def _judge_offers(evidence: Evidence, docket: Docket) -> None:
    for rivals in by_slot(evidence.of(Offer).values()).values():
        if len(rivals) > 1:
            rivals.sort(key=lambda h: h.record_id)
            report_rivals(rivals, docket, code="two-offers-one-number", channel=b"")


def _note_repeats(evidence: Evidence, docket: Docket, sources: Sequence[str], elided: Elided) -> None:
    repeats = dict(elided.repeats)
    for held in evidence.all():
        known = elided.channels.get(getattr(held.message, "channel", b""))
        if known is not None and getattr(held.message, "order_number", 0) in known.counted:
            continue
        seen: set[int] = set()
        for place in held.places:
            if place.bundle in seen:
                note_repeats(repeats, [place])
            seen.add(place.bundle)
    for bundle, (count, first) in repeats.items():
        lines = "1 line repeats a record that stands" if count == 1 else f"{count} lines repeat records that stand"
        sentence = f"In {sources[bundle]} {lines} in it already."
        docket.add(Draft("same-record-twice", sentence, (first,)))


def _operators(evidence: Evidence) -> dict[bytes, str]:
    offers = sorted(evidence.of(Offer).values(), key=lambda h: h.message.sequence)
    return {h.message.provider: h.message.operator for h in offers}


def _summary(book: Book, operator: str) -> ChannelSummary:
    channel = book.channel.message
    counted = book.elided.counted
    sums = Sums(orders=sum(number not in counted for number in book.order_numbers()))
    sums.add(book.elided.sums)
    for held in book.receipts.values():
        if held.message.order_number not in counted:
            sums.count(held.message, countersigned=Role.CLIENT in held.signers)
    return ChannelSummary(
        channel=channel.channel.hex(),
        provider=_peer_id(channel.provider),
        client=_peer_id(channel.client),
        operator=operator,
        currency=channel.currency,
        orders=sums.orders,
        receipts=sums.receipts,
        countersigned=sums.countersigned,
        prompt_tokens=sums.prompt_tokens,
        cached_tokens=sums.cached_tokens,
        output_tokens=sums.output_tokens,
        amount_pico=sums.amount_pico,
        countersigned_pico=sums.countersigned_pico,
        credited_pico=book.credited_pico,
        disputed_pico=book.disputed_pico,
        owed_pico=sums.amount_pico - book.credited_pico,
    )


def _activity(books: Iterable[Book], elided: Elided) -> tuple[Activity, ...]:
    rows = {key: list(row) for key, row in elided.activity.items()}
    for book in books:
        for held in book.receipts.values():
            if held.message.order_number not in book.elided.counted:
                note_activity(rows, held.message, book.channel.message.currency)
    return tuple(
        Activity(
            hour_ms=hour * 3_600_000,
            currency=currency,
            model=model,
            receipts=receipts,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            amount_pico=amount_pico,
        )
        for (hour, currency, model), (receipts, prompt_tokens, output_tokens, amount_pico) in sorted(rows.items())
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

    def finding(self, draft: Draft, times_ms: Mapping[bytes, int]) -> Finding:
        """The draft with its party resolved and named."""
        party, keys = self._blame(draft)
        is_absence = draft.code in ("left-out", "not-received")
        return Finding(
            code=draft.code,
            party=party,
            peer_ids=tuple(_peer_id(key) for key in keys if key),
            record_id=draft.record_id.hex(),
            where=self._where(draft),
            sentence=draft.sentence,
            convinces=draft.proves and CODES[draft.code].weight is Weight.FAULT,
            channel=draft.channel.hex(),
            time_ms=0 if is_absence else times_ms.get(draft.record_id, 0),
            count=draft.count,
            difference_cents=draft.cents,
            other_record_ids=tuple(other.hex() for other in draft.others if other),
        )

    def _where(self, draft: Draft) -> str:
        if draft.last_line:
            return f"{self._sources[draft.places[0].bundle]}:{draft.places[0].line}-{draft.last_line}"
        shown = ", ".join(f"{self._sources[p.bundle]}:{p.line}" for p in draft.places[:MOST_PLACES])
        more = len(draft.places) - MOST_PLACES
        return f"{shown} and {more} more" if more > 0 else shown

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
