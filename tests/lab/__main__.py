"""`python -m tests.lab`: build the standard network, say how to enter each host, and wait for Ctrl-C."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys

from tests.lab.namespaces import Unavailable
from tests.lab.network import Lab
from tests.lab.plan import STANDARD, Nat


def main() -> int:
    """Exit code 0 after Ctrl-C, 3 where no laboratory can be had."""
    arguments = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    arguments.add_argument("--symmetric", action="append", default=[], metavar="ROUTER", help="translate so there")
    arguments.add_argument("--json", action="store_true", help="print one JSON object when it is built")
    chosen = arguments.parse_args()
    plan = STANDARD
    for name in chosen.symmetric:
        plan = plan.with_router(name, nat=Nat.SYMMETRIC)
    try:
        with Lab(plan) as lab:
            print(json.dumps(_hosts(lab)) if chosen.json else _text(lab), flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except Unavailable as reason:
        print(f"error: no laboratory can be had here: {reason}", file=sys.stderr)
        return 3


def _hosts(lab: Lab) -> dict[str, dict[str, object]]:
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


if __name__ == "__main__":
    sys.exit(main())
