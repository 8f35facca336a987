"""One interleaved run: every system up all the time, each cell of each round visits all of them in turn."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from . import toolbox
from .cells import HELD_STREAMS, Cell, held
from .figures import Results
from .load import Load
from .process import BenchError, Process, cpu_ns, memory_bytes, say
from .systems import P2PGRID_CONFIG, Batched, P2pgrid, System, UnsafeWithoutReceipts, empty_folder, stop_all
from .toolbox import Missing

IDLE_SHARE: Final = 0.15
_IDLE_STEP_S: Final = 0.1
_IDLE_MOST_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run. None: wherever the kernel likes."""

    path: int | None
    engine: int | None
    load: int | None

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The systems under test on one core, engine and load on others, as far as there are any."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) == 1:
            return cls(None, None, None)
        return cls(cores[0], cores[1], cores[2 if len(cores) > 2 else 1])

    def __str__(self) -> str:
        if self.path is None:
            return "one core for everything: nothing is pinned, and engine and load take from the path"
        if self.engine == self.load:
            return f"systems under test on core {self.path}, engine and load together on core {self.load}"
        return f"systems under test on core {self.path}, engine on core {self.engine}, load on core {self.load}"


class Bench:
    """The engine, the systems, and the load. Use it with `with`: at its end nothing is left running."""

    def __init__(
        self, kinds: Sequence[type[System]], *, most_streams: int, folder: Path = toolbox.BUILD / "run"
    ) -> None:
        self.cores: Final = Cores.of_this_machine()
        self.systems: Final[list[System]] = []
        self.missing: Final[dict[str, str]] = {}
        """Systems that cannot be had here, and why."""
        self._kinds = kinds
        self._most_streams = most_streams
        self._folder = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_alone(self._folder.parent))
            engine, load = toolbox.compiled("engine"), toolbox.compiled("load")
            empty_folder(self._folder)
            stack.callback(stop_all, self.systems)
            self.engine = Process("the engine", [str(engine)], log=self._folder / "engine.log", core=self.cores.engine)
            stack.callback(self.engine.stop)
            port = self.engine.ready_line(10)["port"]
            self.load = Load(load, engine_pid=self.engine.pid, core=self.cores.load)
            for kind in self._kinds:
                self._start(kind, port)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, kind: type[System], engine_port: int) -> None:
        system = kind(self._folder, engine_port=engine_port, core=self.cores.path, most_streams=self._most_streams)
        self.systems.append(system)
        say(f"  .. Start and warm up {system.label}")
        try:
            system.start()
            system.warm(self.load)
        except Missing as why:
            say(f"  !! Without {system.label}: {why}")
            self.missing[system.name] = str(why)
            self.systems.remove(system)
            system.stop()

    def named(self, name: str) -> System | None:
        """The system of that name, if it is up."""
        return next((system for system in self.systems if system.name == name), None)

    def visit(self, cell: Cell, system: System) -> dict[str, float]:
        """One measurement, on a system that has come to rest."""
        self.settle(system)
        measured = cell if system.keeps_up else cell.as_batch()
        return measured.metrics(self.load.run(system, measured.arguments()))

    def memory(self, system: System) -> dict[str, int]:
        """Memory by node, in bytes: resident, as if each node were alone on its machine."""
        return {node: sum(map(memory_bytes, pids)) for node, pids in system.pids().items()}

    def hold(self, system: System, connections: int = HELD_STREAMS) -> dict[str, Any]:
        """Hold many slow streams open; memory for each, and what failed."""
        cell = held(connections)
        self.settle(system)
        before = sum(self.memory(system).values())
        process = self.load.begin(system, cell.arguments())
        most = before
        until = time.monotonic() + cell.warm_s + cell.window_s
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.5)
            most = max(most, sum(self.memory(system).values()))
        result = self.load.end(system, process)
        return {
            "held": result["most_open"],
            "held_errors": result["errors"] + result["cut"] + connections - min(connections, result["most_open"]),
            "held_error": result["error"],
            "per_stream": (most - before) / connections,
        }

    def receipts(self, system: P2pgrid) -> dict[str, int]:
        """Answers that the load had whole or cut, and receipts in both ledgers."""
        self.settle(system)
        answers = {"answers": self.load.answers[system.name], "cut": self.load.cut[system.name]}
        return {**answers, **system.receipts()}

    def calibrate(self) -> dict[str, dict[str, float]]:
        """A fixed piece of work on either core."""
        return {"path": self.load.calibrate(self.cores.path), "load": self.load.calibrate(self.cores.load)}

    def about(self) -> dict[str, Any]:
        """What was measured, and on what."""
        commit = subprocess.run(
            ["git", "-C", str(toolbox.ROOT), "describe", "--always", "--dirty"],
            capture_output=True, text=True, check=False,
        ).stdout.strip()  # fmt: skip
        return {
            "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "commit": commit,
            "versions": toolbox.versions(),
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "pinning": str(self.cores),
            "kernel": platform.release(),
            "disk": _file_system(self._folder),
            "free_gb": shutil.disk_usage(self._folder).free / 1e9,
            "p2pgrid_config": P2PGRID_CONFIG,
            "systems": {system.name: {"label": system.label, "hops": system.hops} for system in self.systems},
            "missing": self.missing,
        }

    def settle(self, system: System) -> None:
        """Wait until what the last visit left is worked off."""
        pids = [pid for node in system.pids().values() for pid in node]
        until = time.monotonic() + _IDLE_MOST_S
        while pids and time.monotonic() < until:
            before = cpu_ns(pids)
            time.sleep(_IDLE_STEP_S)
            if cpu_ns(pids) - before < IDLE_SHARE * _IDLE_STEP_S * 1e9:
                return


class Progress:
    """Lines on standard error, with how long is left."""

    def __init__(self, visits: Sequence[tuple[Cell, System]]) -> None:
        self._left_s = sum(cell.expected_s for cell, _ in visits)
        self._expected_s = self._took_s = 0.0

    def tell(self, text: str) -> None:
        """What is begun now."""
        pace = self._took_s / self._expected_s if self._expected_s else 1.1
        left_s = self._left_s * pace
        say(f"  .. {text} ({left_s / 60:.0f} min left)" if left_s > 90 else f"  .. {text} ({left_s:.0f} s left)")

    def done(self, cell: Cell, took_s: float) -> None:
        """A visit is over."""
        self._left_s -= cell.expected_s
        self._expected_s += cell.expected_s
        self._took_s += took_s


def visited(cell: Cell, systems: Sequence[System]) -> list[System]:
    """The systems that a cell is measured for."""
    if cell.only:
        return [s for s in systems if s.name in cell.only or (cell.unsafe_too and s.name == UnsafeWithoutReceipts.name)]
    shunned = {
        name
        for name, is_in in ((UnsafeWithoutReceipts.name, cell.unsafe_too), (Batched.name, not cell.stream))
        if not is_in
    }
    return [s for s in systems if s.name not in shunned]


def run_rounds(bench: Bench, cells: Sequence[Cell], rounds: int, results: Results) -> None:
    """All cells, `rounds` times. In each the systems take turns, and each round another one begins."""
    plan = [(number, cell, visited(cell, bench.systems)) for number in range(rounds) for cell in cells]
    progress = Progress([(cell, system) for _, cell, systems in plan for system in systems])
    for place, (number, cell, systems) in enumerate(plan):
        progress.tell(f"Round {number + 1} of {rounds}: {cell.title}")
        for core, measured in bench.calibrate().items():
            results.calibration.setdefault(core, []).append(measured)
        turn = (number + place) % max(1, len(systems))
        for system in [*systems[turn:], *systems[:turn]]:
            began = time.monotonic()
            results.add(cell.name, system.name, bench.visit(cell, system))
            progress.done(cell, time.monotonic() - began)


def run_memory(bench: Bench, results: Results, hold: Sequence[str]) -> None:
    """Memory at rest, and with 1,000 streams held open. Before the rounds: later it is what the heap has kept."""
    for system in bench.systems:
        if not system.pids() or system.name == UnsafeWithoutReceipts.name:
            continue
        results.memory[system.name] = {"at_rest": bench.memory(system)}
        if system.name in hold:
            say(f"  .. {system.label}: hold {HELD_STREAMS:,} streams open")
            results.memory[system.name] |= bench.hold(system)


def note_memory_after(bench: Bench, results: Results) -> None:
    """Memory after all rounds."""
    for system in bench.systems:
        if system.name in results.memory:
            results.memory[system.name]["after_load"] = bench.memory(system)


def note_receipts(bench: Bench, results: Results) -> None:
    """Whether every answer of the run has its receipt, or its place on one, signed by both, in both ledgers."""
    results.about["receipts"] = {
        system.name: bench.receipts(system)
        for system in bench.systems
        if isinstance(system, P2pgrid) and not isinstance(system, UnsafeWithoutReceipts)
    }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run at a time: two would measure each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError("another run is under way here: two would measure each other.") from None
        yield


def cpu_model() -> str:
    """The name of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    best = ("", "?")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if str(folder).startswith(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]
