"""The settlement of an audit's page: statements, invoices and payments by channel, each linked to the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from p2pgrid.audit.page_parts import add, add_table, link
from p2pgrid.audit.report import date_of
from p2pgrid.proto.settlement_summary import ChannelSettlement, SettledInvoice, SettledPayment, SettledStatement
from p2pgrid.proto.verdict import Verdict
from p2pgrid.units import format_cents

MOST_ROWS: Final = 2000
"""Of each table."""
_DOCUMENTS: Final = {380: "invoice", 381: "credit note", 389: "self-billed", 261: "self-billed credit"}


def add_settlement(main: Element, verdict: Verdict) -> None:
    """Balances first; then the three tables, in which a click goes from receipts to statement to invoice to payment."""
    if not verdict.settlement:
        return
    add(main, "h2", "Settlement")
    _add_balances(main, verdict.settlement)
    rows = [(one, statement) for one in verdict.settlement for statement in one.statements]
    _add_statements(main, rows, verdict.settlement)
    _add_invoices(main, [(one, invoice) for one in verdict.settlement for invoice in one.invoices])
    _add_payments(main, [(one, payment) for one in verdict.settlement for payment in one.payments])


def settled_until(settlement: Sequence[ChannelSettlement]) -> dict[str, tuple[int, str]]:
    """For each channel: how many receipts statements hold, and the name of the last statement's row."""
    found = {}
    for one in settlement:
        if one.statements:
            last = max(one.statements, key=lambda statement: statement.last_receipt)
            found[one.channel] = last.last_receipt, mark_of(last.statement_id)
    return found


def mark_of(record_id: str) -> str:
    """The name of a record's row within the page."""
    return f"r{record_id[:32]}"


def _add_balances(main: Element, settlement: Sequence[ChannelSettlement]) -> None:
    card = SubElement(main, "div", {"class": "card"})
    sums = ("stated", "invoiced", "paid", "set off", "balance", "open", "overdue", "paid ahead", "owed back")
    table = add_table(card, ("channel",), (*sums, "receipts in no statement"))
    for one in sorted(settlement, key=lambda s: (-s.overdue_cents, -s.open_cents, s.channel))[:MOST_ROWS]:
        row = SubElement(table, "tr")
        add(SubElement(row, "td"), "code", one.channel[:8])
        amounts = one.gross_cents, one.invoiced_cents, one.payments_cents, one.set_off_cents, one.balance_cents
        for cents in amounts:
            add(row, "td", format_cents(cents), "number")
        for cents in (one.open_cents, one.overdue_cents, one.paid_ahead_cents):
            add(row, "td", format_cents(cents), "number")
        add(row, "td", f"{format_cents(one.owed_back_cents)} {one.currency}", "number")
        add(row, "td", f"{one.unstated_receipts:,}", "number")
    _add_more(card, len(settlement))


def _add_statements(
    main: Element, rows: Sequence[tuple[ChannelSettlement, SettledStatement]], settlement: Sequence[ChannelSettlement]
) -> None:
    if not rows:
        return
    invoices: dict[str, list[SettledInvoice]] = defaultdict(list)
    for one in settlement:
        for invoice in one.invoices:
            invoices[invoice.statement_id].append(invoice)
    add(main, "h3", f"Statements: {len(rows):,}")
    card = SubElement(main, "div", {"class": "card"})
    names = ("channel", "number", "receipts", "period", "invoices", "due", "state")
    table = add_table(card, names, ("net", "gross", "covered", "open", "closing"))
    for one, statement in rows[:MOST_ROWS]:
        row = SubElement(table, "tr", {"id": mark_of(statement.statement_id)})
        add(SubElement(row, "td"), "code", one.channel[:8])
        add(row, "td", str(statement.statement_number))
        first, last = statement.first_receipt, statement.last_receipt
        add(row, "td", f"{first} to {last}" if last >= first else "none")
        add(row, "td", f"{date_of(statement.from_ms)} to {date_of(statement.until_ms)}")
        cell = SubElement(row, "td")
        for invoice in invoices.get(statement.statement_id, ())[:8]:
            link(SubElement(cell, "div"), mark_of(invoice.invoice_id), invoice.invoice_number)
        add(row, "td", date_of(statement.due_ms))
        add(row, "td", _state_of(statement))
        for cents in (statement.net_cents, statement.gross_cents, statement.covered_cents, statement.open_cents):
            add(row, "td", format_cents(cents), "number")
        add(row, "td", format_cents(statement.closing_cents), "number")
    _add_more(card, len(rows))


def _state_of(statement: SettledStatement) -> str:
    if statement.invoiced_cents is None:
        return "not invoiced"
    if statement.open_cents:
        return "overdue" if statement.is_overdue else "open"
    return "owed back" if statement.owed_back_cents else "covered"


def _add_invoices(main: Element, rows: Sequence[tuple[ChannelSettlement, SettledInvoice]]) -> None:
    if not rows:
        return
    numbers = {s.statement_id: s.statement_number for one, _ in rows for s in one.statements}
    payments: dict[tuple[str, str], list[SettledPayment]] = defaultdict(list)
    for one in {one.channel: one for one, _ in rows}.values():
        for payment in one.payments:
            payments[payment.statement_id, payment.invoice_number].append(payment)
    add(main, "h3", f"Invoices: {len(rows):,}")
    card = SubElement(main, "div", {"class": "card"})
    names = ("number", "kind", "statement", "issued", "payments", "file (SHA-256)")
    table = add_table(card, names, ("net", "VAT", "gross", "paid"))
    for one, invoice in rows[:MOST_ROWS]:
        row = SubElement(table, "tr", {"id": mark_of(invoice.invoice_id)})
        add(row, "td", invoice.invoice_number)
        add(row, "td", _DOCUMENTS.get(invoice.type_code, str(invoice.type_code)))
        _add_statement_link(SubElement(row, "td"), one, invoice.statement_id, numbers)
        add(row, "td", date_of(invoice.issued_ms))
        cell = SubElement(row, "td")
        paid = payments.get((invoice.statement_id, invoice.invoice_number), [])
        for payment in paid[:8]:
            link(SubElement(cell, "div"), mark_of(payment.payment_id), date_of(payment.booked_ms))
        add(SubElement(row, "td", {"class": "id"}), "code", invoice.document_sha256[:16])
        for cents in (invoice.net_cents, invoice.vat_cents, invoice.gross_cents, sum(p.amount_cents for p in paid)):
            add(row, "td", format_cents(cents), "number")
    _add_more(card, len(rows))


def _add_payments(main: Element, rows: Sequence[tuple[ChannelSettlement, SettledPayment]]) -> None:
    if not rows:
        return
    invoices = {
        (i.statement_id, i.invoice_number): i
        for one in {one.channel: one for one, _ in rows}.values()
        for i in one.invoices
    }
    add(main, "h3", f"Payments: {len(rows):,}")
    card = SubElement(main, "div", {"class": "card"})
    table = add_table(card, ("booked", "kind", "reference", "invoice", "record"), ("amount", "counts for nothing yet"))
    for one, payment in rows[:MOST_ROWS]:
        row = SubElement(table, "tr", {"id": mark_of(payment.payment_id)})
        add(row, "td", date_of(payment.booked_ms))
        add(row, "td", payment.kind)
        add(row, "td", payment.reference)
        cell = SubElement(row, "td")
        invoice = invoices.get((payment.statement_id, payment.invoice_number))
        if invoice is not None:
            link(cell, mark_of(invoice.invoice_id), invoice.invoice_number)
        else:
            add(cell, "span", payment.invoice_number or "paid ahead")
        add(SubElement(row, "td", {"class": "id"}), "code", payment.payment_id[:16])
        add(row, "td", f"{format_cents(payment.amount_cents)} {one.currency}", "number")
        add(row, "td", format_cents(payment.unused_cents), "number")
    _add_more(card, len(rows))


def _add_statement_link(cell: Element, one: ChannelSettlement, statement_id: str, numbers: dict[str, int]) -> None:
    number = numbers.get(statement_id)
    if number is None:
        add(cell, "span", "in no bundle", "dim")
    else:
        link(cell, mark_of(statement_id), f"{one.channel[:8]}, {number}")


def _add_more(card: Element, count: int) -> None:
    if count > MOST_ROWS:
        add(card, "p", f"and {count - MOST_ROWS:,} that --json lists", "dim")
