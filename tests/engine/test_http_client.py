"""engine.http_client: one answer whatever the cuts, whose fault a break is, room, reuse, and the one retry."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.engine import http_client
from p2pgrid.engine.base import CHAT_COMPLETIONS
from p2pgrid.engine.http import HttpEngine
from p2pgrid.engine.http_client import EngineLimits, HttpCall, HttpClient, Road
from p2pgrid.engine.http_connection import MAX_HEAD_BYTES, HttpConnection
from p2pgrid.errors import EngineError, UsageError

REQUEST = b"GET / HTTP/1.1\r\nHost: e\r\n\r\n"
LIMITS = EngineLimits(silence_timeout_s=30, page_timeout_s=30, connect_timeout_s=30)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Heard:
    """A reader that writes down what it hears."""

    status: int = 0
    content_type: str = ""
    body: bytearray = field(default_factory=bytearray)
    pieces: int = 0
    is_whole: bool = False
    error: EngineError | None = None
    call: HttpCall | None = None
    pauses_at: int = -1
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def answer_began(self, status: int, content_type: str) -> None:
        assert not self.status
        self.status, self.content_type = status, content_type
        self.changed.set()

    def answer_received(self, data: bytes) -> None:
        assert self.status and data and not self.is_whole and not self.error
        self.body += data
        self.pieces += 1
        if self.pieces == self.pauses_at:
            assert self.call is not None
            self.call.pause()
        self.changed.set()

    def answer_ended(self) -> None:
        assert self.status and not self.is_whole and not self.error
        self.is_whole = True
        self.changed.set()

    def answer_failed(self, error: EngineError) -> None:
        assert not self.is_whole and not self.error
        self.error = error
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def over(self) -> Heard:
        await self.until(lambda: self.is_whole or self.error)
        return self


class Wire(asyncio.Transport):
    """A transport that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_cut = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def abort(self) -> None:
        self.is_cut = True

    def is_closing(self) -> bool:
        return self.is_cut

    def pause_reading(self) -> None:
        raise AssertionError("nobody asked for a pause")


def fed(
    pieces: list[bytes], *, is_closed: bool = False, limits: EngineLimits = LIMITS
) -> tuple[Heard, HttpClient, Wire]:
    """What a reader hears of an answer that comes in these pieces, and the client that may have kept the connection."""

    async def run() -> tuple[Heard, HttpClient, Wire]:
        client, wire, heard = HttpClient(Road(), limits, "e"), Wire(), Heard()
        connection = HttpConnection(client)
        connection.connection_made(wire)
        connection.carry(HttpCall(client, REQUEST, heard))
        assert wire.written == REQUEST
        for piece in pieces:
            if not wire.is_cut:
                connection.data_received(piece)
        if is_closed:
            connection.connection_lost(None)
        return heard, client, wire

    return asyncio.run(run())


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
ANSWERS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello", 200, "a/b", b"hello", True),
    "no body": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, "", b"", True),
    "chunked": (CHUNKED + b"3\r\nabc\r\n02\r\nde\r\n0\r\n\r\n", 200, "text/event-stream", b"abcde", True),
    "extension, trailer": (CHUNKED + b"3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n", 200, "text/event-stream", b"abc", True),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, "", b"ok", True),
    "hints": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 200, "", b"ok", True),
    "nothing": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, "", b"", True),
    "refused": (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", 503, "", b"busy", True),
    "moved": (b"HTTP/1.1 307 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 307, "", b"", True),
    "closes": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, "", b"ok", False),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "", b"ok", False),
    "more behind it": (OK + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, "", b"ok", False),
}


@pytest.mark.parametrize("name", ANSWERS)
@given(places=st.lists(st.integers(0, 400), max_size=6))
def test_an_answer_is_the_same_however_it_is_cut(name: str, places: list[int]) -> None:
    raw, status, content_type, body, is_kept = ANSWERS[name]
    heard, client, wire = fed(cut(raw, places))
    assert (heard.status, heard.content_type, heard.body) == (status, content_type, body)
    assert heard.is_whole and heard.error is None
    assert client.idle_connections == is_kept and wire.is_cut is not is_kept


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_byte_by_byte_and_at_once(name: str) -> None:
    raw, *_, body, _ = ANSWERS[name]
    assert fed([raw[i : i + 1] for i in range(len(raw))])[0].body == body
    heard, _, wire = fed([raw])
    assert heard.body == body and heard.pieces == (1 if body else 0)
    assert wire.is_cut is not ANSWERS[name][4]


@given(places=st.lists(st.integers(0, 100), max_size=4))
def test_without_a_length_the_end_of_the_connection_is_the_answers(places: list[int]) -> None:
    pieces = cut(b"HTTP/1.1 200 OK\r\n\r\nsome text", places)
    heard, client, _ = fed(pieces, is_closed=True)
    assert heard.body == b"some text" and heard.is_whole and client.idle_connections == 0
    assert not fed(pieces)[0].is_whole


BROKEN = {
    "no http": (b"SSH-2.0-OpenSSH\r\n", "no HTTP"),
    "two framings": (CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n", "no HTTP"),
    "no length": (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "no HTTP"),
    "negative": (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", "no HTTP"),
    "no chunk": (CHUNKED + b"zz\r\n", "no HTTP"),
    "a chunk's end": (CHUNKED + b"2\r\nokok", "no HTTP"),
    "upgrade": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxyz", "no HTTP|broke off"),
    "head cut off": (b"HTTP/1.1 200 OK\r\nContent-", "broke off"),
    "body cut off": (OK[:-1], "broke off"),
    "chunks cut off": (CHUNKED + b"3\r\nabc\r\n", "broke off"),
    "nothing at all": (b"", "in place of an answer"),
    "endless head": (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 2 * MAX_HEAD_BYTES, "bytes of headers"),
    "endless hints": (b"HTTP/1.1 103 Hints\r\n\r\n" * 5000, "bytes of headers"),
    "endless trailer": (CHUNKED + b"1\r\na\r\n0\r\n" + b"T: u\r\n" * 30_000, "bytes of headers"),
}


@pytest.mark.parametrize("name", BROKEN)
@given(places=st.lists(st.integers(0, 200_000), max_size=6))
def test_what_is_broken_fails_once_and_drops_the_connection(name: str, places: list[int]) -> None:
    raw, sentence = BROKEN[name]
    pieces = [part for piece in cut(raw, places) for part in (piece[:65536], piece[65536:131072], piece[131072:])]
    heard, client, _ = fed([part for part in pieces if part], is_closed=True)
    assert heard.error is not None and not heard.is_whole
    with pytest.raises(EngineError, match=sentence):
        raise heard.error
    assert client.idle_connections == 0


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_bytes_of_any_kind_end_one_way_or_the_other(data: bytes, places: list[int]) -> None:
    heard, _, _ = fed(cut(b"HTTP/1.1 200 OK\r\n" + data, places), is_closed=True)
    assert heard.is_whole is (heard.error is None)


def test_an_answer_past_the_cap_is_cut_off_framing_included() -> None:
    limits = EngineLimits(max_answer_bytes=1000)
    for flood in (b"1\r\na\r\n" * 300, b"1;" + b"x" * 1000 + b"\r\na\r\n"):
        heard, _, wire = fed(cut(CHUNKED + flood, [200, 400, 600]), limits=limits)
        assert heard.error is not None and "over 1000 bytes" in heard.error.message and wire.is_cut


# -- over real sockets ------------------------------------------------------------------------------------------------

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(serve: Serve, socket: Path, limits: EngineLimits = LIMITS) -> AsyncIterator[HttpClient]:
    """A server that does as it is told on a Unix socket, and a client of it."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_unix_server(connected, socket, backlog=2048):
        client = HttpClient(Road(socket_path=str(socket)), limits, "e")
        try:
            yield client
        finally:
            client.close()


def ask(client: HttpClient, request: bytes = REQUEST, **how: Any) -> Heard:
    heard = Heard(**how)
    heard.call = client.send(request, heard)
    return heard


async def read_request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


class Counting:
    """Answers `answers` requests on each connection, then closes it as the next one comes; counts both."""

    def __init__(self, answers: list[int], first_words: bytes = b"") -> None:
        self.answers, self.first_words = answers, first_words
        self.connections = self.requests = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.answers[self.connections] if self.connections < len(self.answers) else 10**6
        self.connections += 1
        while True:
            await read_request(reader)
            self.requests += 1
            if not left:
                writer.write(self.first_words)
                return
            left -= 1
            writer.write(OK)


async def test_a_connection_is_used_again(tmp_path: Path) -> None:
    serve = Counting([])
    async with server(serve, tmp_path / "s") as client:
        for _ in range(5):
            assert (await ask(client).over()).body == b"ok"
        assert (serve.connections, client.idle_connections) == (1, 1)


async def test_a_request_on_a_connection_that_was_just_closed_is_sent_once_more(tmp_path: Path) -> None:
    serve = Counting([1])
    async with server(serve, tmp_path / "s") as client:
        assert [(await ask(client).over()).body for _ in range(2)] == [b"ok", b"ok"]
        assert (serve.connections, serve.requests) == (2, 3)


@pytest.mark.parametrize(
    ("answers", "first_words", "requests", "sentence"),
    [
        ([0], b"", 1, "in place of an answer"),  # a fresh connection: the fault is not in its age
        ([1, 0], b"", 3, "in place of an answer"),  # once more, and no more than that
        ([1], b"HTTP/1.1 200 OK\r\n", 2, "broke off"),  # it began to answer: it may have done the work
    ],
)
async def test_what_is_not_sent_again(
    tmp_path: Path, answers: list[int], first_words: bytes, requests: int, sentence: str
) -> None:
    serve = Counting(answers, first_words)
    async with server(serve, tmp_path / "s") as client:
        for _ in range(answers[0]):
            await ask(client).over()
        heard = await ask(client).over()
        assert heard.error is not None and sentence in heard.error.message
        assert serve.requests == requests


async def test_an_idle_connection_is_closed_before_the_engine_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "IDLE_S", 0.05)
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await reader.read()
        gone.set()

    async with server(serve, tmp_path / "s") as client:
        await ask(client).over()
        async with asyncio.timeout(30):
            await gone.wait()
        assert client.idle_connections == 0


async def test_a_thousand_answers_at_once_are_a_thousand_answers(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            number = int((await read_request(reader)).split(b" ")[1][1:])
            writer.write(CHUNKED)
            for piece in range(5):
                writer.write(b"%x\r\n%d/%d;\r\n" % (len(b"%d/%d;" % (number, piece)), number, piece))
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")

    async with server(serve, tmp_path / "s") as client:
        for _ in range(2):
            asked = [ask(client, b"GET /%d HTTP/1.1\r\nHost: e\r\n\r\n" % n) for n in range(1000)]
            for number, heard in enumerate(asked):
                body = (await heard.over()).body
                assert body == b"".join(b"%d/%d;" % (number, piece) for piece in range(5)), heard.error
        assert client.idle_connections == http_client.MAX_IDLE


async def test_a_slow_reader_leaves_the_bytes_with_the_engine(tmp_path: Path) -> None:
    written, total = 0, 16 * 2**20

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while written < total:
            writer.write(bytes(2**16))
            written += 2**16
            await writer.drain()

    limits = EngineLimits(silence_timeout_s=1.0)
    async with server(serve, tmp_path / "s", limits) as client:
        heard = ask(client, pauses_at=1)
        await heard.until(lambda: heard.pieces)
        await asyncio.sleep(1.5)  # longer than any silence: a reader that pauses is not an engine that is silent
        assert heard.pieces == 1 and not heard.error and written < total / 4
        assert heard.call is not None
        heard.pauses_at = -1
        heard.call.resume()
        assert len((await heard.over()).body) == total


async def test_a_pause_before_there_is_a_connection_holds(tmp_path: Path) -> None:
    async with server(Counting([]), tmp_path / "s") as client:
        heard = ask(client)
        assert heard.call is not None
        heard.call.pause()
        other = await ask(client).over()
        assert other.is_whole and not heard.status
        heard.call.resume()
        assert (await heard.over()).body == b"ok"


@pytest.mark.parametrize("when", ["at once", "while it waits", "in the answer"])
async def test_abort_closes_the_connection_and_says_no_more(tmp_path: Path, when: str) -> None:
    came, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        came.set()
        if when == "in the answer":
            writer.write(CHUNKED + b"1\r\na\r\n")
        await reader.read()
        left.set()

    async with server(serve, tmp_path / "s") as client, asyncio.timeout(30):
        heard = ask(client)
        assert heard.call is not None
        if when == "while it waits":
            await came.wait()
        elif when == "in the answer":
            await heard.until(lambda: heard.body)
        heard.call.abort()
        heard.call.abort()
        if when != "at once":
            await left.wait()
        before = (heard.status, bytes(heard.body), heard.is_whole, heard.error)
        other = Counting([])
        async with server(other, tmp_path / "t") as beside:
            await ask(beside).over()
        assert before == (heard.status, heard.body, heard.is_whole, heard.error) and not heard.error


async def test_a_client_that_is_closed_fails_what_is_under_way(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED + b"1\r\na\r\n")
        await reader.read()

    async with server(serve, tmp_path / "s") as client:
        answered = ask(client)
        await answered.until(lambda: answered.body)
        dialling = ask(client)
        client.close()
        client.close()
        for heard, sentence in ((answered, "broke off"), (dialling, "let go")):
            assert (await heard.over()).error is not None and sentence in str(heard.error)


async def test_a_reader_that_fails_fails_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Heard):
        def answer_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    async with server(Counting([]), tmp_path / "s") as client:
        broken = Broken()
        client.send(REQUEST, broken)
        assert (await broken.over()).error is not None and "ZeroDivisionError" in caplog.text
        assert (await ask(client).over()).body == b"ok"


# -- through the engine -----------------------------------------------------------------------------------------------


async def head_of_a_request(url: str, **how: Any) -> bytes:
    """What an engine at 127.0.0.1 hears; `{port}` in the URL is its port."""
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await read_request(reader))
        assert await reader.readexactly(2) == b"{}"
        writer.write(OK)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        engine = HttpEngine(url.format(port=listening.sockets[0].getsockname()[1]), limits=LIMITS, **how)
        answer = await engine.request(CHAT_COMPLETIONS, b"{}", "order-1")
        assert b"".join([piece async for piece in answer]) == b"ok"
        await engine.aclose()
    return heads[0]


async def test_what_a_request_looks_like() -> None:
    head = await head_of_a_request("http://127.0.0.1:{port}", api_key="secret")
    line, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert line == b"POST /v1/chat/completions HTTP/1.1"
    named = dict(one.split(b": ", 1) for one in fields)
    assert named.pop(b"Host").startswith(b"127.0.0.1:")
    assert named == {
        b"Accept-Encoding": b"identity",
        b"Authorization": b"Bearer secret",
        b"Content-Type": b"application/json",
        b"X-Request-Id": b"order-1",
        b"Content-Length": b"2",
    }
    assert (await head_of_a_request("http://127.0.0.1:{port}/a b/v1")).startswith(
        b"POST /a%20b/v1/chat/completions HTTP"
    )


@pytest.mark.parametrize("key", ["a\r\nX: y", "schlüssel", "a\x00"])
def test_a_key_that_is_no_header_is_refused(key: str) -> None:
    with pytest.raises(UsageError):
        HttpEngine("http://127.0.0.1:1", api_key=key)


@pytest.mark.parametrize("url", ["http://a:b@host", "http://host\r\nX: y", "http://ho st"])
def test_a_url_that_says_too_much_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        HttpEngine(url)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key, and a certificate for `localhost` that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_an_engine_behind_tls_is_believed_by_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    chain, secret = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, secret)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    requests = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await read_request(reader)
                await reader.readexactly(2)
                requests += 1
                writer.write(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "localhost", 0, ssl=context) as listening:
        port = listening.sockets[0].getsockname()[1]
        engine = HttpEngine(f"https://localhost:{port}", limits=LIMITS)
        for _ in range(2):
            asking = engine.request(CHAT_COMPLETIONS, b"{}", "order-1")
            if is_trusted:
                assert b"".join([piece async for piece in await asking]) == b"abc"
            else:
                with pytest.raises(EngineError, match="cannot be reached"):
                    await asking
        assert requests == (2 if is_trusted else 0)
        await engine.aclose()
