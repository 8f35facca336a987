"""A grid whose nodes have several processes each: many sales at once, workers and whole nodes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from p2pgrid.demo.grid import CHEAPER, DEARER, Grid
from p2pgrid.demo.processes import NodeProcess
from p2pgrid.ledger.base import ReceiptRow
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import MAX_BATCH_REQUESTS, Status
from tests.grid.conftest import MODEL, FakeEngine, audit_everything, get, offer_count, p2pgrid, until

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

WORKERS = 2


@pytest.fixture
async def workers_grid(tmp_path: Path, fake_engine: FakeEngine) -> AsyncIterator[Grid]:
    grid = Grid(tmp_path, model=MODEL, engine_url=fake_engine.url)
    try:
        await grid.start_bootstrap()
        several = ("--processes", str(WORKERS))
        await asyncio.gather(grid.start_operator(CHEAPER, *several), grid.start_operator(DEARER))
        await grid.start_gateway("127.0.0.1:0", *several)
        await until(lambda: offers_of_all_workers(grid), 2)
        yield grid
    finally:
        await grid.stop()


async def offers_of_all_workers(grid: Grid) -> int:
    """The fewest that any worker knows: connections that come one after the other go to one after the other."""
    return min([await offer_count(grid) for _ in range(2 * WORKERS)])


async def ask(grid: Grid, **more: Any) -> Any:
    """One request, on a connection of its own."""
    assert grid.gateway is not None
    base_url = str(grid.gateway.ready["base_url"])
    async with openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as program:
        return await program.chat.completions.create(
            **{"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **more}
        )


async def ask_patiently(grid: Grid, **more: Any) -> None:
    """Ask until it is answered: a worker that was just killed takes its connections with it."""
    async with asyncio.timeout(60):
        while True:
            try:
                await ask(grid, **more)
                return
            except (openai.APIConnectionError, openai.APIStatusError):
                await asyncio.sleep(0.05)


async def ask_many(grid: Grid, n: int, at_once: int = 8) -> None:
    turn = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with turn:
            await ask_patiently(grid)

    await asyncio.gather(*(one() for _ in range(n)))


async def ask_until(grid: Grid, over: asyncio.Event, at_least: int = 120, at_once: int = 8) -> int:
    """Ask again and again, until it is `over` and so many were answered; how many were."""
    answered = 0

    async def go_on() -> None:
        nonlocal answered
        while not over.is_set() or answered < at_least:
            await ask_patiently(grid)
            answered += 1

    await asyncio.gather(*(go_on() for _ in range(at_once)))
    return answered


def workers(node: NodeProcess) -> list[int]:
    """Children of a node's main process that are its workers."""
    found = []
    for pid in Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if b".worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def receipts(node: NodeProcess) -> list[ReceiptRow]:
    """All receipts of a node."""
    with SqliteLedger.open_readonly(node.data / "ledger.sqlite") as ledger:
        return ledger.receipts()


def requests_completed(rows: list[ReceiptRow]) -> int:
    """How many requests stand on completed receipts: several on one of a batch order."""
    return sum(len(row.receipt.requests) or 1 for row in rows if row.receipt.status is Status.COMPLETED)


async def check_books(grid: Grid, requests: int) -> list[ReceiptRow]:
    """All receipts of the gateway: signed by both, numbered without a gap on each channel, and clean.

    Waits until at least ``requests`` requests stand on them: a batch order's receipt comes up to 100 ms after its last
    answer.
    """
    assert grid.gateway is not None
    await until(lambda: receipts(grid.gateway), lambda rows: requests_completed(rows) >= requests)
    for node in (grid.gateway, *grid.operators.values()):
        await until(lambda node=node: receipts(node), lambda rows: all(row.countersigned for row in rows))
    rows = await receipts(grid.gateway)
    numbers: dict[bytes, list[int]] = {}
    for row in rows:
        numbers.setdefault(row.channel.channel, []).append(row.receipt.receipt_number)
    for found in numbers.values():
        assert sorted(found) == list(range(1, len(found) + 1))
    verdict = await audit_everything(grid)
    assert verdict["clean"], verdict["findings"]
    return rows


async def test_two_hundred_requests_over_many_connections(workers_grid: Grid) -> None:
    grid = workers_grid
    assert grid.gateway is not None
    assert sorted(grid.gateway.ready["workers"]) == sorted(workers(grid.gateway))
    assert len(workers(grid.operators[CHEAPER])) == WORKERS
    await ask_many(grid, 200)
    rows = await check_books(grid, 200)
    assert requests_completed(rows) == 200
    # Each of the gateway's workers has bought on a channel of its own.
    cheaper = grid.operators[CHEAPER].ready["peer_id"]
    with_cheaper = [row for row in rows if parse_public_key(row.channel.provider).peer_id == cheaper]
    assert len({row.channel.channel for row in with_cheaper}) == WORKERS
    assert len({row.channel.channel for row in rows}) <= 2 * WORKERS
    health = await get(grid, "/../health")
    assert health["status"] == "ok" and health["links"] >= WORKERS
    code, output, errors = await p2pgrid(grid.gateway.data, "receipts", "reconcile", cheaper, "--json")
    assert code == 0, errors
    assert output


async def test_workers_that_are_killed_in_the_middle_break_no_chain(workers_grid: Grid) -> None:
    grid = workers_grid
    assert grid.gateway is not None
    over = asyncio.Event()
    selling = asyncio.create_task(ask_until(grid, over))
    for node in (grid.operators[CHEAPER], grid.gateway, grid.operators[CHEAPER]):
        before = len(await receipts(grid.operators[CHEAPER]))
        await until(lambda: receipts(grid.operators[CHEAPER]), lambda rows, before=before: len(rows) > before)
        victim = workers(node)[0]
        os.kill(victim, signal.SIGKILL)
        await until(lambda node=node, victim=victim: back(node, victim), True)
    over.set()
    sold = await selling
    await ask_patiently(grid)
    # What a killed worker had answered under a batch order that was still open is billed by nobody: one order a worker
    # that is killed on either side, and provider.
    await check_books(grid, sold + 1 - 3 * 2 * MAX_BATCH_REQUESTS)


async def back(node: NodeProcess, victim: int) -> bool:
    """True once the worker has a successor."""
    return victim not in (there := workers(node)) and len(there) == WORKERS


async def test_a_gateway_comes_back_with_another_number_of_workers_and_settles_all(
    workers_grid: Grid, fake_engine: FakeEngine
) -> None:
    grid = workers_grid
    gateway = grid.gateway
    assert gateway is not None
    await ask_many(grid, 20)
    asking = asyncio.create_task(ask(grid, max_tokens=2000, extra_body={"fake": {"pace_ms": 20, "tokens": 2000}}))
    await until(lambda: running(fake_engine), lambda n: n > 0)
    left = workers(gateway)
    os.kill(gateway.pid, signal.SIGKILL)
    await gateway.exited()
    await until(lambda: nobody_of(left), True)
    with pytest.raises(openai.OpenAIError):
        await asking
    arguments = gateway._arguments
    gateway._arguments = tuple("1" if one == str(WORKERS) else one for one in arguments)
    await gateway.start(timeout_s=60)
    assert gateway.ready["workers"] == []
    await until(lambda: offer_count(grid), 2)
    await ask_patiently(grid)
    # What was cut off is settled when the channel that it was on is resumed: another may be so first.
    await until(lambda: receipts(gateway), lambda rows: any(row.receipt.status is Status.INTERRUPTED for row in rows))
    await check_books(grid, 21)


async def test_a_provider_that_only_libp2p_reaches_is_bought_from_by_every_worker(
    tmp_path: Path, fake_engine: FakeEngine
) -> None:
    grid = Grid(tmp_path, model=MODEL, engine_url=fake_engine.url)
    try:
        await grid.start_bootstrap()
        await grid.start_operator(CHEAPER, "--no-direct")
        await grid.start_gateway("127.0.0.1:0", "--processes", str(WORKERS))
        await until(lambda: offers_of_all_workers(grid), 1)
        await ask_many(grid, 24, at_once=6)
        rows = await check_books(grid, 24)
        assert requests_completed(rows) == 24
        assert len({row.channel.channel for row in rows}) == WORKERS
        (model,) = (await get(grid, "/models"))["data"]
        assert {(offer["link"], *offer["roads"]) for offer in model["p2pgrid"]["offers"]} == {("libp2p", "libp2p")}
    finally:
        await grid.stop()


async def nobody_of(pids: list[int]) -> bool:
    return not any(map(is_alive, pids))


async def running(engine: FakeEngine) -> int:
    """Answers under way at the engine."""
    return int((await engine.state())["running"])


async def test_a_node_that_is_stopped_or_killed_leaves_no_process_behind(workers_grid: Grid) -> None:
    grid = workers_grid
    provider, gateway = grid.operators[CHEAPER], grid.gateway
    assert gateway is not None
    await ask(grid)
    for node in (gateway, provider):
        there = workers(node)
        os.kill(node.pid, signal.SIGTERM)
        assert await node.exited() == 0
        assert not any(map(is_alive, there))
    await provider.start(timeout_s=60)
    there = workers(provider)
    assert len(there) == WORKERS
    os.kill(provider.pid, signal.SIGKILL)
    await provider.exited()
    await until(lambda: nobody_of(there), True)
