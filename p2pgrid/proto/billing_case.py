"""Billing judged: invoices and payments with the statements that they are of, and what statements count of them."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import accumulate
from typing import Any, Final

from p2pgrid.proto.billing_rules import Bookings, fault_of_payments, faults_of_invoices, name_of, spread
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Absence, Draft
from p2pgrid.proto.judgement import Case, shortened
from p2pgrid.proto.record import Message
from p2pgrid.proto.rules import Fault
from p2pgrid.proto.set_off_case import judge_claims, judge_set_off_counted
from p2pgrid.proto.statement import Invoice, InvoiceType, Payment
from p2pgrid.proto.statement_rules import euros
from p2pgrid.units import format_cents

MOST_OTHERS: Final = 16
"""Records that a finding names beside its own."""
_SELF_BILLED: Final = frozenset({InvoiceType.SELF_BILLED_INVOICE, InvoiceType.SELF_BILLED_CREDIT_NOTE})


def judge_billing(case: Case, book: Book) -> None:
    """Report what is wrong with the channel's invoices and payments, and with what its statements count of these."""
    invoices = _by_statement(book.invoices)
    _judge_invoices(case, book, invoices)
    _judge_payments(case, book, invoices)
    _judge_payments_counted(case, book)
    judge_set_off_counted(case, book)


def _judge_invoices(case: Case, book: Book, invoices: dict[bytes, list[Held[Invoice]]]) -> None:
    for statement in book.all_statements:
        held = invoices.get(statement.record_id)
        if held:
            for fault in faults_of_invoices([h.message for h in held], statement=statement.message):
                others = statement.record_id, *(h.record_id for h in held[:-1][:MOST_OTHERS])
                case.report(book, held[-1], replace(fault, others=others))
    for one in book.invoices:
        if case.stated_in.get(one.message.statement, book.id) != book.id:
            amount = euros(one.message.gross_cents, one.message.currency)
            sentence = f"The invoice {one.message.invoice_number} over {amount} names a statement of another channel."
            others = (one.message.statement,)
            case.report(book, one, Fault("invoice-mismatch", sentence, cents=one.message.gross_cents, others=others))
    stated = {held.record_id: held.message.statement_number for held in book.all_statements}
    numbers: dict[str, Held[Invoice]] = {}
    for one in _by_time(book.invoices):
        first = numbers.setdefault(one.message.invoice_number, one)
        if first.message.statement != one.message.statement:
            case.report(book, one, _number_taken(one, first, stated))


def judge_numbers(case: Case, books: Iterable[Book]) -> None:
    """Report a provider's number that invoices in two of its channels have: the later ones are wrong.

    Numbers of documents that the client wrote are the client's. It convinces nobody: numbers are the law's, and the
    records do not tell whether two channels are one company's.
    """
    numbers: dict[tuple[bytes, str], tuple[Book, Held[Invoice]]] = {}
    billed = [(book, one) for book in books for one in book.invoices if one.message.type_code not in _SELF_BILLED]
    for book, one in sorted(billed, key=lambda pair: (pair[1].message.issued_ms, pair[1].record_id)):
        place = book.channel.message.provider, one.message.invoice_number
        first_book, first = numbers.setdefault(place, (book, one))
        if first_book.id != book.id:
            sentence = f"The invoice {one.message.invoice_number} over "
            sentence += f"{euros(one.message.gross_cents, one.message.currency)} has the number of one over "
            sentence += f"{format_cents(first.message.gross_cents)} in another channel of the provider's."
            others, cents = (first.record_id,), one.message.gross_cents
            case.report(book, one, Fault("invoice-mismatch", sentence, proven=False, cents=cents, others=others))


def _number_taken(one: Held[Invoice], first: Held[Invoice], stated: dict[bytes, int]) -> Fault:
    """`stated`: the number of each statement."""
    of = [
        f"statement {stated[h.message.statement]}" if h.message.statement in stated else "another statement"
        for h in (one, first)
    ]
    sentence = f"The invoice {one.message.invoice_number} over {euros(one.message.gross_cents, one.message.currency)} "
    sentence += f"is of {of[0]}; {of[1]} has one with that number over {format_cents(first.message.gross_cents)}."
    return Fault("invoice-mismatch", sentence, cents=one.message.gross_cents, others=(first.record_id,))


def _judge_payments(case: Case, book: Book, invoices: dict[bytes, list[Held[Invoice]]]) -> None:
    sound: dict[bytes, list[Held[Payment]]] = defaultdict(list)
    bookings = Bookings(book.channel.message.currency)
    known = {(h.message.statement, h.message.invoice_number) for h in book.invoices}
    known |= {(b"", number) for _, number in known}  # of whichever statement
    for held in sorted(book.payments, key=lambda h: (h.message.booked_ms, h.record_id)):
        fault = bookings.fault_of_next(held.message, held.record_id)
        fault = fault or _fault_of_invoice(case, book, held, known)
        if fault is not None:
            case.report(book, held, fault)
        elif held.message.statement:
            sound[held.message.statement].append(held)
    for statement_id in sorted(sound):
        billed = invoices.get(statement_id, [])
        paid = [h for h in sound[statement_id] if (statement_id, h.message.invoice_number) in known]
        found = fault_of_payments([h.message for h in paid], invoices=[h.message for h in billed]) if paid else None
        if found is not None:
            last = next(h for h in paid if h.message is found[0])
            others = tuple(h.record_id for h in billed[:MOST_OTHERS])
            case.report(book, last, replace(found[1], others=others))
    owed = {statement: sum(h.message.gross_cents for h in billed) for statement, billed in invoices.items()}
    judge_claims(case, book, owed, {s: sum(h.message.amount_cents for h in held) for s, held in sound.items()})
    _note_open(case, book, invoices)


def _fault_of_invoice(
    case: Case, book: Book, held: Held[Payment], known: Collection[tuple[bytes, str]]
) -> Fault | None:
    """Does it name an invoice of a statement of its channel? Reports one that is not there."""
    payment = held.message
    what = name_of(payment)
    if not payment.statement:
        return None
    channel = case.stated_in.get(payment.statement)
    if channel is None:
        return None  # reported as missing, with everything that names it
    if channel != book.id:
        return _astray(payment, f"{what} names a statement of another channel.")
    number = payment.invoice_number
    if (payment.statement, number) in known:
        return None
    if (b"", number) in known:
        return _astray(payment, f"{what} names another statement than invoice {number} does.")
    sentence = (
        f"No bundle holds the invoice {number}, of which {euros(payment.amount_cents, payment.currency)} were paid."
    )
    miss(case, book, held, Invoice, f"invoice {number}", sentence, cents=payment.amount_cents)
    return None


def _astray(payment: Payment, sentence: str) -> Fault:
    return Fault("payment-mismatch", sentence, cents=payment.amount_cents, others=(payment.statement,))


def _note_open(case: Case, book: Book, invoices: dict[bytes, list[Held[Invoice]]]) -> None:
    """What is left to pay, once all that came or was set off for none of the invoices has covered the oldest."""
    billed = [held for held in sorted(book.all_statements, key=_number) if invoices.get(held.record_id)]
    owed = [sum(h.message.gross_cents for h in invoices[held.record_id]) for held in billed]
    paid: dict[bytes, int] = defaultdict(int)
    for payment in book.payments:
        paid[payment.message.statement] += payment.message.amount_cents
    # What statements set off and no record shows covers the oldest, as a leg of a cycle does.
    stated = sum(held.message.set_off_cents for held in book.statements.values())
    ahead = paid[b""] + max(stated - sum(taken.cents for taken in book.taken_off), 0)
    for taken in book.taken_off:
        ahead += 0 if taken.claims else taken.cents
        for claim in taken.claims:
            paid[claim.statement] += claim.cents
    still_open = spread([due - paid[held.record_id] for held, due in zip(billed, owed, strict=True)], ahead)
    for held, due, left in zip(billed, owed, still_open, strict=True):
        if left:
            when = ", and the time to pay it is over" if case.now_ms > held.message.due_ms else ""
            numbers = shortened([h.message.invoice_number for h in invoices[held.record_id]])
            sentence = f"Of invoice {numbers} of {held}, {euros(due, held.message.currency)}, "
            sentence += f"{format_cents(left)} are open{when}."
            case.note(book, "invoice-open", list(invoices[held.record_id][-1:]), sentence, cents=-left)


def _number(held: Held[Any]) -> tuple[int, bytes]:
    return held.message.statement_number, held.record_id


def _judge_payments_counted(case: Case, book: Book) -> None:
    """Statements against payments: each counts those booked since the one before, and none may be lost.

    A bank tells late: what was booked before the last statement but one and is still not counted, was left out.
    """
    counted, before_ms = 0, None
    sums = _BookedSums(book)
    for number in range(1, len(book.statements) + 1):
        held = book.statements.get(number)
        if held is None:
            return
        counted += held.message.payments_cents
        least, most = sums.between(before_ms, held.message.stated_ms)
        if counted > most:
            more = euros(counted - most, held.message.currency)
            sentence = f"No bundle holds the payments that {held} counts, {more}."
            miss(case, book, held, Payment, "a payment", sentence, cents=counted - most)
            return
        if counted < least:
            amount = euros(least - counted, held.message.currency)
            sentence = f"{str(held).capitalize()} does not count {amount} that were booked before the one before it."
            # Money that went back, and that nobody shows, could explain it.
            others = _booked_by(book, before_ms)
            less = counted - least
            fault = Fault("statement-mismatch", sentence, proven=False, cents=less, others=others)
            case.report(book, held, fault)
            return
        before_ms = held.message.stated_ms


def _booked_by(book: Book, before_ms: int | None) -> tuple[bytes, ...]:
    """The last payments that were booked by then: of those one is not counted."""
    until_ms = (before_ms or 0) - CLOCK_TOLERANCE_MS
    booked = sorted((h.message.booked_ms, h.record_id) for h in book.payments if h.message.booked_ms <= until_ms)
    return tuple(record_id for _, record_id in booked[-MOST_OTHERS:])


class _BookedSums:
    """A channel's payments by their times, in cents: all together, and those above and below zero apart."""

    def __init__(self, book: Book) -> None:
        payments = sorted((held.message.booked_ms, held.message.amount_cents) for held in book.payments)
        self._times: Final = [booked_ms for booked_ms, _ in payments]
        self._below: Final = [0, *accumulate(min(amount, 0) for _, amount in payments)]
        self._above: Final = [0, *accumulate(max(amount, 0) for _, amount in payments)]

    def between(self, before_ms: int | None, stated_ms: int) -> tuple[int, int]:
        """The least and the most that statements up to the one of `stated_ms` may count.

        Counted must be what was booked by the time of the one before (`before_ms`, None for the first), and may be
        what was by its own; each payment as a whole. 120 s either way.
        """
        first = bisect_right(self._times, before_ms - CLOCK_TOLERANCE_MS) if before_ms is not None else 0
        last = max(bisect_right(self._times, stated_ms + CLOCK_TOLERANCE_MS), first)
        return self._below[last] + self._above[first], self._below[first] + self._above[last]


def _by_statement(invoices: list[Held[Invoice]]) -> dict[bytes, list[Held[Invoice]]]:
    """Invoices of each statement, by their times."""
    found: dict[bytes, list[Held[Invoice]]] = defaultdict(list)
    for held in _by_time(invoices):
        found[held.message.statement].append(held)
    return found


def _by_time(invoices: list[Held[Invoice]]) -> list[Held[Invoice]]:
    return sorted(invoices, key=lambda h: (h.message.issued_ms, h.record_id))


def miss(
    case: Case,
    book: Book,
    held: Held[Any],
    message_type: type[Message],
    label: str,
    sentence: str,
    record_id: bytes = b"",
    slot: tuple[int, ...] = (),
    *,
    cents: int | None = None,
) -> None:
    """Report a record of the channel that `held` builds on and no bundle holds. `cents`: as in `Fault`."""
    draft = Draft("record-missing", sentence, held.places, None, held.record_id, book.id, cents=cents)
    proof = f"It stands where {label} is missing."
    absence = Absence(message_type.payload_type, (book.id, *slot), label, draft, book.bundles, record_id, proof=proof)
    case.docket.add_absence(absence)
