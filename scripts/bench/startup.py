#!/usr/bin/env python3
"""How long the commands take to be of use: `--help`, a gateway that answers, a node whose offer is published.

    python scripts/bench/startup.py [--rounds 3]

`serve` is attached to a fake engine that is up already. Prints the median and the processor's time, which other work
on the machine changes less.
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
from pathlib import Path

TARGETS_S = {"p2pgrid --help": 0.3, "p2pgrid gateway, until /health": 1.5, "p2pgrid serve, until published": 4.0}
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
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
    for name, target_s in TARGETS_S.items():
        wall_s, cpu_s = (statistics.median(column) for column in zip(*found[name], strict=True))
        print(f"{name:34} {wall_s:6.2f} s, of which {cpu_s:5.2f} s of processor (target {target_s:g} s)")


if __name__ == "__main__":
    main()
