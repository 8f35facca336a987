"""What scripts/bench/processes.py makes of its figures."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from path_parts.process import BenchError
from path_parts.toolbox import ROOT


def _script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("bench_processes", ROOT / "scripts/bench/processes.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


bench = _script()


def test_what_is_measured_fits_the_machine() -> None:
    for cores, wanted in ((2, ["1", "2"]), (8, ["1", "2", "4"]), (16, ["1", "2", "4", "4:8"])):
        assert [str(nodes) for nodes in bench.of_this_machine(cores)] == wanted
    assert bench.parse_nodes("1,4:8") == [bench.Nodes(1, 1), bench.Nodes(4, 8)]
    # A gateway has four links at most: the provider's eight need two.
    assert [nodes.gateways for nodes in bench.parse_nodes("1,2,4,4:8")] == [1, 1, 1, 2]


@pytest.mark.parametrize("text", ["", "x", "5", "0", "1:65", "2,"])
def test_nodes_that_cannot_be_had_are_refused(text: str) -> None:
    with pytest.raises(BenchError):
        bench.parse_nodes(text)


def rounds(*per_s: float) -> list[dict[str, float]]:
    return [{"per_s": one, "cpu_us": 1000 / one, "main_us": 1.0, "errors": 0, "bench": 0.1} for one in per_s]


def run(**changes: Any) -> dict[str, Any]:
    nodes = {
        "1": {"requests": rounds(100, 50, 200), "chunks": rounds(10, 10, 10)},
        "2": {"requests": rounds(190, 100, 380), "chunks": rounds(10, 20, 20)},
    }
    books = {name: {"answers": 7, "gateway": 7, "provider": 7} for name in nodes}
    return {"cores": 16, "needed": 6, "nodes": nodes, "books": books, "memory": dict.fromkeys(nodes, 2**20), **changes}


def test_a_ratio_is_of_the_same_round() -> None:
    assert bench.ratio(run()["nodes"], "2", "requests", "per_s") == pytest.approx(1.9)
    assert bench.ratio(run()["nodes"], "2", "chunks", "per_s") == 2


def test_the_table_says_where_it_can_show_no_scaling() -> None:
    assert "no scaling" not in bench.render(run())
    assert "2 cores" in bench.render(run(cores=2))
    assert "1.90" in bench.render(run())


def test_failed_requests_and_missing_receipts_are_faults() -> None:
    assert bench.faults(run()) == []
    bad = run()
    bad["nodes"]["2"]["chunks"][1]["errors"] = 3
    bad["books"]["1"]["provider"] = 6
    assert len(bench.faults(bad)) == 2
