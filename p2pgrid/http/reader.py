"""Requests out of a connection's bytes (RFC 9112). No I/O.

The grammar is llhttp's, in its strict mode: it refuses what requests are smuggled with (two lengths, a length beside
chunks, folded headers, a bare CR or LF, a space before a colon). This module adds what llhttp leaves to its user:
limits, `Host`, `Expect`, the one transfer coding that is taken, and the two versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final
from urllib.parse import unquote

import httptools

from p2pgrid.errors import RemoteError
from p2pgrid.http.message import Headers, Request, Response

MAX_TARGET_BYTES: Final = 8 * 1024
MAX_PIPELINED: Final = 64
"""Whole requests out of one piece of bytes. What follows is dropped, and the connection ends after the last of them."""
_DISCARDED_BYTES: Final = 64 * 1024
"""A refused request's body is read and dropped up to here, to keep the connection; with more to come it is closed."""
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_VERSIONS: Final = ("1.1", "1.0")
_ONCE: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type", b"origin"}
)
"""Headers that may come once. Joined, they could mean one thing here and another elsewhere."""


class Stage(Enum):
    """Where in a message the bytes end."""

    BETWEEN = auto()
    HEAD = auto()
    BODY = auto()


class BadRequest(RemoteError):
    """A request that is answered with `status`, and nothing that follows it on the connection is read."""

    def __init__(self, status: int, message: str, response: Response | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.response = response
        """The application's own refusal, where it is that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderLimits:
    """What one request may take."""

    body_bytes: int = 8 * 1024 * 1024
    head_bytes: int = 32 * 1024
    headers: int = 100


class RequestReader:
    """Feed it bytes, get whole requests, in order. A BadRequest among them is the last."""

    __slots__ = (
        "_admit",
        "_body",
        "_fed_bytes",
        "_head_bytes",
        "_headers",
        "_is_upgrade",
        "_length",
        "_limits",
        "_n_headers",
        "_parser",
        "_ready",
        "_request",
        "_target",
        "is_over",
        "stage",
        "wants_continue",
    )

    def __init__(self, limits: ReaderLimits, admit: Callable[[Request], Response | None]) -> None:
        """`admit` sees every request's head before its body is read, and may refuse it."""
        self.stage = Stage.BETWEEN
        self._is_upgrade = False
        self.is_over = False
        """True once no further request will come: the last said so, or was bad."""
        self.wants_continue = False
        """True while the program waits for `100 Continue` before it sends the body."""
        self._limits = limits
        self._admit = admit
        self._ready: list[Request | BadRequest] = []
        self._request: Request | None = None
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._n_headers = self._head_bytes = self._fed_bytes = 0
        self._length: int | None = None
        self._body: bytes | bytearray = b""
        self._parser: Any = httptools.HttpRequestParser(self)

    @property
    def body_bytes(self) -> int:
        """Of the body under way."""
        return len(self._body)

    def feed(self, data: bytes) -> list[Request | BadRequest]:
        """The requests that `data` completes."""
        was_in_head = self.stage is Stage.HEAD
        while data and not self.is_over:
            data = self._parse(data, was_in_head)
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """Let go of the parser, which knows this reader as the reader knows it."""
        self.is_over = True
        self._parser = None

    def _parse(self, data: bytes, was_in_head: bool) -> bytes:
        """Feed the parser; what must be fed to the next one."""
        try:
            self._parser.feed_data(data)
            if was_in_head and self.stage is Stage.HEAD:
                self._fed_bytes += len(data)
                if self._fed_bytes > self._limits.head_bytes:
                    raise self._head_too_large()
        except httptools.HttpParserUpgrade as upgrade:
            # The parser takes what follows for another protocol, a body too. Nothing is upgraded to here, as RFC 9110,
            # section 7.8, allows: the request is read again as one that did not ask.
            parser, self._parser = self._parser, httptools.HttpRequestParser(self)
            head = self._head_without_upgrade(parser.get_method(), parser.get_http_version())
            return head + data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, BadRequest):
                raise
            self._end(error.__context__)
        except httptools.HttpParserError as error:
            self._end(BadRequest(400, f"The request is not HTTP/1.1: {error}."))
        except BadRequest as error:
            self._end(error)
        return b""

    def _end(self, error: BadRequest) -> None:
        if not self.is_over:  # bytes after the last request are nobody's
            self._ready.append(error)
        self.is_over = True
        self.wants_continue = False

    # -- called by the parser --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_over:
            raise BadRequest(400, "No other request was expected.")
        self.stage = Stage.HEAD
        self._target = b""
        self._headers = {}
        self._n_headers = self._head_bytes = self._fed_bytes = 0
        self._length = None
        self._body = b""

    def on_url(self, piece: bytes) -> None:
        self._target += piece
        if len(self._target) > MAX_TARGET_BYTES:
            raise BadRequest(414, f"The request's target is over {MAX_TARGET_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._n_headers += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._n_headers > self._limits.headers or self._head_bytes > self._limits.head_bytes:
            raise self._head_too_large()
        if self.stage is not Stage.HEAD:
            return  # a trailer: counted, and of no account
        name, value = name.lower(), value.rstrip(b" \t")
        if name in self._headers:
            if name in _ONCE:
                raise BadRequest(400, f"The header {name.decode('latin-1')} came twice.")
            value = self._headers[name] + b", " + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        self._is_upgrade = self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"
        if self._is_upgrade:
            return
        request = self._request = self._make_request()
        length = self._length = self._declared_length(request)
        self.stage = Stage.BODY
        waits = self._expects_continue(request) and length != 0
        request.refusal = self._admit(request)
        if request.refusal is not None and (waits or length is None or length > _DISCARDED_BYTES):
            raise BadRequest(request.refusal.status, "The request was not let in.", request.refusal)
        if length is not None and length > self._limits.body_bytes:
            raise self._body_too_large()
        self.wants_continue = waits

    def on_body(self, piece: bytes) -> None:
        self.wants_continue = False
        if self._request is None or self._request.refusal is not None:
            return
        if len(self._body) + len(piece) > self._limits.body_bytes:
            raise self._body_too_large()
        if not self._body:
            # In one piece it needs no copy.
            self._body = piece if len(piece) == self._length else bytearray(piece)
        else:
            assert isinstance(self._body, bytearray)
            self._body += piece

    def on_message_complete(self) -> None:
        if self._is_upgrade:
            return
        request, self._request = self._request, None
        assert request is not None
        request.body = bytes(self._body)
        self._body = b""
        self._headers = {}
        self.stage = Stage.BETWEEN
        self.wants_continue = False
        self._ready.append(request)
        if len(self._ready) == MAX_PIPELINED:
            request.keeps_alive = False
        if not request.keeps_alive:
            self.is_over = True

    # -- of the head -----------------------------------------------------------------------------------------------

    def _make_request(self) -> Request:
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            raise BadRequest(505, f"HTTP/{version} is not spoken here; HTTP/1.1 is.")
        host = self._headers.get(b"host")
        if host is None and version == "1.1":
            raise BadRequest(400, "The request names no host.")
        target, authority = self._target, host or b""
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None:
            # RFC 9112, section 3.2.2: the target's own authority counts, whatever Host says.
            authority, target = absolute[1], absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        elif not target.startswith(b"/") and target != b"*":
            raise BadRequest(400, "The request's target is no path.")
        for name in (host, authority):
            if name and _HOST.fullmatch(name) is None:
                raise BadRequest(400, "The request's host is no host.")
        text = target.decode("latin-1")
        path = text.partition("?")[0]
        return Request(
            method=self._parser.get_method().decode("ascii"),
            target=text,
            path=unquote(path) if "%" in path else path,
            host=authority.decode("latin-1"),
            headers=Headers(self._headers),
            keeps_alive=self._parser.should_keep_alive(),
            is_http10=version == "1.0",
        )

    def _head_without_upgrade(self, method: bytes, version: str) -> bytes:
        """The head that was just read, as if no upgrade had been asked for."""
        headers = {name: value for name, value in self._headers.items() if name != b"upgrade"}
        options = [option.strip() for option in headers.pop(b"connection", b"").split(b",")]
        kept = [option for option in options if option.lower() in (b"close", b"keep-alive")]
        lines = [b"%b: %b\r\n" % header for header in (*headers.items(), (b"connection", b", ".join(kept)))]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, self._target, version.encode(), b"".join(lines))

    def _declared_length(self, request: Request) -> int | None:
        """The body's bytes; None where chunks will tell."""
        coding = self._headers.get(b"transfer-encoding")
        if coding is None:
            return int(self._headers.get(b"content-length", b"0"))
        if coding.lower() != b"chunked":
            raise BadRequest(501, "The only transfer coding that is taken is chunked.")
        if request.is_http10:
            raise BadRequest(400, "HTTP/1.0 has no transfer codings.")
        return None

    def _expects_continue(self, request: Request) -> bool:
        expected = self._headers.get(b"expect")
        if expected is None or request.is_http10:
            return False
        if expected.lower() != b"100-continue":
            raise BadRequest(417, "100-continue is all that may be expected.")
        return True

    def _head_too_large(self) -> BadRequest:
        limits = self._limits
        return BadRequest(431, f"The head has over {limits.headers} headers or {limits.head_bytes} bytes.")

    def _body_too_large(self) -> BadRequest:
        return BadRequest(413, f"The request is too large; at most {self._limits.body_bytes} bytes are taken.")
