"""A process that sells as fast as it can and logs it, to be killed: `python -m tests.log.growing_node FOLDER ROUND`.

It prints each checkpoint that it could have shown, in hex, as a line.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.log.log import TransparencyLog
from tests.factories import NOW_MS, PROVIDER, Dealings


async def main(folder: Path, number: str) -> None:
    ledger = SqliteLedger.open(folder / "ledger.sqlite")
    dealings = Dealings(name=f"round {number}")
    records = dealings.chain(3000, ticks=0)
    log = TransparencyLog(
        folder / "log.sqlite",
        folder / "log.checkpoint",
        PROVIDER,
        ledger,
        now_ms=lambda: NOW_MS,
        integrate_s=0.002,
    )
    async with log:
        print("ready", flush=True)
        selling = asyncio.create_task(sell(ledger, records))
        while True:
            if log.checkpoint is not None:
                print(log.checkpoint.note.to_bytes().hex(), flush=True)
            await log.wait_for_change()
            assert not selling.done() or selling.exception() is None


async def sell(ledger: SqliteLedger, records: list) -> None:  # type: ignore[type-arg]
    for at in range(0, len(records), 3):
        await ledger.append(*records[at : at + 3])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
