"""Whether a ledger that has grown costs more: appends, and what a resumed channel reads, at 0 and at many rows.

    python scripts/bench/ledger_growth.py [--rows 1000000] [--folder DIR]

The rows are orders and receipts of one channel (and as many of another), written by SQL with random ids in place of
real signatures: what is measured is SQLite's work.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.ledger.table import Table
from p2pgrid.ledger.tables import ORDERS, RECEIPTS
from p2pgrid.proto.record import Signed
from tests.factories import Dealings

APPENDS = 2000
AT_ONCE = 16


def grow(path: Path, table: Table, channel: str, rows: int) -> None:
    """Copy the channel's one row `rows` times, with new numbers and ids."""
    own = {"seq": "max.seq + n", "id": "lower(hex(randomblob(32)))", "order_number": "100000 + n"}
    own["receipt_number"] = "100000 + n"
    columns = [own.get(column, f"t.{column}") for column in table.stored_columns]
    with sqlite3.connect(path) as conn:
        conn.execute("PRAGMA synchronous=OFF")
        conn.execute(
            f"WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {rows}) "
            f"INSERT INTO {table.name} ({', '.join(table.stored_columns)}) SELECT {', '.join(columns)} "
            f"FROM counted, (SELECT max(seq) AS seq FROM (SELECT max(seq) AS seq FROM orders UNION ALL "
            f"SELECT max(seq) FROM receipts)) AS max, (SELECT * FROM {table.name} WHERE channel = ? LIMIT 1) AS t",
            (channel,),
        )
    conn.close()


async def measure(path: Path, dealings: Dealings, rows: int) -> None:
    ledger = SqliteLedger.open(path)
    orders = [dealings.order() for _ in range(APPENDS)]
    proposals = [dealings.proposal(order) for order in orders]
    signed = [dealings.countersign(proposal) for proposal in proposals]
    figures = [f"{rows:9} rows"]
    for name, records in (("order", orders), ("proposal", proposals), ("countersignature", signed)):
        left = iter(records)

        async def one(left: Iterator[Signed[Any]] = left) -> None:
            for record in left:
                await ledger.append(record)

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        took, spent = time.perf_counter() - began, time.process_time() - cpu
        figures.append(f"{name} {spent / APPENDS * 1e6:.0f} us of CPU ({APPENDS / took:.0f}/s)")
    for name, read in (
        ("head", lambda: ledger.head(dealings.id)),
        ("open orders", lambda: ledger.open_orders(dealings.id)),
        ("proposals", lambda: ledger.proposals(dealings.id)),
    ):
        took_ms = []
        for _ in range(2):
            began = time.perf_counter()
            read()
            took_ms.append((time.perf_counter() - began) * 1e3)
        figures.append(f"{name} {took_ms[0]:.1f} ms, again {took_ms[1]:.1f}")
    print(", ".join(figures), flush=True)
    await ledger.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "ledger.sqlite"
        here, other = Dealings(), Dealings(name="other")

        async def begin() -> None:
            with SqliteLedger.open(path) as ledger:
                await ledger.append(here.offer, here.channel, other.channel)
                for dealings in (here, other):
                    order = dealings.order()
                    await ledger.append(order, dealings.countersign(dealings.proposal(order)))

        asyncio.run(begin())
        asyncio.run(measure(path, here, 2))
        for dealings in (here, other):
            for table in (ORDERS, RECEIPTS):
                grow(path, table, dealings.id.hex(), options.rows // 2)
        asyncio.run(measure(path, here, options.rows))


if __name__ == "__main__":
    main()
