"""Seeded histories of two honest sides: every promise of the session holds in each. `scripts/simulate` replays one."""

from __future__ import annotations

import pytest

from tests.simulation.run import run_many

CHUNK = 100
IN_MEMORY = 10_000
ON_DISK = 300


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, IN_MEMORY, CHUNK))
def test_in_memory(first: int) -> None:
    tally = run_many(range(first, first + CHUNK))
    assert tally.happened["crash"] and tally.happened["cut"] and tally.happened["fail"]
    assert tally.endings["completed"] and tally.endings["interrupted"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(IN_MEMORY, IN_MEMORY + ON_DISK, 50))
def test_on_disk(first: int) -> None:
    assert run_many(range(first, first + 50), sqlite=True).histories == 50
