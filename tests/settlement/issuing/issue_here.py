"""A process that issues what is pending in a data folder; it is killed on purpose (test_crashes)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.settlement.issuing import Issuer
from tests.factories import PROVIDER
from tests.settlement.issuing.test_crashes import unchecked


async def main(folder: Path, now_ms: int) -> None:
    ledger = SqliteLedger.open(folder / "ledger.sqlite")
    issuer = Issuer(DataFolder(folder), ledger, [PROVIDER], now_ms=lambda: now_ms, renderer=unchecked)
    print("begun", flush=True)
    await issuer.issue_pending()
    await issuer.aclose()
    await ledger.aclose()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
