"""How fast a log grows, and what a proof costs, at a million leaves.

    python scripts/bench/log.py [--folder DIR] [--leaves N] [--batch B] [--json]

Entries are entered in batches as a node enters them: one transaction, synced, with its checkpoint signed and the copy
beside it replaced. The rates over the first and the last tenth show that an entry costs no more in a large log (beyond
what the index by record id costs the disk). "core" is the tree without a disk. A proof is read, made and verified.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from p2pgrid.log.reader import LogReader
from p2pgrid.log.store import LogStore, NewEntry
from p2pgrid.proto.inclusion import log_entry
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.merkle import verify_consistency
from p2pgrid.proto.tiles import TileBuilder

PROOFS = 1000


def grow(store: LogStore, leaves: int, batch: int) -> list[float]:
    """Seconds of each batch."""
    took = []
    for first in range(0, leaves, batch):
        entries = [NewEntry(os.urandom(32), os.urandom(32), bytes(32)) for _ in range(min(batch, leaves - first))]
        began = time.perf_counter()
        store.append(entries, 0)
        took.append(time.perf_counter() - began)
    return took


def core_alone(leaves: int) -> float:
    """Appends a second to a tree in memory."""
    entries = [(os.urandom(32), os.urandom(32)) for _ in range(leaves)]
    builder = TileBuilder()
    began = time.perf_counter()
    for salt, record_id in entries:
        builder.append(log_entry(salt, record_id))
    return leaves / (time.perf_counter() - began)


def prove(path: Path, size: int) -> dict[str, float]:
    """Milliseconds of a proof of inclusion, cold tiles apart, and of one of consistency."""
    reader, rng = LogReader.open_readonly(path), random.Random(1)
    checkpoint = reader.checkpoint()
    assert checkpoint is not None
    made, verified, sizes = [], [], []
    for _ in range(PROOFS):
        rows = reader._rows("SELECT record_id FROM entries WHERE idx = ?", rng.randrange(size))
        began = time.perf_counter()
        entry = reader.find(rows[0][0])
        assert entry is not None
        proof = reader.prove(entry, checkpoint)
        made.append(time.perf_counter() - began)
        began = time.perf_counter()
        proof.verify()
        verified.append(time.perf_counter() - began)
        sizes.append(len(proof.inclusion.to_bytes()))
    consistency = []
    for _ in range(PROOFS // 10):
        old = rng.randrange(1, size)
        began = time.perf_counter()
        hashes = reader.consistency(old, size)
        consistency.append(time.perf_counter() - began)
        verify_consistency(old, size, hashes, reader.root(old), checkpoint.root)
    reader.close()
    return {
        "proof_ms": statistics.median(made) * 1000,
        "proof_p99_ms": statistics.quantiles(made, n=100)[98] * 1000,
        "verify_ms": statistics.median(verified) * 1000,
        "proof_bytes": statistics.median(sizes),
        "consistency_ms": statistics.median(consistency) * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the log is written; a temporary folder unless given")
    parser.add_argument("--leaves", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=512, help="entries in one transaction")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    key = SecretKey(bytes(32))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path, guard = Path(folder) / "log.sqlite", Path(folder) / "log.checkpoint"
        store = LogStore(path, guard, key)
        took = grow(store, arguments.leaves, arguments.batch)
        store.close()
        tenth = max(len(took) // 10, 1)
        began = time.perf_counter()
        LogStore(path, guard, key).close()
        open_ms = (time.perf_counter() - began) * 1000
        results = {
            "leaves": arguments.leaves,
            "appends_per_s": arguments.leaves / sum(took),
            "appends_per_s_first_tenth": tenth * arguments.batch / sum(took[:tenth]),
            "appends_per_s_last_tenth": tenth * arguments.batch / sum(took[-tenth:]),
            "core_appends_per_s": core_alone(min(arguments.leaves, 200_000)),
            "open_ms": open_ms,
            "file_bytes_per_leaf": path.stat().st_size / arguments.leaves,
            **prove(path, arguments.leaves),
        }
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name, value in results.items():
        print(f"{name:28} {value:,.2f}" if isinstance(value, float) else f"{name:28} {value:,}")


if __name__ == "__main__":
    main()
