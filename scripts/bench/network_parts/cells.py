"""What is measured: one visit of one cell is one measurement of one system."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from path_parts.figures import Results
from path_parts.process import BenchError, cpu_ns, say
from path_parts.toolbox import ROOT

from .grid import MODEL, ROADS, Grid
from .worker import Failed

SYSTEMS: Final = ("ours", "js")
_ONCE_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much one visit does."""

    providers: int = 6
    trips: int = 50
    """Round trips on a link."""
    orders: int = 10
    mib: int = 32
    """Through a circuit."""


SHORT: Final = Sizes(providers=2, trips=10, orders=3, mib=4)

Visit = Callable[[Grid, str, Sizes], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of measurement."""

    name: str
    visit: Visit
    systems: tuple[str, ...] = SYSTEMS


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a cell, as the table has it."""

    cell: str
    metric: str
    title: str
    unit: str
    more_is_better: bool = False


def _start(grid: Grid, system: str, sizes: Sizes) -> dict[str, float]:
    """A whole program, from the start of its process."""
    core = grid.cores.load
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    began_s, before = time.time(), os.times()
    done = subprocess.run(
        [*pinned, *grid.once(system)], cwd=ROOT, capture_output=True, text=True, timeout=_ONCE_S, check=False
    )
    try:
        said = json.loads(done.stdout)
        first_ms = (said["began_s"] - began_s) * 1e3 + said["first_ms"]
    except (ValueError, KeyError):
        raise Failed(f"a program of {system} ended without an offer: {done.stdout}{done.stderr[-500:]}") from None
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"first_ms": first_ms, "cpu_ms": cpu_s * 1e3}


def _look_up(what: str, road: str = "") -> Visit:
    """Of the model that all sell who can be dialled; or of that which is sold over one road alone."""

    def visit(grid: Grid, system: str, sizes: Sizes) -> dict[str, float]:
        model, wanted = (grid.sellers[road].model, 1) if road else (MODEL, sizes.providers)
        return grid.clients[system].order(what, model=model, wanted=wanted)

    return visit


def _link(road: str) -> Visit:
    def visit(grid: Grid, system: str, sizes: Sizes) -> dict[str, float]:
        return grid.clients[system].order("link", **grid.sellers[road].where(), trips=sizes.trips)

    return visit


def _order(road: str) -> Visit:
    def visit(grid: Grid, system: str, sizes: Sizes) -> dict[str, float]:
        seller = grid.sellers[road]
        return grid.clients[system].order("order", **seller.where(), model=seller.model, orders=sizes.orders)

    return visit


def _pull(grid: Grid, system: str, sizes: Sizes) -> dict[str, float]:
    """Our relay, our source; the client is the system's."""
    return _through(grid, client=system, relay="ours", source="ours", mib=sizes.mib)


def _relay(grid: Grid, system: str, sizes: Sizes) -> dict[str, float]:
    """js-libp2p at both ends; the relay is the system's."""
    return _through(grid, client="js", relay=system, source="js", mib=sizes.mib)


def _through(grid: Grid, *, client: str, relay: str, source: str, mib: int) -> dict[str, float]:
    pids = grid.relays[relay].pids()
    before = cpu_ns(pids)
    found = grid.clients[client].order("pull", **grid.sources[relay, source].where(), mib=mib)
    return {**found, "relay_cpu_ms": (cpu_ns(pids) - before) / 1e6 / mib}


CELLS: Final = (
    Cell("start", _start),
    Cell("cold", _look_up("cold")),
    Cell("warm", _look_up("warm")),
    Cell("cold-relayed", _look_up("cold", "relayed")),
    Cell("warm-relayed", _look_up("warm", "relayed")),
    *(Cell(f"link-{road}", _link(road), SYSTEMS if road != "direct" else ("ours",)) for road in ROADS),
    *(Cell(f"order-{road}", _order(road), SYSTEMS if road != "direct" else ("ours",)) for road in ROADS),
    Cell("pull", _pull),
    Cell("relay", _relay),
)
_OVER: Final = {"direct": "direct (TLS)", "libp2p": "libp2p", "relayed": "libp2p, relayed"}
ROWS: Final = (
    Row("start", "first_ms", "cold, from the start of the program: first offer", "ms"),
    Row("start", "cpu_ms", "the same: CPU of the program, with its end", "ms"),
    Row("cold", "first_ms", "cold look-up: first offer", "ms"),
    Row("cold", "all_ms", "cold look-up: all offers", "ms"),
    Row("cold", "cpu_ms", "cold look-up: CPU of the client", "ms"),
    Row("warm", "first_ms", "warm look-up: first offer", "ms"),
    Row("warm", "lookup_ms", "warm look-up: the look-up's end", "ms"),
    Row("warm", "all_ms", "warm look-up: all offers", "ms"),
    Row("warm", "cpu_ms", "warm look-up: CPU of the client", "ms"),
    Row("cold-relayed", "first_ms", "cold look-up: the offer of one behind a relay", "ms"),
    Row("warm-relayed", "first_ms", "warm look-up: the offer of one behind a relay", "ms"),
    *(Row(f"link-{road}", "ms", f"connect, {_OVER[road]}: a ready link", "ms") for road in ROADS),
    *(Row(f"link-{road}", "cpu_ms", f"connect, {_OVER[road]}: CPU of the client", "ms") for road in ROADS),
    *(Row(f"link-{road}", "trip_ms", f"round trip on a link, {_OVER[road]}", "ms") for road in ROADS),
    *(Row(f"order-{road}", "ms", f"first byte of an order, {_OVER[road]}", "ms") for road in ROADS),
    *(Row(f"order-{road}", "cpu_ms", f"an order, {_OVER[road]}: CPU of the client", "ms") for road in ROADS),
    Row("pull", "mib_per_s", "from our source through our relay", "MiB/s", more_is_better=True),
    Row("pull", "cpu_ms", "the same: CPU of the client, a MiB", "ms"),
    Row("relay", "mib_per_s", "js-libp2p to js-libp2p through the relay", "MiB/s", more_is_better=True),
    Row("relay", "relay_cpu_ms", "the same: CPU of the relay, a MiB", "ms"),
)


def chosen(names: str | None) -> list[Cell]:
    """The cells that were asked for, by the beginning of their names. Raises BenchError for a name that is none."""
    if not names:
        return list(CELLS)
    wanted = names.split(",")
    unknown = [one for one in wanted if not any(cell.name.startswith(one) for cell in CELLS)]
    if unknown:
        known = ", ".join(cell.name for cell in CELLS)
        raise BenchError(f"{', '.join(unknown)}: no such cell; there are {known}.")
    return [cell for cell in CELLS if any(cell.name.startswith(one) for one in wanted)]


def run_rounds(grid: Grid, cells: Sequence[Cell], sizes: Sizes, rounds: int, results: Results) -> None:
    """Every cell of every round visits its systems in turn, another first each time. The first round warms, uncounted.

    What fails is counted, and said. Raises BenchError where a client ends.
    """
    for number in range(rounds + 1):
        say(f"  .. Round {number} of {rounds}" if number else "  .. A round that does not count")
        for cell in cells:
            turn = number % len(cell.systems)
            for system in (*cell.systems[turn:], *cell.systems[:turn]):
                try:
                    figures = cell.visit(grid, system, sizes)
                except Failed as failure:
                    say(f"  !! {cell.name}: {failure}")
                    figures = {"errors": 1}
                if number:
                    results.add(cell.name, system, figures)
