"""One listening socket for several processes: the main process accepts, and hands each connection to a worker.

It goes to the worker that holds the fewest. Links live for hours and there may be four of them for four workers, so
that the kernel's way of spreading connections by their addresses would leave workers idle
(docs/decisions/several-processes.md).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from p2pgrid.processes.bus import BusMessage
from p2pgrid.sockets import listening_socket

log = logging.getLogger(__name__)

_ACCEPT_PAUSE_S: Final = 1.0
_CALLER_LEFT: Final = {errno.ECONNABORTED, errno.EPROTO}
_MAX_NOTE_BYTES: Final = 1024


class ConnectionGone(BusMessage, frozen=True):
    """A worker: a connection that was handed over is closed."""

    NUMBER = 1

    number: int


class Handed(msgspec.Struct, array_like=True, frozen=True):
    """What travels with a connection."""

    number: int
    """The main process's own, for `ConnectionGone`; below 0 for a socket that the worker has asked for."""
    name: str
    """The caller's address, for logs."""


def hand_over(giver: socket.socket, handed: Handed, tcp: socket.socket) -> None:
    """Give a worker an open socket; the caller closes its own descriptor. Raises OSError: the worker takes none now."""
    socket.send_fds(giver, [msgspec.msgpack.encode(handed)], [tcp.fileno()])


class Places(Protocol):
    """How many connections callers may hold: `p2pgrid.net.limits.Seats` is one."""

    def take(self, address: str) -> bool:
        """One for the caller; False where it may have no more."""

    def leave(self, address: str) -> None:
        """One is closed."""


class Acceptor:
    """Listening sockets, and how many connections each worker and each caller holds."""

    def __init__(
        self,
        places: Places | None = None,
        *,
        caller_of: Callable[[str], str] = str,
        may_connect: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`places`: None for no limit. `caller_of` says by what connections from an address are counted.

        `may_connect` is asked about a caller first, and may say that it connects too often.
        """
        self._places = places
        self._caller_of = caller_of
        self._may_connect = may_connect
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._givers: dict[int, socket.socket] = {}
        self._held: dict[int, dict[int, str]] = {}
        """Callers by the connection's number, by worker."""
        self._given: dict[int, int] = {}
        """The connection that each worker was given last: of those that hold as few, the next is who waits longest."""
        self._number = 0
        self._has_worker = asyncio.Event()
        self.refused_connections = 0
        """Callers turned away because of the caps."""

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens: host and port."""
        return [one.getsockname()[:2] for one in self._sockets]

    @property
    def n_connections(self) -> int:
        """Connections that workers hold."""
        return sum(len(held) for held in self._held.values())

    async def listen(self, host: str, port: int) -> None:
        """Have the port (0: any free one). Raises OSError. Connections wait in its queue until there is a worker."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, _type, _proto, _name, address in dict.fromkeys(found):
                self._sockets.append(listening_socket(family, address))
        except OSError:
            self._close_sockets()
            raise

    def start(self) -> None:
        """Take connections from now on."""
        loop = asyncio.get_running_loop()
        self._accepting = [loop.create_task(self._accept(one), name="accept") for one in self._sockets]

    async def stop(self) -> None:
        """Take no more, and let the port go. Connections that workers hold stay."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        self._close_sockets()

    def add_worker(self, worker: int, giver: socket.socket) -> None:
        """From now on connections may be handed to that worker, over its socket."""
        self._givers[worker] = giver
        self._held[worker] = {}
        self._given[worker] = 0
        self._has_worker.set()

    def remove_worker(self, worker: int) -> None:
        """The worker is gone, and all that it held."""
        self._givers.pop(worker, None)
        for caller in self._held.pop(worker, {}).values():
            self._forget(caller)
        if not self._givers:
            self._has_worker.clear()

    def gone(self, worker: int, number: int) -> None:
        """A connection that the worker held is closed."""
        caller = self._held.get(worker, {}).pop(number, None)
        if caller is not None:
            self._forget(caller)

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._has_worker.wait()
            try:
                tcp, address = await loop.sock_accept(server)
            except OSError as error:
                if error.errno in _CALLER_LEFT:
                    continue
                log.error("no connection can be accepted: %s; trying again in %g s", error, _ACCEPT_PAUSE_S)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            with tcp:
                self._hand_over(tcp, address)

    def _hand_over(self, tcp: socket.socket, address: Any) -> None:
        """Give the connection to a worker; our own descriptor is closed by the caller."""
        caller = self._caller_of(address[0])
        if not self._may_connect(caller) or not (self._places is None or self._places.take(caller)):
            self.refused_connections += 1
            log.info("a connection from %s was refused: %d are open in all", caller, self.n_connections)
            return
        self._number += 1
        name = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        handed = Handed(self._number, name)
        for worker in sorted(self._givers, key=lambda one: (len(self._held[one]), self._given[one])):
            try:
                hand_over(self._givers[worker], handed, tcp)
            except OSError as error:
                # Its queue is full, or it has just ended: the next one is asked.
                log.warning("worker %d takes no connection: %s", worker, error)
                continue
            self._held[worker][self._number] = caller
            self._given[worker] = self._number
            return
        self._forget(caller)
        log.error("a connection from %s was closed: no worker takes it", name)

    def _forget(self, caller: str) -> None:
        if self._places is not None:
            self._places.leave(caller)

    def _close_sockets(self) -> None:
        for server in self._sockets:
            server.close()
        self._sockets.clear()


def receive_connections(
    giver: socket.socket, take: Callable[[socket.socket, Handed], None], lost: Callable[[Handed], None]
) -> Callable[[], None]:
    """In a worker: call `take` with every connection that is handed over. Returns what ends that.

    `lost` is called for one that could not be taken over, because this process may open no more files.
    """
    loop = asyncio.get_running_loop()
    giver.setblocking(False)

    def ready() -> None:
        while True:
            try:
                note, descriptors, _flags, _address = socket.recv_fds(giver, _MAX_NOTE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError as error:
                log.error("no connection can be taken over: %s", error)
                loop.remove_reader(giver)
                return
            if not note:
                loop.remove_reader(giver)
                return
            handed = msgspec.msgpack.decode(note, type=Handed)
            if not descriptors:
                log.error("the connection from %s is lost: this process has too many files open", handed.name)
                lost(handed)
            for descriptor in descriptors:
                tcp = socket.socket(fileno=descriptor)
                tcp.setblocking(False)
                take(tcp, handed)

    loop.add_reader(giver, ready)

    def stop() -> None:
        loop.remove_reader(giver)

    return stop
