"""What a channel's settlement comes to: statements, invoices, payments, and what is open of each.

A part of the audit's verdict. The allotment of money is `allotment.allot`'s.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from p2pgrid.proto.allotment import ChannelMoney, allot, movements_of, set_off_movements, stated_set_offs
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.elided import Sums
from p2pgrid.proto.record import Role


class SettledStatement(msgspec.Struct, frozen=True, kw_only=True):
    """One statement, and what came of its gross."""

    statement_id: str
    statement_number: int
    countersigned: bool
    first_receipt: int
    last_receipt: int
    """`first_receipt` - 1: of no receipts."""
    from_ms: int
    until_ms: int
    due_ms: int
    net_cents: int
    gross_cents: int
    opening_cents: int
    closing_cents: int
    invoiced_cents: int | None
    """None: no invoice asks for it yet."""
    covered_cents: int
    """Paid for it or counted for it, and not taken back; below zero: paid back."""
    given_cents: int
    """Of a credit: what counts for other statements."""
    open_cents: int
    owed_back_cents: int
    """Of a credit: what is left of it."""
    is_overdue: bool
    """Something is open, and the time to pay it is over."""


class SettledInvoice(msgspec.Struct, frozen=True, kw_only=True):
    """One invoice."""

    invoice_id: str
    invoice_number: str
    statement_id: str
    type_code: int
    currency: str
    net_cents: int
    vat_cents: int
    gross_cents: int
    document_sha256: str
    issued_ms: int


class SettledPayment(msgspec.Struct, frozen=True, kw_only=True):
    """One movement of money."""

    payment_id: str
    kind: str
    reference: str
    amount_cents: int
    booked_ms: int
    statement_id: str
    """Empty: for no invoice."""
    invoice_number: str
    entry: str
    """Of the bank's file; empty where there is none."""
    unused_cents: int
    """Paid ahead, and counts for nothing yet."""


class ChannelSettlement(msgspec.Struct, frozen=True, kw_only=True):
    """One channel with statements, invoices or payments."""

    channel: str
    currency: str
    opening_cents: int
    """Of its first statement: above 0 only where it goes on from another channel."""
    gross_cents: int
    """Of all statements; the next ones likewise."""
    invoiced_cents: int
    payments_cents: int
    """All that came, less all that went back."""
    set_off_cents: int
    uncounted_cents: int
    """Of `payments_cents`: what no statement counts yet."""
    balance_cents: int
    """What the client owes, opening and all; below zero: it has paid so much ahead. What is not invoiced counts too."""
    not_invoiced_cents: int
    open_cents: int
    overdue_cents: int
    owed_back_cents: int
    paid_ahead_cents: int
    """Or set off ahead: what counts for no statement yet."""
    astray_cents: int
    """Payments for what no bundle shows. Each has its finding."""
    unstated_receipts: int
    """Receipts that no statement holds yet."""
    unstated_pico: int
    statements: tuple[SettledStatement, ...]
    invoices: tuple[SettledInvoice, ...]
    payments: tuple[SettledPayment, ...]


def settlements_of(books: Iterable[Book], *, now_ms: int) -> tuple[ChannelSettlement, ...]:
    """Of each channel that has statements, invoices or payments."""
    return tuple(_settlement(book, now_ms) for book in books if book.all_statements or book.invoices or book.payments)


def money_of(book: Book) -> ChannelMoney:
    """Every cent of a channel. What counts as open is rule 43b's: invoices of statements that do not stand, too."""
    billed = {held.message.statement for held in book.invoices}
    standing = {held.record_id for held in book.statements.values()}
    statements = [h for h in book.all_statements if h.record_id in standing or h.record_id in billed]
    movements = movements_of((h.record_id, h.message) for h in book.payments)
    movements += set_off_movements(book.taken_off)
    known_cents = sum(taken.cents for taken in book.taken_off)
    movements += stated_set_offs(((h.record_id, h.message) for h in book.statements.values()), known_cents=known_cents)
    return allot(
        [(h.record_id, h.message) for h in statements],
        [h.message for h in book.invoices],
        movements,
    )


def unstated_of(book: Book) -> tuple[int, int]:
    """Receipts above the last that a statement holds: how many, and their pico. Those left out here are counted."""
    until = max((held.message.last_receipt for held in book.statements.values()), default=0)
    sums = Sums()
    if not until:
        sums.add(book.elided.sums)
    for number, held in book.receipts.items():
        if number > until and (until or held.message.order_number not in book.elided.counted):
            sums.count(held.message, countersigned=False)
    return sums.receipts, sums.amount_pico


def _settlement(book: Book, now_ms: int) -> ChannelSettlement:
    money = money_of(book)
    signed = {h.record_id: h.claims(Role.CLIENT) for h in book.all_statements}
    statements = tuple(
        SettledStatement(
            statement_id=one.statement_id.hex(),
            statement_number=one.statement.statement_number,
            countersigned=signed[one.statement_id],
            first_receipt=one.statement.first_receipt,
            last_receipt=one.statement.last_receipt,
            from_ms=one.statement.from_ms,
            until_ms=one.statement.until_ms,
            due_ms=one.statement.due_ms,
            net_cents=one.statement.net_cents,
            gross_cents=one.statement.gross_cents,
            opening_cents=one.statement.opening_cents,
            closing_cents=one.statement.closing_cents,
            invoiced_cents=one.invoiced_cents,
            covered_cents=one.covered_cents,
            given_cents=one.given_cents,
            open_cents=one.open_cents,
            owed_back_cents=one.owed_back_cents,
            is_overdue=one.open_cents > 0 and now_ms > one.statement.due_ms,
        )
        for one in money.statements.values()
    )
    invoices = tuple(
        SettledInvoice(
            invoice_id=held.record_id.hex(),
            invoice_number=held.message.invoice_number,
            statement_id=held.message.statement.hex(),
            type_code=held.message.type_code.value,
            currency=held.message.currency,
            net_cents=held.message.net_cents,
            vat_cents=held.message.vat_cents,
            gross_cents=held.message.gross_cents,
            document_sha256=held.message.document_sha256.hex(),
            issued_ms=held.message.issued_ms,
        )
        for held in sorted(book.invoices, key=lambda h: (h.message.issued_ms, h.record_id))
    )
    unused = {one.movement.record_id: one.unused_cents for one in money.movements}
    payments = tuple(
        SettledPayment(
            payment_id=held.record_id.hex(),
            kind=held.message.kind.value,
            reference=held.message.reference,
            amount_cents=held.message.amount_cents,
            booked_ms=held.message.booked_ms,
            statement_id=held.message.statement.hex(),
            invoice_number=held.message.invoice_number,
            entry=held.message.entry.hex(),
            unused_cents=unused[held.record_id],
        )
        for held in sorted(book.payments, key=lambda h: (h.message.booked_ms, h.record_id))
    )
    first = book.statements[min(book.statements)].message if book.statements else None
    gross = sum(held.message.gross_cents for held in book.statements.values())
    set_off = sum(held.message.set_off_cents for held in book.statements.values())
    opening = first.opening_cents if first is not None else 0
    paid = sum(payment.amount_cents for payment in payments)
    unstated = unstated_of(book)
    return ChannelSettlement(
        channel=book.id.hex(),
        currency=book.channel.message.currency,
        opening_cents=opening,
        gross_cents=gross,
        invoiced_cents=sum(invoice.gross_cents for invoice in invoices),
        payments_cents=paid,
        set_off_cents=set_off,
        uncounted_cents=paid - sum(held.message.payments_cents for held in book.statements.values()),
        balance_cents=opening + gross - paid - set_off,
        not_invoiced_cents=sum(one.not_invoiced_cents for one in money.statements.values()),
        open_cents=money.open_cents,
        overdue_cents=sum(one.open_cents for one in statements if one.is_overdue),
        owed_back_cents=sum(one.owed_back_cents for one in statements),
        paid_ahead_cents=money.paid_ahead_cents,
        astray_cents=sum(one.astray_cents for one in money.movements),
        unstated_receipts=unstated[0],
        unstated_pico=unstated[1],
        statements=statements,
        invoices=invoices,
        payments=payments,
    )
