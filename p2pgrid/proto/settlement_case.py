"""Settlement judged: statements with the receipts and disputes that they are of."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, takewhile
from typing import Any, Final

from p2pgrid.proto.billing_case import judge_billing, miss
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.contested import TakenBounds, bounds_at
from p2pgrid.proto.dispute_rules import DAY_MS
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Absence, Draft
from p2pgrid.proto.invoice_sums import cents_of
from p2pgrid.proto.judgement import Case, shortened
from p2pgrid.proto.messages import Offer, Receipt, Tariff
from p2pgrid.proto.record import Role
from p2pgrid.proto.rules import Fault
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.statement_rules import fault_of_overlap, faults_of_contents, faults_of_succession, faults_of_sums
from p2pgrid.units import format_amount_eur

_UNFIT: Final = frozenset({"statement-mismatch", "statement-omits-receipt", "receipt-in-two-statements"})
"""With one of these a statement is not held against its receipts: it speaks of others, or differs in its own sums."""


def judge_settlement(case: Case, book: Book) -> None:
    """Report what is wrong with the channel's statements, invoices and payments."""
    before: Held[Statement] | None = None
    until: Held[Statement] | None = None
    amounts = _Amounts(book)
    taken = _taken_by_statements(book)
    for number in sorted(book.statements):
        held = book.statements[number]
        _judge_statement(case, book, held, before, until, taken.get(number), amounts)
        before = held
        until = held if until is None or held.message.last_receipt > until.message.last_receipt else until
    waiting = [book.statements[n] for n in sorted(book.statements) if not book.statements[n].claims(Role.CLIENT)]
    if waiting:
        labels = shortened([str(held) for held in waiting])
        case.note(book, "awaiting-countersignature", waiting, f"The client has not countersigned {labels}.")
    _note_unstated(case, book, until.message.last_receipt if until else 0)
    judge_billing(case, book)


def _judge_statement(
    case: Case,
    book: Book,
    held: Held[Statement],
    before: Held[Statement] | None,
    until: Held[Statement] | None,
    taken: tuple[TakenBounds, int] | None,
    amounts: _Amounts,
) -> None:
    """`until`: of the statements with lower numbers the one with the highest receipt."""
    statement = held.message
    stated_until = until.message.last_receipt if until else 0
    faults = faults_of_sums(statement, channel=book.channel.message)
    expected = before.message.statement_number + 1 if before else 1
    if statement.statement_number == expected:
        succession = faults_of_succession(
            statement,
            channel=book.channel.message,
            before=before.message if before else None,
            before_id=before.record_id if before else b"",
            stated_until=stated_until,
        )
        if expected == 1 and book.channel.message.continues:  # it may go on from the other channel's balance
            succession = [fault for fault in succession if fault.code != "wrong-opening-balance"]
        known = {fault.code for fault in faults}
        faults += [fault for fault in succession if fault.code not in known]
    else:
        sentence = f"No bundle holds the statement before {held}."
        miss(case, book, held, Statement, f"statement {statement.statement_number - 1}", sentence, statement.previous)
        overlap = fault_of_overlap(statement, stated_until=stated_until)
        faults += [overlap] if overlap is not None else []
    if not any(fault.code in _UNFIT for fault in faults):
        receipts = _receipts_of(book, statement)
        if receipts is not None:
            faults += faults_of_contents(
                statement,
                receipts=[(receipt.record_id, receipt.message) for receipt in receipts],
                tariffs=_tariffs_of(case, book, receipts),
                taken=taken[0] if taken else None,
                credited_before_pico=taken[1] if taken else 0,
            )
        else:
            _miss_receipts(case, book, held, amounts)
    for fault in faults:
        case.report(book, held, _with_receipts(held, fault, before, until, amounts))


class _Amounts:
    """What receipts bill, summed from their numbers in one step each."""

    def __init__(self, book: Book) -> None:
        self._book: Final = book

    @cached_property
    def _numbers(self) -> list[int]:
        return sorted(self._book.receipts)

    @cached_property
    def _sums(self) -> list[int]:
        amounts = (self._book.receipts[number].message.amount_pico for number in self._numbers)
        return list(accumulate(amounts, initial=0))

    @property
    def highest(self) -> int:
        """The highest number at hand; 0 where there is none."""
        return self._numbers[-1] if self._numbers else 0

    def of(self, first: int, last: int) -> tuple[int, bool]:
        """The pico of those at hand from number `first` to `last`, and whether all are."""
        start, end = bisect_left(self._numbers, first), bisect_right(self._numbers, last)
        return self._sums[end] - self._sums[start] if end > start else 0, end - start == last - first + 1


def _with_receipts(
    held: Held[Statement],
    fault: Fault,
    before: Held[Statement] | None,
    until: Held[Statement] | None,
    amounts: _Amounts,
) -> Fault:
    """Say what the receipts come to that are in two statements or in none, as far as they are at hand."""
    statement = held.message
    others = fault.others
    stated_until = until.message.last_receipt if until else 0
    if fault.code == "receipt-in-two-statements":
        first, last = statement.first_receipt, min(stated_until, statement.last_receipt)
        others = (until.record_id,) if until else ()
    elif fault.code == "statement-omits-receipt" and statement.first_receipt > stated_until + 1:
        first, last = (before.message.last_receipt if before else 0) + 1, statement.first_receipt - 1
    elif fault.code == "statement-omits-receipt":
        first, last = statement.first_receipt, statement.last_receipt
    else:
        return fault
    pico, are_all_there = amounts.of(first, last)
    if not are_all_there:
        return fault
    if fault.code == "receipt-in-two-statements":
        sentence = f"{fault.sentence} Receipts {first} to {last} of both come to"
    elif last >= statement.first_receipt:
        pico -= statement.total_pico
        sentence = f"{fault.sentence} The others come to"
    else:
        sentence = f"{fault.sentence} What no statement holds comes to"
    sentence = f"{sentence} {format_amount_eur(pico)} {statement.currency}."
    cents = cents_of(pico) if fault.code == "receipt-in-two-statements" else -cents_of(pico)
    return replace(fault, sentence=sentence, cents=cents, others=others)


def _receipts_of(book: Book, statement: Statement) -> list[Held[Receipt]] | None:
    """The receipts of its range; None if one is not at hand."""
    count = statement.last_receipt - statement.first_receipt + 1
    if count > len(book.receipts):
        return None
    numbers = range(statement.first_receipt, statement.last_receipt + 1)
    if not all(number in book.receipts for number in numbers):
        return None
    return [book.receipts[number] for number in numbers]


def _miss_receipts(case: Case, book: Book, held: Held[Statement], amounts: _Amounts) -> None:
    """Receipts of the range that no chain misses: those at its ends."""
    statement = held.message
    if statement.last_receipt > amounts.highest:
        label = f"receipt {statement.last_receipt}"
        sentence = f"No bundle holds {label}, which {held} is of."
        left = statement.total_pico - amounts.of(statement.first_receipt, statement.last_receipt)[0]
        sentence += f" Its receipts at hand leave {format_amount_eur(left)} {statement.currency} of its total."
        miss(case, book, held, Receipt, label, sentence, slot=(statement.last_receipt,), cents=cents_of(left))


def _tariffs_of(case: Case, book: Book, receipts: list[Held[Receipt]]) -> list[Tariff] | None:
    tariffs = []
    for held in receipts:
        tariff = tariff_of(case.offers, book, held)
        if tariff is None:
            return None
        tariffs.append(tariff)
    return tariffs


def tariff_of(offers: Mapping[bytes, Held[Offer]], book: Book, held: Held[Receipt]) -> Tariff | None:
    """The tariff of the receipt's order at the order's time; None where its order or offer is not at hand."""
    offer = offers.get(held.message.offer)
    order = book.orders.get(held.message.order_number, {}).get(held.message.order)
    entry = offer.message.model_offer(held.message.model) if offer is not None else None
    if offer is None or order is None or entry is None:
        return None
    return offer.message.tariff_at(entry, order.message.ordered_ms)


def _taken_by_statements(book: Book) -> dict[int, tuple[TakenBounds, int]]:
    """What disputes come to at the time of each statement, which clocks tell to 120 s, and the credits before it.

    Of statements after one that is missing nothing is known: it may have credited anything.
    """
    first = list(takewhile(book.statements.__contains__, range(1, len(book.statements) + 1)))
    messages = [book.statements[number].message for number in first]
    moments = [(message.last_receipt, message.stated_ms) for message in messages]
    bounds = bounds_at(book.contests, moments, tolerance_ms=CLOCK_TOLERANCE_MS)
    credited = accumulate((message.credits_pico for message in messages), initial=0)
    return dict(zip(first, zip(bounds, credited, strict=False), strict=True))


def _note_unstated(case: Case, book: Book, stated_until: int) -> None:
    """Receipts of long ago that no statement holds, in a channel that has statements."""
    forgotten = []
    for number in sorted(number for number in book.receipts if number > stated_until and book.statements):
        held = book.receipts[number]
        offer = case.offers.get(held.message.offer)
        if offer is not None:
            over_ms = held.message.issued_ms + 2 * offer.message.terms.settlement_days * DAY_MS
            forgotten += [held] if case.now_ms > over_ms + CLOCK_TOLERANCE_MS else []
    if forgotten:
        labels = shortened([str(held) for held in forgotten])
        case.note(book, "receipt-not-stated", forgotten, f"Two periods later no statement holds {labels}.")


def miss_statement(case: Case, statement_id: bytes, orphans: list[Held[Any]]) -> None:
    """Invoices, payments and set-offs of a statement that is nowhere."""
    places = sorted(place for held in orphans for place in held.places)
    bundles = tuple(sorted({place.bundle for place in places}))
    sentence = f"No bundle holds the statement that {orphans[0]} names; it cannot be checked."
    draft = Draft("record-missing", sentence, tuple(places[:1]), None, orphans[0].record_id, holders=bundles)
    proof = f"It stands where the statement {statement_id.hex()} is missing."
    case.docket.add_absence(
        Absence(Statement.payload_type, (), "the statement", draft, bundles, statement_id, proof=proof)
    )
