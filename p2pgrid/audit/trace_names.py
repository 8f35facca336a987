"""What a person calls a payment, an invoice, a statement or a receipt, and which ones that may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

from p2pgrid.audit.report import date_of
from p2pgrid.audit.trace import invoice_trace, receipt_trace, statement_trace, transfer_trace
from p2pgrid.audit.trace_book import TraceBook, TracedChannel, Transfer, compact
from p2pgrid.audit.trace_parts import Candidate, Trace
from p2pgrid.errors import UsageError
from p2pgrid.printable import printable
from p2pgrid.proto.allotment import StatementMoney
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.statement import Invoice
from p2pgrid.units import format_cents

MIN_PREFIX_CHARS: Final = 4
MOST_CANDIDATES: Final = 20
KINDS: Final = ("payment", "invoice", "statement", "receipt")
HINT: Final = (
    "Name a transfer by its end-to-end reference, by `12.40` or `12.40 2026-11-02`, or by a payment's id; an invoice "
    "by its number; a statement as CHANNEL:sNUMBER; a receipt by its id or CHANNEL:NUMBER."
)

_AMOUNT: Final = re.compile(
    r"(?P<sign>-?)(?P<whole>[0-9]{1,13})(?:[.,](?P<cents>[0-9]{1,2}))?(?: ?(?:EUR|€))?"
    r"(?: *[ @] *(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2}))?",
    re.IGNORECASE,
)
_HEX: Final = re.compile(rf"[0-9a-f]{{{MIN_PREFIX_CHARS},64}}", re.IGNORECASE)
_NUMBERED: Final = re.compile(r"([0-9a-f]{1,64}):(s?)([1-9][0-9]{0,15})", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,15}")

Make = Callable[..., Trace]
"""Makes the trace; takes `with_receipts`."""


class Ambiguous(UsageError):
    """A name fits several things."""

    def __init__(self, name: str, found: list[Candidate]) -> None:
        super().__init__(f"{name!r} names {len(found)} things.", hint="Name one of them as its line says.")
        self.candidates: Final = found


class NotNamed(UsageError):
    """Nothing at hand has that name."""


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a name fits."""

    candidate: Candidate
    make: Make


def find(book: TraceBook, name: str) -> Found:
    """What the name means. Raises Ambiguous with the candidates, NotNamed, UsageError for what is no name."""
    kind, found = find_all(book, name)
    unique = list({one.candidate.name: one for one in found}.values())
    if len(unique) == 1:
        return unique[0]
    if unique:
        raise Ambiguous(name, [one.candidate for one in unique])
    raise NotNamed(f"no {kind or 'record'} at hand is named {name[:80]!r}.", hint=HINT)


def find_all(book: TraceBook, name: str) -> tuple[str, list[Found]]:
    """The kind that the name says, and all that it fits: by exact names first, else by an amount, else by ids."""
    kind, _, rest = name.partition(":")
    if kind.lower() in KINDS:
        kind, name = kind.lower(), rest
    else:
        kind = ""
    name = name.strip()
    if not name:
        raise UsageError("a name is empty.", hint=HINT)
    for look in (_by_exact_name, _by_amount, _by_id, _by_number):
        found = [one for one in look(book, name, kind) if kind in ("", _kind_word(one.candidate.kind))]
        if found:
            return kind, found
    return kind, []


def _kind_word(kind: str) -> str:
    return "payment" if kind == "transfer" else kind


def _by_exact_name(book: TraceBook, name: str, kind: str) -> Iterator[Found]:
    for channel in book.channels:
        for invoices in channel.invoices.values():
            yield from (invoice_found(book, channel, h) for h in invoices if h.message.invoice_number == name)
    paid = book.having_reference(name)
    yield from (transfer_found(book, transfer) for transfer in paid)
    if not paid and compact(name) in book.by_reference:
        yield statement_found(book, *book.by_reference[compact(name)])


def _by_amount(book: TraceBook, name: str, kind: str) -> Iterator[Found]:
    read = _AMOUNT.fullmatch(name)
    if read is None:
        return
    cents = int(read["whole"]) * 100 + int((read["cents"] or "").ljust(2, "0"))
    cents = -cents if read["sign"] else cents
    day = read["day"]
    if day is not None:
        try:
            datetime.fromisoformat(day).replace(tzinfo=UTC)
        except ValueError:
            raise UsageError(f"{day!r} is no date.", hint="Write it like 2026-11-02.") from None
    for transfer in book.transfers:
        if transfer.amount_cents == cents and day in (None, date_of(transfer.first.movement.at_ms)):
            yield transfer_found(book, transfer)


def _by_id(book: TraceBook, name: str, kind: str) -> Iterator[Found]:
    if not _HEX.fullmatch(name):
        return
    start = name.lower()
    for transfer in book.transfers:
        ids = [one.movement.record_id.hex() for _, one in transfer.movements]
        if any(one.startswith(start) for one in (*ids, transfer.first.movement.entry.hex())):
            yield transfer_found(book, transfer)
    for channel in book.channels:
        for invoices in channel.invoices.values():
            yield from (invoice_found(book, channel, h) for h in invoices if h.record_id.hex().startswith(start))
        for money in channel.money.statements.values():
            if money.statement_id.hex().startswith(start):
                yield statement_found(book, channel, money)
        for held in channel.book.receipts.values():
            if held.record_id.hex().startswith(start):
                yield receipt_found(book, channel, held)


def _by_number(book: TraceBook, name: str, kind: str) -> Iterator[Found]:
    """`CHANNEL:NUMBER`, `CHANNEL:sNUMBER`; with a kind the number alone: `receipt:31`, `statement:2`."""
    read = _NUMBERED.fullmatch(name)
    if read is not None:
        prefix, is_statement, number = read[1].lower(), bool(read[2]) or kind == "statement", int(read[3])
    elif kind in ("receipt", "statement") and _NUMBER.fullmatch(name):
        prefix, is_statement, number = "", kind == "statement", int(name)
    else:
        return
    for channel in book.channels:
        if not channel.id.hex().startswith(prefix):
            continue
        if is_statement:
            of_number = [m for m in channel.money.statements.values() if m.statement.statement_number == number]
            yield from (statement_found(book, channel, money) for money in of_number)
        elif number in channel.book.receipts:
            yield receipt_found(book, channel, channel.book.receipts[number])


def transfer_found(book: TraceBook, transfer: Transfer) -> Found:
    """A transfer as what a name fits."""
    movement, parties = transfer.first.movement, transfer.movements[0][0].parties
    what = f"transfer of {format_cents(transfer.amount_cents)} {parties.currency}, {movement.kind.value} "
    what += f"{date_of(movement.at_ms)}, reference {movement.reference!r}"
    if movement.invoice_number:
        what += f", for invoice {movement.invoice_number}"
    candidate = Candidate(kind="transfer", name=f"payment:{movement.record_id.hex()}", what=what)
    return Found(candidate, partial(transfer_trace, book, transfer))


def invoice_found(book: TraceBook, channel: TracedChannel, held: Held[Invoice]) -> Found:
    """An invoice likewise. Raises UsageError, once it is traced, if its statement is not at hand."""
    invoice = held.message
    what = f"invoice {invoice.invoice_number} over {format_cents(invoice.gross_cents)} {invoice.currency}, issued "
    what += f"{date_of(invoice.issued_ms)}, to {channel.parties.client}"
    candidate = Candidate(kind="invoice", name=f"invoice:{held.record_id.hex()}", what=what)
    if invoice.statement not in channel.money.statements:
        return Found(candidate, partial(_without_statement, invoice.invoice_number))
    return Found(candidate, partial(invoice_trace, book, channel, held))


def statement_found(book: TraceBook, channel: TracedChannel, money: StatementMoney) -> Found:
    """A statement likewise."""
    statement = money.statement
    what = f"statement {statement.statement_number} of channel {channel.id.hex()[:8]}, "
    what += f"{format_cents(statement.gross_cents)} {statement.currency} gross, to {date_of(statement.until_ms)}"
    candidate = Candidate(kind="statement", name=f"statement:{money.statement_id.hex()}", what=what)
    return Found(candidate, partial(statement_trace, book, channel, money))


def receipt_found(book: TraceBook, channel: TracedChannel, held: Held[Receipt]) -> Found:
    """A receipt likewise."""
    receipt = held.message
    what = f"receipt {receipt.receipt_number} of channel {channel.id.hex()[:8]}, of {date_of(receipt.issued_ms)}"
    candidate = Candidate(kind="receipt", name=f"receipt:{held.record_id.hex()}", what=what)
    return Found(candidate, lambda with_receipts=False: receipt_trace(book, channel, held))


def _without_statement(number: str, *, with_receipts: bool = False) -> Trace:
    raise UsageError(
        f"the statement of invoice {printable(number)} is in no bundle: it cannot be followed.",
        hint="Name the other side's bundle, too.",
    )
