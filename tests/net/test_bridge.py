"""The thread beside the loop, with small trio programs in place of a host."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

import p2pgrid.net.bridge as bridge_module
from p2pgrid.errors import LocalError
from p2pgrid.net.bridge import TrioThread
from p2pgrid.net.turn_watch import WatchTimes


async def _idle(ready: Callable[[], None]) -> None:
    ready()
    await trio.sleep_forever()


async def _raise(error: BaseException) -> None:
    raise error


def _crash() -> None:
    trio.lowlevel.spawn_system_task(_raise, RuntimeError("a crash on purpose"))


async def _crash_from_within() -> None:
    _crash()
    await trio.sleep_forever()


async def started(main: Any = _idle) -> TrioThread:
    thread = TrioThread(main, name="the test thread", first_pause_s=0.01)
    await thread.start()
    return thread


async def test_results_and_exceptions_cross() -> None:
    thread = await started()

    async def where(add: int) -> tuple[int, str]:
        await trio.lowlevel.checkpoint()
        return add + 1, threading.current_thread().name

    assert await thread.call(where, 1) == (2, "the test thread")
    with pytest.raises(KeyError, match="gone"):
        await thread.call(_raise, KeyError("gone"))
    assert await thread.call(where, 2) == (3, "the test thread")
    await thread.stop()


async def test_cancellation_crosses_to_trio() -> None:
    thread = await started()
    began, ended = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def wait_long() -> None:
        try:
            began.set()
            await trio.sleep_forever()
        finally:
            loop.call_soon_threadsafe(ended.set)

    call = asyncio.create_task(thread.call(wait_long))
    await asyncio.to_thread(began.wait, 20)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(ended.wait(), 20)
    await thread.stop()


async def test_calls_to_asyncio_return_raise_and_are_cancelled() -> None:
    thread = await started()
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def double(value: int) -> int:
        await asyncio.sleep(0)
        return 2 * value

    async def refuse() -> None:
        raise ValueError("refused")

    async def wait_long() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    assert await thread.call(thread.call_asyncio, double, 21) == 42
    with pytest.raises(ValueError, match="refused"):
        await thread.call(thread.call_asyncio, refuse)
    call = asyncio.create_task(thread.call(thread.call_asyncio, wait_long))
    await asyncio.wait_for(began.wait(), 20)
    call.cancel()
    await asyncio.wait_for(cancelled.wait(), 20)
    await thread.stop()


async def test_a_crash_fails_the_calls_and_restarts_the_program(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []

    async def main(ready: Callable[[], None]) -> None:
        runs.append(1)
        await _idle(ready)

    thread = await started(main)
    with pytest.raises(LocalError, match="stopped during the call"):
        await asyncio.wait_for(thread.call(_crash_from_within), 20)

    async def back() -> str:
        return "back"

    assert await asyncio.wait_for(thread.call(back), 20) == "back"
    assert len(runs) == 2
    assert thread.restarts == 1
    assert thread.running
    assert [r.levelno for r in caplog.records if "the test thread crashed" in r.getMessage()] == [logging.ERROR]
    await thread.stop()


async def test_a_program_that_ends_by_itself_is_restarted() -> None:
    async def main(ready: Callable[[], None]) -> None:
        ready()
        if not thread_runs:
            thread_runs.append(1)
            return
        await trio.sleep_forever()

    thread_runs: list[int] = []
    thread = await started(main)

    async def back() -> str:
        return "back"

    async with asyncio.timeout(10):
        while thread.restarts == 0:
            with contextlib.suppress(LocalError):  # it ended under this call
                assert await thread.call(back) == "back"
    assert await asyncio.wait_for(thread.call(back), 20) == "back"
    assert thread.restarts == 1
    await thread.stop()


async def test_what_fails_before_ready_is_raised_by_start() -> None:
    async def main(ready: Callable[[], None]) -> None:
        raise LocalError("the port is in use.")

    thread = TrioThread(main, name="the test thread")
    with pytest.raises(LocalError, match="port is in use"):
        await asyncio.wait_for(thread.start(), 20)
    with pytest.raises(LocalError, match="stopped"):
        await asyncio.wait_for(thread.call(_raise, ValueError()), 20)


async def test_stop_ends_the_thread_and_the_calls() -> None:
    thread = await started()
    call = asyncio.create_task(thread.call(trio.sleep_forever))
    await asyncio.sleep(0)
    await asyncio.wait_for(thread.stop(), 20)
    with pytest.raises((LocalError, asyncio.CancelledError)):
        await asyncio.wait_for(call, 20)
    with pytest.raises(LocalError):
        await asyncio.wait_for(thread.call(trio.sleep, 0), 20)
    await thread.stop()
    assert "the test thread" not in [t.name for t in threading.enumerate()]


async def test_stop_during_the_pause_after_a_crash() -> None:
    thread = TrioThread(_idle, name="the test thread", first_pause_s=60)
    await thread.start()
    with pytest.raises(LocalError):
        await asyncio.wait_for(thread.call(_crash_from_within), 20)
    waiting = asyncio.create_task(thread.call(trio.sleep, 0))
    await asyncio.sleep(0)
    await asyncio.wait_for(thread.stop(), 20)
    with pytest.raises(LocalError):
        await asyncio.wait_for(waiting, 20)


QUICK = WatchTimes(beat_s=0.02, report_after_beats=5, interrupt_after_beats=25)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (a thread and a logger tell of nothing)
            await asyncio.sleep(0.01)


def held_up(hold: Callable[[], None]) -> Callable[[], Any]:
    """A call that takes the scheduler's turn and keeps it."""

    async def keep() -> None:
        hold()

    return keep


def endless() -> None:
    while True:
        pass


async def test_a_program_that_takes_no_turns_is_interrupted_and_restarted(caplog: pytest.LogCaptureFixture) -> None:
    thread = TrioThread(_idle, name="the test thread", first_pause_s=0.01, watch=QUICK)
    await thread.start()
    with pytest.raises(LocalError, match="stopped during the call: it took no turn"):
        await asyncio.wait_for(thread.call(held_up(endless)), 20)

    async def back() -> str:
        return "back"

    assert await asyncio.wait_for(thread.call(back), 20) == "back"
    assert thread.restarts == 1
    assert thread.stalled_s == 0
    said = [record.getMessage() for record in caplog.records]
    assert any("has taken no turn for" in text and "in endless" in text for text in said), "the stack says where"
    await thread.stop()


async def test_a_short_silence_is_reported_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """In a C function no exception reaches the thread; it goes on when that returns."""
    thread = TrioThread(_idle, name="the test thread", watch=replace(QUICK, interrupt_after_beats=100_000))
    await thread.start()
    silent = threading.Event()
    call = asyncio.create_task(thread.call(held_up(silent.wait)))
    await until(lambda: thread.stalled_s)
    assert thread.running
    silent.set()
    await asyncio.wait_for(call, 20)
    await until(lambda: "goes on, after it took no turn" in caplog.text)
    assert thread.stalled_s == 0
    assert thread.restarts == 0
    await thread.stop()


async def test_a_loop_that_is_held_up_itself_blames_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """As a machine that slept, or a process that was stopped for a while."""
    thread = TrioThread(_idle, name="the test thread", watch=QUICK)
    await thread.start()
    for _ in range(3):
        await asyncio.sleep(0.03)
        time.sleep(1.0)  # noqa: ASYNC251 (on purpose)
    await asyncio.sleep(0.1)
    assert "no turn" not in caplog.text
    assert thread.restarts == 0
    await thread.stop()


async def test_a_thread_that_is_held_up_is_interrupted_by_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "JOIN_TIMEOUT_S", 0.2)
    thread = await started()
    call = asyncio.create_task(thread.call(held_up(endless)))
    await asyncio.sleep(0.05)
    await asyncio.wait_for(thread.stop(), 10)
    assert "the test thread" not in [t.name for t in threading.enumerate()]
    with pytest.raises(LocalError):
        await asyncio.wait_for(call, 20)
