"""The table of every cent, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from p2pgrid.audit.report import date_of
from p2pgrid.audit.trace_parts import TransferRow, WholeTrace
from p2pgrid.units import format_cents

MOST_ROWS: Final = 40


def whole_lines(whole: WholeTrace) -> Iterator[str]:
    """Statements, transfers and sums; the longest tables are cut, and say so."""
    if not whole.statements and not whole.transfers:
        yield "No statement and no payment is on record yet."
        return
    yield "Statements: gross = paid + paid ahead + set off + credit + open - owed back + not invoiced"
    names = (
        "channel",
        "no.",
        "invoice",
        "gross",
        "paid",
        "ahead",
        "set off",
        "credit",
        "open",
        "owed back",
        "not inv.",
    )
    rows = [
        (
            row.parties.channel[:8],
            str(row.statement_number),
            ", ".join(row.invoices[:2]),
            *map(
                format_cents,
                (
                    row.gross_cents,
                    row.paid_cents,
                    row.paid_ahead_cents,
                    row.set_off_cents,
                    row.credit_cents,
                    row.open_cents,
                    row.owed_back_cents,
                    row.not_invoiced_cents,
                ),
            ),
            _remark(row.is_overdue, row.left_over_cents, row.codes),
        )
        for row in whole.statements
    ]
    yield from _table((*names, ""), rows, left=3)
    yield ""
    yield "Transfers: amount = for invoices + went back + paid ahead"
    booked = ("booked", "reference", "kind", "invoice", "amount", "for invoices", "went back", "ahead")
    rows = [
        (
            date_of(row.booked_ms),
            row.reference,
            row.kind,
            ", ".join(row.invoices[:2]) + (f" and {len(row.invoices) - 2} more" if len(row.invoices) > 2 else ""),
            *map(format_cents, (row.amount_cents, row.covers_cents, row.undone_cents, row.unused_cents)),
            _transfer_remark(row),
        )
        for row in whole.transfers
    ]
    yield from _table((*booked, ""), rows, left=4)
    yield ""
    yield "Between two peers: gross of all statements, and what became of it"
    sums = ("provider", "client", "gross", "payments", "set off", "balance", "open", "overdue", "ahead", "owed back")
    rows = [
        (
            row.operator or f"…{row.provider[-8:]}",
            f"…{row.client[-8:]}",
            *map(
                format_cents,
                (
                    row.gross_cents,
                    row.payments_cents,
                    row.set_off_cents,
                    row.balance_cents,
                    row.open_cents,
                    row.overdue_cents,
                    row.paid_ahead_cents,
                    row.owed_back_cents,
                ),
            ),
            row.currency,
        )
        for row in whole.peers
    ]
    yield from _table((*sums, ""), rows, left=2)
    yield ""
    if whole.left_over_cents:
        yield f"Left over: {format_cents(whole.left_over_cents)}. The findings say of what."
    else:
        yield "Left over: nothing. Every cent of every statement and of every transfer is accounted for."
    waiting = sum(one.unstated_receipts for one in whole.channels)
    if waiting:
        yield f"In no statement yet: {waiting:,} receipts."


def _transfer_remark(row: TransferRow) -> str:
    said = [f"{format_cents(row.astray_cents)} for what no bundle shows"] if row.astray_cents else []
    if row.reference_of:
        said.append(f"reference of {row.reference_of}")
    if row.same_reference:
        said.append(f"same reference as {len(row.same_reference)} other(s)")
    return ", ".join(said)


def _remark(is_overdue: bool, left_over_cents: int, codes: Sequence[str]) -> str:
    said = ["overdue"] if is_overdue else []
    if left_over_cents:
        said.append(f"{format_cents(left_over_cents)} left over")
    return ", ".join([*said, *codes])


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    """The first `left` columns and the last stand on the left, amounts on the right."""
    shown = [tuple(names), *rows[:MOST_ROWS]]
    widths = [max(len(row[column]) for row in shown) for column in range(len(names))]
    for row in shown:
        cells = [
            cell.ljust(width) if column < left or column == len(names) - 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}".rstrip()
    if len(rows) > MOST_ROWS:
        yield f"  and {len(rows) - MOST_ROWS:,} more, which --json lists"
