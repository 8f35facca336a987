"""One receipt, upwards: its statement, its invoice, the money that came for it; in figures and in words."""

from __future__ import annotations

from p2pgrid.audit.report import date_of
from p2pgrid.audit.trace_book import TraceBook, TracedChannel
from p2pgrid.audit.trace_parts import ReceiptTrace
from p2pgrid.audit.trace_statement import contested_in, receipt_part, trace_statement
from p2pgrid.proto.allotment import StatementMoney
from p2pgrid.proto.contested import taken_at
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.judgement import shortened
from p2pgrid.proto.messages import Receipt
from p2pgrid.units import format_amount_eur, format_cents

NO_RECEIPT_FIRST = "An invoice is paid as a whole: no receipt of it is paid before another."
"""The rule of a payment in part."""


def trace_receipt(book: TraceBook, channel: TracedChannel, held: Held[Receipt]) -> ReceiptTrace:
    """Where a receipt went."""
    receipt = held.message
    number, currency = receipt.receipt_number, channel.parties.currency
    contests = [c for c in channel.book.contests if c.has_force and c.receipt == held.record_id]
    now = taken_at(contests, last_receipt=number, at_ms=book.now_ms)
    holding = channel.holding(number)
    credited_in = _credited_in(channel, number) if now.credits_pico else 0
    said = []
    if now.credits_pico:
        where = f", and statement {credited_in} credits it" if credited_in else "; no statement credits it yet"
        said.append(f"An accepted dispute takes off {format_amount_eur(now.credits_pico)} {currency}{where}.")
    if now.held_pico:
        amount = f"{format_amount_eur(now.held_pico)} {currency}"
        said.append(f"A dispute about {amount} is open; that is not invoiced until it is answered.")
    if not holding:
        state = "not_stated"
        said.append("It is in no statement yet.")
    else:
        state, sentence = _money_state(book, channel, holding[0])
        said.append(sentence)
    if len(holding) > 1:
        others = shortened([f"statement {one.statement.statement_number}" for one in holding])
        said.append(f"It is in more than one: {others}.")
    if not receipt.amount_pico:
        state = "nothing_owed"
        said.insert(0, f"It bills nothing ({receipt.status.value}).")
    elif now.credits_pico >= receipt.amount_pico:
        state = "credited"
    elif now.held_pico + now.credits_pico >= receipt.amount_pico:
        state = "held"
    return ReceiptTrace(
        receipt=receipt_part(held),
        parties=channel.parties,
        credited_pico=now.credits_pico,
        credited_in=credited_in,
        held_pico=now.held_pico,
        in_statements=tuple(one.statement.statement_number for one in holding),
        state=state,
        sentence=" ".join(said),
        statement=trace_statement(book, channel, holding[0]) if holding else None,
    )


def _credited_in(channel: TracedChannel, number: int) -> int:
    for statement_number in sorted(channel.book.statements):
        statement = channel.book.statements[statement_number].message
        for _, now, then in contested_in(channel, statement, number):
            if now.credits_pico > then.credits_pico:
                return statement_number
    return 0


def _money_state(book: TraceBook, channel: TracedChannel, money: StatementMoney) -> tuple[str, str]:
    """The state of a statement's money, and the sentence that says it."""
    currency, statement = channel.parties.currency, money.statement
    what = f"Statement {statement.statement_number}, {format_cents(statement.gross_cents)} {currency} gross,"
    if money.invoiced_cents is None:
        return "not_invoiced", f"{what} has no invoice yet."
    numbers = shortened([held.message.invoice_number for held in channel.invoices[money.statement_id]])
    of = (
        f"{format_cents(money.invoiced_cents)} {currency} of invoice {numbers} (statement {statement.statement_number})"
    )
    due = date_of(statement.due_ms)
    gone = _gone_back(channel, money)
    if not money.open_cents:
        if money.invoiced_cents <= 0:
            return "paid", f"Nothing is open of the {of}.{gone}"
        return "paid", f"All {of} are paid, or covered by other money.{gone}"
    if money.open_cents >= money.invoiced_cents:
        return (
            "overdue" if book.now_ms > statement.due_ms else "open",
            f"Nothing of the {of} is paid; due on {due}.{gone}",
        )
    paid = format_cents(money.invoiced_cents - money.open_cents)
    left = format_cents(money.open_cents)
    return "part_paid", f"{paid} of the {of} are paid, {left} are open; due on {due}. {NO_RECEIPT_FIRST}{gone}"


def _gone_back(channel: TracedChannel, money: StatementMoney) -> str:
    """What came for the statement and went back again."""
    said = []
    for one in channel.naming.get(money.statement_id, ()):
        movement = one.movement
        if movement.amount_cents < 0 and one.undone:
            cents = sum(undone.cents for undone in one.undone)
            said.append(f"{format_cents(cents)} were {movement.kind.value} on {date_of(movement.at_ms)}")
    return f" Of what had come, {'; '.join(said[:3])}." if said else ""
