"""Set-offs and cycles judged: by themselves, once for all channels, and as what statements count and invoices lack."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.channel_book import Book, report_rivals
from p2pgrid.proto.codes import CODES, Party
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.evidence import Held, by_slot
from p2pgrid.proto.findings import Absence, Draft, Slot
from p2pgrid.proto.judgement import Case
from p2pgrid.proto.key_rules import names_all
from p2pgrid.proto.record import PARTIES
from p2pgrid.proto.rules import Fault
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import (
    TakenOff,
    channels_named,
    faults_of_leg,
    faults_of_parties,
    faults_of_verdict,
    signer_keys,
    taken_off_by_channel,
)
from p2pgrid.proto.statement_rules import euros


@dataclass(slots=True)
class SetOffRecords:
    """All of these kinds that bundles hold, by id."""

    set_offs: Mapping[bytes, Held[SetOff]] = field(default_factory=dict)
    cycles: Mapping[bytes, Held[Cycle]] = field(default_factory=dict)
    legs: Mapping[bytes, Held[Leg]] = field(default_factory=dict)
    verdicts: Mapping[bytes, Held[CycleVerdict]] = field(default_factory=dict)


def judge_set_offs(case: Case, records: SetOffRecords, books: Mapping[bytes, Book]) -> None:
    """Report what is wrong with set-offs and cycles by themselves, and tell each book what they take off.

    `books`: by channel. What is said of a channel that is not among them is not looked at.
    """
    rivals = _judge_slots(case, records, books)
    named = {channel for held in records.set_offs.values() for channel in channels_named(held.message)}
    billed = {channel: _Billed(books[channel]) for channel in named & books.keys()}
    for held in _by_id(records.set_offs):
        _judge_set_off(case, held, books, billed)
    for cycle in _by_id(records.cycles):
        _judge_parties(case, cycle, books)
    for part, faults_of in ((records.legs, faults_of_leg), (records.verdicts, faults_of_verdict)):
        for one in _by_id(part):
            _judge_parties(case, one, books)
            known = records.cycles.get(one.message.cycle)
            if known is None:
                _miss_cycle(case, one, books)
            else:
                _report(case, one, faults_of(one.message, known.message), books)
    both = {i: h.message for i, h in records.set_offs.items() if _is_signed(h) and i not in rivals}
    legs = {i: h.message for i, h in records.legs.items() if _is_signed(h)}
    cycles = {i: h.message for i, h in records.cycles.items()}
    said = [h.message for h in records.verdicts.values()]
    taken = taken_off_by_channel(both, cycles, legs, said)
    for book in books.values():
        book.taken_off = taken.get(book.id, [])


def _judge_slots(case: Case, records: SetOffRecords, books: Mapping[bytes, Book]) -> set[bytes]:
    """Report records that share a slot; the ids of set-offs that do not stand."""
    fallen: set[bytes] = set()
    kinds: tuple[Mapping[bytes, Held[Any]], ...]
    kinds = records.set_offs, records.cycles, records.legs, records.verdicts
    for kind in kinds:
        slots: dict[Slot, list[Held[Any]]] = by_slot(kind.values())
        for rivals in slots.values():
            if len(rivals) < 2:
                continue
            rivals.sort(key=lambda h: (-len(h.signers), h.record_id))
            report_rivals(rivals, case.docket, code="two-records-one-slot", channel=_home(rivals[0], books))
            fallen.update(held.record_id for held in rivals[1:])
            for channel in channels_named(rivals[0].message):
                if channel in books:
                    books[channel].rivals.update(held.record_id for held in rivals)
    return fallen


class _Billed:
    """What a channel was billed, by what claims name."""

    def __init__(self, book: Book) -> None:
        self.book: Final = book
        self.stated_ms: Final = {h.record_id: h.message.stated_ms for h in book.all_statements}
        self.invoices: Final = {(h.message.statement, h.message.invoice_number) for h in book.invoices}
        self.numbers: Final = {number for _, number in self.invoices}


def _judge_set_off(
    case: Case, held: Held[SetOff], books: Mapping[bytes, Book], billed: Mapping[bytes, _Billed]
) -> None:
    message = held.message
    if _judge_parties(case, held, books):
        return
    _judge_cards(case, held, books)
    missing = [role for role in PARTIES if role not in held.signers]
    if missing and not held.claims(missing[0]) and case.now_ms <= message.until_ms + CLOCK_TOLERANCE_MS:
        sentence = f"{str(held).capitalize()} awaits the second signature."
        draft = Draft("awaiting-countersignature", sentence, held.places[:1], Party(missing[0]), held.record_id)
        draft.channel, draft.signers = b"", {role: key for role, key in signer_keys(message).items() if role in missing}
        case.docket.add(draft)
    for side in message.sides:
        if side.channel not in billed:
            continue
        for claim in side.claims:
            fault = _fault_of_claim(case, billed[side.channel], held, claim.statement, claim.invoice_number)
            if fault is not None:
                _report(case, held, [fault], books)
                return


def _fault_of_claim(case: Case, billed: _Billed, held: Held[SetOff], statement_id: bytes, number: str) -> Fault | None:
    """Does it name an invoice of a statement of its channel, stated before? Reports one that is not there."""
    channel = case.stated_in.get(statement_id)
    if channel is None:
        return None  # reported as missing, with everything that names it
    if channel != billed.book.id:
        proven = not any(side.card for side in held.message.sides)
        sentence = "a claim is of another channel's statement."
        return Fault("set-off-mismatch", sentence, Party.SIGNER, proven, others=(statement_id,))
    if held.message.agreed_ms < billed.stated_ms.get(statement_id, 0) - CLOCK_TOLERANCE_MS:
        sentence = "by its time it comes before a statement that it sets off."
        return Fault("time-backwards", sentence, Party.SIGNER)
    if (statement_id, number) not in billed.invoices:
        if number in billed.numbers:
            sentence = f"invoice {number} is of another statement than the claim says."
            return Fault("set-off-mismatch", sentence, Party.SIGNER, proven=False)
        _miss_invoice(case, billed.book, held, number)
    return None


def _miss_invoice(case: Case, book: Book, held: Held[SetOff], number: str) -> None:
    sentence = f"No bundle holds the invoice {number}, which was set off."
    draft = Draft("record-missing", sentence, held.places, None, held.record_id, book.id, holders=book.bundles)
    proof = f"It stands where invoice {number} is missing."
    case.docket.add_absence(
        Absence("/p2pgrid/invoice/1", (book.id,), f"invoice {number}", draft, book.bundles, proof=proof)
    )


def _judge_parties(case: Case, held: Held[Any], books: Mapping[bytes, Book]) -> bool:
    """Report what its channels contradict; True if there was anything."""
    for channel in channels_named(held.message):
        book = books.get(channel)
        faults = faults_of_parties(held.message, book.channel.message) if book is not None else []
        if faults:
            _report(case, held, faults, books)
            return True
    return False


def _judge_cards(case: Case, held: Held[SetOff], books: Mapping[bytes, Book]) -> None:
    """Do the cards that it names say that each creditor is the other side's debtor, under another key?"""
    for role, side, other in zip(PARTIES, held.message.sides, held.message.sides[::-1], strict=True):
        if not side.card:
            continue
        if side.card not in case.cards:
            sentence = f"No bundle holds the card that {held} names, {side.card.hex()}."
            case.docket.add(Draft("card-missing", sentence, held.places[:1], record_id=held.record_id))
        elif not names_all(case.chains[side.card], (side.creditor, other.debtor)):
            sentence = f"The card that {held} names does not name both keys of a side, which sells and which buys."
            fault = Draft("key-not-bound", sentence, held.places, Party.SIGNER, held.record_id, _home(held, books))
            fault.signers, fault.convinces = {role: side.creditor}, False
            case.docket.add(fault)


def _miss_cycle(case: Case, held: Held[Any], books: Mapping[bytes, Book]) -> None:
    """A leg or a verdict whose cycle is nowhere."""
    bundles = tuple(sorted({place.bundle for place in held.places}))
    sentence = f"No bundle holds the cycle that {held} names."
    draft = Draft("record-missing", sentence, held.places[:1], None, held.record_id, _home(held, books))
    draft.holders = bundles
    proof = f"It stands where the cycle {held.message.cycle.hex()} is missing."
    absence = Absence(Cycle.payload_type, (), "the cycle", draft, bundles, held.message.cycle, proof=proof)
    case.docket.add_absence(absence)


def judge_set_off_counted(case: Case, book: Book) -> None:
    """Statements against set-offs: each counts those agreed since the one before, none twice, and none is lost.

    The second signature may come, and be known, one statement late.
    """
    counted, before_ms = 0, None
    sums = _Sums(book.taken_off)
    half = sum(h.message.amount_cents for h in book.set_offs if not _is_signed(h))
    for number in range(1, len(book.statements) + 1):
        held = book.statements.get(number)
        if held is None:
            return
        counted += max(held.message.set_off_cents, 0)  # below zero it has its finding
        most = sums.until(held.message.stated_ms + CLOCK_TOLERANCE_MS)
        if counted > most:
            amount = euros(counted - most, held.message.currency)
            sentence = f"{amount} that {held} sets off stand in no set-off in force"
            if counted <= most + half:
                sentence += ": one that it can mean lacks a signature"
            _miss_set_off(book, case, held, f"{sentence}.", counted - most)
            return
        least = sums.until(before_ms - CLOCK_TOLERANCE_MS) if before_ms is not None else 0
        if counted < least:
            amount = euros(least - counted, held.message.currency)
            sentence = f"{str(held).capitalize()} does not count {amount} that were set off before the one before it."
            # When the second side signed, no record says: it may have held that back.
            fault = Fault("statement-mismatch", sentence, proven=False, cents=counted - least)
            case.report(book, held, fault)
            return
        before_ms = held.message.stated_ms


def _miss_set_off(book: Book, case: Case, held: Held[Any], sentence: str, cents: int) -> None:
    draft = Draft("statement-mismatch", sentence, held.places, None, held.record_id, book.id, convinces=False)
    draft.cents = cents
    proof = f"It stands where a set-off that {held} counts is missing."
    absence = Absence(
        SetOff.payload_type, (), "a set-off", draft, book.bundles, proof=proof, other_type=Leg.payload_type
    )
    case.docket.add_absence(absence)


def judge_claims(case: Case, book: Book, owed: Mapping[bytes, int], paid: Mapping[bytes, int]) -> None:
    """Report a set-off that takes off more than an invoice's statement had open.

    `owed`: by statement, what its invoices come to; `paid`: what was paid for them. Whoever agreed to it, or booked a
    payment for what was set off: the records do not tell.
    """
    off: dict[bytes, int] = defaultdict(int)
    held = {one.record_id: one for one in book.set_offs}
    for taken in book.taken_off:
        for claim in taken.claims:
            statement = claim.statement
            off[statement] += claim.cents
            most = owed.get(statement)
            if most is None or paid.get(statement, 0) > max(most, 0):
                continue  # no invoice to hold it against, or reported as paid too much
            if paid.get(statement, 0) + off[statement] > max(most, 0):
                one, currency = held[taken.record_id], book.channel.message.currency
                all_cents = paid.get(statement, 0) + off[statement]
                sentence = f"With {one} {euros(all_cents, currency)} are paid or set off for a statement "
                sentence += f"whose invoices come to {euros(most, currency)}."
                beyond = all_cents - max(most, 0)
                fault = Fault("set-off-mismatch", sentence, Party.UNCLEAR, cents=beyond, others=(statement,))
                case.report(book, one, fault)
                break


class _Sums:
    """What is in force, summed by time."""

    def __init__(self, taken: Iterable[TakenOff]) -> None:
        ordered = sorted(taken, key=lambda one: one.at_ms)
        self._times: Final = [one.at_ms for one in ordered]
        self._cents: Final = [0, *accumulate(one.cents for one in ordered)]

    def until(self, time_ms: int) -> int:
        """What was agreed up to and with that time, in cents."""
        return self._cents[bisect_right(self._times, time_ms)]


def _report(case: Case, held: Held[Any], faults: Iterable[Fault], books: Mapping[bytes, Book]) -> None:
    for fault in faults:
        sentence = f"{str(held).capitalize()} is wrong: {fault.sentence}"
        draft = Draft(fault.code, sentence, held.places, fault.party, held.record_id, _home(held, books))
        draft.signers = {role: held.signers[role] for role in sorted(held.signers)}
        draft.convinces = CODES[fault.code].convinces and fault.proven
        draft.cents, draft.others = fault.cents, fault.others
        case.docket.add(draft)


def _home(held: Held[Any], books: Mapping[bytes, Book]) -> bytes:
    """The channel that a finding about a record of several shows: the first of them that is at hand."""
    return next((channel for channel in channels_named(held.message) if channel in books), b"")


def _is_signed(held: Held[Any]) -> bool:
    return set(PARTIES) <= set(held.signers)


def _by_id(records: Mapping[bytes, Held[Any]]) -> list[Held[Any]]:
    return [records[record_id] for record_id in sorted(records)]
