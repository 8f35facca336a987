"""`p2pgrid`, with faults on demand: SIGUSR1 crashes the libp2p host, SIGUSR2 holds it up for good.

    python -m tests.grid.faulty_node --data FOLDER serve ...

A host that is held up is noticed and interrupted within seconds here.
"""

from __future__ import annotations

import asyncio
import signal
import time

import trio

from p2pgrid.cli.main import main
from p2pgrid.net import turn_watch
from p2pgrid.net.bridge import TrioThread


async def _raise() -> None:
    raise RuntimeError("a crash on purpose")


def _crash() -> None:
    trio.lowlevel.spawn_system_task(_raise)


def _hold_up() -> None:
    while True:
        time.sleep(0.01)


class _Faulty(TrioThread):
    async def start(self) -> None:
        await super().start()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._in_trio, _crash)
        loop.add_signal_handler(signal.SIGUSR2, self._in_trio, _hold_up)


def _install() -> None:
    import p2pgrid.net.network as network

    network.TrioThread = _Faulty  # type: ignore[misc]
    quick = turn_watch.WatchTimes(beat_s=0.1, report_after_beats=5, interrupt_after_beats=20)
    turn_watch.WatchTimes = lambda: quick  # type: ignore[assignment, misc]


if __name__ == "__main__":
    _install()
    main()
