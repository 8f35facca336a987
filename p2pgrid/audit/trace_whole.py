"""The table in which every cent of every statement and of every transfer is accounted for."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from p2pgrid.audit.trace_book import TraceBook, TracedChannel, Transfer
from p2pgrid.audit.trace_parts import PeerRow, StatementRow, TransferRow, WholeTrace
from p2pgrid.proto.allotment import CoverKind, StatementMoney
from p2pgrid.proto.invoice_sums import cents_of, vat_of
from p2pgrid.proto.settlement_summary import ChannelSettlement
from p2pgrid.proto.statement_rules import statement_net

MOST_NUMBERS: Final = 16
"""Invoices of one statement that a transfer's row names, where it covers that without naming one."""


def trace_whole(book: TraceBook) -> WholeTrace:
    """Every statement, transfer and pair of peers, with what is left over, which is nothing if all is right."""
    codes = _Codes(book)
    statements = tuple(
        _statement_row(book, channel, money, codes)
        for channel in book.channels
        for money in channel.money.statements.values()
    )
    transfers = tuple(_transfer_row(book, transfer) for transfer in book.transfers)
    left_over = sum(abs(row.left_over_cents) for row in statements)
    left_over += sum(abs(row.left_over_cents) + abs(row.astray_cents) for row in transfers)
    return WholeTrace(
        statements=statements,
        transfers=transfers,
        peers=tuple(_peer_rows(book)),
        channels=book.verdict.settlement,
        left_over_cents=left_over,
    )


@dataclass(slots=True)
class _Codes:
    """The codes of the findings about a statement, its invoices and its receipts."""

    book: TraceBook
    by_record: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    by_receipt: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    """For each channel: numbers of receipts with codes, in order."""

    def __post_init__(self) -> None:
        for finding in self.book.verdict.findings:
            for record_id in (finding.record_id, *finding.other_record_ids):
                self.by_record[record_id].add(finding.code)
            number = self.book.receipt_numbers.get(finding.record_id, 0)
            if number:
                self.by_receipt[finding.channel].append((number, finding.code))
        for numbered in self.by_receipt.values():
            numbered.sort()

    def of(self, channel: TracedChannel, money: StatementMoney) -> tuple[str, ...]:
        if not self.by_record:
            return ()
        ids = [money.statement_id, *(held.record_id for held in channel.invoices.get(money.statement_id, ()))]
        found = {code for record_id in ids for code in self.by_record.get(record_id.hex(), ())}
        # A gap before a receipt is a finding about that one: so the receipt after the last counts, too.
        numbered = self.by_receipt.get(channel.id.hex(), [])
        start = bisect_left(numbered, (money.statement.first_receipt, ""))
        end = bisect_left(numbered, (money.statement.last_receipt + 2, ""))
        return tuple(sorted(found.union(code for _, code in numbered[start:end])))


def _statement_row(book: TraceBook, channel: TracedChannel, money: StatementMoney, codes: _Codes) -> StatementRow:
    by_kind: dict[CoverKind, int] = defaultdict(int)
    for cover in money.covers:
        by_kind[cover.kind] += cover.cents
    left_over = _left_over(channel, money)
    invoices = channel.invoices.get(money.statement_id, [])
    return StatementRow(
        parties=channel.parties,
        statement_id=money.statement_id.hex(),
        statement_number=money.statement.statement_number,
        invoices=tuple(held.message.invoice_number for held in invoices),
        gross_cents=money.statement.gross_cents,
        paid_cents=by_kind[CoverKind.PAID],
        paid_ahead_cents=by_kind[CoverKind.AHEAD] + by_kind[CoverKind.OVER],
        set_off_cents=by_kind[CoverKind.SET_OFF],
        credit_cents=by_kind[CoverKind.CREDIT] - money.given_cents,
        open_cents=money.open_cents,
        owed_back_cents=money.owed_back_cents,
        not_invoiced_cents=money.not_invoiced_cents,
        left_over_cents=left_over,
        codes=codes.of(channel, money),
        due_ms=money.statement.due_ms,
        is_overdue=money.open_cents > 0 and book.now_ms > money.statement.due_ms,
    )


def _left_over(channel: TracedChannel, money: StatementMoney) -> int:
    """What a statement states and its receipts, lines and VAT do not make, its invoices do not ask for, or neither
    money nor what is open accounts for: the largest of these steps' differences, for they are of the same cents."""
    statement = money.statement
    before = channel.before(statement)
    at_hand_pico = channel.pico_between(statement.first_receipt, statement.last_receipt)
    steps = [cents_of(statement.total_pico - at_hand_pico)]
    steps.append(cents_of(statement.total_pico - sum(line.amount_pico for line in statement.lines)))
    if before is not None or statement.statement_number == 1:
        net = statement_net(
            statement.lines,
            credits_pico=statement.credits_pico,
            held_pico=statement.held_pico,
            held_before_pico=before.held_pico if before is not None else 0,
        )
        steps.append(statement.net_cents - net)
        if before is not None:
            steps.append(statement.opening_cents - before.closing_cents)
    vat = sum(vat_of(line.net_cents, line.rate_bp) for line in statement.vat)
    steps.append(statement.net_cents - sum(line.net_cents for line in statement.vat))
    steps.append(statement.gross_cents - statement.net_cents - vat)
    counted = statement.payments_cents + statement.set_off_cents
    steps.append(statement.closing_cents - statement.opening_cents - statement.gross_cents + counted)
    if money.invoiced_cents is not None:
        covered = money.covered_cents + money.open_cents - money.owed_back_cents - money.given_cents
        steps += [money.invoiced_cents - covered, statement.gross_cents - money.invoiced_cents]
    return max(steps, key=abs)


def _transfer_row(book: TraceBook, transfer: Transfer) -> TransferRow:
    covers = [cover for _, one in transfer.movements for cover in one.covers]
    covers_cents = sum(cover.cents for cover in covers)
    own = {one.movement.record_id for _, one in transfer.movements}
    undone_cents = 0
    for _, one in transfer.movements:
        sign = 1 if one.movement.amount_cents > 0 else -1
        undone_cents += sign * sum(u.cents for u in one.undone if not {u.came, u.went} <= own)
    unused = sum(one.unused_cents for _, one in transfer.movements)
    astray = sum(one.astray_cents for _, one in transfer.movements)
    movement = transfer.first.movement
    reference_of, same_reference = book.about_reference(transfer)
    amount = transfer.amount_cents
    numbers: dict[str, None] = {}
    for channel, one in transfer.movements:
        for cover in one.covers:
            of_statement = channel.invoices.get(cover.statement, [])[:MOST_NUMBERS]
            of_cover = (
                [cover.invoice_number] if cover.invoice_number else [h.message.invoice_number for h in of_statement]
            )
            numbers.update(dict.fromkeys(of_cover))
    return TransferRow(
        parties=transfer.movements[0][0].parties,
        payment_ids=tuple(one.movement.record_id.hex() for _, one in transfer.movements),
        kind=movement.kind.value,
        reference=movement.reference,
        booked_ms=movement.at_ms,
        amount_cents=amount,
        invoices=tuple(numbers),
        covers_cents=covers_cents,
        undone_cents=undone_cents,
        unused_cents=unused,
        astray_cents=astray,
        left_over_cents=amount - covers_cents - undone_cents - unused - astray,
        reference_of=reference_of,
        same_reference=same_reference,
    )


def _peer_rows(book: TraceBook) -> Iterable[PeerRow]:
    channels = {channel.parties.channel: channel.parties for channel in book.channels}
    groups: dict[tuple[str, str, str], list[ChannelSettlement]] = defaultdict(list)
    names: dict[str, str] = {}
    for settlement in book.verdict.settlement:
        parties = channels[settlement.channel]
        groups[parties.provider, parties.client, settlement.currency].append(settlement)
        names[parties.provider] = parties.operator
    for (provider, client, currency), of_peers in sorted(groups.items()):
        yield PeerRow(
            provider=provider,
            client=client,
            operator=names[provider],
            currency=currency,
            channels=len(of_peers),
            gross_cents=sum(one.gross_cents for one in of_peers),
            payments_cents=sum(one.payments_cents for one in of_peers),
            set_off_cents=sum(one.set_off_cents for one in of_peers),
            balance_cents=sum(one.balance_cents for one in of_peers),
            open_cents=sum(one.open_cents for one in of_peers),
            overdue_cents=sum(one.overdue_cents for one in of_peers),
            owed_back_cents=sum(one.owed_back_cents for one in of_peers),
            paid_ahead_cents=sum(one.paid_ahead_cents for one in of_peers),
            not_invoiced_cents=sum(one.not_invoiced_cents for one in of_peers),
        )
