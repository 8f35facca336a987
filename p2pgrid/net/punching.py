"""The hole itself: TCP connections that two peers open to one another at the same moment, each from a bound port.

Each side connects, again and again, and listens on the same port too, so that it does not matter whose SYN comes
first: a connection is opened simultaneously (RFC 9293, 3.5; RFC 5128, 3.4), or accepted (RFC 5128: NATs that let in
what a host has called before).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from typing import Final, Self

from p2pgrid.net.punch_plan import Place, PunchPlan

log = logging.getLogger(__name__)

PUNCH_S: Final = 4.0
TRY_S: Final = 1.0
"""How long one connect waits: a SYN is sent once in that time."""
PAUSE_S: Final = 0.1
"""Before the next one, where the last was refused."""
MAX_ACCEPTED: Final = 8
"""Of whoever calls at the port meanwhile."""


class Hole:
    """Tries for a while: `async with Hole(plan) as hole: while (tcp := await hole.next()) is not None: ...`"""

    def __init__(self, plan: PunchPlan, *, lasts_s: float = PUNCH_S) -> None:
        self._plan = plan
        self._lasts_s = lasts_s
        self._found: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._deadline_s = 0.0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._deadline_s = loop.time() + self._lasts_s
        self._tasks.append(loop.create_task(self._accept(), name="punch: accept"))
        for place in self._plan.remote:
            self._tasks.append(loop.create_task(self._connect(place), name=f"punch: {place[0]}:{place[1]}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._found.empty():
            self._found.get_nowait().close()

    async def next(self) -> socket.socket | None:
        """The next connection that came about, not yet proven to lead to anybody; None once the time is over."""
        try:
            async with asyncio.timeout_at(self._deadline_s):
                return await self._found.get()
        except TimeoutError:
            return None

    async def _connect(self, place: Place) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                tcp = self._bound()
            except OSError as error:
                log.debug("no socket can be bound to %s: %s", self._plan.local, error)
                return
            try:
                async with asyncio.timeout(TRY_S):
                    await loop.sock_connect(tcp, place)
            except (OSError, TimeoutError):
                tcp.close()
                await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
            except BaseException:
                tcp.close()
                raise
            else:
                self._found.put_nowait(tcp)
                return

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            server = self._bound()
        except OSError as error:
            log.debug("%s cannot be listened on: %s", self._plan.local, error)
            return
        with contextlib.closing(server):
            server.listen(MAX_ACCEPTED)
            for _ in range(MAX_ACCEPTED):
                try:
                    tcp, _ = await loop.sock_accept(server)
                except OSError:
                    await asyncio.sleep(PAUSE_S)
                    continue
                tcp.setblocking(False)
                self._found.put_nowait(tcp)

    def _bound(self) -> socket.socket:
        host = self._plan.local[0]
        tcp = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            tcp.setblocking(False)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tcp.bind(self._plan.local)
        except OSError:
            tcp.close()
            raise
        return tcp
