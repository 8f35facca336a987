"""Settlement judged: statements with the receipts they are of, invoices and payments with their statement."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Absence, Draft
from p2pgrid.proto.judgement import Case, shortened
from p2pgrid.proto.messages import Receipt, Tariff
from p2pgrid.proto.record import Message, Role
from p2pgrid.proto.rules import Fault
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.statement_rules import (
    PICO_PER_CENT,
    faults_of_contents,
    faults_of_invoices,
    faults_of_payment,
    faults_of_succession,
    faults_of_sums,
)


def judge_settlement(case: Case, book: Book) -> None:
    """Report what is wrong with the channel's statements, invoices and payments."""
    before: Held[Statement] | None = None
    for number in sorted(book.statements):
        held = book.statements[number]
        _judge_statement(case, book, held, before)
        before = held
    waiting = [book.statements[n] for n in sorted(book.statements) if not book.statements[n].claims(Role.CLIENT)]
    if waiting:
        labels = shortened([str(held) for held in waiting])
        case.note(book, "awaiting-countersignature", waiting, f"The client has not countersigned {labels}.")
    _judge_invoices(case, book)
    _judge_payments(case, book)
    _judge_payments_counted(case, book)


def _judge_statement(case: Case, book: Book, held: Held[Statement], before: Held[Statement] | None) -> None:
    statement = held.message
    faults = faults_of_sums(statement, channel=book.channel.message)
    expected = before.message.statement_number + 1 if before else 1
    if statement.statement_number == expected:
        succession = faults_of_succession(
            statement, before=before.message if before else None, before_id=before.record_id if before else b""
        )
        if expected == 1 and book.channel.message.continues:  # it may go on from the other channel's balance
            succession = [fault for fault in succession if fault.code != "wrong-opening-balance"]
        known = {fault.code for fault in faults}
        faults += [fault for fault in succession if fault.code not in known]
    else:
        sentence = f"No bundle holds the statement before {held}."
        _miss(case, book, held, Statement, f"statement {statement.statement_number - 1}", sentence, statement.previous)
    if not any(fault.code in ("statement-mismatch", "statement-omits-receipt") for fault in faults):
        receipts = _receipts_of(book, statement)
        if receipts is not None:
            faults += faults_of_contents(
                statement,
                receipts=[(receipt.record_id, receipt.message) for receipt in receipts],
                tariffs=_tariffs_of(case, book, receipts),
                credits_pico=_credits_of(book, statement),
            )
        else:
            _miss_receipts(case, book, held)
    for fault in faults:
        case.report(book, held, fault)


def _receipts_of(book: Book, statement: Statement) -> list[Held[Receipt]] | None:
    """The receipts of its range; None if one is not at hand."""
    count = statement.last_receipt - statement.first_receipt + 1
    if count > len(book.receipts):
        return None
    numbers = range(statement.first_receipt, statement.last_receipt + 1)
    if not all(number in book.receipts for number in numbers):
        return None
    return [book.receipts[number] for number in numbers]


def _miss_receipts(case: Case, book: Book, held: Held[Statement]) -> None:
    """Receipts of the range that no chain misses: those at its ends."""
    statement = held.message
    highest = max(book.receipts, default=0)
    if statement.last_receipt > highest:
        label = f"receipt {statement.last_receipt}"
        sentence = f"No bundle holds {label}, which {held} is of."
        _miss(case, book, held, Receipt, label, sentence, slot=(statement.last_receipt,))


def _tariffs_of(case: Case, book: Book, receipts: list[Held[Receipt]]) -> list[Tariff] | None:
    tariffs = []
    for held in receipts:
        offer = case.offers.get(held.message.offer)
        order = book.orders.get(held.message.order_number, {}).get(held.message.order)
        entry = offer.message.model_offer(held.message.model) if offer is not None else None
        if offer is None or order is None or entry is None:
            return None
        tariffs.append(offer.message.tariff_at(entry, order.message.ordered_ms))
    return tariffs


def _credits_of(book: Book, statement: Statement) -> tuple[int, int] | None:
    """What disputes accepted since the statement before take off: the least and the most, for clocks differ."""
    numbers = range(1, statement.statement_number)
    if statement.statement_number > len(book.statements) or not all(n in book.statements for n in numbers):
        return None
    taken = sum(book.statements[n].message.credits_pico for n in numbers)
    bounds = []
    for until_ms in (statement.stated_ms - CLOCK_TOLERANCE_MS, statement.stated_ms + CLOCK_TOLERANCE_MS):
        bounds.append(
            sum(
                credit.amount_pico
                for credit in book.credits.values()
                if credit.receipt_number <= statement.last_receipt and credit.accepted_ms <= until_ms
            )
        )
    return bounds[0] - taken, bounds[1] - taken


def _judge_invoices(case: Case, book: Book) -> None:
    invoices = _by_statement(book.invoices)
    for statement in book.all_statements:
        held = invoices.get(statement.record_id)
        if held:
            for fault in faults_of_invoices([h.message for h in held], statement=statement.message):
                case.report(book, held[-1], fault)
    numbers: dict[str, Held[Invoice]] = {}
    for one in (h for each in invoices.values() for h in each):
        first = numbers.setdefault(one.message.invoice_number, one)
        if first.message.statement != one.message.statement:
            sentence = f"Two statements have an invoice with the number {one.message.invoice_number}."
            case.report(book, one, Fault("invoice-mismatch", sentence))


def _judge_payments(case: Case, book: Book) -> None:
    invoices = _by_statement(book.invoices)
    payments = _by_statement(book.payments)
    for statement_id in sorted({*invoices, *payments}):
        billed = [held.message for held in invoices.get(statement_id, [])]
        paid = payments.get(statement_id, [])
        for index, held in enumerate(paid):
            if all(invoice.invoice_number != held.message.invoice_number for invoice in billed):
                elsewhere = any(h.message.invoice_number == held.message.invoice_number for h in book.invoices)
                _miss_invoice(case, book, held, elsewhere=elsewhere)
                continue
            earlier = [other.message for other in paid[:index]]
            for fault in faults_of_payment(held.message, invoices=billed, earlier=earlier):
                case.report(book, held, fault)
        owed, got = sum(i.gross_cents for i in billed), sum(h.message.amount_cents for h in paid)
        if billed and got < owed:
            sentence = f"Of {owed} cents {got} are paid."
            case.note(book, "invoice-open", list(invoices[statement_id][-1:]), sentence)


def _miss_invoice(case: Case, book: Book, held: Held[Payment], *, elsewhere: bool) -> None:
    number = held.message.invoice_number
    if elsewhere:
        sentence = f"The payment {held.message.reference!r} names another statement than invoice {number} does."
        case.report(book, held, Fault("payment-mismatch", sentence))
        return
    _miss(case, book, held, Invoice, f"invoice {number}", f"No bundle holds the invoice {number}, which was paid.")


def _judge_payments_counted(case: Case, book: Book) -> None:
    """Statements against payments: each counts those booked since the one before, and none may be lost.

    A bank tells late: what was booked before the last statement but one and is still not counted, was left out.
    """
    counted, stated_ms = 0, 0
    for number in range(1, len(book.statements) + 1):
        held = book.statements.get(number)
        if held is None:
            return
        counted += held.message.payments_pico
        latest_ms = held.message.stated_ms + CLOCK_TOLERANCE_MS
        shown = _booked_pico(book, latest_ms)
        if counted > max(shown, 0):
            sentence = f"No bundle holds the payments that {held} counts, {counted - max(shown, 0)} pico."
            _miss(case, book, held, Payment, "a payment", sentence)
            return
        if counted < _booked_pico(book, stated_ms - CLOCK_TOLERANCE_MS):
            sentence = f"{str(held)[0].upper()}{str(held)[1:]} does not count a payment from before the one before it."
            case.report(book, held, Fault("statement-mismatch", sentence))
            return
        stated_ms = held.message.stated_ms


def _booked_pico(book: Book, until_ms: int) -> int:
    return sum(h.message.amount_cents for h in book.payments if h.message.booked_ms <= until_ms) * PICO_PER_CENT


def _by_statement(records: list[Held[Any]]) -> dict[bytes, list[Held[Any]]]:
    """Invoices or payments of each statement, by their times."""
    found: dict[bytes, list[Held[Any]]] = defaultdict(list)
    for held in sorted(records, key=lambda h: (_time_of(h.message), h.record_id)):
        found[held.message.statement].append(held)
    return found


def _time_of(message: Invoice | Payment) -> int:
    return message.issued_ms if isinstance(message, Invoice) else message.booked_ms


def _miss(
    case: Case,
    book: Book,
    held: Held[Any],
    message_type: type[Message],
    label: str,
    sentence: str,
    record_id: bytes = b"",
    slot: tuple[int, ...] = (),
) -> None:
    draft = Draft("record-missing", sentence, held.places, None, held.record_id, book.id)
    proof = f"It stands where {label} is missing."
    absence = Absence(message_type.payload_type, (book.id, *slot), label, draft, book.bundles, record_id, proof=proof)
    case.docket.add_absence(absence)


def miss_statement(case: Case, statement_id: bytes, orphans: list[Held[Any]]) -> None:
    """Invoices and payments of a statement that is nowhere."""
    places = sorted(place for held in orphans for place in held.places)
    bundles = tuple(sorted({place.bundle for place in places}))
    sentence = f"No bundle holds the statement that {orphans[0]} names; it cannot be checked."
    draft = Draft("record-missing", sentence, tuple(places[:1]), None, orphans[0].record_id, holders=bundles)
    proof = f"It stands where the statement {statement_id.hex()} is missing."
    case.docket.add_absence(
        Absence(Statement.payload_type, (), "the statement", draft, bundles, statement_id, proof=proof)
    )
