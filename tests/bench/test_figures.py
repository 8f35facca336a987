"""Medians, ratios, targets and verdicts of the path's benchmark: what is said of figures that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from path_parts.baseline import RATIOS, Verdict, compare, load_stored, render_verdicts, store
from path_parts.cells import FULL, SHORT, Cell, paced, unstreamed
from path_parts.figures import Results, figure
from path_parts.process import BenchError
from path_parts.report import BEGIN, END, render, write_docs
from path_parts.targets import receipts_share, targets


def results_of(cells: dict[str, dict[str, list[dict[str, float]]]], **more: Any) -> Results:
    results = Results(**more)
    for cell, systems in cells.items():
        for system, rounds in systems.items():
            for figures in rounds:
                results.add(cell, system, figures)
    return results


def per_chunk(**by_system: list[float]) -> dict[str, list[dict[str, float]]]:
    return {system: [{"cpu_per_chunk_us": value} for value in values] for system, values in by_system.items()}


@pytest.mark.parametrize(
    ("values", "median", "spread"),
    [([4.0], 4.0, 0.0), ([1.0, 2.0, 9.0], 2.0, 0.5), ([0.0, 0.0], 0.0, 0.0), ([-2.0, -2.0, -1.0], -2.0, 0.0)],
)
def test_a_figure_is_the_median_and_how_far_the_rounds_lie_from_it(
    values: list[float], median: float, spread: float
) -> None:
    found = figure(values)
    assert found is not None
    assert (found.value, found.spread, found.rounds) == (median, spread, len(values))


def test_no_rounds_make_no_figure() -> None:
    assert figure([]) is None


def test_a_ratio_is_taken_round_by_round() -> None:
    """A round that was ten times slower for both sides changes nothing."""
    results = results_of({"staggered-64": per_chunk(p2pgrid=[30.0, 300.0, 33.0], nginx=[10.0, 100.0, 10.0])})
    found = results.ratio("staggered-64", "cpu_per_chunk_us", "p2pgrid", "nginx")
    assert found is not None
    assert found.value == 3.0


def test_what_is_added_is_what_the_direct_way_does_not_take() -> None:
    rounds = {
        "direct": [{"first_p50_ms": 0.1}, {"first_p50_ms": 0.2}],
        "nginx": [{"first_p50_ms": 0.3}, {"first_p50_ms": 0.2}],
        "p2pgrid": [{"first_p50_ms": 0.7}, {"first_p50_ms": 9.0}],
    }
    found = results_of({"first-1": rounds}).ratio("first-1", "first_p50_ms", "p2pgrid", "nginx", added=True)
    assert found is not None
    assert found.value == pytest.approx(3.0)
    assert found.rounds == 1, "a round in which nginx added nothing has no ratio"


def test_a_target_is_met_up_to_its_limit_and_missed_beyond() -> None:
    def verdict(ours: float) -> bool | None:
        results = results_of({"staggered-64": per_chunk(p2pgrid=[ours], nginx=[10.0])})
        [row] = [one for one in targets(results) if one.text.startswith("CPU per chunk, 64") and "nginx" in one.text
                 and "staggered" in one.text]  # fmt: skip
        return row.is_met

    assert verdict(12.0) is True
    assert verdict(12.1) is False


def test_requests_per_cpu_second_have_to_be_many() -> None:
    def verdict(ours: float) -> bool | None:
        rounds = {"p2pgrid": [{"requests_per_cpu_s": ours}], "litellm": [{"requests_per_cpu_s": 100.0}]}
        rows = targets(results_of({"unstreamed-64": rounds}))
        [row] = [one for one in rows if "64 at once, a receipt each" in one.text]
        return row.is_met

    assert verdict(4000.0) is True
    assert verdict(3999.0) is False


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {row.is_met for row in targets(Results())} == {None}
    assert "not measured" in render(Results())


def test_receipts_cost_what_the_path_without_them_does_not() -> None:
    results = results_of({"receipts": {**per_chunk(p2pgrid=[50.0]), "no-receipts": [{"cpu_per_chunk_us": 40.0}]}})
    share = receipts_share(results)
    assert share is not None
    assert share.value == pytest.approx(0.2)


def test_memory_is_held_against_the_larger_node() -> None:
    memory = {
        "p2pgrid": {
            "after_load": {"gateway": 60e6, "provider": 80e6},
            "per_stream": 61_000.0,
            "held_errors": 0,
        },
        "litellm": {"after_load": {"proxy": 500e6}},
    }
    rows = {row.text: row for row in targets(Results(memory=memory))}
    assert rows["memory of the larger node, of LiteLLM's"].found == figure([0.16])
    assert rows["memory of the larger node, of LiteLLM's"].is_met is False
    assert rows["memory per open stream, both hops together"].is_met is False
    assert rows["errors with 1,000 streams held open"].is_met is True


def loads(cell: Cell, result: dict[str, Any]) -> dict[str, float]:
    empty: dict[str, Any] = {"count": 0}
    printed = {"window_s": 2.0, "errors": 0, "cut": 0, "engine_cpu_ns": 0, "own_cpu_ns": 0, "requests": 0, "chunks": 0,
               "bytes": 0, "latency": empty, "first_token": empty, "delay": empty}  # fmt: skip
    return cell.metrics(printed | result)


def test_cpu_is_that_of_all_nodes_over_all_chunks() -> None:
    cell = paced("staggered", 64)
    figures = loads(cell, {"chunks": 1000, "bytes": 250_000, "node_cpu_ns": {"gateway": 30e6, "provider": 50e6}})
    assert figures["cpu_per_chunk_us"] == pytest.approx(80.0)
    assert figures["cpu_per_chunk_us.gateway"] == pytest.approx(30.0)
    assert figures["bytes_per_chunk"] == 250
    assert figures["delivered"] == pytest.approx(1000 / 2 / (64 * 50))


def test_nothing_measured_makes_no_figure_of_cost() -> None:
    assert "cpu_per_chunk_us" not in loads(paced("step", 64), {"node_cpu_ns": {"gateway": 1e6}})
    assert "first_p50_ms" not in loads(paced("step", 64), {"node_cpu_ns": {}})


def test_cells_have_names_of_their_own_and_the_short_form_measures_what_it_compares() -> None:
    assert len({cell.name for cell in FULL}) == len(FULL)
    assert {ratio.cell for ratio in RATIOS} == {cell.name for cell in SHORT}
    assert {cell.name for cell in SHORT} <= {cell.name for cell in FULL}


def short_run(ours: float, *, taken: float = 0.0) -> Results:
    """A short run in which every cost is `ours` times nginx's, on a machine of which others took a share."""
    costs = ("cpu_per_request_us", "cpu_per_chunk_us", "latency_p50_ms")
    visits = {
        "direct": {**dict.fromkeys(costs, 1.0), "first_p50_ms": 1.0},
        "nginx": {**dict.fromkeys(costs, 10.0), "first_p50_ms": 11.0},
        "p2pgrid": {**dict.fromkeys(costs, 10.0 * ours), "first_p50_ms": 1.0 + 10.0 * ours},
    }
    cells = {cell.name: {system: [figures] for system, figures in visits.items()} for cell in SHORT}
    calibration = {"path": [{"cpu_us": 1 - taken, "wall_us": 1.0}]}
    return results_of(cells, calibration=calibration)


def lost(verdicts: list[Verdict]) -> set[str]:
    return {verdict.ratio.name for verdict in verdicts if verdict.is_lost}


def test_twice_as_bad_is_borne_and_more_is_a_loss() -> None:
    stored = {"nginx": {ratio.name: 4.0 for ratio in RATIOS}}
    assert lost(compare(short_run(8.0), "nginx", stored)) == set()
    assert lost(compare(short_run(8.1), "nginx", stored)) == {ratio.name for ratio in RATIOS}
    assert "LOST" in render_verdicts(compare(short_run(8.1), "nginx", stored), "nginx")


def test_on_a_busy_machine_times_are_not_judged_and_cpu_is() -> None:
    stored = {"nginx": {ratio.name: 4.0 for ratio in RATIOS}}
    found = lost(compare(short_run(9.0, taken=0.5), "nginx", stored))
    assert found == {ratio.name for ratio in RATIOS if not ratio.is_time}
    assert found


def test_a_ratio_that_cannot_be_measured_any_more_is_lost() -> None:
    stored = {"nginx": {ratio.name: 4.0 for ratio in RATIOS}}
    assert lost(compare(Results(), "nginx", stored)) == {ratio.name for ratio in RATIOS}


def test_storing_keeps_the_yardsticks_that_the_run_did_not_have(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert load_stored(path) == {}
    path.write_text('{"about": {}, "ratios": {"relay": {"a": 1.0}}}')
    store(short_run(3.0), ["nginx"], path)
    stored = load_stored(path)
    assert stored["relay"] == {"a": 1.0}
    assert stored["nginx"] == {ratio.name: 3.0 for ratio in RATIOS}


def test_the_tables_go_between_the_pages_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for ours in (2.0, 3.0):
        write_docs(page, short_run(ours))
        text = page.read_text()
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"{END}\nafter\n")
        assert "old" not in text
    assert "3.00" in text
    page.write_text("no markers")
    with pytest.raises(BenchError):
        write_docs(page, short_run(2.0))


def test_results_survive_a_file() -> None:
    results = short_run(2.0)
    again = Results.from_json(results.to_json())
    assert render(again) == render(results)


def test_failed_requests_are_said() -> None:
    results = results_of({"step-64": {"nginx": [{"errors": 2, "cpu_per_chunk_us": 1.0}]}})
    assert results.errors() == {"nginx": 2}
    assert "Failed requests: {'nginx': 2}" in render(results)


def test_a_batch_is_every_stream_from_first_to_last() -> None:
    cell = paced("staggered", 64)
    batch = cell.as_batch()
    words = batch.arguments()
    assert words[words.index("--requests") + 1] == "64"
    assert words[words.index("--warm-s") + 1] == "0.0"
    assert "--requests" not in cell.arguments()
    in_time = loads(batch, {"window_s": 4.0, "chunks": 6400, "node_cpu_ns": {}})
    assert in_time["delivered"] == pytest.approx(1.0), "two seconds of beginnings, two of a stream"
    alone = paced("staggered", 1)
    assert alone.as_batch() == alone


@pytest.mark.parametrize(
    ("receipts", "is_whole"),
    [
        ({}, True),
        ({"answers": 9, "cut": 0, "gateway": 9, "provider": 9}, True),
        ({"answers": 9, "cut": 2, "gateway": 10, "provider": 10}, True),
        ({"answers": 9, "cut": 0, "gateway": 10, "provider": 10}, False),
        ({"answers": 9, "cut": 0, "gateway": 9, "provider": 8}, False),
        ({"answers": 10, "cut": 1, "gateway": 9, "provider": 9}, False),
    ],
)
def test_a_run_is_whole_where_every_answer_has_its_receipt(receipts: dict[str, int], *, is_whole: bool) -> None:
    assert Results(about={"receipts": {"p2pgrid": receipts} if receipts else {}}).is_whole is is_whole


def test_a_batch_of_whole_answers_is_three_a_connection() -> None:
    words = unstreamed(16).as_batch().arguments()
    assert words[words.index("--requests") + 1] == "48"


def test_times_of_a_busy_machine_are_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    store(short_run(3.0, taken=0.5), ["nginx"], path)
    assert set(load_stored(path)["nginx"]) == {ratio.name for ratio in RATIOS if not ratio.is_time}
