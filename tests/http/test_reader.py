"""Requests out of bytes: what is taken, what is refused, and that it does not hang on how the bytes are cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.http.message import Request, Response
from p2pgrid.http.reader import (
    MAX_PIPELINED,
    MAX_TARGET_BYTES,
    BadRequest,
    ReaderLimits,
    RequestReader,
    Stage,
)

LIMITS = ReaderLimits(body_bytes=1000, head_bytes=10_000, headers=20)
HOST = "Host: x\r\n"


def admit(request: Request) -> Response | None:
    return Response(status=403) if request.path == "/forbidden" else None


def read(*pieces: bytes) -> list[Request | BadRequest]:
    reader = RequestReader(LIMITS, admit)
    return [one for piece in pieces for one in reader.feed(piece)]


def told(ready: Iterable[Request | BadRequest]) -> list[Any]:
    """What a request says, or the status it is refused with."""
    return [
        one.status
        if isinstance(one, BadRequest)
        else (one.method, one.path, one.host, dict(one.headers), one.body, one.keeps_alive, one.refusal)
        for one in ready
    ]


def one_of(raw: str) -> Request:
    (request,) = read(raw.encode("latin-1"))
    assert isinstance(request, Request), request
    return request


TAKEN: dict[str, tuple[str, list[tuple[str, str, bytes, bool]]]] = {
    "plain": (f"GET / HTTP/1.1\r\n{HOST}\r\n", [("GET", "/", b"", True)]),
    "empty lines before it": (f"\r\n\r\nGET / HTTP/1.1\r\n{HOST}\r\n", [("GET", "/", b"", True)]),
    "query": (f"GET /a?b=/c HTTP/1.1\r\n{HOST}\r\n", [("GET", "/a", b"", True)]),
    "escapes": (f"GET /v1/models/a%2Fb%20c HTTP/1.1\r\n{HOST}\r\n", [("GET", "/v1/models/a/b c", b"", True)]),
    "length": (f"POST /p HTTP/1.1\r\n{HOST}Content-Length: 3\r\n\r\nabc", [("POST", "/p", b"abc", True)]),
    "no body": (f"POST /p HTTP/1.1\r\n{HOST}Content-Length: 0\r\n\r\n", [("POST", "/p", b"", True)]),
    "chunks": (
        f"POST /p HTTP/1.1\r\n{HOST}transfer-encoding: CHUNKED\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nTrailer: t\r\n\r\n",
        [("POST", "/p", b"abc", True)],
    ),
    "close": (f"GET / HTTP/1.1\r\n{HOST}Connection: close\r\n\r\nGET", [("GET", "/", b"", False)]),
    "1.0": ("GET / HTTP/1.0\r\n\r\n", [("GET", "/", b"", False)]),
    "1.0 kept": ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", [("GET", "/", b"", True)]),
    "pipelined": (
        f"POST /1 HTTP/1.1\r\n{HOST}Content-Length: 1\r\n\r\na" * 2 + f"GET /2 HTTP/1.1\r\n{HOST}\r\n",
        [("POST", "/1", b"a", True), ("POST", "/1", b"a", True), ("GET", "/2", b"", True)],
    ),
    "any path": (f"OPTIONS * HTTP/1.1\r\n{HOST}\r\n", [("OPTIONS", "*", b"", True)]),
    "h2c declined": (
        f"POST /1 HTTP/1.1\r\n{HOST}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"
        f"GET /2 HTTP/1.1\r\n{HOST}\r\n",
        [("POST", "/1", b"abc", True), ("GET", "/2", b"", True)],
    ),
    "h2c declined, chunks": (
        f"POST /1 HTTP/1.1\r\n{HOST}Connection: Upgrade, close\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
        "1\r\na\r\n0\r\n\r\n",
        [("POST", "/1", b"a", False)],
    ),
}

REFUSED: dict[str, tuple[str, int]] = {
    "no HTTP": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "0.9": ("GET /\r\n\r\n", 505),
    "2.0": (f"GET / HTTP/2.0\r\n{HOST}\r\n", 505),
    "2.0's preface": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no such version": (f"GET / HTTP/1.7\r\n{HOST}\r\n", 400),
    "no such method": (f"BUY / HTTP/1.1\r\n{HOST}\r\n", 400),
    "no host": ("GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (f"GET / HTTP/1.1\r\n{HOST}{HOST}\r\n", 400),
    "a host that is none": ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "a host with a user": ("GET / HTTP/1.1\r\nHost: localhost@evil\r\n\r\n", 400),
    "hosts in a list": ("GET / HTTP/1.1\r\nHost: localhost, evil\r\n\r\n", 400),
    "a target that is no path": (f"GET x HTTP/1.1\r\n{HOST}\r\n", 400),
    "a proxy's method": (f"CONNECT a:1 HTTP/1.1\r\n{HOST}\r\n", 400),
    "a space in the target": (f"GET /a b HTTP/1.1\r\n{HOST}\r\n", 400),
    "a long target": (f"GET /{'a' * MAX_TARGET_BYTES} HTTP/1.1\r\n{HOST}\r\n", 414),
    "LF alone": ("GET / HTTP/1.1\nHost: x\n\n", 400),
    "a folded header": (f"GET / HTTP/1.1\r\n{HOST}A: b\r\n c\r\n\r\n", 400),
    "a bare CR": (f"GET / HTTP/1.1\r\n{HOST}A: b\rc\r\n\r\n", 400),
    "a NUL": (f"GET / HTTP/1.1\r\n{HOST}A: b\0c\r\n\r\n", 400),
    "a space before the colon": (f"GET / HTTP/1.1\r\n{HOST}A : b\r\n\r\n", 400),
    "a header without a name": (f"GET / HTTP/1.1\r\n{HOST}: b\r\n\r\n", 400),
    "length and chunks": (
        f"POST / HTTP/1.1\r\n{HOST}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunks and length": (
        f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (f"POST / HTTP/1.1\r\n{HOST}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "a length twice": (f"POST / HTTP/1.1\r\n{HOST}Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
    "lengths in a list": (f"POST / HTTP/1.1\r\n{HOST}Content-Length: 1, 1\r\n\r\na", 400),
    "a signed length": (f"POST / HTTP/1.1\r\n{HOST}Content-Length: +1\r\n\r\na", 400),
    "a huge length": (f"POST / HTTP/1.1\r\n{HOST}Content-Length: 99999999999999999999\r\n\r\n", 400),
    "another coding": (f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "another coding alone": (f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: gzip\r\n\r\n", 501),
    "chunks that are not last": (f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked, gzip\r\n\r\n", 400),
    "chunks twice": (
        f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunks in 1.0": (f"POST / HTTP/1.0\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a chunk size that is none": (f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0x1\r\na", 400),
    "a chunk longer than it says": (f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
    "a declared body that is too large": (f"POST / HTTP/1.1\r\n{HOST}Content-Length: 1001\r\n\r\n", 413),
    "chunks that are too large": (
        f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n3e9\r\n{'a' * 1001}\r\n",
        413,
    ),
    "another expectation": (f"POST / HTTP/1.1\r\n{HOST}Expect: tea\r\nContent-Length: 1\r\n\r\n", 417),
    "two keys": (f"GET / HTTP/1.1\r\n{HOST}Authorization: a\r\nAuthorization: b\r\n\r\n", 400),
    "refused before a body of unknown size": (
        f"POST /forbidden HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n",
        403,
    ),
    "refused before it is told to go on": (
        f"POST /forbidden HTTP/1.1\r\n{HOST}Content-Length: 1\r\nExpect: 100-continue\r\n\r\n",
        403,
    ),
    "refused before a large body": (f"POST /forbidden HTTP/1.1\r\n{HOST}Content-Length: 900000\r\n\r\n", 403),
}
REFUSED["many headers"] = (f"GET / HTTP/1.1\r\n{HOST}" + "A: b\r\n" * 20 + "\r\n", 431)
REFUSED["a long header"] = (f"GET / HTTP/1.1\r\n{HOST}A: " + "b" * 10_000 + "\r\n\r\n", 431)
REFUSED["trailers without end"] = (
    f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0\r\n" + "A: b\r\n" * 20,
    431,
)


@pytest.mark.parametrize(("raw", "wanted"), TAKEN.values(), ids=TAKEN)
def test_what_is_taken(raw: str, wanted: list[tuple[str, str, bytes, bool]]) -> None:
    ready = read(raw.encode("latin-1"))
    assert [(r.method, r.path, r.body, r.keeps_alive) for r in ready if isinstance(r, Request)] == wanted, ready
    assert len(ready) == len(wanted)


@pytest.mark.parametrize(("raw", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(raw: str, status: int) -> None:
    """And whatever comes after it is not read: it might be another request, or the end of this one."""
    smuggled = f"GET /smuggled HTTP/1.1\r\n{HOST}\r\n".encode()
    assert told(read(raw.encode("latin-1"), smuggled)) == [status]


@pytest.mark.parametrize(("raw", "status"), REFUSED.values(), ids=REFUSED)
def test_what_stands_before_it_is_answered(raw: str, status: int) -> None:
    before = f"GET /before HTTP/1.1\r\n{HOST}\r\n"
    first, second = read((before + raw).encode("latin-1"))
    assert isinstance(first, Request) and isinstance(second, BadRequest) and second.status == status


ALL = [raw.encode("latin-1") for raw, _ in (*TAKEN.values(), *REFUSED.values())]


@given(st.sampled_from(ALL), st.lists(st.integers(1, 200), max_size=40))
def test_however_the_bytes_are_cut(raw: bytes, sizes: list[int]) -> None:
    pieces, at = [], 0
    for size in [*sizes, len(raw)]:
        if at < len(raw):
            pieces.append(raw[at : at + size])
        at += size
    assert told(read(*pieces)) == told(read(raw))


@pytest.mark.parametrize("raw", ALL)
def test_byte_by_byte(raw: bytes) -> None:
    assert told(read(*(raw[i : i + 1] for i in range(len(raw))))) == told(read(raw))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_requests_or_refused(data: bytes) -> None:
    for one in read(data, data):
        assert isinstance(one, Request) or 400 <= one.status < 600


@given(st.sampled_from(ALL), st.integers(0, 300), st.binary(max_size=3))
def test_bytes_that_are_changed(raw: bytes, at: int, change: bytes) -> None:
    for one in read(raw[:at] + change + raw[at + len(change) :]):
        assert isinstance(one, Request) or 400 <= one.status < 600


def test_the_host_of_the_target_counts() -> None:
    request = one_of("GET http://evil.example/v1/models?x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (request.host, request.path, request.target) == ("evil.example", "/v1/models", "/v1/models?x")
    assert one_of("GET http://localhost:80?q HTTP/1.1\r\nHost: x\r\n\r\n").path == "/"


def test_headers_go_by_any_case_and_are_joined() -> None:
    headers = one_of(f"GET / HTTP/1.1\r\n{HOST}X-A:  1 \r\nx-a: \xe9\r\n\r\n").headers
    assert headers["x-A"] == "1, \xe9" and "X-B" not in headers and headers.get("X-B") is None
    assert set(headers) == {"host", "x-a"} and len(headers) == 2


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ("Content-Type: Application/JSON; charset=utf-8\r\n", "application/json"),
        ("", "application/octet-stream"),
        ("Content-Type: \r\n", "application/octet-stream"),
    ],
)
def test_content_types(declared: str, found: str) -> None:
    assert one_of(f"GET / HTTP/1.1\r\n{HOST}{declared}\r\n").content_type == found


def test_whoever_waits_is_told_to_go_on() -> None:
    reader = RequestReader(LIMITS, admit)
    head = f"POST / HTTP/1.1\r\n{HOST}Content-Length: 3\r\nExpect: 100-Continue\r\n\r\n".encode()
    assert reader.feed(head) == [] and reader.wants_continue and reader.stage is Stage.BODY
    assert told(reader.feed(b"abc"))[0][4] == b"abc" and not reader.wants_continue
    assert len(reader.feed(head + b"abc")) == 1 and not reader.wants_continue


def test_a_small_body_of_a_refused_request_is_dropped() -> None:
    raw = f"POST /forbidden HTTP/1.1\r\n{HOST}Content-Length: 3\r\n\r\nabcGET /next HTTP/1.1\r\n{HOST}\r\n"
    first, second = read(raw.encode())
    assert isinstance(first, Request) and first.refusal is not None and first.body == b""
    assert isinstance(second, Request) and second.path == "/next"


def test_no_more_than_so_many_at_once() -> None:
    ready = read(f"GET / HTTP/1.1\r\n{HOST}\r\n".encode() * (MAX_PIPELINED + 10))
    assert len(ready) == MAX_PIPELINED
    assert [one.keeps_alive for one in ready if isinstance(one, Request)] == [True] * (MAX_PIPELINED - 1) + [False]


def test_a_body_in_one_piece_is_not_copied_and_one_in_many_is_whole() -> None:
    head = f"POST / HTTP/1.1\r\n{HOST}Content-Length: 900\r\n\r\n".encode()
    body = bytes(range(90)) * 10
    for pieces in ([head + body], [head, body], [head, body[:1], body[1:500], body[500:]]):
        (request,) = read(*pieces)
        assert isinstance(request, Request) and request.body == body
