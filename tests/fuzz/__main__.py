"""The parsers of the registry under coverage-guided fuzzing (atheris): `scripts/fuzz`.

Every target gets a process of its own and so many seconds. What it found stays in build/fuzz/TARGET and is where the
next run begins. An error that is not ours, a run of over `--slowest` seconds or over 1 GiB ends the target: the input
is kept, and the command that replays it is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "build" / "fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="as `--list` names them; all, if left out")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at once (default: one a core)")
    parser.add_argument("--slowest", type=int, default=5, help="seconds that one input may take (default: 5)")
    parser.add_argument("--list", action="store_true", help="name the targets, and end")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one target on one input, without atheris")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return fuzz_one(options.targets[0], options.seconds, options.slowest)
    from tests.fuzz.targets import TARGETS

    if options.list:
        print("\n".join(TARGETS))
        return 0
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown or (options.replay and len(options.targets) != 1):
        parser.error(f"unknown: {', '.join(unknown)}; see --list" if unknown else "--replay needs one TARGET")
    if options.replay:
        taken = TARGETS[options.targets[0]].accepts(options.replay.read_bytes())
        print("taken" if taken else "refused, as it should be")
        return 0
    names = options.targets or list(TARGETS)
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [name for name in pool.map(lambda n: run_target(n, options), names) if name]
    print(
        f"{len(names) - len(failed)} of {len(names)} targets held" + (f"; not: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


def run_target(name: str, options: argparse.Namespace) -> str:
    """Fuzz one target in a process of its own; its name if it failed."""
    (FOLDER / name).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz", "--one", name, "--seconds", str(options.seconds)]
    done = subprocess.run(
        [*command, "--slowest", str(options.slowest)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    runs = next((line.split()[1] for line in reversed(done.stderr.splitlines()) if line.startswith("Done ")), "?")
    if done.returncode == 0:
        print(f"{name}: {runs} runs, no fault", flush=True)
        return ""
    kept = next((line.split()[-1] for line in done.stderr.splitlines() if "Test unit written to" in line), "")
    print(f"{name}: FAULT\n{done.stdout[-2000:]}{done.stderr[-3000:]}", flush=True)
    if kept:
        print(f"replay it: scripts/fuzz --replay {kept} {name}", flush=True)
    return name


def fuzz_one(name: str, seconds: int, slowest: int) -> int:
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["p2pgrid"]):
        from tests.fuzz.targets import TARGETS
    target, corpus = TARGETS[name], FOLDER / name
    for sample in target.samples():
        (corpus / hashlib.sha256(sample).hexdigest()[:20]).write_bytes(sample)
    arguments = [
        f"-max_total_time={seconds}",
        f"-max_len={min(target.max_bytes, 65_536)}",
        f"-timeout={slowest}",
        "-rss_limit_mb=1024",
        f"-artifact_prefix={FOLDER}/{name}-",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], target.accepts)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
