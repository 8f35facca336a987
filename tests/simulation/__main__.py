"""One history by its seed (`--trace`: step by step), or many (`--seeds A-B`)."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from p2pgrid.proto.record import Role
from tests.simulation.observer import Broken
from tests.simulation.run import Shelf, history, memory_disks, run_many, sqlite_disks


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this history")
    parser.add_argument("--seeds", metavar="A-B", help="run the histories from A to B")
    parser.add_argument("--liar", choices=("provider", "client"), help="the side that lies (default: none)")
    parser.add_argument("--sqlite", action="store_true", help="ledgers on disk")
    parser.add_argument("--trace", action="store_true", help="tell it step by step")
    arguments = parser.parse_args()
    liar = Role(arguments.liar) if arguments.liar else None
    if arguments.seeds:
        first, _, last = arguments.seeds.partition("-")
        seeds = range(int(first), int(last or first) + 1)
        began_s = time.monotonic()
        try:
            tally = run_many(seeds, sqlite=arguments.sqlite, liar=liar)
        except Broken as broken:
            print(broken)
            return 1
        took_s = time.monotonic() - began_s
        print(
            f"{len(seeds)} histories in {took_s:.1f} s ({1000 * took_s / len(seeds):.1f} ms each): every promise held"
        )
        print("steps:", ", ".join(f"{name} {n}" for name, n in tally.happened.most_common()))
        if liar:
            print("lies:", ", ".join(f"{name} {n}" for name, n in sorted(tally.told.items())))
            print("found by audit:", ", ".join(f"{name} {n}" for name, n in tally.found.most_common()))
        print("orders:", ", ".join(f"{name} {n}" for name, n in tally.endings.most_common()))
        return 0
    if arguments.seed is None:
        parser.error("--seed or --seeds is needed")
    shelf = Shelf() if arguments.sqlite else None
    disks = sqlite_disks(shelf) if shelf is not None else memory_disks()
    try:
        asyncio.run(history(arguments.seed, liar, disks, print if arguments.trace else None))
    except Broken as broken:
        print(f"BROKEN: {broken}")
        return 1
    finally:
        if shelf is not None:
            shelf.close()
    print("every promise held")
    return 0


sys.exit(main())
