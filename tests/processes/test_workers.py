"""Workers are started, started again, stopped and outlived."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from p2pgrid.errors import LocalError, UsageError
from p2pgrid.processes import workers as module
from p2pgrid.processes.bus import Bus
from p2pgrid.processes.workers import WorkerEnds, WorkerSet, check_supported
from tests.processes.a_worker import Order, Said

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


class Workers(WorkerSet):
    """Notes what happens."""

    def __init__(self, n: int, name: str = "tests.processes.a_worker") -> None:
        super().__init__(name, n)
        self.prepared: list[int] = []
        self.ended: list[int] = []
        self.said: list[int] = []
        self.happened = asyncio.Event()

    def prepare(self, worker: int, bus: Bus, ends: WorkerEnds) -> None:
        self.prepared.append(worker)
        bus.on(Said, self._heard)

    def ready(self, worker: int, bus: Bus, ends: WorkerEnds) -> None:
        self.happened.set()

    def gone(self, worker: int) -> None:
        self.ended.append(worker)
        self.happened.set()

    def _heard(self, said: Said) -> None:
        self.said.append(said.pid)
        self.happened.set()

    async def until(self, condition: object) -> None:
        async with asyncio.timeout(60):
            while not condition():  # type: ignore[operator]
                self.happened.clear()
                await self.happened.wait()


@asynccontextmanager
async def running(n: int = 2) -> AsyncIterator[Workers]:
    workers = Workers(n)
    await workers.start()
    try:
        yield workers
    finally:
        await workers.stop(1.0)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_all_are_ready_after_the_start_and_gone_after_the_stop() -> None:
    async with running() as workers:
        assert sorted(workers.buses) == sorted(workers.pids) == sorted(workers.prepared) == [1, 2]
        for bus in workers.buses.values():
            bus.send(Order(""))
        await workers.until(lambda: len(workers.said) == 2)
        pids = list(workers.pids.values())
        assert sorted(workers.said) == sorted(pids)
    assert sorted(workers.ended) == [1, 2] and workers.restarts == 0
    assert not any(map(is_alive, pids))


async def test_ctrl_c_and_sigterm_are_for_the_main_process() -> None:
    async with running(1) as workers:
        pid = workers.pids[1]
        assert os.getpgid(pid) != os.getpgid(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        workers.buses[1].send(Order(""))
        await workers.until(lambda: workers.said == [pid])


@pytest.mark.parametrize("how", ["kill", "exit", "raise"])
async def test_one_that_ends_is_started_again(how: str) -> None:
    async with running() as workers:
        first, other = workers.pids[1], workers.pids[2]
        if how == "kill":
            os.kill(first, signal.SIGKILL)
        else:
            workers.buses[1].send(Order(how))
        await workers.until(lambda: workers.prepared.count(1) == 2 and 1 in workers.buses)
        assert workers.ended == [1] and workers.restarts == 1
        assert workers.pids[1] != first and workers.pids[2] == other
        assert not is_alive(first)


async def test_one_that_ends_again_and_again_stays_away_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def note(delay_s: float) -> None:
        slept.append(delay_s)
        await sleep(0)

    async with running(1) as workers:
        monkeypatch.setattr(module.asyncio, "sleep", note)
        for times in range(1, 4):
            await workers.until(lambda: 1 in workers.buses)
            workers.buses[1].send(Order("exit"))
            await workers.until(lambda times=times: len(workers.ended) == times)
        await workers.until(lambda: 1 in workers.buses)
        monkeypatch.undo()
    assert [pause for pause in slept if pause in module.BACKOFF_S] == list(module.BACKOFF_S[:3])


async def test_one_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_GRACE_S", 0.5)
    for what in ("deaf", "hang"):
        workers = Workers(1)
        await workers.start()
        pid = workers.pids[1]
        workers.buses[1].send(Order(what))
        if what == "deaf":
            await workers.until(lambda workers=workers: bool(workers.said))
        await workers.stop(0.0)
        assert not is_alive(pid)


async def test_one_that_cannot_start_is_an_error_that_leaves_nothing_behind() -> None:
    workers = Workers(2, "tests.processes.no_such_worker")
    with pytest.raises(LocalError, match="before it was ready"):
        await workers.start()
    assert workers.pids == {} and workers.buses == {}


async def test_they_notice_that_the_main_process_was_killed() -> None:
    code = (
        "import asyncio\n"
        "from tests.processes.test_workers import Workers\n"
        "async def main():\n"
        "    workers = Workers(2)\n"
        "    await workers.start()\n"
        "    print(*workers.pids.values(), flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    pids = [int(word) for word in (await asyncio.wait_for(process.stdout.readline(), 60)).split()]
    assert len(pids) == 2 and all(map(is_alive, pids))
    process.kill()
    await process.wait()
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended = asyncio.Event()  # a process that ends makes its pidfd readable
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        await asyncio.wait_for(ended.wait(), 10)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
    assert not any(map(is_alive, pids))


def test_more_processes_than_one_need_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    check_supported(4)
    monkeypatch.setattr(sys, "platform", "darwin")
    check_supported(1)
    with pytest.raises(UsageError, match="Linux"):
        check_supported(2)
