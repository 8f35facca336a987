"""The command `scripts/bench/growth`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from path_parts import toolbox
from path_parts.bench import Bench, run_rounds
from path_parts.cells import paced, unstreamed
from path_parts.figures import Results
from path_parts.process import BenchError, say

from .grown import DIMENSIONS, Dimension, Grown, Seeds
from .market import measure_market
from .report import render, rows_of, write_docs

CELLS: Final = (unstreamed(1, 2.0), unstreamed(16, 2.0), paced("staggered", 16, tokens=50, window_s=2.0))
MOST_STREAMS: Final = 16
SAVED: Final = toolbox.BUILD / "growth.json"
PAGE: Final = toolbox.ROOT / "docs" / "performance.md"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    names = ", ".join(dimension.name for dimension in DIMENSIONS)
    parser = argparse.ArgumentParser(
        prog="scripts/bench/growth",
        description="What a request costs beside what is on record: all sizes are up at once and take turns.",
        epilog=f"Dimensions: {names}. Filled ledgers are kept in build/bench/growth: the largest has 4 GB, and takes "
        "minutes. The figures are kept in build/bench/growth.json.",
    )
    parser.add_argument("--only", help="only these dimensions, by name, separated by commas")
    parser.add_argument("--most", type=int, default=1_000_000, help="no larger size than this (1,000,000)")
    parser.add_argument("--rounds", type=int, default=7, help="(7)")
    parser.add_argument("--fill", action="store_true", help="only make the ledgers, for a later run")
    parser.add_argument("--from", dest="read", type=Path, help="take the figures of an earlier run from this file")
    parser.add_argument("--json", action="store_true", help="print all figures as one JSON object")
    parser.add_argument("--plot", type=Path, metavar="STEM", help="draw STEM.svg and STEM.png")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/performance.md")
    return parser.parse_args(arguments)


def chosen(names: str | None) -> list[Dimension]:
    """The dimensions that were asked for. Raises BenchError for a name that is none."""
    known = {dimension.name: dimension for dimension in DIMENSIONS}
    wanted = names.split(",") if names else list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise BenchError(f"{', '.join(unknown)}: no such dimension; there are {', '.join(known)}.")
    return [known[name] for name in wanted]


def measure(dimension: Dimension, sizes: Sequence[int], seeds: Seeds, rounds: int) -> dict[str, Any]:
    """One dimension: what each size costs, in turns."""
    kinds, results = dimension.systems(seeds, sizes), Results()
    if not kinds:
        return {}
    with Bench(kinds, most_streams=MOST_STREAMS, folder=toolbox.BUILD / "run-growth") as bench:
        results.about = bench.about()
        before = {system.name: _heads(system) for system in bench.systems}
        answered = dict(bench.load.answers)
        run_rounds(bench, CELLS, rounds, results)
        nodes: dict[str, Any] = {}
        for system in bench.systems:
            assert isinstance(system, Grown)
            bench.settle(system)
            after, sold = _heads(system), bench.load.answers[system.name] - answered[system.name]
            cut = bench.load.cut[system.name]
            lost = [n for n in after if not 0 <= after[n] - before[system.name][n] - sold <= cut]
            nodes[system.name] = {
                "started": system.started,
                "memory": bench.memory(system),
                "receipts": after,
                "is_whole": not lost and after["gateway"] == after["provider"],
            }
    return {"sizes": list(sizes), "title": dimension.title, "nodes": nodes, "results": results.to_json()}


def _heads(system: Any) -> dict[str, int]:
    heads: dict[str, int] = system.heads()
    return heads


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All dimensions that were asked for. What was measured is saved after each."""
    seeds, found = Seeds(), {}
    seeds.make_base()
    for dimension in chosen(options.only):
        sizes = [size for size in dimension.sizes if size <= options.most]
        if options.fill:
            dimension.systems(seeds, sizes)
            continue
        say(f"  == {dimension.name}: {', '.join(f'{size:,}' for size in sizes)} {dimension.title}")
        found[dimension.name] = measure(dimension, sizes, seeds, options.rounds)
        if dimension.name == "offers":
            found["market"] = measure_market(seeds, sizes)
        SAVED.write_text(json.dumps(found, indent=1))
    return found


def main() -> int:
    """Run the command; its exit code: 1 where something grew, or an answer lacks its receipt."""
    options = parse(sys.argv[1:])
    try:
        found = json.loads(options.read.read_text()) if options.read else run(options)
    except BenchError as error:
        say(f"error: {error}")
        return 3
    except KeyboardInterrupt:
        say("Interrupted; everything was stopped.")
        return 130
    if options.fill:
        return 0
    print(json.dumps(found) if options.json else render(found), flush=True)
    if options.docs:
        write_docs(PAGE, found)
    if options.plot:
        script = toolbox.ROOT / "scripts" / "bench" / "growth_parts" / "plot.py"
        source = options.read or SAVED
        subprocess.run([str(toolbox.plot_python()), str(script), str(source), str(options.plot)], check=True)
    return 0 if all(row.is_met is not False for row in rows_of(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
