"""Worker processes for the parts of an audit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import TracebackType
from typing import Final, Self, TypeVar

from p2pgrid.errors import LocalError

R = TypeVar("R")

_AHEAD: Final = 3
"""Jobs for each worker that wait: enough that none stands idle, few enough that results do not pile up."""
_PARENT_CHECK_S: Final = 1.0


class Workers:
    """Processes that do jobs; with one process, the caller's own.

    They end with the block, also when it ends by an exception (Ctrl-C), and when the process that started them dies.
    """

    def __init__(self, processes: int) -> None:
        self.processes: Final = processes
        self._executor: ProcessPoolExecutor | None = None
        self._children: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> Self:
        if self.processes > 1:
            # A fork starts at once and does not run the main module again. It is made before there are threads.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            before = set(multiprocessing.active_children())
            self._executor = ProcessPoolExecutor(
                self.processes, mp_context=context, initializer=_begin, initargs=(os.getpid(),)
            )
            wait([self._executor.submit(os.getpid) for _ in range(self.processes)])
            self._children = [child for child in multiprocessing.active_children() if child not in before]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is None:
            return
        if kind is not None:
            for child in self._children:
                child.terminate()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def run(self, jobs: Iterable[Callable[[], R]]) -> Iterator[R]:
        """The results of the jobs, in the order in which they are done. A job must be picklable (`partial`).

        Raises what a job raises; LocalError if a worker dies.
        """
        if self._executor is None:
            for job in jobs:
                yield job()
            return
        waiting = iter(jobs)
        running: set[Future[R]] = set()
        try:
            while True:
                free = self.processes * _AHEAD - len(running)
                running |= {self._executor.submit(_call, job) for job in islice(waiting, free)}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise LocalError(
                "a worker process of the audit was ended from outside.",
                hint="Often the memory was full: free some, or audit with fewer --processes.",
            ) from None


def usable_cores() -> int:
    """How many processes can run at once here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _call(job: Callable[[], R]) -> R:
    return job()


def _begin(parent: int) -> None:
    # Ctrl-C reaches the whole group: the process that started the workers ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker holds both ends of its queue, so nothing tells it that nobody writes any more."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)
