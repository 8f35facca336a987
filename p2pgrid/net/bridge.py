"""A trio program in a thread of its own, beside an asyncio loop (uvloop or not), supervised.

libp2p is a trio library and the rest of p2pgrid runs on asyncio. Calls cross in both directions, and so do
exceptions and cancellation. When the trio program crashes, calls under way fail, the crash is logged, and the program
is started again after a pause that doubles; the asyncio side goes on. One that takes no turns any more is made to crash
(`turn_watch.py`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import trio

from p2pgrid.errors import LocalError, P2pgridError
from p2pgrid.net.turn_watch import TurnWatch, WatchTimes, interrupt

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Main = Callable[[Callable[[], None]], Awaitable[None]]
"""A trio program: gets a function to call once it is ready, then runs until it is cancelled."""

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
STEADY_AFTER_S: Final = 120.0
"""After this long without a crash the pause starts from the shortest again."""
JOIN_TIMEOUT_S: Final = 10.0
LAST_JOIN_TIMEOUT_S: Final = 2.0
"""Once it was interrupted."""


class TrioThread:
    """Runs `main` under trio in a thread. Every method but `call_asyncio` belongs to the asyncio side."""

    def __init__(
        self, main: Main, *, name: str, first_pause_s: float = FIRST_PAUSE_S, watch: WatchTimes | None = None
    ) -> None:
        self._main = main
        self._name = name
        self._first_pause_s = first_pause_s
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._calls: trio.Nursery | None = None
        self._stop_trio: trio.Event | None = None
        self._stopping = threading.Event()
        self._started: asyncio.Future[None] | None = None
        self._ready = asyncio.Event()
        self._ever_ready = False
        self._under_way: set[asyncio.Future[Any]] = set()
        self._watch = TurnWatch(name, self._in_trio, watch)
        self.restarts = 0

    @property
    def running(self) -> bool:
        """True from the moment that the program said it was ready until it ends."""
        return self._ready.is_set() and not self._stopping.is_set()

    @property
    def stalled_s(self) -> float:
        """For how long the program has taken no turn; 0 while it takes them."""
        return self._watch.stalled_s

    async def start(self) -> None:
        """Start the thread and wait until the program is ready. What it raises before that is raised here."""
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        self._watch.start(self._thread)
        try:
            await self._started
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Cancel the program and wait for the thread to end. Safe to call twice."""
        self._stopping.set()
        self._watch.stop()
        self._in_trio(lambda: self._stop_trio.set() if self._stop_trio is not None else None)
        if self._thread is not None:
            await asyncio.shield(asyncio.to_thread(self._thread.join, JOIN_TIMEOUT_S))
            if self._thread.is_alive():
                interrupt(self._thread)
                await asyncio.shield(asyncio.to_thread(self._thread.join, LAST_JOIN_TIMEOUT_S))
            if self._thread.is_alive():
                logger.warning("the thread %s has not ended after %.0f s; leaving it", self._name, JOIN_TIMEOUT_S)
        self._down(LocalError(f"{self._name} has been stopped."))

    async def call(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` under trio; its result or exception. Waits while the program restarts.

        Cancelling this cancels `fn`. Raises LocalError if the program crashes meanwhile, or has been stopped.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    result = await fn(*args, **kwargs)
                    self._in_asyncio(_settle, outcome, result, None)
                    return
                self._in_asyncio(outcome.cancel)
            except Exception as error:  # noqa: BLE001 (handed to the caller, who awaits `outcome`)
                self._in_asyncio(_settle, outcome, None, error)

        self._under_way.add(outcome)
        try:
            await self._until_ready()
            while not self._in_trio(lambda: self._calls.start_soon(run) if self._calls is not None else None):
                self._ready.clear()  # it has ended, and the news of it is still on its way here
                await self._until_ready()
            return await outcome
        finally:
            self._under_way.discard(outcome)
            if not outcome.done() or outcome.cancelled():
                self._in_trio(scope.cancel)

    async def _until_ready(self) -> None:
        await self._ready.wait()
        if self._stopping.is_set():
            raise LocalError(f"{self._name} has been stopped.")

    async def call_asyncio(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """From the trio side: run `fn` on the asyncio loop; its result or exception. Cancelling this cancels `fn`."""
        token, done, tasks = trio.lowlevel.current_trio_token(), trio.Event(), list[asyncio.Task[T]]()

        def finished(_: asyncio.Task[T]) -> None:
            try:
                token.run_sync_soon(done.set)
            except trio.RunFinishedError:
                pass  # nobody waits any more

        def begin() -> None:
            task = asyncio.ensure_future(_as_coroutine(fn(*args, **kwargs)))
            tasks.append(task)
            task.add_done_callback(finished)

        if not self._in_asyncio(begin):
            raise LocalError("the asyncio side has ended.")
        try:
            await done.wait()
        except trio.Cancelled:
            self._in_asyncio(lambda: tasks[0].cancel())
            raise
        if tasks[0].cancelled():
            raise LocalError("the asyncio side cancelled the call.")
        return tasks[0].result()

    def tell_asyncio(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """From the trio side: have the loop call `fn` soon, in order. Nothing happens if it is closed."""
        self._in_asyncio(partial(fn, *args, **kwargs))

    def _run(self) -> None:
        """The thread: run, and run again after a crash, until stopped."""
        pause_s = self._first_pause_s
        while True:
            began = time.monotonic()
            try:
                trio.run(self._supervised)
                crash: BaseException = LocalError(f"{self._name} ended by itself.")
            except BaseException as error:  # noqa: BLE001 (the thread's boundary: reported below, or raised by start())
                crash = _only(error)
            self._token = self._calls = self._stop_trio = None  # from here on a call waits for the next run
            if self._stopping.is_set():
                return
            was_ready = self._in_asyncio(self._down, crash) and self._ever_ready
            if not was_ready:
                return
            if time.monotonic() - began > STEADY_AFTER_S:
                pause_s = self._first_pause_s
            self._report(crash, pause_s)
            self._stopping.wait(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            self.restarts += 1

    async def _supervised(self) -> None:
        async with trio.open_nursery() as nursery:
            self._stop_trio = trio.Event()
            async with trio.open_nursery() as calls:
                self._calls = calls
                self._token = trio.lowlevel.current_trio_token()  # last: whoever sees it finds the rest in place
                if self._stopping.is_set():
                    return
                nursery.start_soon(self._main_task, nursery)
                await self._stop_trio.wait()
                nursery.cancel_scope.cancel()

    async def _main_task(self, nursery: trio.Nursery) -> None:
        await self._main(self._announce_ready)
        if self._stop_trio is not None and not self._stop_trio.is_set():
            raise LocalError(f"{self._name} ended by itself.")

    def _announce_ready(self) -> None:
        self._ever_ready = True
        self._in_asyncio(self._up)

    def _up(self) -> None:
        self._ready.set()
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    def _down(self, reason: BaseException) -> None:
        """On the loop: the program is not running. Fail what waits for it."""
        self._watch.forgive()
        if self._stopping.is_set():
            self._ready.set()  # whoever waits for it should hear that it is over
        else:
            self._ready.clear()
        if self._started is not None and not self._started.done():
            self._started.set_exception(reason)
        for outcome in self._under_way:
            _settle(outcome, None, LocalError(f"{self._name} stopped during the call: {reason}"))

    def _report(self, crash: BaseException, pause_s: float) -> None:
        expected = isinstance(crash, P2pgridError)
        logger.error(
            "%s crashed and starts again in %.1f s: %r",
            self._name,
            pause_s,
            crash,
            exc_info=None if expected else crash,
        )

    def _in_trio(self, fn: Callable[[], Any]) -> bool:
        """Have trio call `fn` soon; False if it runs no more."""
        if self._token is None:
            return False
        try:
            self._token.run_sync_soon(fn)
        except trio.RunFinishedError:
            return False
        return True

    def _in_asyncio(self, fn: Callable[..., Any], *args: Any) -> bool:
        """Have the loop call `fn` soon; False if it is closed."""
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:
            return False
        return True


def _settle(outcome: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if outcome.done():
        return
    if error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(result)


def _only(error: BaseException) -> BaseException:
    """The one error inside nested groups of one, or the error itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
