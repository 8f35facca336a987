"""The node's end of the command socket. Whoever can connect acts as the node's owner, so nobody else can.

Three things see to that: the data folder is its owner's alone, the socket has mode 0600 before it listens, and where
the platform tells who has connected, the user must be the node's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pgrid.commands.address import IS_SUPPORTED, is_ours, prepare_folder
from p2pgrid.commands.wire import ABOUT_PATH, DO_PATH, MAX_COMMAND_BYTES, About, Failure, failure_of
from p2pgrid.errors import LocalError, P2pgridError, UsageError
from p2pgrid.http.limits import ServerLimits
from p2pgrid.http.message import Request, Response
from p2pgrid.http.reader import ReaderLimits
from p2pgrid.http.reply import Reply
from p2pgrid.http.server import Server

log = logging.getLogger(__name__)

SHUTDOWN_S: Final = 2.0
_MAC_LOCAL_PEERCRED: Final = 1

Perform = Callable[[Any], Awaitable[Any]]
"""Does what was asked; returns what msgspec can write as JSON. Raises P2pgridError."""


@contextlib.asynccontextmanager
async def serve_commands(
    path: Path, about: About, asks: Any, perform: Perform, *, owner_uid: int | None = None
) -> AsyncIterator[bool]:
    """Take commands at `path` while the block runs; the socket is gone afterwards.

    Only `owner_uid` (left out: this process's user) may give them. `asks` is the type of what may be asked, a union of
    tagged structs. The caller holds the ledger's lock, so that a socket which is there already was left by a process
    that is gone. Yields False where no socket can be had: the node goes on without, and that is logged.
    """
    if not IS_SUPPORTED:
        yield False
        return
    if owner_uid is None:
        owner_uid = os.geteuid()
    desk = _Desk(about, msgspec.json.Decoder(asks), perform, owner_uid)
    try:
        bound, made = _bind(path)
    except LocalError as error:
        log.warning("no commands are taken while this node runs: %s", error)
        yield False
        return
    server = Server(desk, ServerLimits(reader=ReaderLimits(body_bytes=MAX_COMMAND_BYTES)))
    await server.listen_at(bound)
    try:
        yield True
    finally:
        _remove(path, made)
        await asyncio.shield(_end(server, desk))


async def _end(server: Server, desk: _Desk) -> None:
    """Let commands under way end for a moment, then stop them."""
    await server.aclose(SHUTDOWN_S)
    await desk.aclose()


def _bind(path: Path) -> tuple[socket.socket, int]:
    """A bound socket, mode 0600, that does not listen yet, and its file's number. Raises LocalError."""
    prepare_folder(path)
    if is_ours(path):
        path.unlink(missing_ok=True)  # left over: whoever holds the ledger's lock is the only node here
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        # Nobody can connect before it listens, so there is no moment at which others could.
        path.chmod(0o600)
        listener.setblocking(False)
        return listener, path.lstat().st_ino
    except OSError as error:
        listener.close()
        raise LocalError(
            f"the command socket {path} cannot be made: {error.strerror or error}.", hint="Keep the data folder local."
        ) from None


def _remove(path: Path, made: int) -> None:
    """Remove our socket, and no other that has come into its place."""
    with contextlib.suppress(OSError):
        if path.lstat().st_ino == made:
            path.unlink()


class _Desk:
    """The application behind the socket (`p2pgrid.http.connection.Application`)."""

    def __init__(self, about: About, decoder: msgspec.json.Decoder[Any], perform: Perform, owner_uid: int) -> None:
        self._about = about
        self._decoder = decoder
        self._perform = perform
        self._owner_uid = owner_uid
        self._under_way: set[asyncio.Task[Response]] = set()

    def admit(self, request: Request) -> Response | None:
        """Let in what is asked here; who asks is seen to before anything is done."""
        known = {ABOUT_PATH: "GET", DO_PATH: "POST"}
        if known.get(request.path) != request.method:
            return self.failure(404, "a running node takes no such request at this socket.")
        return None

    def handle(self, request: Request, reply: Reply) -> Response | Coroutine[Any, Any, Response]:
        """Answer the node's own user."""
        uid = _peer_uid(reply.socket)
        if uid is not None and uid != self._owner_uid:
            log.warning("user %d tried to give this node a command", uid)
            return _failed(UsageError("only the node's own user gives it commands."), 403)
        return _json(self._about) if request.path == ABOUT_PATH else self._do(request.body)

    def failure(self, status: int, message: str) -> Response:
        """An error that comes of HTTP itself."""
        return _failed(UsageError(message), status)

    async def aclose(self) -> None:
        """Stop what is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _do(self, body: bytes) -> Response:
        """What was begun is ended, also for a command that does not wait for it."""
        task = asyncio.get_running_loop().create_task(self._perform_now(body), name="a command")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _perform_now(self, body: bytes) -> Response:
        try:
            ask = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _failed(
                UsageError(
                    f"the running node ({self._about.version}) does not know this command: {error}.",
                    hint="Restart the node: it runs another version than the command.",
                ),
                400,
            )
        try:
            return _json(await self._perform(ask))
        except P2pgridError as error:
            return _failed(error, 409)
        except Exception:
            # The boundary: one command's bug must not look like another's success, nor end the node.
            log.exception("a command failed")
            return _failed(LocalError("the node failed at this.", hint="Its log says where."), 500)


def _peer_uid(connected: Any) -> int | None:
    """The user at the other end of a socket, or None where the platform does not say."""
    if connected is None:
        return None
    try:
        if sys.platform == "linux":
            credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", credentials)[1])
        if sys.platform == "darwin":
            credentials = connected.getsockopt(0, _MAC_LOCAL_PEERCRED, 76)
            return int(struct.unpack_from("Ii", credentials)[1])
    except (OSError, struct.error) as error:
        log.warning("who gives a command cannot be told: %s", error)
    return None


def _json(value: object, status: int = 200) -> Response:
    return Response(body=msgspec.json.encode(value), status=status)


def _failed(error: P2pgridError, status: int) -> Response:
    failure: Failure = failure_of(error)
    return _json(failure, status)
