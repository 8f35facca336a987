"""Answers out of bytes, in whatever pieces they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation
from p2pgrid.http.response_reader import MAX_HEAD_BYTES, ResponseReader

WITH_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 5\r\n\r\nhello"
IN_CHUNKS = (
    b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"
)
TO_THE_END = b"HTTP/1.0 200 OK\r\n\r\nhello"
AFTER_GO_ON = b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" + WITH_LENGTH
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (WITH_LENGTH, 200, b"hello"),
        (IN_CHUNKS, 404, b"hello"),
        (TO_THE_END, 200, b"hello"),
        (AFTER_GO_ON, 200, b"hello"),
        (EMPTY, 204, b""),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_answers_in_pieces(raw: bytes, status: int, body: bytes, size: int) -> None:
    reader = ResponseReader(5)
    got = b"".join(reader.feed(raw[at : at + size]) for at in range(0, len(raw), size))
    reader.end()
    assert (reader.status, got, reader.is_complete) == (status, body, True)
    if raw is WITH_LENGTH:
        assert reader.headers["x-a"] == "1, 2"
        assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nmore") == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"\x00\x01\x02",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (MAX_HEAD_BYTES + 10),
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_what_is_no_answer_or_too_long(raw: bytes) -> None:
    reader = ResponseReader(5)
    with pytest.raises(ProtocolViolation):
        for at in range(0, len(raw), 1000):
            reader.feed(raw[at : at + 1000])
        reader.end()


@pytest.mark.parametrize("raw", [b"", WITH_LENGTH[:-1], WITH_LENGTH[:30], IN_CHUNKS[:-20]])
def test_half_an_answer(raw: bytes) -> None:
    reader = ResponseReader(100)
    reader.feed(raw)
    with pytest.raises(ProtocolViolation, match="half-way"):
        reader.end()


@given(st.lists(st.binary(max_size=60), max_size=8), st.booleans())
def test_no_bytes_break_it(pieces: list[bytes], begins_well: bool) -> None:
    reader = ResponseReader(50)
    try:
        got = reader.feed(b"HTTP/1.1 200 OK\r\n") if begins_well else b""
        for piece in pieces:
            got += reader.feed(piece)
        reader.end()
        assert len(got) <= 50
    except ProtocolViolation:
        pass
