"""What a statement, its invoices and their payments may say (docs/spec/audit.md, section 8).

Pure, over messages whose form and signatures were checked. Amounts are integers throughout: pico until an invoice,
which rounds each line once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from p2pgrid.proto.codes import Party
from p2pgrid.proto.merkle import CompactRange, leaf_hash
from p2pgrid.proto.messages import Channel, Receipt, Tariff
from p2pgrid.proto.pricing import owes_nothing
from p2pgrid.proto.rules import Fault
from p2pgrid.proto.statement import Invoice, Payment, Statement, StatementLine

PICO_PER_CENT: Final = 10**10
_DAY_MS: Final = 86_400_000


def statement_root(receipt_ids: Iterable[bytes]) -> bytes:
    """RFC 6962 Merkle tree hash over the receipts' ids, in the order of their numbers."""
    tree = CompactRange()
    for receipt_id in receipt_ids:
        tree.append(leaf_hash(receipt_id))
    return tree.root


def statement_lines(receipts: Iterable[tuple[Receipt, Tariff]]) -> tuple[StatementLine, ...]:
    """What receipts come to, by model and tariff, in that order.

    A line counts every receipt, and the tokens of those whose status lets them be billed.
    """
    sums: dict[tuple[str, int, int, int], list[int]] = {}
    for receipt, tariff in receipts:
        key = receipt.model, tariff.input_upm, tariff.cached_input_upm, tariff.output_upm
        row = sums.setdefault(key, [0, 0, 0, 0, 0])
        row[0] += 1
        row[4] += receipt.amount_pico
        if not owes_nothing(receipt.status):
            row[1] += receipt.usage.prompt_tokens
            row[2] += receipt.usage.cached_tokens
            row[3] += receipt.usage.output_tokens
    return tuple(
        StatementLine(
            model=model,
            input_upm=input_upm,
            cached_input_upm=cached_input_upm,
            output_upm=output_upm,
            receipts=row[0],
            prompt_tokens=row[1],
            cached_tokens=row[2],
            output_tokens=row[3],
            amount_pico=row[4],
        )
        for (model, input_upm, cached_input_upm, output_upm), row in sorted(sums.items())
    )


def faults_of_sums(statement: Statement, *, channel: Channel) -> list[Fault]:
    """Does a statement add up by itself? One `statement-mismatch` at most, or `statement-omits-receipt`."""
    what = f"Statement {statement.statement_number}"
    total = sum(line.amount_pico for line in statement.lines)
    closing = statement.opening_pico + statement.total_pico - statement.credits_pico - statement.payments_pico
    counted = sum(line.receipts for line in statement.lines)
    ranged = statement.last_receipt - statement.first_receipt + 1
    if counted < ranged:
        sentence = f"{what} is of {ranged} receipts, {statement.first_receipt} to {statement.last_receipt}, and counts"
        return [Fault("statement-omits-receipt", f"{sentence} {counted} of them.")]
    if counted > ranged:
        return [_mismatch(f"{what} counts {counted} receipts, and its range has {ranged}.")]
    if statement.currency != channel.currency:
        return [_mismatch(f"{what} is in {statement.currency}, the channel in {channel.currency}.")]
    if total != statement.total_pico:
        return [_mismatch(f"The total of {what.lower()} is {statement.total_pico} pico; its lines make {total}.")]
    if closing != statement.closing_pico:
        return [_mismatch(f"{what} closes with {statement.closing_pico} pico; what it states makes {closing}.")]
    return []


def faults_of_succession(statement: Statement, *, before: Statement | None, before_id: bytes) -> list[Fault]:
    """Does it follow the statement before, None for the first?

    At most one of `receipt-in-two-statements`, `statement-omits-receipt` and `statement-mismatch`, and
    `wrong-opening-balance`.
    """
    what = f"Statement {statement.statement_number}"
    last, closing = (before.last_receipt, before.closing_pico) if before else (0, 0)
    faults = []
    if statement.first_receipt <= last:
        sentence = f"{what} begins with receipt {statement.first_receipt}; the one before it goes to {last}."
        faults.append(Fault("receipt-in-two-statements", sentence))
    elif statement.first_receipt > last + 1:
        sentence = f"{what} begins with receipt {statement.first_receipt}; receipt {last + 1} is in none before it."
        faults.append(Fault("statement-omits-receipt", sentence))
    elif statement.previous != before_id:
        faults.append(_mismatch(f"{what} does not name the statement before it."))
    if statement.opening_pico != closing:
        sentence = f"{what} opens with {statement.opening_pico} pico; the balance before it is {closing}."
        faults.append(Fault("wrong-opening-balance", sentence))
    return faults


def faults_of_contents(
    statement: Statement,
    *,
    receipts: Sequence[tuple[bytes, Receipt]],
    tariffs: Sequence[Tariff] | None,
    credits_pico: tuple[int, int] | None,
) -> list[Fault]:
    """Is it what its receipts come to? One `statement-mismatch` at most.

    `receipts`: all of its range with their ids, by number. `tariffs`: of each, None if one is not known.
    `credits_pico`: the least and the most that accepted disputes take off, None if that is not known.
    """
    what = f"statement {statement.statement_number}"
    if statement_root(record_id for record_id, _ in receipts) != statement.root:
        return [_mismatch(f"The root of {what} is not that of its receipts.")]
    total = sum(receipt.amount_pico for _, receipt in receipts)
    if total != statement.total_pico:
        return [_mismatch(f"The total of {what} is {statement.total_pico} pico; its receipts make {total}.")]
    if tariffs is not None:
        expected = statement_lines((r, t) for (_, r), t in zip(receipts, tariffs, strict=True))
        if sorted(expected, key=_line_key) != sorted(statement.lines, key=_line_key):
            return [_mismatch(f"The lines of {what} are not its receipts by model and tariff.")]
    if credits_pico is not None and not credits_pico[0] <= statement.credits_pico <= credits_pico[1]:
        sentence = f"The credits of {what} are {statement.credits_pico} pico; accepted disputes make {credits_pico[1]}."
        return [_mismatch(sentence)]
    return []


def net_cents(statement: Statement) -> int:
    """What a statement's invoice comes to before VAT: each line and the credits rounded half up to a cent."""
    return sum(_to_cents(line.amount_pico) for line in statement.lines) - _to_cents(statement.credits_pico)


def faults_of_invoices(invoices: Sequence[Invoice], *, statement: Statement) -> list[Fault]:
    """Do all invoices of a statement together say what it says? One `invoice-mismatch` at most.

    Several are right where one is taken back and made again: their sums count.
    """
    numbers = " and ".join(invoice.invoice_number for invoice in invoices)
    if any(invoice.currency != statement.currency for invoice in invoices):
        return [Fault("invoice-mismatch", f"The invoice {numbers} is not in the statement's {statement.currency}.")]
    billed, owed = sum(invoice.net_cents for invoice in invoices), net_cents(statement)
    if billed != owed:
        sentence = (
            f"The invoice {numbers} bills {billed} cents net; statement {statement.statement_number} makes {owed}."
        )
        return [Fault("invoice-mismatch", sentence)]
    return []


def faults_of_payment(payment: Payment, *, invoices: Sequence[Invoice], earlier: Sequence[Payment]) -> list[Fault]:
    """Is it of the statement's invoices? `earlier`: payments booked before it. One `payment-mismatch` at most."""
    what = f"The payment {payment.reference!r}"
    invoice = next((i for i in invoices if i.invoice_number == payment.invoice_number), None)
    if invoice is not None and invoice.currency != payment.currency:
        return [Fault("payment-mismatch", f"{what} is in {payment.currency}, its invoice in {invoice.currency}.")]
    for other in earlier:
        same = (payment.reference, payment.invoice_number, payment.amount_cents)
        close = payment.booked_ms - other.booked_ms < _DAY_MS
        if close and payment.amount_cents > 0 and same == (other.reference, other.invoice_number, other.amount_cents):
            return [Fault("payment-mismatch", f"{what} was booked twice for invoice {payment.invoice_number}.")]
    owed = sum(i.gross_cents for i in invoices)
    paid = sum(p.amount_cents for p in (*earlier, payment))
    if invoice is not None and payment.amount_cents > 0 and paid > owed:
        sentence = (
            f"With {what[0].lower()}{what[1:]} {paid} cents are paid for a statement whose invoices come to {owed}."
        )
        # Whoever pays too much is at fault for it, or whoever books what never came: the records do not tell.
        return [Fault("payment-mismatch", sentence, Party.UNCLEAR)]
    return []


def _line_key(line: StatementLine) -> tuple[str | int, ...]:
    return tuple(getattr(line, name) for name in line.__struct_fields__)


def _to_cents(pico: int) -> int:
    return (pico + PICO_PER_CENT // 2) // PICO_PER_CENT


def _mismatch(sentence: str) -> Fault:
    return Fault("statement-mismatch", sentence)
