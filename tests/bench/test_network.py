"""scripts/bench/network: its smallest run has every row, and docs/network-performance.md says what it does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from network_parts import js_packages
from network_parts.__main__ import PAGE, parse, sizes_of
from network_parts.cells import CELLS, ROWS, SHORT, chosen
from network_parts.report import BEGIN, END, render
from path_parts.figures import Results
from path_parts.process import BenchError
from path_parts.toolbox import BUILD, ROOT, Missing

ALONE = {"link-direct", "order-direct"}
"""What js-libp2p has no road for."""


@pytest.mark.process
@pytest.mark.timeout(600)
def test_the_smallest_run_has_every_row() -> None:
    try:
        js_packages.versions()
    except Missing as why:
        if os.environ.get("P2PGRID_REQUIRE_JS") == "1":
            pytest.fail(str(why))
        pytest.skip(str(why))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts' / 'bench'}"}
    command = [sys.executable, "-m", "network_parts", "--short", "--rounds", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540, check=False)
    if "npm ci" in done.stderr and done.returncode == 3 and os.environ.get("P2PGRID_REQUIRE_JS") != "1":
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    results = Results.from_json(json.loads(done.stdout))
    failed = {cell for cell, systems in results.visits.items() if any(v.get("errors") for v in systems.get("js", []))}
    # js-libp2p may cut its own circuit when it dials twice (docs/network-performance.md).
    assert failed <= {"cold-relayed", "warm-relayed"}, done.stderr
    for row in ROWS:
        systems = {"ours"} if row.cell in ALONE or row.cell in failed else {"ours", "js"}
        for system in systems:
            [value] = results.rounds(row.cell, system, row.metric)
            assert value is not None and value > 0, (row, system)
    table = render(results)
    assert all(f"| {row.title} " in table for row in ROWS)
    assert json.loads((BUILD / "network.json").read_text()) == json.loads(done.stdout)


def rounds(**changes: list[dict[str, float]]) -> Results:
    results = Results()
    results.about = {
        "when": "now",
        "commit": "c",
        "cpu": "x",
        "cores": 2,
        "pinning": "none",
        "versions": {"node": "20"},
    }
    results.about |= {"rounds": 3, "sizes": {"providers": 2, "trips": 1, "orders": 1, "mib": 1}}
    results.visits["warm"] = {
        "ours": [{"first_ms": 10.0}, {"first_ms": 40.0}, {"first_ms": 20.0}],
        "js": [{"first_ms": 20.0}, {"first_ms": 80.0}, {"first_ms": 80.0}],
        **changes,
    }
    return results


def test_a_ratio_is_of_the_same_round_and_failures_are_said() -> None:
    text = render(rounds())
    assert re.search(r"warm look-up: first offer +\| ms +\| 20\.0 ±50 % +\| 80\.0 ±0 % +\| 0\.50 ±0 %", text)
    assert "Nothing failed." in text
    text = render(rounds(js=[{"errors": 1}, {"first_ms": 80.0}, {"first_ms": 20.0}]))
    assert "Failed visits: js-libp2p 1." in text
    assert re.search(r"warm look-up: first offer .* 0\.75 ±33 %", text), "the round that failed is no part of a ratio"
    assert "cold look-up" not in text, "what was not measured is no row"


def test_every_row_is_of_a_cell() -> None:
    assert {row.cell for row in ROWS} == {cell.name for cell in CELLS}
    assert {cell.name for cell in CELLS if cell.systems == ("ours",)} == ALONE
    assert [cell.name for cell in chosen("link,pull")] == ["link-direct", "link-libp2p", "link-relayed", "pull"]
    with pytest.raises(BenchError, match="no such cell"):
        chosen("links")


@pytest.mark.parametrize("words", [["--providers", "1"], ["--rounds", "-1"], ["--speed"]])
def test_wrong_usage_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2


def test_the_page_has_a_place_for_the_table_and_its_commands_are_commands() -> None:
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    commands = re.findall(r"^scripts/bench/network\b(.*?)(?: #.*)?$", page, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        options = parse(shlex.split(command))
        assert chosen(options.cells)
        assert sizes_of(options).providers >= SHORT.providers
    assert (Path(ROOT) / "scripts" / "bench" / "network").stat().st_mode & 0o100
