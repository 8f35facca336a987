"""What is exchanged: a request, an answer, and how an answer's head is written. No I/O."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

JSON: Final = "application/json"
SERVER: Final = "p2pgrid"
CHUNKED: Final = "Transfer-Encoding: chunked\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_BODYLESS: Final = frozenset({204, 304})


class Headers(Mapping[str, str]):
    """A request's headers, whatever the case of their names. One that came twice is joined with commas."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[bytes, bytes]) -> None:
        """`values` go by lower-case name."""
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower().encode("latin-1")].decode("latin-1")

    def get(self, name: str, default: Any = None) -> Any:
        value = self._values.get(name.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a request came from, as far as its connection tells. Texts are empty where it does not."""

    address: str = ""
    """The IP address of the other end."""
    own_address: str = ""
    """The IP address of this end."""
    peer_id: str = ""
    """The libp2p peer whom the connection itself has proven to be at its other end."""


NOWHERE: Final = Source()


@dataclass(slots=True, kw_only=True)
class Request:
    """One request. `body` is whole when the application's `handle` is called, and empty in `admit`."""

    method: str
    target: str
    """As it came: path and query, or `*`."""
    path: str
    """The target's path, percent-decoded. A stranger's text: it may hold anything."""
    host: str
    """Host and port, as the program named them; empty where an HTTP/1.0 program did not."""
    headers: Headers
    keeps_alive: bool
    """False if no other request may follow on the connection."""
    is_http10: bool = False
    body: bytes = b""
    source: Source = NOWHERE
    refusal: Response | None = None
    """What the application said instead of letting it in."""

    @property
    def content_type(self) -> str:
        """The body's media type in lower case, without parameters."""
        declared = self.headers.get("Content-Type", "")
        return declared.partition(";")[0].strip().lower() or "application/octet-stream"


@dataclass(slots=True, kw_only=True)
class Response:
    """A whole answer. Length, date and what concerns the connection are added when it is written."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def response_head(response: Response, *, now_s: float, connection: str) -> bytes:
    """The head of a whole answer. `connection` is the value of that header; empty where none is needed.

    ValueError for a header that would break the head: the caller's fault, who must quote strangers' words.
    """
    headers = dict(response.headers)
    if response.status not in _BODYLESS:
        headers["Content-Type"] = response.content_type
        headers["Content-Length"] = str(len(response.body))
    return head(response.status, headers.items(), now_s=now_s, connection=connection)


def head(
    status: int, headers: Iterable[tuple[str, str]], *, now_s: float, connection: str, chunked: bool = False
) -> bytes:
    """Status line and headers, with the empty line that ends them. ValueError as for `response_head`."""
    lines = [_opening(status, int(now_s))]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    n_lines = len(lines) + 2
    if chunked:
        lines.append(CHUNKED)
        n_lines += 1
    if connection:
        lines.append(f"Connection: {connection}\r\n")
        n_lines += 1
    text = "".join(lines)
    if text.count("\n") != n_lines or text.count("\r") != n_lines:
        raise ValueError("a header of an answer holds a line break")
    return f"{text}\r\n".encode("latin-1")


@functools.lru_cache(maxsize=64)
def _opening(status: int, now_s: int) -> str:
    """What changes once a second: the status line, `Server` and `Date`."""
    date = formatdate(now_s, usegmt=True)
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\nServer: {SERVER}\r\nDate: {date}\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked coding. `data` must not be empty: that would end the answer."""
    return b"%x\r\n%b\r\n" % (len(data), data)
