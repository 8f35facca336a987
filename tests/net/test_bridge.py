"""The thread beside the loop, with small trio programs in place of a host."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2pgrid.errors import LocalError
from p2pgrid.net.bridge import TrioThread


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
    await asyncio.to_thread(began.wait, 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(ended.wait(), 5)
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
    await asyncio.wait_for(began.wait(), 5)
    call.cancel()
    await asyncio.wait_for(cancelled.wait(), 5)
    await thread.stop()


async def test_a_crash_fails_the_calls_and_restarts_the_program(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []

    async def main(ready: Callable[[], None]) -> None:
        runs.append(1)
        await _idle(ready)

    thread = await started(main)
    with pytest.raises(LocalError, match="stopped during the call"):
        await asyncio.wait_for(thread.call(_crash_from_within), 5)

    async def back() -> str:
        return "back"

    assert await asyncio.wait_for(thread.call(back), 5) == "back"
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
    assert await asyncio.wait_for(thread.call(back), 5) == "back"
    assert thread.restarts == 1
    await thread.stop()


async def test_what_fails_before_ready_is_raised_by_start() -> None:
    async def main(ready: Callable[[], None]) -> None:
        raise LocalError("the port is in use.")

    thread = TrioThread(main, name="the test thread")
    with pytest.raises(LocalError, match="port is in use"):
        await asyncio.wait_for(thread.start(), 5)
    with pytest.raises(LocalError, match="stopped"):
        await asyncio.wait_for(thread.call(_raise, ValueError()), 5)


async def test_stop_ends_the_thread_and_the_calls() -> None:
    thread = await started()
    call = asyncio.create_task(thread.call(trio.sleep_forever))
    await asyncio.sleep(0)
    await asyncio.wait_for(thread.stop(), 5)
    with pytest.raises((LocalError, asyncio.CancelledError)):
        await asyncio.wait_for(call, 5)
    with pytest.raises(LocalError):
        await asyncio.wait_for(thread.call(trio.sleep, 0), 5)
    await thread.stop()
    assert "the test thread" not in [t.name for t in threading.enumerate()]


async def test_stop_during_the_pause_after_a_crash() -> None:
    thread = TrioThread(_idle, name="the test thread", first_pause_s=60)
    await thread.start()
    with pytest.raises(LocalError):
        await asyncio.wait_for(thread.call(_crash_from_within), 5)
    waiting = asyncio.create_task(thread.call(trio.sleep, 0))
    await asyncio.sleep(0)
    await asyncio.wait_for(thread.stop(), 5)
    with pytest.raises(LocalError):
        await asyncio.wait_for(waiting, 5)
