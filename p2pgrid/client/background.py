"""What runs unattended must not fail unseen."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

log = logging.getLogger(__name__)


def log_end(task: asyncio.Task[Any]) -> None:
    """A done callback for a task that should end by cancellation alone: any error is logged with its traceback."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s ended with an error", task.get_name(), exc_info=error)


async def is_done_within(future: asyncio.Future[Any], timeout_s: float) -> bool:
    """Wait for a future that others wait for too: cancelling the caller leaves it as it is. False after the time."""
    if future.done():
        return True
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(timeout_s, wake)
    future.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        future.remove_done_callback(wake)
    return future.done()


def log_failed_write(future: asyncio.Future[None]) -> None:
    """A done callback for a ledger's write that nothing waits for."""
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("the ledger did not take a note: %s", error)
