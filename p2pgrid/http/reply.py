"""An answer that is streamed to one program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from p2pgrid.http.message import LAST_CHUNK, Request, chunk

if TYPE_CHECKING:
    from p2pgrid.http.connection import Connection


class Reply:
    """An answer that is streamed. Its methods return at once, and do nothing once the program has left."""

    __slots__ = ("_connection", "_has_last_chunk", "_pieces", "is_begun", "is_ended", "on_writable", "request")

    def __init__(self, connection: Connection, request: Request) -> None:
        self.request: Final = request
        self.is_begun = False
        self.is_ended = False
        """True at the answer's end, and once the program has left."""
        self.on_writable: Callable[[], None] | None = None
        """Called when the program has taken enough for more to be written: see `is_writable`."""
        self._connection = connection
        self._pieces: list[bytes] = []
        self._has_last_chunk = False

    @property
    def is_writable(self) -> bool:
        """False while the program is slower than the answer. What is written then is kept in memory."""
        return self._connection.is_writable

    @property
    def socket(self) -> Any:
        """The connection's socket, to ask the system who has connected; None once the program has left."""
        return self._connection.socket

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head. It leaves with the first bytes, where they come in the same turn of the loop."""
        if not self.is_ended:
            self.is_begun = True
            self._connection.begin(self.request, status, headers)

    def write(self, data: bytes) -> None:
        """Send bytes of the body."""
        if data and not self.is_ended:
            self._pieces.append(data)
            self._connection.flush_soon()

    def send(self, data: bytes) -> None:
        """Send bytes of the body at once, where more at this turn of the loop is not to be waited for."""
        is_next = self.is_begun and not self._pieces
        if data and not self.is_ended and not (is_next and self._connection.send(self.request, data)):
            self._pieces.append(data)
            self._connection.flush()

    def end(self) -> None:
        """The body is complete."""
        if not self.is_ended:
            self.is_ended = True
            self._connection.flush_soon()

    def take(self) -> bytes:
        """For the connection: what was written since the last call, as it goes onto the wire."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self.request.method == "HEAD":
            return b""
        if self.request.is_http10:
            return data
        framed = chunk(data) if data else b""
        if self.is_ended and not self._has_last_chunk:
            self._has_last_chunk = True
            framed += LAST_CHUNK
        return framed
