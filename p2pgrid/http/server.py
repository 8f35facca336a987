"""The server: a listening socket, the connections it has taken, and how they end."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Final

from p2pgrid.errors import LocalError
from p2pgrid.http.connection import Application, Connection
from p2pgrid.http.limits import ServerLimits

OWN_ADDRESSES: Final = ("127.0.0.1", "::1")
_BACKLOG: Final = 1024


class Server:
    """An application on a port. Made by `serve`."""

    def __init__(self, application: Application, limits: ServerLimits | None = None) -> None:
        self.application: Final = application
        self.limits: Final = limits or ServerLimits()
        self.loop: Final = asyncio.get_running_loop()
        self.is_closing = False
        """True once no more requests are taken."""
        self._connections: set[Connection] = set()
        self._by_address: Counter[str] = Counter()
        self._cancelled: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._all_closed = asyncio.Event()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens: host and port."""
        sockets = self._listener.sockets if self._listener is not None else ()
        return [socket.getsockname()[:2] for socket in sockets]

    @property
    def n_connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def listen(self, host: str, port: int) -> None:
        """Raises LocalError where the address cannot be had."""
        try:
            self._listener = await self.loop.create_server(lambda: Connection(self), host, port, backlog=_BACKLOG)
        except OSError as error:
            raise LocalError(
                f"cannot listen on {host}:{port}: {error.strerror or error}.",
                hint="Stop the program that uses it, or choose another address with --listen.",
            ) from None

    async def listen_at(self, bound: socket.socket) -> None:
        """Take connections at a Unix socket that is bound and does not listen yet."""
        self._listener = await self.loop.create_unix_server(lambda: Connection(self), sock=bound, backlog=_BACKLOG)

    async def aclose(self, drain_s: float) -> None:
        """Take no more requests, let answers under way end for so long, then cut off what is left."""
        self.is_closing = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.close_when_idle()
        if self._connections:
            try:
                async with asyncio.timeout(drain_s):
                    await self._all_closed.wait()
            except TimeoutError:
                for connection in list(self._connections):
                    connection.abort()
                await self._all_closed.wait()
        await asyncio.gather(*self._cancelled, return_exceptions=True)
        if self._ticking is not None:
            self._ticking.cancel()

    # -- for connections -------------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """A connection is made."""
        self._connections.add(connection)
        self._all_closed.clear()
        address, limits = connection.source.address, self.limits
        self._by_address[address] += 1
        is_counted = bool(address) and address not in OWN_ADDRESSES
        is_one_too_many = is_counted and self._by_address[address] > limits.connections_per_address
        if self.is_closing or len(self._connections) > limits.connections or is_one_too_many:
            connection.abort()
        if self._ticking is None:
            self._ticking = self.loop.call_later(self.limits.tick_s, self._tick)

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        address = connection.source.address
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
        if not self._connections:
            self._all_closed.set()

    def left(self, task: asyncio.Task[None]) -> None:
        """A handler is cancelled."""
        self._cancelled.add(task)
        task.add_done_callback(self._cancelled.discard)

    def _tick(self) -> None:
        """Look at every deadline; none is there without connections."""
        now_s = self.loop.time()
        for connection in list(self._connections):
            connection.tick(now_s)
        self._ticking = self.loop.call_later(self.limits.tick_s, self._tick) if self._connections else None


async def serve(application: Application, host: str, port: int, limits: ServerLimits | None = None) -> Server:
    """Put an application on `host`:`port` (0: any free one); `addresses` tells where. Ends with `aclose`.

    Raises LocalError where the address cannot be had.
    """
    server = Server(application, limits)
    await server.listen(host, port)
    return server
