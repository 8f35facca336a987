"""Build the laboratory's standard network, say how to enter each host, and wait for Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.lab.grid import LabGrid, fake_engine
from tests.lab.namespaces import Unavailable
from tests.lab.network import Lab
from tests.lab.plan import STANDARD, Nat

HUBS = ("hub", "hub-west")
OPERATORS = ("shop", "shop-west", "vilnius", "torino")
CLIENTS = ("home", "flat")


def main() -> int:
    """Exit code 0 after Ctrl-C, 3 where no laboratory can be had."""
    arguments = argparse.ArgumentParser(prog="scripts/lab", description=__doc__)
    arguments.add_argument("--symmetric", action="append", default=[], metavar="ROUTER", help="translate so there")
    arguments.add_argument("--grid", action="store_true", help="run a node on each host, with a fake engine")
    arguments.add_argument("--json", action="store_true", help="print one JSON object when it is built")
    chosen = arguments.parse_args()
    plan = STANDARD
    for name in chosen.symmetric:
        plan = plan.with_router(name, nat=Nat.SYMMETRIC)
    try:
        with Lab(plan) as lab:
            print(json.dumps(_hosts(lab)) if chosen.json else _text(lab), flush=True)
            if chosen.grid:
                asyncio.run(_grid(lab))
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except Unavailable as reason:
        print(f"error: no laboratory can be had here: {reason}", file=sys.stderr)
        return 3


def _hosts(lab: Lab) -> dict[str, dict[str, Any]]:
    return {
        name: {"address": lab.address(name), "pid": lab[name].pid, "enter": lab[name].enter} for name in lab.plan.names
    }


def _text(lab: Lab) -> str:
    plan = lab.plan
    lines = ["The network is built. Enter a host with the command beside it; end everything with Ctrl-C.", ""]

    def line(depth: int, name: str, what: str) -> None:
        lines.append(f"{'  ' * depth + name:16} {what:34} {shlex.join(lab[name].enter)} bash")

    line(0, "internet", "routes " + ", ".join(segment.network for segment in plan.segments))
    for segment in plan.segments:
        for host in plan.hosts:
            if host.at == segment.name:
                line(1, host.name, f"{host.address} (public)")
        for router in plan.routers:
            if router.segment == segment.name:
                line(1, router.name, f"{router.address}, {router.nat.name.lower()}")
                for host in plan.hosts:
                    if host.at == router.name:
                        line(2, host.name, host.address)
    return "\n".join(lines)


async def _grid(lab: Lab) -> None:
    """A node on every host, until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="p2pgrid-lab-") as folder, fake_engine() as engine_url:
        grid = LabGrid(lab, Path(folder), engine_url, hubs=HUBS)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(grid.stop)
            print("\nStarting a node on each host.", file=sys.stderr, flush=True)
            clients = await grid.start(operators=OPERATORS, clients=CLIENTS)
            for name, node in grid.nodes.items():
                print(f"{name:16} --data {node.data}    its log: {node.log}")
            for client in clients:
                print(f"curl --unix-socket {client.door} http://127.0.0.1:8480/v1/models")
            sys.stdout.flush()
            await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
