"""One statement in both directions: its arithmetic down to receipts, and the money that covers it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from p2pgrid.audit.trace_book import TraceBook, TracedChannel, ranges_of, receipts_between
from p2pgrid.audit.trace_parts import (
    ComponentPart,
    ContestedPart,
    InvoicePart,
    LinePart,
    MoneyPart,
    ReceiptPart,
    StatementTrace,
    VatPart,
)
from p2pgrid.proto.allotment import Cover, CoverKind, StatementMoney
from p2pgrid.proto.contested import Contest, Taken, taken_at
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.invoice_sums import PICO_PER_CENT, cents_of
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Role
from p2pgrid.proto.settlement_case import tariff_of
from p2pgrid.proto.statement import Invoice, Statement, StatementLine
from p2pgrid.proto.statement_rules import components_of

_LineKey = tuple[str, int, int, int]


def trace_statement(
    book: TraceBook, channel: TracedChannel, money: StatementMoney, *, with_receipts: bool = False
) -> StatementTrace:
    """Everything about one statement. `with_receipts`: each of its receipts, too."""
    statement = money.statement
    before = channel.before(statement)
    receipts = receipts_between(channel, statement.first_receipt, statement.last_receipt)
    by_line = _by_line(book, channel, receipts)
    lines = tuple(_line_part(line, by_line.pop(_key_of(line), [])) for line in statement.lines)
    unplaced = sorted(held.message.receipt_number for left in by_line.values() for held in left)
    numbers = [held.message.receipt_number for held in receipts]
    components_cents = sum(line.net_cents for line in lines)
    contested = list(contested_in(channel, statement))
    held_before = before.held_pico if before else 0
    return StatementTrace(
        parties=channel.parties,
        statement_id=money.statement_id.hex(),
        statement_number=statement.statement_number,
        countersigned=channel.statements[money.statement_id].claims(Role.CLIENT),
        from_ms=statement.from_ms,
        until_ms=statement.until_ms,
        due_ms=statement.due_ms,
        first_receipt=statement.first_receipt,
        last_receipt=statement.last_receipt,
        receipts_at_hand=len(receipts),
        missing_receipts=missing_between(statement.first_receipt, statement.last_receipt, numbers),
        receipts_pico=sum(held.message.amount_pico for held in receipts),
        total_pico=statement.total_pico,
        lines=lines,
        unplaced_receipts=ranges_of(unplaced),
        components_cents=components_cents,
        rounding_pico=components_cents * PICO_PER_CENT - statement.total_pico,
        credits_pico=statement.credits_pico,
        credits_cents=cents_of(statement.credits_pico),
        credited=tuple(
            _contested_part(channel, number, now.credits_pico - then.credits_pico)
            for number, now, then in contested
            if now.credits_pico != then.credits_pico
        ),
        held_pico=statement.held_pico,
        held_cents=cents_of(statement.held_pico),
        held=tuple(_contested_part(channel, number, now.held_pico) for number, now, _ in contested if now.held_pico),
        held_before_pico=held_before,
        held_before_cents=cents_of(held_before),
        net_cents=statement.net_cents,
        vat=tuple(
            VatPart(
                category=line.category,
                rate_bp=line.rate_bp,
                exemption=line.exemption,
                net_cents=line.net_cents,
                vat_cents=line.vat_cents,
            )
            for line in statement.vat
        ),
        gross_cents=statement.gross_cents,
        invoices=tuple(invoice_part(held) for held in channel.invoices.get(money.statement_id, ())),
        invoiced_cents=money.invoiced_cents,
        money=tuple(money_part(channel, cover) for cover in money.covers),
        given=tuple(_given_part(channel, cover) for cover in money.given),
        covered_cents=money.covered_cents,
        open_cents=money.open_cents,
        owed_back_cents=money.owed_back_cents,
        is_overdue=money.open_cents > 0 and book.now_ms > statement.due_ms,
        receipts=tuple(receipt_part(held) for held in receipts) if with_receipts else (),
    )


def contested_in(
    channel: TracedChannel, statement: Statement, only: int | None = None
) -> Iterator[tuple[int, Taken, Taken]]:
    """Number of each disputed receipt up to the statement's last (or of the `only` one); what disputes come to at its
    time, and at that of the statement before."""
    before = channel.before(statement)
    of_receipt: dict[int, list[Contest]] = defaultdict(list)
    for contest in channel.book.contests:
        if only not in (None, contest.receipt_number):
            continue
        if contest.has_force and contest.receipt_number <= statement.last_receipt:
            of_receipt[contest.receipt_number].append(contest)
    for number, contests in sorted(of_receipt.items()):
        now = taken_at(contests, last_receipt=statement.last_receipt, at_ms=statement.stated_ms)
        then = Taken(0, 0)
        if before is not None:
            then = taken_at(contests, last_receipt=before.last_receipt, at_ms=before.stated_ms)
        yield number, now, then


def missing_between(first: int, last: int, numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """What a range lacks, as ranges; `numbers` are those it has, in order."""
    found = []
    expected = first
    for number in numbers:
        if number > expected:
            found.append((expected, number - 1))
        expected = number + 1
    return (*found, (expected, last)) if expected <= last else tuple(found)


def invoice_part(held: Held[Invoice]) -> InvoicePart:
    """An invoice as plain values."""
    invoice = held.message
    return InvoicePart(
        invoice_id=held.record_id.hex(),
        invoice_number=invoice.invoice_number,
        type_code=invoice.type_code.value,
        net_cents=invoice.net_cents,
        vat_cents=invoice.vat_cents,
        gross_cents=invoice.gross_cents,
        issued_ms=invoice.issued_ms,
        document_sha256=invoice.document_sha256.hex(),
    )


def receipt_part(held: Held[Receipt]) -> ReceiptPart:
    """A receipt as plain values."""
    receipt = held.message
    return ReceiptPart(
        receipt_id=held.record_id.hex(),
        receipt_number=receipt.receipt_number,
        order_number=receipt.order_number,
        model=receipt.model,
        status=receipt.status.value,
        prompt_tokens=receipt.usage.prompt_tokens,
        cached_tokens=receipt.usage.cached_tokens,
        output_tokens=receipt.usage.output_tokens,
        amount_pico=receipt.amount_pico,
        issued_ms=receipt.issued_ms,
        countersigned=held.claims(Role.CLIENT),
    )


def money_part(channel: TracedChannel, cover: Cover) -> MoneyPart:
    """What covers a statement, as plain values."""
    if cover.kind is CoverKind.CREDIT:
        number = channel.money.statements[cover.source].statement.statement_number
        source_kind, reference, at_ms = "", "", 0
    else:
        movement = channel.by_record[cover.source].movement
        stated = channel.statements.get(cover.source)  # a set-off that a statement states
        number = stated.message.statement_number if stated is not None else 0
        source_kind, reference, at_ms = movement.kind.value, movement.reference, movement.at_ms
    return MoneyPart(
        kind=cover.kind.value,
        cents=cover.cents,
        source_id=cover.source.hex(),
        source_kind=source_kind,
        reference=reference,
        at_ms=at_ms,
        invoice_number=cover.invoice_number,
        statement_number=number,
    )


def _given_part(channel: TracedChannel, cover: Cover) -> MoneyPart:
    other = channel.money.statements[cover.statement].statement
    return MoneyPart(
        kind=cover.kind.value,
        cents=cover.cents,
        source_id=cover.source.hex(),
        source_kind="",
        statement_number=other.statement_number,
    )


def _contested_part(channel: TracedChannel, number: int, pico: int) -> ContestedPart:
    return ContestedPart(
        receipt_number=number, receipt_id=channel.book.receipts[number].record_id.hex(), amount_pico=pico
    )


def _by_line(
    book: TraceBook, channel: TracedChannel, receipts: Sequence[Held[Receipt]]
) -> dict[_LineKey | None, list[Held[Receipt]]]:
    """Receipts by model and tariff; under None those whose tariff nothing at hand tells."""
    found: dict[_LineKey | None, list[Held[Receipt]]] = defaultdict(list)
    for held in receipts:
        tariff = tariff_of(book.offers, channel.book, held)
        key = None
        if tariff is not None:
            key = held.message.model, tariff.input_upm, tariff.cached_input_upm, tariff.output_upm
        found[key].append(held)
    return found


def _key_of(line: StatementLine) -> _LineKey:
    return line.model, line.input_upm, line.cached_input_upm, line.output_upm


def _line_part(line: StatementLine, receipts: Sequence[Held[Receipt]]) -> LinePart:
    components = tuple(
        ComponentPart(
            kind=one.kind.value,
            tokens=one.tokens,
            price_upm=one.price_upm,
            amount_pico=one.amount_pico,
            net_cents=one.net_cents,
        )
        for one in components_of(line)
    )
    return LinePart(
        model=line.model,
        input_upm=line.input_upm,
        cached_input_upm=line.cached_input_upm,
        output_upm=line.output_upm,
        receipts=line.receipts,
        receipts_at_hand=len(receipts),
        at_hand_pico=sum(held.message.amount_pico for held in receipts),
        receipt_numbers=ranges_of(held.message.receipt_number for held in receipts),
        prompt_tokens=line.prompt_tokens,
        cached_tokens=line.cached_tokens,
        output_tokens=line.output_tokens,
        amount_pico=line.amount_pico,
        components=components,
        net_cents=sum(component.net_cents for component in components),
    )
