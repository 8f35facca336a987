"""Log lines of a process that people watch."""

from __future__ import annotations

import logging
import sys


def log_to_stderr(*, level: int, name: str = "") -> None:
    """Lines for people on standard error, under the name of a worker where one is given."""
    # No line says where in the program it comes from, or on which thread: do not look for that, at every order.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    whose = f"{name} " if name else ""
    logging.basicConfig(
        stream=sys.stderr,
        level=level,
        format=f"%(asctime)s {whose}%(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    if level > logging.DEBUG:
        for noisy in ("aiohttp.access", "asyncio", "libp2p", "trio"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
