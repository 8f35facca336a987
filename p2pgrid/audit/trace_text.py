"""A trace for people: sums as an accountant writes them, and receipts as ranges of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from p2pgrid.audit.report import counts_of, date_of, headline, print_findings
from p2pgrid.audit.trace_parts import (
    Candidate,
    InvoicePart,
    MoneyPart,
    PartyNames,
    ReceiptPart,
    ReceiptTrace,
    StatementTrace,
    Trace,
    TransferTrace,
)
from p2pgrid.audit.trace_receipt import NO_RECEIPT_FIRST
from p2pgrid.audit.trace_whole_text import whole_lines
from p2pgrid.printable import printable
from p2pgrid.proto.verdict import Verdict
from p2pgrid.units import format_amount_eur, format_cents, format_price_eur

MOST_RANGES: Final = 6
MOST_MONEY_LINES: Final = 12
_COMPONENTS: Final = {
    "uncached_input": "input",
    "cached_input": "cached input",
    "output": "output",
    "difference": "billed beyond their tokens",
}
_DOCUMENTS: Final = {380: "invoice", 381: "credit note", 389: "self-billed invoice", 261: "self-billed credit note"}
_COVERS: Final = {
    "paid": "paid",
    "paid_ahead": "paid ahead",
    "paid_over": "paid too much elsewhere",
    "credit": "credit",
    "set_off": "set off",
}

Row = tuple[str, str]
"""What it is, and the amount."""


def print_trace(trace: Trace, verdict: Verdict, console: Console) -> None:
    """The audit's verdict in a line, the trace, and the findings that touch it.

    Names may quote what peers wrote: nothing in them is taken for markup or a control character.
    """
    verified = f"Verified: {headline(verdict)[0].lower()}{headline(verdict)[1:]}"
    style = "bold green" if verdict.clean else "bold red"
    console.print(Text.assemble((verified, style), counts_of(verdict)), soft_wrap=True)
    for line in lines_of(trace):
        console.print(Text(printable(line)), soft_wrap=True)
    several = len(verdict.channels) > 1
    title = "Findings" if trace.kind == "all" else "Findings of the audit that touch this"
    print_findings(title, trace.touched, console, several=several)
    print_findings("Notes (no fault)", trace.notes, console, several=several)
    if trace.other_findings:
        console.print(f"\n{trace.other_findings} other finding(s) do not touch this; `p2pgrid audit` shows them.")


def candidate_lines(candidates: Sequence[Candidate], most: int) -> list[str]:
    """What a name fits, each with the name that fits it alone."""
    lines = [f"  {one.name[: one.name.index(':') + 17]}  {printable(one.what)}" for one in candidates[:most]]
    more = len(candidates) - most
    return [*lines, f"  and {more} more"] if more > 0 else lines


def lines_of(trace: Trace) -> Iterator[str]:
    """The trace as lines of text."""
    yield ""
    if trace.transfer is not None:
        yield from _transfer(trace.transfer)
    if trace.invoice is not None:
        yield from _invoice(trace.invoice.invoice, trace.invoice.statement)
    if trace.statement is not None:
        yield from _statement(trace.statement)
        yield from _parties(trace.statement.parties)
    if trace.receipt is not None:
        yield from _receipt(trace.receipt)
    if trace.all is not None:
        yield from whole_lines(trace.all)


def _transfer(transfer: TransferTrace) -> Iterator[str]:
    currency = transfer.currency
    amount, day = f"{format_cents(transfer.amount_cents)} {currency}", date_of(transfer.booked_ms)
    yield f"Transfer of {amount}, {transfer.kind} on {day}, reference {transfer.reference!r}"
    for payment_id in transfer.payment_ids[:4]:
        yield f"record {payment_id}"
    yield from _parties(transfer.parties)
    yield ""
    rows: list[Row] = []
    for share in transfer.shares:
        label = f"{_COVERS[share.kind]}: of invoice {share.invoice_number or _numbers(share.statement.invoices)}"
        if share.cents < 0:
            label = f"went back: of invoice {share.invoice_number or _numbers(share.statement.invoices)}"
        count = share.statement.last_receipt - share.statement.first_receipt + 1
        label += f" over {format_cents(share.of_cents)}, statement {share.statement.statement_number}"
        label += f" of {count:,} receipts"
        rows.append((label, format_cents(share.cents)))
    for undone in transfer.undone:
        what = f"{undone.kind} {date_of(undone.at_ms)}, reference {undone.reference!r}, record {undone.payment_id[:16]}"
        label = f"went back: {what}" if transfer.amount_cents > 0 else f"took back what was {what}"
        rows.append((label, format_cents(undone.cents if transfer.amount_cents > 0 else -undone.cents)))
    if transfer.unused_cents:
        rows.append(("paid ahead: covers nothing yet", format_cents(transfer.unused_cents)))
    if transfer.astray_cents:
        rows.append(("for what no bundle shows", format_cents(transfer.astray_cents)))
    rows.append(("the transfer", f"{format_cents(transfer.amount_cents)} {currency}"))
    yield from _aligned(rows)
    if any(0 < share.cents < share.of_cents for share in transfer.shares):
        yield NO_RECEIPT_FIRST
    if transfer.reference_of:
        yield f"Its reference was made for {transfer.reference_of}, of which it pays nothing."
    if transfer.same_reference:
        others = ", ".join(one[:16] for one in transfer.same_reference[:MOST_RANGES])
        yield f"The same reference is in {len(transfer.same_reference)} other transfer(s): {others}."
    own = set(transfer.payment_ids)
    shown: set[str] = set()
    for share in transfer.shares:
        if share.statement.statement_id not in shown:
            shown.add(share.statement.statement_id)
            yield ""
            yield from _statement(share.statement, own)


def _invoice(invoice: InvoicePart, statement: StatementTrace) -> Iterator[str]:
    kind = _DOCUMENTS.get(invoice.type_code, "document").capitalize()
    amount = f"{format_cents(invoice.gross_cents)} {statement.parties.currency}"
    yield f"{kind} {invoice.invoice_number} over {amount}, issued {date_of(invoice.issued_ms)}"
    yield f"record {invoice.invoice_id}"
    yield f"file with SHA-256 {invoice.document_sha256}"
    yield from _parties(statement.parties)
    yield ""
    yield from _statement(statement)


def _receipt(traced: ReceiptTrace) -> Iterator[str]:
    receipt, currency = traced.receipt, traced.parties.currency
    amount = f"{format_amount_eur(receipt.amount_pico)} {currency}"
    state = traced.state.replace("_", " ")
    yield f"Receipt {receipt.receipt_number} over {amount}, {date_of(receipt.issued_ms)}: {state}"
    yield f"record {receipt.receipt_id}"
    tokens = f"{receipt.prompt_tokens:,} tokens in ({receipt.cached_tokens:,} cached), {receipt.output_tokens:,} out"
    signed = "signed by both" if receipt.countersigned else "signed by the provider alone"
    yield f"{receipt.model}, {receipt.status}, {tokens}, {signed}"
    yield from _parties(traced.parties)
    yield ""
    yield traced.sentence
    if traced.statement is not None:
        yield ""
        yield from _statement(traced.statement)


def _parties(parties: PartyNames) -> Iterator[str]:
    yield f"provider {parties.provider} {parties.operator}".rstrip()
    yield f"client {parties.client}"
    yield f"channel {parties.channel}"


def _statement(statement: StatementTrace, own: Iterable[str] = ()) -> Iterator[str]:
    """`own`: payments that are the ones asked about."""
    count = statement.last_receipt - statement.first_receipt + 1
    of = f"receipts {statement.first_receipt} to {statement.last_receipt}" if count else "no receipts"
    yield (
        f"Statement {statement.statement_number}, {date_of(statement.from_ms)} to {date_of(statement.until_ms)}: {of} "
        f"of channel {statement.parties.channel[:8]}"
    )
    for line in statement.lines:
        prices = " / ".join(map(format_price_eur, (line.input_upm, line.cached_input_upm, line.output_upm)))
        yield f"  {line.model} at {prices} a million tokens in / cached / out: {line.receipts:,} receipts"
        yield f"    receipts {ranges_text(line.receipt_numbers)}"
    if statement.unplaced_receipts:
        yield f"  in none of its lines: receipts {ranges_text(statement.unplaced_receipts)}"
    if statement.missing_receipts:
        yield f"  in no bundle: receipts {ranges_text(statement.missing_receipts)}"
    yield from _aligned([*_arithmetic(statement), *_money(statement, set(own))])
    if statement.receipts:
        yield f"  {'receipt':>9}  {'issued':16}  {'tokens in':>9}  {'cached':>8}  {'out':>8}  {'amount':>16}  id"
        yield from (_receipt_row(receipt) for receipt in statement.receipts)


def _arithmetic(statement: StatementTrace) -> Iterator[Row]:
    """From pico to the gross."""
    yield f"{statement.receipts_at_hand:,} receipts, exactly", format_amount_eur(statement.receipts_pico)
    if statement.receipts_pico != statement.total_pico:
        yield "  the statement says", format_amount_eur(statement.total_pico)
    for line in statement.lines:
        for part in line.components:
            if part.amount_pico:
                label = f"  {line.model}, {_COMPONENTS[part.kind]}"
                if part.kind != "difference":
                    label += f": {part.tokens:,} x {format_price_eur(part.price_upm)}"
                yield f"{label} = {format_amount_eur(part.amount_pico)}", format_cents(part.net_cents)
    if statement.lines:
        rounding = format_amount_eur(statement.rounding_pico)
        yield f"lines of the invoice (rounding {rounding})", format_cents(statement.components_cents)
    if statement.credits_pico:
        numbers = ", ".join(str(one.receipt_number) for one in statement.credited[:MOST_RANGES])
        yield f"credited by accepted disputes: receipts {numbers}", format_cents(-statement.credits_cents)
    if statement.held_pico:
        numbers = ", ".join(str(one.receipt_number) for one in statement.held[:MOST_RANGES])
        yield f"held back while disputed: receipts {numbers}", format_cents(-statement.held_cents)
    if statement.held_before_pico:
        yield "held back before, and comes back", format_cents(statement.held_before_cents)
    yield "net", format_cents(statement.net_cents)
    for vat in statement.vat:
        rate = f"{vat.rate_bp // 100}.{vat.rate_bp % 100:02d} % ({vat.category}) of {format_cents(vat.net_cents)}"
        yield f"VAT {rate}", format_cents(vat.vat_cents)
    yield "gross", f"{format_cents(statement.gross_cents)} {statement.parties.currency}"


def _money(statement: StatementTrace, own: set[str]) -> Iterator[Row]:
    """From the gross to who paid it."""
    for invoice in statement.invoices:
        kind = _DOCUMENTS.get(invoice.type_code, "document")
        label = f"{kind} {invoice.invoice_number}, {date_of(invoice.issued_ms)}"
        yield label, format_cents(invoice.gross_cents)
    if statement.invoiced_cents is None:
        yield "no invoice yet", format_cents(0)
        return
    if statement.invoiced_cents != statement.gross_cents:
        yield "invoices and statement differ by", format_cents(statement.invoiced_cents - statement.gross_cents)
    for part in statement.money[:MOST_MONEY_LINES]:
        here = "  <- this transfer" if part.source_id in own else ""
        yield _money_label(part), f"{format_cents(part.cents)}{here}"
    rest = statement.money[MOST_MONEY_LINES:]
    if rest:
        yield f"{len(rest)} more, which --json lists", format_cents(sum(part.cents for part in rest))
    for part in statement.given:
        yield f"counts for statement {part.statement_number}", format_cents(-part.cents)
    if statement.owed_back_cents:
        yield "owed back by the provider", format_cents(statement.owed_back_cents)
    overdue = ", overdue" if statement.is_overdue else ""
    due = f", due on {date_of(statement.due_ms)}{overdue}" if statement.open_cents else ""
    yield f"open{due}", format_cents(statement.open_cents)


def _money_label(part: MoneyPart) -> str:
    if part.kind == "credit":
        return f"credit of statement {part.statement_number}"
    if part.kind == "set_off":
        return f"set off, as statement {part.statement_number} says" if part.statement_number else "set off"
    right = "went back" if part.cents < 0 else _COVERS[part.kind]
    how = "" if part.source_kind == "received" else f", {part.source_kind}"
    return f"{right}{how} {date_of(part.at_ms)}, reference {part.reference!r}"


def _receipt_row(receipt: ReceiptPart) -> str:
    usage = f"{receipt.prompt_tokens:>9}  {receipt.cached_tokens:>8}  {receipt.output_tokens:>8}"
    amount = format_amount_eur(receipt.amount_pico)
    issued = date_of(receipt.issued_ms)
    return f"  {receipt.receipt_number:>9}  {issued:16}  {usage}  {amount:>16}  {receipt.receipt_id[:16]}"


def ranges_text(ranges: Sequence[tuple[int, int]]) -> str:
    """`1-3, 5, 9-12 and 12 more ranges`; `none`."""
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges[:MOST_RANGES])
    more = len(ranges) - MOST_RANGES
    return (f"{shown} and {more:,} more ranges" if more > 0 else shown) or "none at hand"


def _numbers(invoices: Sequence[InvoicePart]) -> str:
    return ", ".join(invoice.invoice_number for invoice in invoices[:3]) or "none"


def _aligned(rows: Iterable[Row]) -> Iterator[str]:
    """Labels on the left, amounts under one another by their decimal points."""
    listed = list(rows)
    width = max((len(label) for label, _ in listed), default=0)
    wholes = [amount.partition(".")[0] for _, amount in listed]
    before = max(map(len, wholes), default=0)
    for (label, amount), whole in zip(listed, wholes, strict=True):
        yield f"  {label:<{width}}  {' ' * (before - len(whole))}{amount}"
