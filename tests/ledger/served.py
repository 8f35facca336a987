"""A ledger on disk with both of its ends in this process: what workers have, without a worker."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from p2pgrid.ledger.remote import RemoteLedger
from p2pgrid.ledger.service import LedgerService
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.processes.bus import Bus


@dataclass
class Served:
    """The worker's end and the main process's."""

    remote: RemoteLedger
    main: SqliteLedger
    bus: Bus
    """The main process's end of it."""


@contextlib.asynccontextmanager
async def served_ledger(path: Path) -> AsyncIterator[Served]:
    main = SqliteLedger.open(path)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(main.aclose)
        served = await serve_to_worker(main, stack)
        yield served


async def serve_to_worker(main: SqliteLedger, stack: contextlib.AsyncExitStack) -> Served:
    """One more worker's ledger."""
    ours, theirs = socket.socketpair()
    settling, asking = socket.socketpair()
    stack.callback(settling.close)
    stack.callback(asking.close)
    bus, worker_bus = await Bus.over(ours, "worker"), await Bus.over(theirs, "main process")
    stack.callback(bus.abort)
    stack.callback(worker_bus.abort)
    LedgerService(main, bus, settling)
    remote = RemoteLedger(main.path, worker_bus, asking)
    stack.push_async_callback(remote.aclose)
    bus.start()
    worker_bus.start()
    return Served(remote, main, bus)
