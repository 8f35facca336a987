"""Statements and invoices made to cost whoever audits them much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from p2pgrid.proto import verdict
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.judgement import Case
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.settlement_case import judge_settlement
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.statement_rules import statement_net
from tests.factories import make_invoice, vat_line
from tests.proto.audit_cases import both
from tests.proto.audit_cases_settlement import sold, statement
from tests.proto.chains import Dealings


class CountedReceipts(dict[int, Any]):
    """Counts how often a receipt is looked at."""

    looks = 0

    def __getitem__(self, number: int) -> Any:
        self.looks += 1
        return super().__getitem__(number)

    def __contains__(self, number: object) -> bool:
        self.looks += 1
        return super().__contains__(number)

    def __iter__(self) -> Iterator[int]:
        for number in super().__iter__():
            self.looks += 1
            yield number


def looks_and_codes(grid: Dealings, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Counter[str]]:
    """How often settlement looks at a receipt, and what an audit finds."""
    receipts = CountedReceipts()

    def counted(case: Case, book: Book) -> None:
        receipts.update(book.receipts)
        book.receipts = receipts
        judge_settlement(case, book)

    monkeypatch.setattr(verdict, "judge_settlement", counted)
    found = verdict.audit_records(both(grid))
    return receipts.looks, Counter(finding.code for finding in found.findings)


def next_statement(grid: Dealings, before: Signed[Statement], first: int, last: int) -> Signed[Statement]:
    """One that adds up by itself, whatever the receipts of its range are."""
    message = before.message
    line = grid_line(grid)
    lines = (msgspec.structs.replace(line, receipts=last - first + 1),) if last >= first else ()
    net = statement_net(lines, credits_pico=0, held_pico=0, held_before_pico=0)
    changed = msgspec.structs.replace(
        message,
        statement_number=message.statement_number + 1,
        previous=before.id,
        first_receipt=first,
        last_receipt=last,
        lines=lines,
        total_pico=sum(one.amount_pico for one in lines),
        net_cents=net,
        vat=(vat_line(net, 0),),
        gross_cents=net,
        opening_cents=message.closing_cents,
        closing_cents=message.closing_cents + net,
        from_ms=message.until_ms,
        until_ms=message.until_ms + 1,
        stated_ms=message.stated_ms + 1,
        due_ms=message.due_ms + 1,
    )
    return grid.keep(sign_message(changed, Role.PROVIDER, grid.provider))


def grid_line(grid: Dealings) -> Any:
    first = next(signed.message for signed in grid.provider_has if isinstance(signed.message, Statement))
    return first.lines[0]


def again_and_again(count: int, number: int) -> tuple[int, int]:
    """Every second one is of no receipts and stands before those that the others are of."""
    return (2, 1) if number % 2 else (2, count)


def of_receipts_beyond(count: int, number: int) -> tuple[int, int]:
    return count + number, count + number


@pytest.mark.parametrize("ranges", [again_and_again, of_receipts_beyond])
def test_many_statements_look_at_each_receipt_a_few_times(
    ranges: Callable[[int, int], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 30
    grid = sold(count)
    last = statement(grid, 1, count)
    for number in range(1, count + 1):
        last = next_statement(grid, last, *ranges(count, number))
    looks, _ = looks_and_codes(grid, monkeypatch)
    assert looks < 10 * count, looks


def test_a_receipt_is_in_two_statements_also_behind_one_that_stands_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = sold(3)
    second = next_statement(grid, statement(grid, 1, 3), 2, 1)
    next_statement(grid, second, 2, 3)
    _, codes = looks_and_codes(grid, monkeypatch)
    assert codes == {"statement-mismatch": 1, "receipt-in-two-statements": 1}


def test_of_many_invoices_the_first_are_named() -> None:
    grid = sold(3)
    first = statement(grid, 1, 3)
    for number in range(200):
        grid.keep(make_invoice(first, invoice_number=f"{number:064}", net_cents=1))
    (finding,) = verdict.audit_records(both(grid)).findings
    assert finding.code == "invoice-mismatch" and "and 197 more" in finding.sentence
    assert len(finding.sentence) < 400
