"""What an order costs the ledger: commits, statements, and that neither grows with what is on record."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from p2pgrid.ledger.base import SlotTaken
from p2pgrid.ledger.operations import ADD_ONE_SIGNATURE, ADD_SIGNATURES, STANDING, add_one_signature_sql
from p2pgrid.ledger.queries import HEAD, OPEN_ORDERS, ORDER_RECORDS
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.ledger.tables import TABLES
from p2pgrid.proto.messages import Status
from p2pgrid.proto.record import Role, Signed
from tests.factories import Dealings

ORDERS = 64


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    opened = SqliteLedger.open(tmp_path / "ledger.sqlite")
    yield opened
    await opened.aclose()


class Statements:
    """What the writer's connection runs."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.seen: list[str] = []
        assert ledger._writer._conn is not None
        ledger._writer._conn.set_trace_callback(self.seen.append)

    def count(self, word: str) -> int:
        return sum(one.startswith(word) for one in self.seen)


async def together(ledger: SqliteLedger, path: Path, calls: list[list[Signed]], *, keys: bool = False) -> list[object]:
    """Append all of them while another program holds the write lock, so that they share commits; the outcomes."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        futures = []
        for records in calls:
            if keys:
                ledger.keep_request_key(records[0], b"k" * 32)
            futures.append(ledger.append(*records))
        other.execute("ROLLBACK")
    return await asyncio.gather(*futures, return_exceptions=True)


async def test_orders_at_once_take_few_statements(ledger: SqliteLedger, tmp_path: Path) -> None:
    path, d = tmp_path / "ledger.sqlite", Dealings()
    await ledger.append(d.offer, d.channel)
    orders = [d.order() for _ in range(ORDERS)]
    proposals = [d.proposal(order) for order in orders]
    signed = [proposal.countersigned(Role.CLIENT, d.client) for proposal in proposals]
    statements = Statements(ledger)
    for records, keys in ((orders, True), (proposals, False), (signed, False)):
        before, commits = len(statements.seen), statements.count("COMMIT")
        assert set(await together(ledger, path, [[one] for one in records], keys=keys)) == {None}
        ledger.settle()  # till then the journal has them, and there is nothing to count
        assert statements.count("COMMIT") > commits
        # The first commit may have one call alone; the others share the next.
        assert statements.count("COMMIT") - commits <= 3
        assert len(statements.seen) - before <= 3 * ORDERS / 4, statements.seen[before:]
    counts = ledger.counts()
    assert (counts["/p2pgrid/order/1"], counts["/p2pgrid/receipt/1"]) == (ORDERS, ORDERS)
    assert ledger.proposals(d.id) == [] and ledger.head(d.id).countersigned == ORDERS
    assert all(ledger.request_key(d.id, order.message.order_number) == b"k" * 32 for order in orders)
    assert [ledger.receipt(d.id, n).record for n in (1, ORDERS)] == [signed[0].record, signed[-1].record]  # type: ignore[union-attr]


async def test_one_refused_among_many_is_refused_alone(ledger: SqliteLedger, tmp_path: Path) -> None:
    path, d, stranger = tmp_path / "ledger.sqlite", Dealings(), Dealings(name="stranger")
    await ledger.append(d.offer, d.channel)
    orders = [d.order() for _ in range(20)]
    clash = d.order(order_number=orders[7].message.order_number, max_output_tokens=17)
    calls = [[one] for one in (*orders, clash, stranger.order(), orders[3])]
    outcomes = await together(ledger, path, calls, keys=True)
    assert outcomes[:20] == [None] * 20 and outcomes[22] is None
    assert isinstance(outcomes[20], SlotTaken) and "channel that is not on record" in str(outcomes[21])
    assert ledger.counts()["/p2pgrid/order/1"] == 20
    assert ledger.request_key(stranger.id, 1) is None


async def test_a_proposal_and_its_countersignature_in_one_commit(ledger: SqliteLedger, tmp_path: Path) -> None:
    path, d = tmp_path / "ledger.sqlite", Dealings()
    await ledger.append(d.offer, d.channel)
    orders = [d.order() for _ in range(6)]
    await ledger.append(*orders)
    proposals = [d.proposal(order) for order in orders]
    calls = [[one] for p in proposals for one in (p, p.countersigned(Role.CLIENT, d.client), p)]
    assert set(await together(ledger, path, calls)) == {None}
    assert ledger.proposals(d.id) == [] and ledger.head(d.id).countersigned == 6


HOT = [
    *(STANDING[name] for name in ("orders", "receipts", "meters", "vouchers")),
    [ADD_SIGNATURES["receipts"]],
    [add_one_signature_sql("receipts", 1), add_one_signature_sql("receipts", 16)],
    [HEAD, OPEN_ORDERS, ORDER_RECORDS],
    ["SELECT max(order_number) FROM orders WHERE channel = ?"],
    ["SELECT key FROM request_keys WHERE channel = ? AND order_number = ?"],
    ["SELECT payload, signatures FROM receipts WHERE channel = ? AND signed_by = 'provider' ORDER BY receipt_number"],
    ["SELECT payload, signatures FROM offers WHERE id = ?"],
]
_TABLE_NAMES = "|".join(("o", "i", "r", *(table.name for table in TABLES.values()), "request_keys"))


@pytest.mark.parametrize("sql", [sql for some in HOT for sql in some])
async def test_no_statement_of_an_order_or_a_resumption_reads_a_whole_table(
    ledger: SqliteLedger, tmp_path: Path, sql: str
) -> None:
    values = dict.fromkeys(re.findall(r":(\w+)", sql), 1) or [1] * sql.count("?")
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as conn:
        plan = [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    assert plan and not [step for step in plan if re.match(rf"SCAN ({_TABLE_NAMES})\b", step)], plan


def test_every_record_that_two_sign_has_its_one_statement() -> None:
    assert {"receipts", "channels"} <= ADD_ONE_SIGNATURE.keys()


# -- where a channel stands --------------------------------------------------------------------------------------------


def stands(ledger: SqliteLedger, d: Dealings) -> tuple[object, list[int]]:
    """Head and open orders by the writer, which remembers; a reader, which does not, must say the same."""
    mine = ledger.head(d.id), [one.order.message.order_number for one in ledger.open_orders(d.id)]
    with SqliteLedger.open_readonly(ledger.path) as reader:
        theirs = reader.head(d.id), [one.order.message.order_number for one in reader.open_orders(d.id)]
    assert mine == theirs
    return mine


async def test_what_is_remembered_of_a_channel_is_what_a_whole_reading_says(ledger: SqliteLedger) -> None:
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    first, second, third = d.order(), d.order(), d.order()
    await ledger.append(second)
    assert stands(ledger, d)[1] == [2]
    receipt = d.proposal(second)
    await ledger.append(receipt)
    assert stands(ledger, d)[1] == []
    await ledger.append(d.countersign(receipt))
    assert stands(ledger, d)[0].countersigned == 1  # type: ignore[attr-defined]
    # A lower number that comes late, and is still being written while somebody reads.
    late = ledger.append(first)
    ledger.open_orders(d.id)
    await late
    assert stands(ledger, d)[1] == [1]
    await ledger.note_outcome(first, "refused:busy")
    await ledger.append(third)
    assert stands(ledger, d)[1] == [3]
    more = d.proposal(third, status=Status.FAILED)
    late = ledger.append(more)
    ledger.head(d.id)
    await late
    assert stands(ledger, d)[0].countersigned == 1  # type: ignore[attr-defined]
    late = ledger.append(more.countersigned(Role.CLIENT, d.client))
    ledger.head(d.id)
    late.cancel()
    await ledger.append(d.order())
    head, open_orders = stands(ledger, d)
    assert head.countersigned == 2 and open_orders == [4]  # type: ignore[attr-defined]
    assert not ledger._known.of(d.id).is_certain  # a cancelled future tells nobody when its record was written
