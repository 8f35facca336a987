"""docs/performance.md says what the command does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from path_parts.__main__ import SYSTEMS, chosen_cells, chosen_systems, parse
from path_parts.baseline import MOST_LOSS, RATIOS, STORED, load_stored
from path_parts.cells import BATCH_MOST_S, HELD_STREAMS, PERIOD_MS, REQUEST_TOKENS, SATURATED, SHORT, STREAM_TOKENS
from path_parts.report import BEGIN, END
from path_parts.systems import P2PGRID_CONFIG
from path_parts.toolbox import HERE, ROOT

PAGE = (ROOT / "docs" / "performance.md").read_text()


def test_the_commands_on_the_page_are_commands() -> None:
    commands = re.findall(r"^scripts/bench/path\b(.*?)(?: #.*)?$", PAGE, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        options = parse(shlex.split(command))
        assert chosen_cells(options.cells, options.window_s)
        assert chosen_systems(options.systems)


def test_the_numbers_on_the_page_are_the_benchmarks() -> None:
    said = {
        f"answers have {REQUEST_TOKENS} tokens, streams {STREAM_TOKENS}",
        f"a token every {PERIOD_MS} ms",
        f"what {HELD_STREAMS:,} slow",
        f"less than {SATURATED:.0%}".replace("%", " %"),
        f"runs {['', 'one', 'two', 'three', 'four', 'five'][len(SHORT)]} cells",
        "more than twice as bad",
        "`max-open-orders = 1024`",
    }
    flat = " ".join(PAGE.split())
    assert {sentence for sentence in said if sentence not in flat} == set()
    assert MOST_LOSS == 2
    assert "max-open-orders = 1024" in P2PGRID_CONFIG
    assert BATCH_MOST_S >= 30


def test_the_page_has_a_place_for_the_tables() -> None:
    assert PAGE.count(BEGIN) == PAGE.count(END) == 1


def test_the_stored_ratios_are_those_that_are_compared() -> None:
    stored = load_stored()
    assert "nginx" in stored, f"{STORED} is written by scripts/bench/path --short --store"
    for ratios in stored.values():
        assert {ratio.name for ratio in RATIOS if not ratio.is_time} <= set(ratios) <= {ratio.name for ratio in RATIOS}
        assert all(value > 0 for value in ratios.values())


def test_every_pin_is_exact_and_the_unsafe_launcher_is_the_benchmarks_alone() -> None:
    for pins in HERE.glob("constraints-*.txt"):
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+-]+", line) for line in pins.read_text().split())
    named = [path for path in (ROOT / "p2pgrid").rglob("*.py") if "without_receipts" in path.read_text()]
    assert named == []
    assert "UNSAFE" in (Path(HERE) / "unsafe_without_receipts.py").read_text()
    assert SYSTEMS["no-receipts"].label.endswith("(unsafe)")
