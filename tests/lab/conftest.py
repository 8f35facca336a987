"""Laboratories for tests. Where none may be built the tests are skipped, and say why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from tests.grid.conftest import MODEL
from tests.lab.grid import LabGrid
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
    """A fake engine at a Unix socket, for all operators."""
    with tempfile.TemporaryDirectory(prefix="p2pgrid-lab-") as folder:
        command = [sys.executable, "-m", "p2pgrid.engine.fake", "--model", MODEL, "--uds", f"{folder}/engine"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
async def grid_on(build: BuildLab, tmp_path: Path, engine_url: str) -> AsyncIterator[BuildGrid]:
    """Build a plan and a grid of no nodes yet on it; all is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def build_one(plan: Plan, *, hubs: tuple[str, ...] = ("hub",)) -> LabGrid:
            grid = LabGrid(build(plan), tmp_path, engine_url, hubs=hubs)
            stack.push_async_callback(grid.stop)
            return grid

        yield build_one
