"""A tiny run on real nodes: the path is sound, and the launcher without receipts leaves out receipts alone."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from path_parts import toolbox
from path_parts.bench import Bench, note_memory_after, note_receipts, run_memory, run_rounds, visited
from path_parts.cells import FULL, Cell, paced, unstreamed
from path_parts.figures import Results
from path_parts.process import BenchError
from path_parts.systems import Batched, Direct, P2pgrid, Relay, System, UnsafeWithoutReceipts, stop_all
from path_parts.targets import receipts_share

CELLS = (
    unstreamed(2, 0.2),
    paced("staggered", 4, tokens=10, window_s=0.2, name="receipts", unsafe_too=True, only=("p2pgrid",)),
)


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """What scripts/bench/path sets for its children."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(toolbox.ROOT), str(toolbox.ROOT / "scripts" / "bench")]))


@pytest.mark.process
@pytest.mark.timeout(300)
@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="there is no C compiler")
@pytest.mark.usefixtures("paths")
def test_a_tiny_run_on_real_nodes(tmp_path: Path) -> None:
    results = Results()
    with Bench(
        [Direct, Relay, P2pgrid, Batched, UnsafeWithoutReceipts], most_streams=4, folder=tmp_path / "run"
    ) as bench:
        with pytest.raises(BenchError, match="another run"), Bench([Direct], most_streams=1, folder=tmp_path / "two"):
            pass
        pids = [pid for system in bench.systems for node in system.pids().values() for pid in node]
        results.about = bench.about()
        run_memory(bench, results, ())
        run_rounds(bench, CELLS, 2, results)
        note_memory_after(bench, results)
        note_receipts(bench, results)
        unsafe = bench.named(UnsafeWithoutReceipts.name)
        assert isinstance(unsafe, UnsafeWithoutReceipts)
        assert bench.receipts(unsafe) == {"answers": bench.load.answers[unsafe.name], "cut": 0} | dict.fromkeys(
            ("gateway", "provider"), 0
        )
    assert results.is_whole, results.about["receipts"]
    assert results.receipts()["p2pgrid"]["answers"] > 100
    assert receipts_share(results) is not None
    assert results.receipts()["batched"]["answers"] > 100
    assert set(results.visits["unstreamed-2"]) == {"direct", "relay", "p2pgrid", "batched"}
    assert all(results.of("unstreamed-2", name, "requests_per_cpu_s") for name in ("relay", "p2pgrid", "batched"))
    assert set(results.memory) == {"relay", "p2pgrid", "batched"}
    assert pids
    deadline_s = time.monotonic() + 30
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.05)  # what a node had started is killed with it, and ends a moment later


class _Named(System):
    """A system that is never started."""

    def start(self) -> None:
        raise AssertionError


def test_the_unsafe_path_is_measured_where_receipts_are_told_apart_and_nowhere_else(tmp_path: Path) -> None:
    systems: list[System] = []
    for name in ("direct", "nginx", "p2pgrid", "batched", "no-receipts"):
        kind = type(name, (_Named,), {"name": name, "label": name, "hops": 0})
        systems.append(kind(tmp_path, engine_port=1, core=None, most_streams=1))

    def names(cell: Cell) -> list[str]:
        return [system.name for system in visited(cell, systems)]

    for cell in FULL:
        expected = ["p2pgrid", "no-receipts"] if cell.name == "receipts" else ["direct", "nginx", "p2pgrid"]
        expected += [] if cell.stream else ["batched"]
        assert names(cell) == expected
    stop_all(systems)
