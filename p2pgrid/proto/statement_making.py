"""The next statement of a channel, from what both sides have on record (docs/spec/messages.md, section 7).

Pure, and the same on both sides: from the same receipts, disputes and terms follows the same message, byte for byte.
Who proposes it, and when, is settlement's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from p2pgrid.proto.contested import Contest, taken_at
from p2pgrid.proto.invoice_sums import vat_of
from p2pgrid.proto.messages import Channel, Receipt, Tariff
from p2pgrid.proto.record import Signed
from p2pgrid.proto.statement import MAX_LINES, MAX_NAME_BYTES, Statement, VatLine
from p2pgrid.proto.statement_rules import statement_lines, statement_net, statement_root

VatOf = Callable[[int], tuple[VatLine, ...]]
"""A net in cents as categories of VAT."""


@dataclass(frozen=True, slots=True)
class Stated:
    """One receipt of a statement."""

    receipt_id: bytes
    receipt: Receipt
    tariff: Tariff
    """Of its order's time."""


@dataclass(frozen=True, slots=True)
class Period:
    """The times of a statement, Unix milliseconds; its beginning is the end of the one before."""

    until_ms: int
    stated_ms: int
    due_ms: int


def vat_in(category: str, rate_bp: int, exemption: str = "") -> VatOf:
    """All of a net in one category and rate (`statement.VatLine`)."""

    def lines(net_cents: int) -> tuple[VatLine, ...]:
        vat_cents = vat_of(net_cents, rate_bp)
        return (
            VatLine(
                category=category,
                rate_bp=rate_bp,
                exemption=exemption,
                net_cents=net_cents,
                vat_cents=vat_cents,
            ),
        )

    return lines


def receipts_of_period(receipts: Iterable[Stated], *, until_ms: int) -> list[Stated]:
    """Those of a channel's unstated receipts, by number, that a period has: up to the first that was made after it, or
    with which a statement would have too many lines. The next statement begins with that one."""
    found = []
    lines: set[tuple[str, Tariff]] = set()
    name_bytes = 0
    for stated in receipts:
        line = stated.receipt.model, stated.tariff
        if line not in lines:
            lines.add(line)
            name_bytes += len(stated.receipt.model.encode())
        if stated.receipt.issued_ms > until_ms or len(lines) > MAX_LINES or name_bytes > MAX_NAME_BYTES:
            break
        found.append(stated)
    return found


def make_statement(
    channel: Channel,
    *,
    before: Signed[Statement] | None,
    receipts: Sequence[Stated],
    contests: Iterable[Contest],
    credited_pico: int,
    payments_cents: int,
    set_off_cents: int,
    opening_cents: int = 0,
    period: Period,
    vat: VatOf,
) -> Statement:
    """The statement that follows `before`, None for the first, over the receipts that come next in the chain.

    `contests`: all disputes with force about the channel's receipts. `credited_pico`: the credits of all statements
    before. `payments_cents`, `set_off_cents`: since the statement before. `opening_cents`: of the first statement of a
    channel that continues another; every other begins where the one before ended. The message is not checked here:
    signing it is (`record.sign_message`).
    """
    last = before.message if before is not None else None
    first_receipt = last.last_receipt + 1 if last is not None else 1
    last_receipt = first_receipt - 1 + len(receipts)
    taken = taken_at(contests, last_receipt=last_receipt, at_ms=period.stated_ms)
    lines = statement_lines((stated.receipt, stated.tariff) for stated in receipts)
    # More than is owed may have been credited, by a side that erred: that is taken back from nobody.
    credits_pico = max(taken.credits_pico - credited_pico, 0)
    net_cents = statement_net(
        lines,
        credits_pico=credits_pico,
        held_pico=taken.held_pico,
        held_before_pico=last.held_pico if last is not None else 0,
    )
    vat_lines = vat(net_cents)
    gross_cents = net_cents + sum(line.vat_cents for line in vat_lines)
    opening_cents = last.closing_cents if last is not None else opening_cents
    return Statement(
        channel=channel.channel,
        statement_number=last.statement_number + 1 if last is not None else 1,
        previous=before.id if before is not None else b"",
        first_receipt=first_receipt,
        last_receipt=last_receipt,
        root=statement_root(stated.receipt_id for stated in receipts),
        currency=channel.currency,
        lines=lines,
        total_pico=sum(stated.receipt.amount_pico for stated in receipts),
        credits_pico=credits_pico,
        held_pico=taken.held_pico,
        net_cents=net_cents,
        vat=vat_lines,
        gross_cents=gross_cents,
        payments_cents=payments_cents,
        set_off_cents=set_off_cents,
        opening_cents=opening_cents,
        closing_cents=opening_cents + gross_cents - payments_cents - set_off_cents,
        from_ms=last.until_ms if last is not None else channel.opened_ms,
        until_ms=period.until_ms,
        due_ms=period.due_ms,
        stated_ms=period.stated_ms,
    )
