"""Following money: down from a transfer to the receipts that it pays for, up from a receipt to what paid it.

`docs/settlement/trace.md` says by which rules. Everything here is of records that an audit has judged before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from p2pgrid.audit.trace_book import TraceBook, TracedChannel, Transfer
from p2pgrid.audit.trace_parts import (
    InvoiceTrace,
    Kind,
    ReceiptTrace,
    Share,
    StatementTrace,
    Trace,
    TransferTrace,
    UndonePart,
)
from p2pgrid.audit.trace_receipt import trace_receipt
from p2pgrid.audit.trace_statement import invoice_part, trace_statement
from p2pgrid.audit.trace_whole import trace_whole
from p2pgrid.proto.allotment import Cover, MovementMoney, StatementMoney
from p2pgrid.proto.codes import CODES, Weight
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.statement import Invoice

Range = tuple[TracedChannel, int, int]


def whole_trace(book: TraceBook) -> Trace:
    """Every cent of everything."""
    findings, notes = book.verdict.findings, book.verdict.notes
    return Trace(kind="all", all=trace_whole(book), touched=findings, notes=notes)


def transfer_trace(book: TraceBook, transfer: Transfer, *, with_receipts: bool = False) -> Trace:
    """What a transfer paid, down to the receipts."""
    first, channel = transfer.first, transfer.movements[0][0]
    ids: set[bytes] = set()
    ranges: list[Range] = []
    shares = []
    statements: dict[bytes, StatementTrace] = {}
    for one_channel, cover in _covers_of(transfer):
        money = one_channel.money.statements[cover.statement]
        if cover.statement not in statements:
            traced = trace_statement(book, one_channel, money, with_receipts=with_receipts)
            statements[cover.statement] = traced
            _touch(one_channel, money, ids, ranges)
        shares.append(_share(one_channel, money, cover, statements[cover.statement]))
    own = {movement.movement.record_id for _, movement in transfer.movements}
    reference_of, same_reference = book.about_reference(transfer)
    of_transfer = TransferTrace(
        payment_ids=tuple(movement.movement.record_id.hex() for _, movement in transfer.movements),
        entry=first.movement.entry.hex(),
        kind=first.movement.kind.value,
        reference=first.movement.reference,
        booked_ms=first.movement.at_ms,
        amount_cents=transfer.amount_cents,
        currency=channel.parties.currency,
        shares=tuple(shares),
        undone=tuple(_undone(transfer, own)),
        unused_cents=sum(movement.unused_cents for _, movement in transfer.movements),
        astray_cents=sum(movement.astray_cents for _, movement in transfer.movements),
        reference_of=reference_of,
        same_reference=same_reference,
        parties=channel.parties,
    )
    return _with_findings(book, "transfer", ids | own, ranges, transfer=of_transfer)


def invoice_trace(
    book: TraceBook, channel: TracedChannel, held: Held[Invoice], *, with_receipts: bool = False
) -> Trace:
    """An invoice in both directions. Its statement must be at hand."""
    money = channel.money.statements[held.message.statement]
    ids: set[bytes] = set()
    ranges: list[Range] = []
    _touch(channel, money, ids, ranges)
    number = held.message.invoice_number
    traced = InvoiceTrace(
        invoice=invoice_part(held),
        paid_cents=sum(cover.cents for cover in money.covers if cover.invoice_number == number),
        statement=trace_statement(book, channel, money, with_receipts=with_receipts),
    )
    return _with_findings(book, "invoice", ids, ranges, invoice=traced)


def statement_trace(
    book: TraceBook, channel: TracedChannel, money: StatementMoney, *, with_receipts: bool = False
) -> Trace:
    """A statement in both directions."""
    ids: set[bytes] = set()
    ranges: list[Range] = []
    _touch(channel, money, ids, ranges)
    traced = trace_statement(book, channel, money, with_receipts=with_receipts)
    return _with_findings(book, "statement", ids, ranges, statement=traced)


def receipt_trace(book: TraceBook, channel: TracedChannel, held: Held[Receipt]) -> Trace:
    """A receipt, upwards."""
    traced = trace_receipt(book, channel, held)
    ids = {held.record_id}
    number = held.message.receipt_number
    for money in channel.holding(number):
        _touch(channel, money, ids, [])
    return _with_findings(book, "receipt", ids, [(channel, number, number)], receipt=traced)


def _with_findings(
    book: TraceBook,
    kind: Kind,
    ids: Iterable[bytes],
    ranges: list[Range],
    *,
    transfer: TransferTrace | None = None,
    invoice: InvoiceTrace | None = None,
    statement: StatementTrace | None = None,
    receipt: ReceiptTrace | None = None,
) -> Trace:
    found = book.touching(ids, ranges)
    faults = tuple(one for one in found if CODES[one.code].weight is Weight.FAULT)
    return Trace(
        kind=kind,
        transfer=transfer,
        invoice=invoice,
        statement=statement,
        receipt=receipt,
        touched=faults,
        notes=tuple(one for one in found if CODES[one.code].weight is Weight.NOTE),
        other_findings=sum(one.count for one in book.verdict.findings) - sum(one.count for one in faults),
    )


def _touch(channel: TracedChannel, money: StatementMoney, ids: set[bytes], ranges: list[Range]) -> None:
    """Add the records of a statement, its invoices and its money; and its receipts."""
    ids.add(money.statement_id)
    ids.update(held.record_id for held in channel.invoices.get(money.statement_id, ()))
    ids.update(cover.source for cover in money.covers)
    ids.update(one.movement.record_id for one in channel.naming.get(money.statement_id, ()))
    ranges.append((channel, money.statement.first_receipt, money.statement.last_receipt))


def _covers_of(transfer: Transfer) -> list[tuple[TracedChannel, Cover]]:
    """What a transfer covers: of one statement, invoice and right one sum, though several records tell of it."""
    merged: dict[tuple[bytes, bytes, str, str], tuple[TracedChannel, Cover]] = {}
    for channel, movement in transfer.movements:
        for cover in movement.covers:
            key = channel.id, cover.statement, cover.invoice_number, cover.kind.value
            cents = cover.cents + (merged[key][1].cents if key in merged else 0)
            merged[key] = channel, Cover(cover.kind, cents, cover.source, cover.statement, cover.invoice_number)
    return list(merged.values())


def _share(channel: TracedChannel, money: StatementMoney, cover: Cover, statement: StatementTrace) -> Share:
    of_cents = money.invoiced_cents or 0
    if cover.invoice_number:
        of_cents = channel.billed.get((money.statement_id, cover.invoice_number), 0)
    return Share(
        kind=cover.kind.value,
        cents=cover.cents,
        invoice_number=cover.invoice_number,
        of_cents=of_cents,
        statement=statement,
    )


def _undone(transfer: Transfer, own: set[bytes]) -> Iterable[UndonePart]:
    """What other movements undid of it, or it of them; not what one of its records moves to another."""
    sums: dict[tuple[bytes, bytes], int] = defaultdict(int)
    for _, movement in transfer.movements:
        for undone in movement.undone:
            sums[undone.came, undone.went] += undone.cents
    by_record: dict[bytes, MovementMoney] = {}
    for channel, _ in transfer.movements:
        by_record.update(channel.by_record)
    for (came, went), cents in sums.items():
        if came in own and went in own:
            continue
        other = by_record[went if came in own else came].movement
        yield UndonePart(
            cents=cents,
            payment_id=other.record_id.hex(),
            kind=other.kind.value,
            reference=other.reference,
            at_ms=other.at_ms,
        )
