"""Traces of bundles that were made to cost much, or to say things twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2pgrid.audit.trace_book import TraceBook
from p2pgrid.audit.trace_csv import write_csv
from p2pgrid.proto.record import Role
from tests.audit.tracing import followed, judged, whole
from tests.factories import digest, make_invoice
from tests.proto.audit_cases_settlement import made, paid, paid_ahead, sold
from tests.proto.chains import Dealings, bundle_of

DAY_MS = 86_400_000


def book_of(grid: Dealings) -> TraceBook:
    return judged([bundle_of(grid.bundles()[0], Role.PROVIDER, "provider.jsonl")])


class Counted(list):  # type: ignore[type-arg]
    """A list that knows how many of it were looked at."""

    looked = 0

    def __iter__(self) -> Iterator[Any]:
        for one in super().__iter__():
            self.looked += 1
            yield one


def test_one_transfer_of_many_records_costs_others_of_its_reference_nothing() -> None:
    count = 200
    grid = sold(1)
    at_ms = grid.channel.message.opened_ms + DAY_MS
    for n in range(count):
        paid_ahead(grid, reference="SAME", entry=digest("all"), amount_cents=1 + n, booked_ms=at_ms + n)
        paid_ahead(grid, reference="SAME", entry=digest(f"one {n}"), booked_ms=at_ms + count + n)
    book = book_of(grid)
    (large,) = [one for one in book.transfers if len(one.movements) > 1]
    large.movements = movements = Counted(large.movements)
    rows = whole(book).transfers
    assert len(rows) == count + 1
    assert all(len(row.same_reference) >= 31 for row in rows)
    assert movements.looked < 40 * count, "not once for each other transfer"


def test_a_receipt_of_several_statements_is_one_row_of_the_table(tmp_path: Path) -> None:
    grid = sold(4)
    before = None
    for n in range(3):
        before = grid.keep(made(grid, grid.receipts, before, first_receipt=1, last_receipt=4))
        invoice = grid.keep(make_invoice(before, invoice_number=f"LT-{n}"))
        paid(grid, invoice, entry=digest("one"), reference="ONE", amount_cents=1)
    book = book_of(grid)
    traced = followed(book, "ONE")
    assert traced.transfer is not None and len(traced.transfer.shares) == 3
    assert write_csv(tmp_path / "t.csv", book, traced) == 4
    assert (tmp_path / "t.csv").read_text().count(";1 2 3;LT-0 LT-1 LT-2") == 4
