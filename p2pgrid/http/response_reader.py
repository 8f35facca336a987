"""An answer out of a connection's bytes (RFC 9112), for who asks. No I/O.

The grammar is llhttp's, in its strict mode.
"""

from __future__ import annotations

from typing import Any, Final

import httptools

from p2pgrid.errors import ProtocolViolation

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100


class ResponseReader:
    """Feed it bytes, take the body's pieces. One answer, to a request that was no HEAD."""

    def __init__(self, max_body_bytes: int) -> None:
        self.status = 0
        """0 until the head is whole."""
        self.headers: Final[dict[str, str]] = {}
        """By lower-case name; one that came twice is joined with commas."""
        self.is_complete = False
        self._max_body_bytes = max_body_bytes
        self._head_bytes = self._body_bytes = 0
        self._pieces: list[bytes] = []
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that `data` holds. Raises ProtocolViolation: no HTTP, or too much of it."""
        if self.is_complete:
            return b""  # nothing more was asked for
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise ProtocolViolation("the answer goes over to another protocol, which was not asked for.") from None
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, ProtocolViolation):
                raise error.__context__ from None
            raise
        except httptools.HttpParserError as error:
            raise ProtocolViolation(f"the answer is not HTTP/1.1: {error}.") from None
        if not self.status and self._head_bytes > MAX_HEAD_BYTES:
            raise ProtocolViolation(f"the answer's head has over {MAX_HEAD_BYTES} bytes.")
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

    def end(self) -> None:
        """The connection has ended. Raises ProtocolViolation where the answer is not whole."""
        declared = "content-length" in self.headers or "transfer-encoding" in self.headers
        if not self.is_complete and (not self.status or declared):
            raise ProtocolViolation("the answer ended half-way.")
        self.is_complete = True

    # -- called by the parser --------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            raise ProtocolViolation(f"the answer has over {MAX_HEADERS} headers.")
        if self.status:
            return  # a trailer
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        status = int(self._parser.get_status_code())
        if status < 200:
            self.headers.clear()  # "go on", before the answer itself
        else:
            self.status = status

    def on_body(self, piece: bytes) -> None:
        self._body_bytes += len(piece)
        if self._body_bytes > self._max_body_bytes:
            raise ProtocolViolation(f"the answer has over {self._max_body_bytes} bytes.")
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self.is_complete = bool(self.status)
