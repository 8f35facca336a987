"""The command `scripts/bench/network`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from path_parts import toolbox
from path_parts.bench import cpu_model
from path_parts.figures import Results
from path_parts.process import BenchError, say
from path_parts.systems import empty_folder
from path_parts.toolbox import BUILD

from . import js_packages
from .cells import CELLS, SHORT, Sizes, chosen, run_rounds
from .grid import Grid
from .report import render, write_docs

PAGE: Final = toolbox.ROOT / "docs" / "network-performance.md"
SAVED: Final = BUILD / "network.json"
ROUNDS: Final = 15
SHORT_ROUNDS: Final = 2


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/network",
        description="Finding and reaching a provider, in turns with js-libp2p doing the same against the same peers.",
        epilog=f"Cells: {', '.join(cell.name for cell in CELLS)}. Needs Node 20.19 and npm; packages are fetched once. "
        "The figures are kept in build/bench/network.json.",
    )
    parser.add_argument("--short", action="store_true", help="two rounds of little, to see that it works")
    parser.add_argument("--cells", help="only cells whose names begin so, separated by commas")
    parser.add_argument("--rounds", type=int, help=f"({ROUNDS}; {SHORT_ROUNDS} with --short)")
    parser.add_argument("--providers", type=int, help=f"that sell the model looked up ({Sizes().providers}; 2 or more)")
    parser.add_argument("--from", dest="read", type=Path, help="take the figures of an earlier run from this file")
    parser.add_argument("--json", action="store_true", help="print all figures of all rounds as one JSON object")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/network-performance.md")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (SHORT_ROUNDS if options.short else ROUNDS)
    if options.rounds < 1 or (options.providers is not None and options.providers < 2):
        parser.error("--rounds begins at 1, --providers at 2")
    return options


def sizes_of(options: argparse.Namespace) -> Sizes:
    """How much each visit does."""
    sizes = SHORT if options.short else Sizes()
    return dataclasses.replace(sizes, providers=options.providers) if options.providers else sizes


def measure(options: argparse.Namespace) -> Results:
    """Start everything, measure, stop everything. Raises BenchError; Missing where there is no Node."""
    cells, sizes, results = chosen(options.cells), sizes_of(options), Results()
    folder = BUILD / "run-network"
    empty_folder(folder)
    node = js_packages.node()
    with Grid(folder, sizes.providers, js_packages.programs(folder), node) as grid:
        results.about = {
            "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "commit": _commit(),
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "pinning": _pinning(grid),
            "versions": {"python": ".".join(map(str, sys.version_info[:3])), **js_packages.versions()},
            "sizes": dataclasses.asdict(sizes),
            "rounds": options.rounds,
        }
        run_rounds(grid, cells, sizes, options.rounds, results)
    return results


def main() -> int:
    """Run the command; its exit code: 1 where something of ours failed."""
    options = parse(sys.argv[1:])
    try:
        results = Results.from_json(json.loads(options.read.read_text())) if options.read else measure(options)
    except BenchError as error:
        say(f"error: {error}")
        return 3
    except KeyboardInterrupt:
        say("Interrupted; everything was stopped.")
        return 130
    found: dict[str, Any] = results.to_json()
    if not options.read:
        SAVED.write_text(json.dumps(found, indent=1))
    print(json.dumps(found) if options.json else render(results), flush=True)
    if options.docs:
        write_docs(PAGE, results)
    return 1 if results.errors().get("ours") else 0


def _pinning(grid: Grid) -> str:
    if grid.cores.path is None:
        return "nothing is pinned: one core for everything"
    return f"clients and sources on core {grid.cores.load}, all other peers on core {grid.cores.path}"


def _commit() -> str:
    command = ["git", "-C", str(toolbox.ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
