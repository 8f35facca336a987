"""The command `scripts/bench/dht`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from path_parts import toolbox
from path_parts.process import BenchError, say

from .real import measure_real
from .report import missed, render, write_docs
from .scenarios import SCENARIOS, SHORT

PARTS: Final = ("real", "growth", "attack")
SIZES: Final = (1_000, 10_000, 100_000)
HOSTS: Final = 56
LOOKUPS: Final = 400
SHORT_SIZES: Final = (300, 1_000)
SHORT_LOOKUPS: Final = 60
SHORT_HOSTS: Final = 12
SAVED: Final = toolbox.BUILD / "dht.json"
PAGE: Final = toolbox.ROOT / "docs" / "dht.md"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/dht",
        description="What look-ups cost and find: among real hosts, and in a simulated network of up to 100,000 peers.",
        epilog=f"Parts: {', '.join(PARTS)}. All of them take about 20 minutes of two cores and 2 GB. The figures are "
        "kept in build/bench/dht.json; a part that is measured again replaces its own.",
    )
    parser.add_argument("--only", help="only these parts, by name, separated by commas")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="no larger simulated network than this (100,000)")
    parser.add_argument("--hosts", type=int, default=HOSTS, help=f"real hosts ({HOSTS})")
    parser.add_argument("--lookups", type=int, default=LOOKUPS, help=f"in each growing network ({LOOKUPS})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="simulations at once (one a core)")
    parser.add_argument("--seed", type=int, default=1, help="(1)")
    parser.add_argument("--short", action="store_true", help="a small form of all parts, in about a minute")
    parser.add_argument("--from", dest="read", type=Path, help="take the figures of an earlier run from this file")
    parser.add_argument("--json", action="store_true", help="print all figures as one JSON object")
    parser.add_argument("--plot", type=Path, metavar="STEM", help="draw STEM.svg and STEM.png")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/dht.md")
    return parser.parse_args(arguments)


def chosen(names: str | None) -> list[str]:
    """The parts that were asked for. Raises BenchError for a name that is none."""
    wanted = names.split(",") if names else list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        raise BenchError(f"{', '.join(unknown)}: no such part; there are {', '.join(PARTS)}.")
    return wanted


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for, beside what is kept of the others. What was measured is saved at once."""
    found: dict[str, Any] = json.loads(SAVED.read_text()) if SAVED.exists() and not options.short else {}
    parts = chosen(options.only)
    if "real" in parts:  # alone: its times are real ones
        found["real"] = measure_real(SHORT_HOSTS if options.short else options.hosts, options.seed)
        _save(found, options)
    sizes = SHORT_SIZES if options.short else [size for size in SIZES if size <= options.most]
    scenarios = SHORT if options.short else [one for one in SCENARIOS if one.peers <= options.most]
    lookups = SHORT_LOOKUPS if options.short else options.lookups
    steps: list[tuple[str, ...]] = [
        ("growth", str(size), str(options.seed), str(lookups)) for size in sizes if "growth" in parts
    ]
    for one in scenarios if "attack" in parts else ():
        steps.append(("attack", json.dumps(dataclasses.asdict(dataclasses.replace(one, seed=options.seed)))))
    done: dict[tuple[str, ...], dict[str, Any]] = {}
    # The largest networks first, so that no core is left with the longest of all at the end.
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(_in_a_process, *step): step for step in reversed(steps)}
        for ended in as_completed(running):
            done[running[ended]] = ended.result()
            for part in ("growth", "attack"):
                if part in parts:
                    found[part] = [done[step] for step in steps if step[0] == part and step in done]
            _save(found, options)
    return found


def _save(found: dict[str, Any], options: argparse.Namespace) -> None:
    found["about"] = {
        "when": f"{datetime.now(UTC):%-d %B %Y}",
        "commit": _commit(),
        "cpu": _cpu(),
        "seed": options.seed,
    }
    if not options.short:
        SAVED.parent.mkdir(parents=True, exist_ok=True)
        SAVED.write_text(json.dumps(found, indent=1))


def _in_a_process(part: str, *arguments: str) -> dict[str, Any]:
    """One step, so that its memory is its own, and is given back."""
    say(f"  .. {part} {' '.join(arguments)}")
    command = [sys.executable, "-m", f"dht_parts.{part}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{part} {' '.join(arguments)} ended with exit code {done.returncode}; its words are above.")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _commit() -> str:
    command = ["git", "-C", str(toolbox.ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{os.cpu_count()} cores"


def main() -> int:
    """Run the command; its exit code: 1 where look-ups found less than they should, 3 where it could not measure."""
    options = parse(sys.argv[1:])
    try:
        found = json.loads(options.read.read_text()) if options.read else run(options)
        print(json.dumps(found) if options.json else render(found), flush=True)
        if options.docs:
            write_docs(PAGE, found)
        if options.plot:
            script = toolbox.ROOT / "scripts" / "bench" / "dht_parts" / "plot.py"
            source = options.read or SAVED
            subprocess.run([str(toolbox.plot_python()), str(script), str(source), str(options.plot)], check=True)
    except BenchError as error:
        say(f"error: {error}")
        return 3
    except KeyboardInterrupt:
        say("Interrupted; everything was stopped.")
        return 130
    return 1 if missed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
