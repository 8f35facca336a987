"""A command's end of the socket: find the node that runs, and ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import aiohttp
import msgspec

from p2pgrid.commands.address import IS_SUPPORTED, is_ours, socket_path
from p2pgrid.commands.wire import ABOUT_PATH, DO_PATH, About, Failure, error_of
from p2pgrid.errors import LocalError

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 5.0


class RunningNode:
    """A node that runs on a data folder, and takes commands."""

    def __init__(self, path: Path, about: About) -> None:
        """For `find_node`."""
        self.about: Final = about
        self._path = path

    async def ask(self, ask: msgspec.Struct, result_type: type[T], *, timeout_s: float = 120.0) -> T:
        """Have the node do something; what came of it.

        Raises what the node raised, and LocalError where it does not answer or speaks another version.
        """
        try:
            status, body = await _request(self._path, "POST", DO_PATH, msgspec.json.encode(ask), timeout_s)
        except ConnectionError:
            raise LocalError(
                "the node has just stopped.", hint="Try again: it is done without the node then."
            ) from None
        return _read(status, body, result_type, self.about)


async def find_node(data: Path) -> RunningNode | None:
    """The node that runs on the data folder, or None. A socket that nobody listens at is nobody's.

    Raises LocalError if somebody listens there who does not answer as a node does.
    """
    path = socket_path(data)
    if not IS_SUPPORTED or not is_ours(path):
        return None
    try:
        status, body = await _request(path, "GET", ABOUT_PATH, b"", CONNECT_TIMEOUT_S)
    except ConnectionError:
        return None
    try:
        about = msgspec.json.decode(body, type=About)
    except msgspec.MsgspecError:
        raise _strange(f"HTTP status {status}") from None
    return RunningNode(path, about)


async def _request(path: Path, method: str, url: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
    """One request. Raises ConnectionError where nobody listens, else LocalError."""
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
    connector = aiohttp.UnixConnector(path=str(path))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, base_url="http://node") as session,
            session.request(method, url, data=body or None, headers={"Content-Type": "application/json"}) as response,
        ):
            return response.status, await response.read()
    except aiohttp.ClientConnectorError as error:
        raise ConnectionError(str(error)) from None
    except TimeoutError:
        raise LocalError(
            f"the node did not answer within {timeout_s:g} s.", hint="It may still be at it: look at its log."
        ) from None
    except aiohttp.ClientError as error:
        raise LocalError(f"the node went away: {error}.", hint="Look at its log, then try again.") from None


def _read(status: int, body: bytes, result_type: type[T], about: About) -> T:
    try:
        if status != 200:
            raise error_of(msgspec.json.decode(body, type=Failure))
        return msgspec.json.decode(body, type=result_type)
    except msgspec.MsgspecError:
        raise _strange(f"HTTP status {status}, version {about.version}") from None


def _strange(what: str) -> LocalError:
    return LocalError(
        f"the running node's answer is not understood ({what}).", hint="Restart the node with this version of p2pgrid."
    )
