#!/usr/bin/env python3
"""How long the commands take to be of use: `--help`, a gateway that answers, a node whose offer is published.

    python scripts/bench/startup.py [--rounds 5] [--imports] [--json]

From the process's start to the end of `--help`, to the first request that a gateway answers, and to the line with which
a node says that its offer is published. `serve` is attached to a fake engine that is up already. Medians of time by the
clock, which what else runs makes longer, and of the processor's, which is the least that it can be. `--imports` shows
the packages whose import takes longest, each with what it imports first. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

TARGETS_S = {"p2pgrid --help": 0.3, "p2pgrid gateway, until /health": 1.5, "p2pgrid serve, until published": 4.0}
MODULES = ("p2pgrid.cli.main", "p2pgrid.client.client", "p2pgrid.provider.node")
NOBODY = "[networks.bench]\npeers = []\n"


def used_s(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "p2pgrid", *arguments]


def help_page() -> tuple[float, float]:
    began_s, before = time.perf_counter(), os.times()
    subprocess.run(command("--help"), check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began_s, used


def until_ready(arguments: list[str], health: bool) -> tuple[float, float]:
    """From the start until the command says that it is ready, and answers `/health` where it has one."""
    began_s = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        if health:
            urllib.request.urlopen(ready["base_url"].removesuffix("/v1") + "/health").read()
        return time.perf_counter() - began_s, used_s(process.pid)
    finally:
        process.terminate()
        process.wait()


def gateway(folder: Path) -> tuple[float, float]:
    peers = folder / "peers.toml"
    peers.write_text(NOBODY)
    network = ["--network", "bench", "--bootstrap-peers", str(peers)]
    listen = ["--listen", "127.0.0.1:0", "--json"]
    return until_ready(command("--data", str(folder / "client"), "gateway", *listen, *network), health=True)


def serve(folder: Path, engine_url: str) -> tuple[float, float]:
    peers, data = folder / "peers.toml", str(folder / "operator")
    peers.write_text(NOBODY)
    if not Path(data).exists():
        setup = command("--data", data, "init", "--operator", "Bench", "--country", "LT", "--json")
        subprocess.run(setup, check=True, stdout=subprocess.DEVNULL)
    return until_ready(
        command(
            *("--data", data, "serve", "--json", "--network", "bench", "--bootstrap-peers", str(peers)),
            *("--model", "fake", "--engine-url", engine_url, "--price-input", "0.1", "--price-output", "0.2"),
            *("--listen", "127.0.0.1:0", "--libp2p-listen", "/ip4/127.0.0.1/tcp/0"),
        ),
        health=False,
    )


def largest_imports(module: str, shown: int = 12) -> list[tuple[str, float]]:
    """Packages by the time of their import, each alone: what it imports in turn counts for those."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    lines = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr.splitlines()
    taken_ms: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        own_us, _, name = line.removeprefix("import time:").split("|")
        if own_us.strip().isdecimal():
            taken_ms[name.strip().partition(".")[0]] += int(own_us) / 1000
    return sorted(taken_ms.items(), key=lambda one: one[1], reverse=True)[:shown]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds)
    medians = {name: [statistics.median(column) for column in zip(*one, strict=True)] for name, one in found.items()}
    imports = {module: largest_imports(module) for module in MODULES} if options.imports else {}
    if options.json:
        figures = {
            name: {"wall_s": wall, "cpu_s": cpu, "target_s": TARGETS_S[name]} for name, (wall, cpu) in medians.items()
        }
        print(json.dumps({"commands": figures, "imports": imports}))
    else:
        for name, (wall_s, cpu_s) in medians.items():
            target_s = TARGETS_S[name]
            verdict = "met" if wall_s <= target_s else "open: the machine is busy" if cpu_s <= target_s else "MISSED"
            print(f"{name:34} {wall_s:6.2f} s, {cpu_s:5.2f} s of processor (target {target_s:g} s: {verdict})")
        for module, largest in imports.items():
            print(f"{module}: " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in largest))
    return int(any(cpu_s > TARGETS_S[name] for name, (_, cpu_s) in medians.items()))


def measure(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Time by the clock and of the processor, by command, in turns."""
    fake = subprocess.Popen(
        [sys.executable, "-m", "p2pgrid.engine.fake", "--model", "fake"], stdout=subprocess.PIPE, text=True
    )
    assert fake.stdout is not None
    engine_url = json.loads(fake.stdout.readline())["url"]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TARGETS_S}
    try:
        with tempfile.TemporaryDirectory() as folder:
            help_page()  # bytecode is written once
            for _ in range(rounds):
                for name, one in zip(
                    TARGETS_S, (help_page(), gateway(Path(folder)), serve(Path(folder), engine_url)), strict=True
                ):
                    found[name].append(one)
    finally:
        fake.terminate()
        fake.wait()
    return found


if __name__ == "__main__":
    sys.exit(main())
