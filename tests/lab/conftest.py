"""Laboratories for tests. Where none may be built the tests are skipped, and say why."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from tests.lab.grid import LabGrid, fake_engine
from tests.lab.namespaces import Unavailable
from tests.lab.network import Lab
from tests.lab.plan import Plan

BuildLab = Callable[[Plan], Lab]
BuildGrid = Callable[..., Awaitable[LabGrid]]


@pytest.fixture
def build() -> Iterator[BuildLab]:
    """Build a plan; it is taken down after the test."""
    with ExitStack() as stack:

        def build_one(plan: Plan) -> Lab:
            try:
                return stack.enter_context(Lab(plan))
            except Unavailable as reason:
                if os.environ.get("P2PGRID_REQUIRE_LAB") == "1":
                    raise
                pytest.skip(f"no laboratory here: {reason} (P2PGRID_REQUIRE_LAB=1 makes this a failure)")

        yield build_one


@pytest.fixture(scope="session")
def engine_url() -> Iterator[str]:
    """One fake engine, for all operators."""
    with fake_engine() as url:
        yield url


@pytest.fixture
async def grid_on(build: BuildLab, tmp_path: Path, engine_url: str) -> AsyncIterator[BuildGrid]:
    """Build a plan and a grid of no nodes yet on it; all is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def build_one(plan: Plan, *, hubs: tuple[str, ...] = ("hub",)) -> LabGrid:
            grid = LabGrid(build(plan), tmp_path, engine_url, hubs=hubs)
            stack.push_async_callback(grid.stop)
            return grid

        yield build_one
