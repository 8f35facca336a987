"""Seeded histories, of two honest sides and of one that lies: every promise of the session holds in each.

`scripts/simulate` replays one.
"""

from __future__ import annotations

import pytest

from p2pgrid.proto.record import Role
from tests.simulation.run import LIARS as LIES_OF
from tests.simulation.run import run_many

CHUNK = 100
IN_MEMORY = 10_000
ON_DISK = 300
LYING = 2_000
"""Of each side."""
LYING_ON_DISK = 60
LIARS = (Role.PROVIDER, Role.CLIENT)


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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("liar", LIARS)
@pytest.mark.parametrize("first", range(0, LYING, CHUNK))
def test_a_liar(liar: Role, first: int) -> None:
    tally = run_many(range(first, first + CHUNK), liar=liar)
    assert sum(tally.told.values()) > CHUNK and tally.endings["completed"] and tally.found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("liar", LIARS)
def test_a_liar_on_disk(liar: Role) -> None:
    assert run_many(range(LYING, LYING + LYING_ON_DISK), sqlite=True, liar=liar).histories == LYING_ON_DISK


@pytest.mark.timeout(300)
@pytest.mark.parametrize("liar", LIARS)
def test_every_lie_is_told(liar: Role) -> None:
    """Within the first histories each lie of the repertoire is told."""
    told = run_many(range(600), liar=liar).told
    assert not [name for kind in LIES_OF[liar] for name in kind if not told[name]]
