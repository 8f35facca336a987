"""The main process's side of its workers: started, watched, started again when they end, told to stop.

A worker is `sys.executable -m MODULE`, a process of its own from the start: forking a process with threads in it
(libp2p's, the ledger's) copies locks that nobody will release. It inherits the ends of three socket pairs and nothing
else; their names are nowhere in the file system, so no other process can connect.

A worker ends when its bus closes, which is when the main process ends, however that happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

from p2pgrid.errors import LocalError, UsageError
from p2pgrid.processes.bus import Bus, BusMessage

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
"""How long a worker that ended stays away: the first, the second... time in a row."""
STEADY_S: Final = 60.0
"""A worker that ran for so long begins anew in that row."""
READY_TIMEOUT_S: Final = 60.0
EXIT_TIMEOUT_S: Final = 2.0
STOP_GRACE_S: Final = 5.0
"""Beyond the time that open work is given."""


class WorkerReady(BusMessage, frozen=True):
    """A worker: all is in its place, connections may be handed over."""

    NUMBER = 2


class StopWorker(BusMessage, frozen=True):
    """The main process: end. Open work may go on for so long."""

    NUMBER = 3

    drain_s: float


class WorkerEnds:
    """The main process's ends of a worker's three socket pairs."""

    def __init__(self) -> None:
        self.bus, self._bus = socket.socketpair()
        self.giver, self._giver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """Connections are handed over here."""
        self.settling, self._settling = socket.socketpair()
        """Reads ask here what they have to wait for: `p2pgrid.ledger.service`."""
        self.giver.setblocking(False)

    @property
    def theirs(self) -> list[socket.socket]:
        """What the worker inherits, in the order of `worker_sockets`."""
        return [self._bus, self._giver, self._settling]

    def close_theirs(self) -> None:
        """The worker has them."""
        for one in self.theirs:
            one.close()

    def close(self) -> None:
        """Close what is left."""
        self.close_theirs()
        for one in (self.giver, self.settling):
            one.close()


def check_supported(processes: int) -> None:
    """Raise UsageError where several processes cannot be had."""
    if processes > 1 and sys.platform != "linux":
        raise UsageError("several processes need Linux.", hint="Leave --processes at 1.")


class WorkerSet:
    """Workers 1 to `n`. Subclasses say what they are told and what becomes of what they say."""

    def __init__(self, module: str, n: int) -> None:
        self._module: Final = module
        self.n: Final = n
        self.buses: Final[dict[int, Bus]] = {}
        """Of those that are ready."""
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._is_stopping = False
        self.restarts = 0
        """Workers that ended without having been told to."""

    # -- for subclasses ---------------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self, worker: int, bus: Bus, ends: WorkerEnds) -> None:
        """A worker is being started: put handlers on its bus, and send what it starts with."""

    def ready(self, worker: int, bus: Bus, ends: WorkerEnds) -> None:
        """The worker is ready."""

    @abstractmethod
    def gone(self, worker: int) -> None:
        """The worker has ended, and all that it had said was dealt with. Called once for each `prepare`."""

    def inherited(self) -> Sequence[int]:
        """Further descriptors that workers inherit; their numbers are the module's arguments after the sockets'."""
        return ()

    # -- for the owner ----------------------------------------------------------------------------------------------

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by worker, of those that run."""
        return {worker: process.pid for worker, process in self._processes.items()}

    async def start(self) -> None:
        """Start all; returns when all are ready. Raises LocalError if one is not."""
        firsts = [asyncio.get_running_loop().create_future() for _ in range(self.n)]
        for worker, first in enumerate(firsts, 1):
            keeper = asyncio.create_task(self._keep(worker, first), name=f"worker {worker}")
            self._keepers.append(keeper)
        try:
            await asyncio.gather(*firsts)
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, drain_s: float) -> None:
        """Tell all to end, give them `drain_s` for it and a little more, then kill those that are left."""
        self._is_stopping = True
        for bus in self.buses.values():
            bus.send(StopWorker(drain_s))
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=drain_s + STOP_GRACE_S if self.buses else 0)
        for worker in list(self._processes):
            self.kill(worker, "it did not end when told to")
        if self._processes:
            await asyncio.wait(self._keepers, timeout=EXIT_TIMEOUT_S)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def kill(self, worker: int, why: str) -> None:
        """End a worker that does not do what it has to; another takes its place."""
        process = self._processes.get(worker)
        if process is not None and process.returncode is None:
            log.error("worker %d (pid %d) is killed: %s", worker, process.pid, why)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _keep(self, worker: int, first: asyncio.Future[None]) -> None:
        in_a_row = 0
        while not self._is_stopping:
            began = time.monotonic()
            code = await self._run_once(worker, first)
            if self._is_stopping:
                break
            if not first.done():
                first.set_exception(LocalError(f"worker {worker} ended before it was ready (exit code {code})."))
                return
            self.restarts += 1
            in_a_row = 0 if time.monotonic() - began > STEADY_S else in_a_row + 1
            pause_s = BACKOFF_S[min(max(in_a_row - 1, 0), len(BACKOFF_S) - 1)]
            log.error("worker %d ended (exit code %d); it is started again in %g s", worker, code, pause_s)
            await asyncio.sleep(pause_s)

    async def _run_once(self, worker: int, first: asyncio.Future[None]) -> int:
        ends = WorkerEnds()
        try:
            bus = await Bus.over(ends.bus, f"worker {worker}")
            descriptors = [*(one.fileno() for one in ends.theirs), *self.inherited()]
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                str(worker),
                str(logging.getLogger().getEffectiveLevel()),
                *map(str, descriptors),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C at a terminal is for the main process, which ends them in order
            )
        except BaseException:
            ends.close()
            raise
        ends.close_theirs()
        self._processes[worker] = process

        def is_ready(_: WorkerReady) -> None:
            self.buses[worker] = bus
            self.ready(worker, bus, ends)
            if not first.done():
                first.set_result(None)

        bus.on(WorkerReady, is_ready)
        try:
            self.prepare(worker, bus, ends)
            bus.start()
            timer = asyncio.get_running_loop().call_later(READY_TIMEOUT_S, self._check_ready, worker, bus)
            # All that it said is read before it counts as gone.
            await bus.closed
            timer.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_TIMEOUT_S):
                    return await process.wait()
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # it closed its bus and has no more to do here
            return await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            self.buses.pop(worker, None)
            self._processes.pop(worker, None)
            bus.abort()
            self.gone(worker)
            ends.close()

    def _check_ready(self, worker: int, bus: Bus) -> None:
        if self.buses.get(worker) is not bus:
            self.kill(worker, f"it was not ready within {READY_TIMEOUT_S:g} s")
