"""A worker for tests: it does what it is told."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from p2pgrid.processes.bus import BusMessage
from p2pgrid.processes.worker import Inherited, run_worker
from p2pgrid.processes.workers import StopWorker, WorkerReady


class Order(BusMessage, frozen=True):
    """`exit`, `deaf` (to being stopped), `hang` (blocks for good), `raise`."""

    NUMBER = 100

    what: str


class Said(BusMessage, frozen=True):
    NUMBER = 101

    pid: int


async def main(own: Inherited) -> None:
    stopped = asyncio.Event()
    is_deaf = False

    def take(order: Order) -> None:
        nonlocal is_deaf
        if order.what == "exit":
            sys.exit(3)
        elif order.what == "deaf":
            is_deaf = True
        elif order.what == "hang":
            time.sleep(1000)
        elif order.what == "raise":
            raise RuntimeError("a bug")
        own.bus.send(Said(os.getpid()))

    def stop(_: StopWorker) -> None:
        if not is_deaf:
            stopped.set()

    own.bus.on(Order, take)
    own.bus.on(StopWorker, stop)
    own.bus.start()
    own.bus.send(WorkerReady())
    await stopped.wait()


if __name__ == "__main__":
    run_worker(main)
