"""The receipts of a trace as a table for spreadsheets: one line each, with where it went."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from p2pgrid.audit.trace_book import TraceBook, TracedChannel, receipts_between
from p2pgrid.audit.trace_parts import StatementTrace, Trace
from p2pgrid.cells import harmless
from p2pgrid.ledger.bundle import write_lines
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Role
from p2pgrid.units import format_amount_eur

COLUMNS: Final = (
    "channel",
    "receipt_number",
    "receipt_id",
    "issued_utc",
    "model",
    "status",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "amount",
    "currency",
    "countersigned",
    "statement_number",
    "invoice_numbers",
)


def write_csv(path: Path, book: TraceBook, trace: Trace) -> int:
    """Write every receipt of the trace to a file, whole or not at all; how many. Separated by semicolons, UTF-8.

    A text that a spreadsheet would take for a formula begins with an apostrophe. Raises UsageError for a folder that
    does not exist, LocalError if the disk is full or refuses.
    """
    rows = _rows(book, trace)
    return write_lines(path, (_line(row) for row in rows)) - 1


def _rows(book: TraceBook, trace: Trace) -> Iterator[Iterable[object]]:
    yield COLUMNS
    for channel, held in _receipts(book, trace):
        receipt = held.message
        holding = channel.holding(receipt.receipt_number)
        invoices = [h.message.invoice_number for one in holding for h in channel.invoices.get(one.statement_id, ())]
        yield (
            channel.id.hex(),
            receipt.receipt_number,
            held.record_id.hex(),
            _utc(receipt.issued_ms),
            receipt.model,
            receipt.status.value,
            receipt.usage.prompt_tokens,
            receipt.usage.cached_tokens,
            receipt.usage.output_tokens,
            format_amount_eur(receipt.amount_pico),
            channel.parties.currency,
            "yes" if held.claims(Role.CLIENT) else "no",
            " ".join(str(one.statement.statement_number) for one in holding),
            " ".join(invoices),
        )


def _receipts(book: TraceBook, trace: Trace) -> Iterator[tuple[TracedChannel, Held[Receipt]]]:
    """All of the statements that it names; of the table of all, all; each once."""
    if trace.kind == "all":
        for channel in book.channels:
            yield from ((channel, channel.book.receipts[number]) for number in sorted(channel.book.receipts))
        return
    channels = {channel.id.hex(): channel for channel in book.channels}
    if trace.receipt is not None:
        channel = channels[trace.receipt.parties.channel]
        yield channel, channel.book.receipts[trace.receipt.receipt.receipt_number]
        return
    seen: dict[str, set[bytes]] = defaultdict(set)
    for statement in {one.statement_id: one for one in statements_of(trace)}.values():
        channel, told = channels[statement.parties.channel], seen[statement.parties.channel]
        for held in receipts_between(channel, statement.first_receipt, statement.last_receipt):
            if held.record_id not in told:
                told.add(held.record_id)
                yield channel, held


def statements_of(trace: Trace) -> Iterator[StatementTrace]:
    """The statements that a trace goes through."""
    if trace.transfer is not None:
        yield from (share.statement for share in trace.transfer.shares)
    if trace.invoice is not None:
        yield trace.invoice.statement
    if trace.statement is not None:
        yield trace.statement
    if trace.receipt is not None and trace.receipt.statement is not None:
        yield trace.receipt.statement


def _line(row: Iterable[object]) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=";", lineterminator="").writerow([_cell(value) for value in row])
    return out.getvalue().encode()


def _cell(value: object) -> str:
    return harmless(value) if isinstance(value, str) else str(value)


def _utc(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return str(time_ms)
