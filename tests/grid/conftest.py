"""Real processes: a fake engine that speaks vLLM's bytes, a bootstrap peer, two operators, a gateway."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from p2pgrid.demo.grid import CHEAPER, DEARER, Grid

MODEL = "fake"
DEADLINE_S = 30.0


class FakeEngine:
    """The fake engine's process, and what it says of itself."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def state(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/fake/state") as response:
            state: dict[str, Any] = await response.json()
            return state


@pytest.fixture(scope="session")
def fake_engine() -> Iterator[FakeEngine]:
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pgrid.engine.fake", "--model", MODEL], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield FakeEngine(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
async def grid(tmp_path: Path, fake_engine: FakeEngine) -> AsyncIterator[Grid]:
    """All four nodes up, and both offers known to the gateway."""
    grid = Grid(tmp_path, model=MODEL, engine_url=fake_engine.url)
    try:
        await grid.start_bootstrap()
        await asyncio.gather(grid.start_operator(CHEAPER), grid.start_operator(DEARER))
        await grid.start_gateway("127.0.0.1:0")
        await until(lambda: offer_count(grid), 2)
        yield grid
    finally:
        await grid.stop()


async def until(read: Callable[[], Any], wanted: Any, *, deadline_s: float = DEADLINE_S, pause_s: float = 0.05) -> Any:
    """Await `read()` again and again until it equals `wanted` or satisfies it (a predicate); fail at the deadline."""
    seen: Any = None
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                seen = await read()
                if wanted(seen) if callable(wanted) else seen == wanted:
                    return seen
                await asyncio.sleep(pause_s)
    except TimeoutError:
        raise AssertionError(f"after {deadline_s:.0f} s: {seen!r}") from None


async def offer_count(grid: Grid) -> int:
    """How many offers the gateway knows."""
    for model in (await get(grid, "/models"))["data"]:
        if model["id"] == MODEL:
            return len(model["p2pgrid"]["offers"])
    return 0


async def get(grid: Grid, path: str) -> dict[str, Any]:
    """A GET at the gateway."""
    assert grid.gateway is not None
    async with (
        aiohttp.ClientSession() as session,
        session.get(str(grid.gateway.ready["base_url"]) + path) as response,
    ):
        body: dict[str, Any] = await response.json()
        return body


async def p2pgrid(data: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command to its end: exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "p2pgrid",
        "--data",
        str(data),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def receipts(data: Path) -> list[dict[str, Any]]:
    """`p2pgrid receipts list --json`, newest first."""
    code, output, errors = await p2pgrid(data, "receipts", "list", "--json")
    assert code == 0, errors
    rows: list[dict[str, Any]] = json.loads(output)
    return rows


async def audit_everything(grid: Grid) -> dict[str, Any]:
    """Export every ledger and audit all of them; the verdict."""
    assert grid.gateway is not None
    files = []
    for node in (grid.gateway, *grid.operators.values()):
        file = grid.folder / f"{node.data.name}.jsonl"
        code, _, errors = await p2pgrid(node.data, "receipts", "export", str(file))
        assert code == 0, errors
        files.append(str(file))
    code, output, errors = await p2pgrid(grid.folder, "audit", "--json", *files)
    assert code in (0, 1), errors
    verdict: dict[str, Any] = json.loads(output)
    assert verdict["clean"] is (code == 0)
    return verdict
