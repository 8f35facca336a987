"""Links that come through holes: a client that reached the node through a relay wants a connection of its own to it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from p2pgrid.net.direct import DirectListener
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.net.punching import Hole
from p2pgrid.net.road import Road

log = logging.getLogger(__name__)

MAX_AT_ONCE: Final = 16
"""Holes that are being punched: each costs a few SYNs to where a client says that it is."""
MAX_LINKS: Final = 512
"""Links through holes: callers are not counted by address there, for the address is what the hole is for."""


class PunchedLinks:
    """Punches the node's half, and has a listener of the direct road serve what comes of it."""

    def __init__(self, listener: DirectListener) -> None:
        self._listener = listener
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, plan: PunchPlan, peer_id: str) -> None:
        """Now is the moment that both sides agreed on."""
        if len(self._tasks) >= MAX_AT_ONCE or len(self._listener.connections) >= MAX_LINKS:
            log.info("no hole is punched for %s: %d are under way", peer_id, len(self._tasks))
            return
        task = asyncio.get_running_loop().create_task(self._punch(plan, peer_id), name=f"punch for {peer_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Punch no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _punch(self, plan: PunchPlan, peer_id: str) -> None:
        async with Hole(plan) as hole:
            while (tcp := await hole.next()) is not None:
                try:
                    host, port = tcp.getpeername()[:2]
                except OSError:  # it is gone again
                    tcp.close()
                    continue
                log.info("a hole is open to %s, at %s:%d", peer_id, host, port)
                self._listener.take(tcp, f"{host}:{port}", Road.PUNCHED)
