"""What several processes bring: requests and chunks a second through nodes of one process and of several, in one run.

    python scripts/bench/processes.py [--nodes 1,2] [--rounds 3] [--window-s 2] [--json]
    python scripts/bench/processes.py --parts        what passes between the processes costs, alone

Each entry of `--nodes` is a grid of its own, up for the whole run: a gateway and a provider with so many processes
each. `4:8` is 4 at a gateway and 8 at the provider; since a gateway has 4 at most, and so 4 links, the provider's 8 are
then fed by two gateways. In each round every grid is measured, another first each time. A ratio is the median of the
rounds'. "main" is the CPU that the busier of the two main processes spends on each request or chunk: a million divided
by it is the most a second that a node can reach with however many workers.

Left out, `--nodes` is what the machine has cores for: 1 and 2; with 8 cores 4 as well, with 16 `4:8` too. Engine and
load are one thread each, on cores of their own where there are at least four. Read the throughput only where the column
"bench" (the busier of the two, as a share of its core) stays below 1, and where the cores suffice: on two cores
everything shares them, more processes cannot be faster, and what the run shows is what they cost in CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from path_parts import toolbox
from path_parts.cells import Cell, unpaced, unstreamed
from path_parts.load import Load
from path_parts.process import BenchError, Process, memory_bytes, say
from path_parts.systems import READY_S, P2pgrid, empty_folder, wait_until

from p2pgrid.ledger.remote import RemoteLedger
from p2pgrid.ledger.service import LedgerService
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.net.limits import Allowance, Seats
from p2pgrid.processes.accepting import Acceptor, Handed, receive_connections
from p2pgrid.processes.bus import Bus
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import ENDPOINTS, DataTerms, ModelOffer, Offer, Tariff, Terms
from p2pgrid.proto.record import Role, sign_message

MOST_OF_A_GATEWAY: Final = 4
CONNECTIONS: Final = 64
PARTS: Final = 1600


@dataclass(frozen=True, slots=True)
class Nodes:
    """How many processes each node of a grid has."""

    gateway: int
    provider: int

    @property
    def gateways(self) -> int:
        """Gateways that the provider's processes need to have a link each."""
        return max(1, -(-self.provider // MOST_OF_A_GATEWAY)) if self.gateway == MOST_OF_A_GATEWAY else 1

    @property
    def cores(self) -> int:
        """Cores that they can use: a main process beside workers has little to do."""
        return self.gateways * self.gateway + self.provider

    def __str__(self) -> str:
        return f"{self.gateway}" if self.gateway == self.provider else f"{self.gateway}:{self.provider}"


@dataclass(frozen=True, slots=True)
class Door:
    """One gateway of a grid, as the load sees it. The first counts the CPU of the whole grid."""

    grid: Grid
    name: str
    port: int
    counts: bool

    @property
    def label(self) -> str:
        return self.grid.label

    def pids(self) -> dict[str, list[int]]:
        return self.grid.pids() if self.counts else {}

    def check_runs(self) -> None:
        self.grid.check_runs()


class Grid(P2pgrid):
    """A provider and its gateways."""

    name = "processes"

    def __init__(self, folder: Path, nodes: Nodes, *, engine_port: int) -> None:
        self.nodes: Final = nodes
        self.name = f"p{nodes.gateway}-{nodes.provider}"  # type: ignore[misc]
        self.label = f"{nodes} processes"  # type: ignore[misc]
        super().__init__(folder, engine_port=engine_port, core=None, most_streams=CONNECTIONS)
        self.doors: list[Door] = []

    def start(self) -> None:
        super().start()
        self.doors = [Door(self, f"{self.name}-1", self.port, counts=True)]
        common = ["--network", f"bench-{self.name}", "--bootstrap-peers", str(self.folder / "bootstrap_peers.toml")]
        for number in range(2, self.nodes.gateways + 1):
            data = f"gateway{number}"
            gateway = self._command("gateway", "--listen", "127.0.0.1:0", *common, data=data)
            self._nodes[data] = gateway
            self.port = int(gateway.ready_line(READY_S)["base_url"].rpartition(":")[2].partition("/")[0])
            wait_until(self._is_on_sale, gateway)
            self.doors.append(Door(self, f"{self.name}-{number}", self.port, counts=False))

    def warm(self, load: Load) -> None:
        """Every channel signs for enough to have its share of the streams open at once (session.md, section 8)."""
        for door in self.doors:
            # Connections that come one after the other are spread over the workers evenly.
            load.requests(door, 64 * self.nodes.gateway, connections=self.nodes.gateway)
            sales = 32 * self.nodes.gateway + self.most_streams
            load.requests(door, sales, connections=8 * self.nodes.gateway, stream=True, tokens=256)

    def pids(self) -> dict[str, list[int]]:
        """Main processes apart from their workers."""
        found: dict[str, list[int]] = {}
        for role, (main, *workers) in super().pids().items():
            found |= {f"{role} main": [main], f"{role} workers": workers}
        return found

    def receipts(self) -> dict[str, int]:
        """Receipts that both sides have signed: of all gateways together, and of the provider."""
        found = {"gateway": 0, "provider": 0}
        for node in self._nodes:
            with SqliteLedger.open_readonly(self.folder / node / "ledger.sqlite") as ledger:
                signed = sum(row.countersigned for row in ledger.receipts())
            found["provider" if node == "provider" else "gateway"] += signed
        return found

    def _command(self, command: str, *arguments: str, data: str = "") -> Process:
        processes = {"gateway": self.nodes.gateway, "serve": self.nodes.provider}.get(command)
        more = [] if processes is None else ["--processes", str(processes)]
        return super()._command(command, *arguments, *more, data=data)


def of_this_machine(cores: int) -> list[Nodes]:
    """What a machine with so many cores can show."""
    chosen = [Nodes(1, 1), Nodes(2, 2)]
    if cores >= 8:
        chosen.append(Nodes(4, 4))
    if cores >= 16:
        chosen.append(Nodes(4, 8))
    return chosen


def parse_nodes(text: str) -> list[Nodes]:
    """`1,2,4:8`. Raises BenchError."""
    chosen = []
    for entry in text.split(","):
        gateway, _, provider = entry.partition(":")
        try:
            nodes = Nodes(int(gateway), int(provider or gateway))
        except ValueError:
            raise BenchError(f"{entry!r} is no number of processes; write 2, or 4:8.") from None
        if not 1 <= nodes.gateway <= MOST_OF_A_GATEWAY or not 1 <= nodes.provider <= 64:
            raise BenchError(f"a gateway has 1 to {MOST_OF_A_GATEWAY} processes, a provider 1 to 64; {entry} came.")
        chosen.append(nodes)
    return chosen


def cells(window_s: float) -> dict[str, Cell]:
    """What is measured, by the figure that it gives."""
    return {
        "requests": unstreamed(CONNECTIONS, window_s),
        "chunks": Cell(**{**_fields(unpaced(CONNECTIONS)), "window_s": window_s}),
    }


def _fields(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in Cell.__dataclass_fields__}


def visit(grid: Grid, cell: Cell, load: Load) -> dict[str, float]:
    """One measurement, at all doors at once."""
    loads = [(door, load.begin(door, cell.arguments())) for door in grid.doors]
    results = [load.end(door, process) for door, process in loads]
    measured = [cell.metrics(result) for result in results]
    rate = "chunks_per_s" if cell.stream else "requests_per_s"
    whole = sum(one[rate] for one in measured)
    # The first door's load has counted the CPU of all, in its own window.
    cpu_ns, count = results[0]["node_cpu_ns"], whole * results[0]["window_s"]
    return {
        "per_s": whole,
        "cpu_us": sum(cpu_ns.values()) / 1000 / count,
        "main_us": max(ns for node, ns in cpu_ns.items() if node.endswith(" main")) / 1000 / count,
        "errors": sum(one["errors"] + one["cut"] for one in measured),
        "bench": max(one["bench_busy"] for one in measured),
    }


def pin(cores: Sequence[int]) -> tuple[int | None, int | None]:
    """Cores for engine and load; this process and what it starts stay on the others."""
    if len(cores) < 4:
        return None, None
    os.sched_setaffinity(0, set(cores[:-2]))
    return cores[-2], cores[-1]


def measure(chosen: Sequence[Nodes], rounds: int, window_s: float, folder: Path) -> dict[str, Any]:
    """The whole run: for each grid and figure, its rounds."""
    cores = sorted(os.sched_getaffinity(0))
    engine_core, load_core = pin(cores)
    engine_path, load_path = toolbox.compiled("engine"), toolbox.compiled("load")
    grids: list[Grid] = []
    empty_folder(folder / "run")
    engine = Process("the engine", [str(engine_path)], log=folder / "engine.log", core=engine_core)
    try:
        port = engine.ready_line(10)["port"]
        load = Load(load_path, engine_pid=engine.pid, core=load_core)
        for nodes in chosen:
            grid = Grid(folder / "run", nodes, engine_port=port)
            grids.append(grid)
            say(f"  .. Start and warm up a grid of {grid.label}")
            grid.start()
            grid.warm(load)
        results: dict[str, dict[str, list[dict[str, float]]]] = {str(grid.nodes): {} for grid in grids}
        for number in range(rounds):
            say(f"  .. Round {number + 1} of {rounds}")
            for figure, cell in cells(window_s).items():
                for grid in grids[number % len(grids) :] + grids[: number % len(grids)]:
                    time.sleep(0.3)  # what the last visit left is settled
                    results[str(grid.nodes)].setdefault(figure, []).append(visit(grid, cell, load))
        books = {}
        for grid in grids:
            answers = sum(load.answers[door.name] for door in grid.doors)
            books[str(grid.nodes)] = {"answers": answers, **wait_for_receipts(grid, answers)}
        memory = {str(g.nodes): sum(sum(map(memory_bytes, pids)) for pids in g.pids().values()) for g in grids}
    finally:
        for grid in grids:
            grid.stop()
        engine.stop()
    needed = max(grid.nodes.cores for grid in grids) + 2
    return {"cores": len(cores), "needed": needed, "nodes": results, "books": books, "memory": memory}


def wait_for_receipts(grid: Grid, answers: int) -> dict[str, int]:
    """What both ledgers hold, once the last receipts are signed."""
    until = time.monotonic() + 10
    while (found := grid.receipts())["gateway"] < answers and time.monotonic() < until:
        time.sleep(0.2)
    return found


def ratio(results: Mapping[str, Any], nodes: str, figure: str, key: str) -> float:
    """Of a grid to the first one, the median of the rounds'."""
    base = next(iter(results.values()))[figure]
    return statistics.median(
        float(own[key] / one[key]) for own, one in zip(results[nodes][figure], base, strict=True) if one[key]
    )


def render(run: Mapping[str, Any]) -> str:
    """The table."""
    head = ["processes", "MiB", "bench"]
    for rate in ("requests/s", "chunks/s"):
        head += [rate, "x", "CPU us", "x", "main us"]
    rows = [head]
    for nodes, figures in run["nodes"].items():
        row = [nodes, f"{run['memory'][nodes] / 2**20:.0f}"]
        row.append(f"{max(one['bench'] for of in figures.values() for one in of):.2f}")
        for figure in ("requests", "chunks"):
            for key in ("per_s", "cpu_us"):
                row += [_median(figures[figure], key), f"{ratio(run['nodes'], nodes, figure, key):.2f}"]
            row.append(_median(figures[figure], "main_us"))
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if run["cores"] < run["needed"]:
        lines.append(
            f"{run['cores']} cores for what can use {run['needed']}: requests/s and chunks/s show no scaling here, "
            "CPU shows what more processes cost."
        )
    return "\n".join(lines)


def _median(rounds: Sequence[Mapping[str, float]], key: str) -> str:
    median = statistics.median(one[key] for one in rounds)
    return f"{median:,.0f}" if median >= 100 else f"{median:.1f}"


def faults(run: Mapping[str, Any]) -> list[str]:
    """What went wrong: failed requests, and answers without a receipt that both have signed."""
    found = []
    for nodes, figures in run["nodes"].items():
        failed = sum(one["errors"] for of in figures.values() for one in of)
        if failed:
            found.append(f"{nodes}: {failed:.0f} requests failed")
        books = run["books"][nodes]
        if not books["gateway"] == books["provider"] >= books["answers"]:
            found.append(f"{nodes}: {books['answers']} answers, and receipts signed by both: {books}")
    return found


async def parts(folder: Path) -> dict[str, float]:
    """CPU of both sides, in us, of what passes between processes: an append, a read's question, a connection."""
    main = SqliteLedger.open(folder / "ledger.sqlite")
    ours, theirs = socket.socketpair()
    asked, asking = socket.socketpair()
    bus, worker_bus = await Bus.over(ours, "worker"), await Bus.over(theirs, "main process")
    LedgerService(main, bus, asked)
    remote = RemoteLedger(main.path, worker_bus, asking)
    bus.start()
    worker_bus.start()
    key = SecretKey(bytes(32))
    offers = [sign_message(_offer(key, number), Role.PROVIDER, key) for number in range(1, 2 * PARTS + 1)]
    found = {}
    for name, ledger, some in (("append here", main, offers[:PARTS]), ("append", remote, offers[PARTS:])):
        began_s = time.process_time()
        for first in range(0, PARTS, 16):
            await asyncio.gather(*(ledger.append(one) for one in some[first : first + 16]))
        found[name] = (time.process_time() - began_s) / PARTS * 1e6
    began_s = time.process_time()
    for _ in range(PARTS):
        remote.settle()
    found["settle"] = (time.process_time() - began_s) / PARTS * 1e6
    found["connection"] = await _hand_over()
    await remote.aclose()
    bus.abort()
    await main.aclose()
    return found


async def _hand_over() -> float:
    acceptor = Acceptor(Seats(Allowance(total=PARTS, per_address=PARTS)))
    await acceptor.listen("127.0.0.1", 0)
    giver, taker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    giver.setblocking(False)
    taken = asyncio.Semaphore(0)

    def take(tcp: socket.socket, _: Handed) -> None:
        tcp.close()
        taken.release()

    stop = receive_connections(taker, take, lambda _: None)
    acceptor.add_worker(1, giver)
    dialled = [socket.create_connection(acceptor.addresses[0]) for _ in range(PARTS // 4)]
    began_s = time.process_time()
    acceptor.start()
    for _ in dialled:
        await taken.acquire()
    cpu_us = (time.process_time() - began_s) / len(dialled) * 1e6
    await acceptor.stop()
    stop()
    for one in (*dialled, giver, taker):
        one.close()
    return cpu_us


def _offer(key: SecretKey, sequence: int) -> Offer:
    tariff = Tariff(input_upm=1, cached_input_upm=1, output_upm=1)
    model = ModelOffer(model="m", tariff=tariff, context_tokens=64, concurrency=1, endpoints=ENDPOINTS)
    return Offer(
        provider=key.public_key.raw,
        sequence=sequence,
        valid_from_ms=1,
        valid_until_ms=2,
        operator="Bench",
        currency="EUR",
        addresses=(),
        gpus=(),
        data_terms=DataTerms(country="LT"),
        models=(model,),
        terms=Terms(window_tokens=256, credit_limit_pico=1, max_open_orders=1),
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", help="processes of each grid, the first being what the others are compared with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-s", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--parts", action="store_true", help="what passes between the processes, alone")
    options = parser.parse_args()
    if options.parts:
        with tempfile.TemporaryDirectory() as name:
            found = uvloop.run(parts(Path(name)))
        print(json.dumps(found) if options.json else "\n".join(f"{what:12} {us:5.0f} us" for what, us in found.items()))
        return 0
    try:
        chosen = parse_nodes(options.nodes) if options.nodes else of_this_machine(len(os.sched_getaffinity(0)))
        os.environ["PYTHONPATH"] = str(toolbox.ROOT)
        with tempfile.TemporaryDirectory(prefix="p2pgrid-processes-") as name:
            run = measure(chosen, options.rounds, options.window_s, Path(name))
    except BenchError as error:
        say(f"error: {error}")
        return 3
    wrong = faults(run)
    print(json.dumps({**run, "faults": wrong}) if options.json else "\n".join([render(run), *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
