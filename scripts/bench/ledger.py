"""Durable appends a second, and how near that is to bare SQLite with the same group commit.

    python scripts/bench/ledger.py [--folder DIR] [--seconds S] [--json]

At each concurrency C, C coroutines append one signed record after another and await each future. "bare" is one
thread that inserts C rows of the same bytes into a table with one unique index and commits (WAL, synchronous=FULL),
with no record to decode, no queue and no event loop. Both run in turn, in the same folder, several rounds; medians.
"alone, loop busy" repeats the smaller concurrencies beside a task that keeps the event loop at work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Record, Signed
from tests.factories import Dealings

CONCURRENCY = (1, 16, 64, 256)
ROUNDS = 3


def prepared(count: int, name: str) -> tuple[Dealings, list[Signed[Any]]]:
    """A channel, and `count` meter ticks for one order in it: the commonest record of a node."""
    dealings = Dealings(name=name)
    order = dealings.order()
    first = dealings.meter(order, 1)
    return dealings, [order, first, *(dealings.meter(order, tick) for tick in range(2, count))]


async def measure_ledger(folder: Path, concurrency: int, ticks: int, *, busy: bool = False) -> dict[str, float]:
    """Appends a second and the latency of one, by `concurrency` coroutines."""
    dealings, records = prepared(ticks, f"{concurrency}")
    ledger = SqliteLedger.open(folder / "ledger.sqlite")
    await ledger.append(dealings.offer, dealings.channel, records[0])
    left = iter(records[1:])
    waits: list[float] = []
    stop = asyncio.Event()

    async def one() -> None:
        for record in left:
            began = time.perf_counter()
            await ledger.append(record)
            waits.append(time.perf_counter() - began)

    async def work() -> None:
        while not stop.is_set():
            until = time.perf_counter() + 0.0003
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0.0003)

    worker = asyncio.create_task(work()) if busy else None
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*[one() for _ in range(concurrency)])
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    stop.set()
    if worker is not None:
        await worker
    await ledger.aclose()
    waits.sort()
    return {
        "per_s": len(waits) / took,
        "cpu_us": cpu / len(waits) * 1e6,
        "p50_ms": waits[len(waits) // 2] * 1e3,
        "p99_ms": waits[int(len(waits) * 0.99)] * 1e3,
    }


def measure_bare(folder: Path, concurrency: int, records: list[Record]) -> float:
    """Rows a second, inserted in groups of `concurrency`."""
    conn = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, id BLOB NOT NULL, record BLOB NOT NULL)")
    conn.execute("CREATE UNIQUE INDEX by_id ON records (id)")
    rows = [(n, n.to_bytes(32, "big"), record.to_bytes()) for n, record in enumerate(records)]
    began = time.perf_counter()
    for start in range(0, len(rows), concurrency):
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany("INSERT INTO records VALUES (?, ?, ?)", rows[start : start + concurrency])
        conn.execute("COMMIT")
    took = time.perf_counter() - began
    conn.close()
    return len(rows) / took


def rounds(folder: Path, concurrency: int, seconds: float) -> dict[str, float]:
    """The median of several rounds, ledger and bare in turn."""
    guess = {1: 2000, 16: 12_000, 64: 25_000, 256: 40_000}[concurrency]
    count = max(200, int(guess * seconds / ROUNDS))
    measured: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            here = Path(name)
            result = asyncio.run(measure_ledger(here, concurrency, count))
            result["bare_per_s"] = measure_bare(here, concurrency, [s.record for s in prepared(count, "bare")[1]])
            measured.append(result)
    median = {key: statistics.median(m[key] for m in measured) for key in measured[0]}
    median["ratio"] = statistics.median(m["per_s"] / m["bare_per_s"] for m in measured)
    return {"concurrency": concurrency, **median}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--seconds", type=float, default=2.0, help="about this long at each concurrency")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [rounds(options.folder, concurrency, options.seconds) for concurrency in CONCURRENCY]
    busy = []
    for concurrency in (1, 16, 64):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            busy.append(
                {"concurrency": concurrency}
                | asyncio.run(measure_ledger(Path(name), concurrency, 1500 + 100 * concurrency, busy=True))
            )
    if options.json:
        print(json.dumps({"cpus": os.cpu_count(), "sqlite": sqlite3.sqlite_version, "idle": results, "busy": busy}))
        return
    print(f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores, median of {ROUNDS} rounds")
    print(f"{'at once':>8} {'appends/s':>10} {'bare/s':>10} {'ratio':>6} {'CPU us':>7} {'p50 ms':>7} {'p99 ms':>7}")
    for r in results:
        print(
            f"{r['concurrency']:8} {r['per_s']:10.0f} {r['bare_per_s']:10.0f} {r['ratio']:6.2f} "
            f"{r['cpu_us']:7.1f} {r['p50_ms']:7.2f} {r['p99_ms']:7.2f}"
        )
    print("with a busy event loop (half of its time at work):")
    for r in busy:
        print(
            f"{r['concurrency']:8} {r['per_s']:10.0f} {'':>10} {'':>6} "
            f"{r['cpu_us']:7.1f} {r['p50_ms']:7.2f} {r['p99_ms']:7.2f}"
        )


if __name__ == "__main__":
    main()
