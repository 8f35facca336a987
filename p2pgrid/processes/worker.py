"""A worker's own beginning and end, whatever it does: its sockets, its signals, its loop.

It leaves SIGINT and SIGTERM to the main process, which hears them too and tells it when to end: a supervisor may send
them to all processes at once, and an order under way has to come to its end.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from p2pgrid.processes.bus import Bus
from p2pgrid.processes.logs import log_to_stderr

log = logging.getLogger(__name__)

_GC_OBJECTS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Inherited:
    """What the main process gave to this one."""

    worker: int
    """From 1 on."""
    bus: Bus
    giver: socket.socket
    """Connections come here: `p2pgrid.processes.accepting.receive_connections`."""
    settling: socket.socket
    """For `p2pgrid.ledger.remote.RemoteLedger`."""
    more: tuple[int, ...]
    """Further descriptors."""


def run_worker(main: Callable[[Inherited], Awaitable[None]]) -> None:
    """The whole of a worker's process. `main` returns when it has cleaned up, or when the bus is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    worker, level, bus, giver, settling, *more = map(int, sys.argv[1:])
    log_to_stderr(level=level, name=f"worker {worker}")
    for descriptor in (bus, giver, settling, *more):
        os.set_inheritable(descriptor, False)

    async def supervised() -> None:
        gc.freeze()
        gc.set_threshold(_GC_OBJECTS)
        own = Inherited(
            worker,
            await Bus.over(socket.socket(fileno=bus), "the main process"),
            socket.socket(fileno=giver),
            socket.socket(fileno=settling),
            tuple(more),
        )
        working = asyncio.ensure_future(main(own))
        await asyncio.wait({working, own.bus.closed}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            # Nothing more can be made durable: whatever is said from now on would be a promise without a record.
            log.error("worker %d: the main process is gone", worker)
            os._exit(1)
        await working
        own.bus.close()
        await own.bus.closed

    import uvloop

    uvloop.run(supervised())
