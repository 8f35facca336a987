"""The command `scripts/bench/path`."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from . import toolbox
from .baseline import Verdict, compare, load_stored, render_verdicts, store
from .bench import Bench, note_memory_after, note_receipts, run_memory, run_rounds
from .cells import FULL, HELD_STREAMS, SHORT, Cell
from .figures import Results
from .process import BenchError, say
from .report import render, write_docs
from .systems import Batched, Direct, LiteLlm, Nginx, P2pgrid, P2pgridOverLibp2p, Relay, System, UnsafeWithoutReceipts

SYSTEMS: Final[dict[str, type[System]]] = {
    kind.name: kind
    for kind in (Direct, LiteLlm, Nginx, Relay, P2pgrid, Batched, P2pgridOverLibp2p, UnsafeWithoutReceipts)
}
SAVED: Final = toolbox.BUILD / "path.json"
PAGE: Final = toolbox.ROOT / "docs" / "performance.md"
_DEFAULT: Final = ("direct", "litellm", "nginx", "p2pgrid", "batched", "p2pgrid-libp2p", "no-receipts")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/path",
        description="The whole data path beside its peers, in one interleaved run on one fake engine.",
        epilog=f"Cells: {', '.join(cell.name for cell in FULL)}. Systems: {', '.join(SYSTEMS)}. "
        "The figures are kept in build/bench/path.json. LiteLLM and nginx are fetched once, into build/bench.",
    )
    parser.add_argument("--short", action="store_true", help="main ratios to nginx or an aiohttp relay, in 2 minutes")
    parser.add_argument("--store", action="store_true", help="with --short: store the ratios as the ones to hold")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--window-s", type=float, help="length of each measurement (2.5)")
    parser.add_argument("--cells", help="only these, by name or its beginning, separated by commas")
    parser.add_argument("--systems", help="only these, by name, separated by commas")
    parser.add_argument("--no-hold", action="store_true", help=f"do not hold {HELD_STREAMS:,} streams open")
    parser.add_argument("--from", dest="read", type=Path, help="take the figures of an earlier run from this file")
    parser.add_argument("--json", action="store_true", help="print all figures as one JSON object")
    parser.add_argument("--plot", type=Path, metavar="STEM", help="draw STEM.svg and STEM.png")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/performance.md")
    return parser.parse_args(arguments)


def chosen_cells(names: str | None, window_s: float | None, cells: Sequence[Cell] = FULL) -> list[Cell]:
    """The cells that were asked for. Raises BenchError for a name that is none."""
    found = list(cells)
    if names:
        wanted = names.split(",")
        found = [cell for cell in cells if any(cell.name.startswith(name) for name in wanted)]
        if not found:
            raise BenchError(f"no cell begins with {names!r}; there are {', '.join(cell.name for cell in cells)}.")
    return [replace(cell, window_s=window_s) for cell in found] if window_s else found


def chosen_systems(names: str | None) -> list[type[System]]:
    """The systems that were asked for. Raises BenchError for a name that is none."""
    wanted = names.split(",") if names else list(_DEFAULT)
    unknown = [name for name in wanted if name not in SYSTEMS]
    if unknown:
        raise BenchError(f"{', '.join(unknown)}: no such system; there are {', '.join(SYSTEMS)}.")
    return [SYSTEMS[name] for name in wanted]


def run_full(options: argparse.Namespace) -> Results:
    """The whole table."""
    cells, kinds, results = chosen_cells(options.cells, options.window_s), chosen_systems(options.systems), Results()
    most = max(cell.connections for cell in cells)
    with Bench(kinds, most_streams=most if options.no_hold else HELD_STREAMS) as bench:
        results.about = bench.about()
        try:
            run_memory(bench, results, () if options.no_hold else ("nginx", "p2pgrid"))
            run_rounds(bench, cells, options.rounds, results)
            note_memory_after(bench, results)
            note_receipts(bench, results)
        finally:
            SAVED.write_text(json.dumps(results.to_json(), indent=1))
    return results


def run_short(options: argparse.Namespace) -> tuple[Results, list[tuple[str, list[Verdict]]]]:
    """The main ratios. A loss is measured again before it is believed."""
    results = Results()
    kinds: list[type[System]] = [Direct, Nginx, P2pgrid]
    try:
        toolbox.nginx()
    except toolbox.Missing as why:
        say(f"  !! Without nginx: {why}")
        kinds[1] = Relay
    if options.store:
        kinds = [Direct, *({kinds[1], Relay}), P2pgrid]
    with Bench(kinds, most_streams=64) as bench:
        results.about = bench.about()
        yardsticks = [system.name for system in bench.systems if system.name in ("nginx", "relay")]
        run_rounds(bench, SHORT, options.rounds, results)
        stored = load_stored()
        lost = {v.ratio.cell for name in yardsticks for v in compare(results, name, stored) if v.is_lost}
        if lost and not options.store:
            say("  .. Lost something: measure it again, to tell a loss from noise")
            run_rounds(bench, [cell for cell in SHORT if cell.name in lost], 2, results)
        note_receipts(bench, results)
    return results, [(name, compare(results, name, stored)) for name in yardsticks]


def main() -> int:
    """Run the command; its exit code."""
    options = parse(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return _short(options) if options.short else _full(options)
    except BenchError as error:
        say(f"error: {error}")
        return 3
    except KeyboardInterrupt:
        say("Interrupted; everything was stopped.")
        return 130


def _full(options: argparse.Namespace) -> int:
    results = Results.from_json(json.loads(options.read.read_text())) if options.read else run_full(options)
    print(json.dumps(results.to_json()) if options.json else render(results), flush=True)
    if options.docs:
        write_docs(PAGE, results)
    if options.plot:
        script = toolbox.HERE / "plot.py"
        source = options.read or SAVED
        subprocess.run([str(toolbox.plot_python()), str(script), str(source), str(options.plot)], check=True)
    return 0 if results.is_whole else 1


def _short(options: argparse.Namespace) -> int:
    results, verdicts = run_short(options)
    failed = {name: count for name, count in results.errors().items() if count}
    if options.json:
        figures = {name: {v.ratio.name: v.found.value if v.found else None for v in found} for name, found in verdicts}
        print(json.dumps({"ratios": figures, "errors": failed, **results.to_json()}))
    else:
        for name, found in verdicts:
            print(render_verdicts(found, name))
        noise = results.noise()
        print("noise: " + ", ".join(f"{name} {value:.2f}" for name, value in sorted(noise.items())))
        if not results.is_whole:
            print(f"failed requests: {failed}; answers and their receipts: {results.receipts()}")
    if options.store:
        store(results, [name for name, _ in verdicts])
        return 0
    return 1 if not results.is_whole or any(v.is_lost for _, found in verdicts for v in found) else 0


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
