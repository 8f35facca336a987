"""The audit's rules, pure: bundles of records in, findings out (docs/spec/audit.md).

Nothing is asked of anybody: public keys, which stand in the records, are all it takes. The same records give the same
findings in any order of lines; only the places differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from p2pgrid.proto.billing_case import judge_numbers
from p2pgrid.proto.bundles import Bundle, admit_frame, choose_channels, open_books, read_bundle
from p2pgrid.proto.card import Card
from p2pgrid.proto.channel_book import Book, report_rivals
from p2pgrid.proto.channel_summary import Activity, ChannelSummary, activity_of, operators_of, summary_of
from p2pgrid.proto.codes import CODES, Weight
from p2pgrid.proto.comparison import compare_sides
from p2pgrid.proto.credit_case import judge_credit
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.dispute_case import judge_disputes
from p2pgrid.proto.elided import Elided, note_repeats
from p2pgrid.proto.evidence import Evidence, Held, by_slot, time_of
from p2pgrid.proto.findings import Docket, Draft, Finding
from p2pgrid.proto.judgement import Case, judge_channel
from p2pgrid.proto.key_case import judge_cards, judge_continuation, judge_keys
from p2pgrid.proto.key_rules import chains_of
from p2pgrid.proto.log_case import NO_DEMANDS, LogDemands, judge_logs
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.opening_case import Opened, judge_openings, opened_of
from p2pgrid.proto.owners import Owners
from p2pgrid.proto.record import Role
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_case import SetOffRecords, judge_set_offs
from p2pgrid.proto.settlement_case import judge_settlement, miss_statement
from p2pgrid.proto.settlement_summary import ChannelSettlement, settlements_of
from p2pgrid.proto.statement import Invoice, Payment, Statement


class BundleSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle as it was read."""

    source: str
    side: Role | None
    """As said, or as its channels show."""
    lines: int
    records: int
    """Lines that were records, good or not."""


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
        sizes.append(read_bundle(evidence, index, bundle))
    evidence.sum_up()
    sizes = sizes if elided.sizes is None else elided.sizes
    admit_frame(evidence)
    channels = choose_channels(evidence, docket)
    owners = Owners(sources, stated, channels)
    books = open_books(evidence, channels, docket, elided)
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
    operators = operators_of(evidence)
    verdict = Verdict(
        clean=not (by_weight[Weight.FAULT] or elided.unjudged or elided.unjudged_records),
        unjudged=elided.unjudged,
        unjudged_records=elided.unjudged_records,
        bundles=tuple(summaries),
        channels=tuple(summary_of(book, operators.get(book.channel.message.provider, "")) for book in books),
        findings=tuple(by_weight[Weight.FAULT]),
        notes=tuple(by_weight[Weight.NOTE]),
        activity=activity_of(books, elided),
        opened=opened_of(case, sources),
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
