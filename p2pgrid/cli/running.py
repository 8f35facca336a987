"""Long-running commands: one event loop, and what SIGINT and SIGTERM do."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from p2pgrid.processes import logs

_GC_OBJECTS: Final = 5_000
"""New objects before the collector looks for cycles among them. A few hundred are made for each request."""


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `main` on uvloop. The event it is given is set by the first SIGINT or SIGTERM; a second one ends the process.

    `main` returns when it has cleaned up.
    """

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if stop.is_set():
                print("Stopping at once.", file=sys.stderr)
                raise KeyboardInterrupt
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        # Modules stay for good: the collector need not look at them again and again.
        gc.freeze()
        gc.set_threshold(_GC_OBJECTS)
        await main(stop)

    try:
        import uvloop
    except ImportError:  # no uvloop on Windows
        asyncio.run(supervised())
    else:
        uvloop.run(supervised())


def log_to_stderr(*, verbose: bool, quiet: bool = False) -> None:
    """Lines for people on standard error; standard output belongs to what was asked for. Quiet: only what is wrong."""
    logs.log_to_stderr(level=logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)
