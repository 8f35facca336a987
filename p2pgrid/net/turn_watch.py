"""Notices, from the asyncio side, that a trio thread takes no turns any more, and gets it out of what holds it up.

A step of a task that never comes back (an endless loop, a blocking call) holds up every connection of the host, and no
exception tells of it. So trio is asked for a sign of life at every beat. Without one for a while the stack of the
thread is logged, once: it says what holds it up. After some more, `Interrupted` is raised within the thread at that
very place. It is no `Exception`, so it ends the program as a crash does, and the supervisor starts it again. A thread
that is in a C function hears of it when that returns; until then nothing can be done from within Python, and
`stalled_s` says so.

Beats are counted by the loop that watches, not by a clock: a machine that slept, or a process that was stopped, missed
none.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTimes:
    """How long a thread may be silent. Tests shorten it."""

    beat_s: float = 2.0
    report_after_beats: int = 5
    interrupt_after_beats: int = 15
    """And again after as many more."""


class Interrupted(BaseException):
    """Raised in a thread that took no turn for too long."""

    def __str__(self) -> str:
        return "it took no turn for too long"


class TurnWatch:
    """Watches one thread. All methods belong to the asyncio side."""

    def __init__(
        self, name: str, in_trio: Callable[[Callable[[], None]], bool], times: WatchTimes | None = None
    ) -> None:
        """`in_trio` has trio call a function soon, and returns False where no trio program runs."""
        self._name = name
        self._in_trio = in_trio
        self._times = times or WatchTimes()
        self._is_asked = False
        self._missed = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def stalled_s(self) -> float:
        """For how long the thread has taken no turn; 0 while it is not longer than usual."""
        times = self._times
        return self._missed * times.beat_s if self._missed >= times.report_after_beats else 0.0

    def start(self, thread: threading.Thread) -> None:
        """Watch `thread` until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._watch(thread), name=f"watch {self._name}")

    def stop(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()

    def forgive(self) -> None:
        """The program has ended, or begins anew: what was asked of the last one is not answered any more."""
        self._is_asked, self._missed = False, 0

    async def _watch(self, thread: threading.Thread) -> None:
        while True:
            await asyncio.sleep(self._times.beat_s)
            if self._is_asked:
                self._miss(thread)
                continue
            if self.stalled_s:
                log.warning("%s goes on, after it took no turn for %.0f s", self._name, self.stalled_s)
            self._missed, self._is_asked = 0, True
            if not self._in_trio(self._answer):
                self._is_asked = False

    def _answer(self) -> None:
        """On the trio side: one assignment, which needs no lock."""
        self._is_asked = False

    def _miss(self, thread: threading.Thread) -> None:
        self._missed += 1
        if self._missed == self._times.report_after_beats:
            log.error(
                "%s has taken no turn for %.0f s; what it does:\n%s", self._name, self.stalled_s, stack_of(thread)
            )
        if self._missed % self._times.interrupt_after_beats == 0:
            log.error("%s has taken no turn for %.0f s, and is interrupted", self._name, self.stalled_s)
            interrupt(thread)


def interrupt(thread: threading.Thread) -> None:
    """Raise Interrupted in the thread, as soon as it is in Python code."""
    if thread.ident is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted))


def stack_of(thread: threading.Thread) -> str:
    """What the thread does at this moment, the innermost call last: its last 12 frames."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame, limit=None)[-12:]) if frame is not None else "(it has ended)"
