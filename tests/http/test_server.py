"""The server over real sockets: order, keeping and closing, deadlines, slow programs and programs that leave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from p2pgrid.errors import LocalError
from p2pgrid.http.connection import Connection
from p2pgrid.http.limits import ServerLimits
from p2pgrid.http.message import Request, Response
from p2pgrid.http.reader import MAX_PIPELINED, ReaderLimits
from p2pgrid.http.reply import Reply
from p2pgrid.http.server import Server, serve

QUICK = ServerLimits(
    reader=ReaderLimits(body_bytes=1_000_000),
    head_s=0.2,
    body_s=0.2,
    body_bytes_per_s=10**9,
    idle_s=0.4,
    stalled_s=0.3,
    linger_s=0.2,
    tick_s=0.02,
)
PATIENT = ServerLimits(reader=ReaderLimits(body_bytes=1_000_000), tick_s=0.02)


@dataclass
class Site:
    """An application of a few paths; the test holds the ends of what it streams."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[Reply] = field(default_factory=list)
    cancelled: int = 0
    handled: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def admit(self, request: Request) -> Response | None:
        return Response(status=403, body=b"no") if request.path == "/forbidden" else None

    def handle(self, request: Request, reply: Reply) -> Response | Coroutine[Any, Any, Response | None]:
        self.handled.append(request.path)
        match request.path:
            case "/now":
                return Response(body=request.body or b"now", content_type="text/plain", headers={"X-A": "b"})
            case "/large":
                return Response(body=b"x" * 3_000_000)
            case "/broken":
                raise RuntimeError("on purpose")
            case "/none":
                return Response(status=204)
            case "/pieces":
                return self.pieces(reply)
        return self.later(request, reply)

    async def later(self, request: Request, reply: Reply) -> Response | None:
        try:
            if request.path == "/stream":
                reply.begin(200, {"Content-Type": "text/plain"})
                self.begun.append(reply)
                self.tell()
            await self.go.wait()
            if request.path == "/fails":
                raise RuntimeError("on purpose")
            if request.path == "/stream":
                reply.end()
                return None
            return Response(body=b"later")
        except asyncio.CancelledError:
            self.cancelled += 1
            self.tell()
            raise

    async def pieces(self, reply: Reply) -> None:
        reply.begin(200, {})
        for piece in (b"first ", b"", b"second"):
            reply.write(piece)
        reply.end()

    def failure(self, status: int, message: str) -> Response:
        return Response(status=status, body=message.encode(), content_type="text/plain")

    def tell(self) -> None:
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def stream(self) -> Reply:
        """The next answer that is streamed."""
        n = len(self.begun)
        await self.until(lambda: len(self.begun) > n)
        return self.begun[-1]


@dataclass
class Program:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, raw: str | bytes) -> None:
        self.writer.write(raw.encode("latin-1") if isinstance(raw, str) else raw)

    def get(self, path: str, *, version: str = "1.1", headers: str = "", method: str = "GET") -> None:
        self.send(f"{method} {path} HTTP/{version}\r\nHost: x\r\n{headers}\r\n")

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(10):
            raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = raw.split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", lines[0])
        assert found, raw
        return int(found[1]), {n.lower(): v for n, _, v in (line.partition(": ") for line in lines[1:-2])}

    async def answer(self) -> tuple[int, bytes]:
        """A whole answer with a length."""
        status, headers = await self.head()
        return status, await self.reader.readexactly(int(headers.get("content-length", "0")))

    async def chunk(self) -> bytes:
        """One chunk; empty for the last."""
        async with asyncio.timeout(10):
            size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        """All until the server closes."""
        async with asyncio.timeout(10):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def serving(limits: ServerLimits = PATIENT) -> AsyncIterator[tuple[Site, Server]]:
    site = Site()
    server = await serve(site, "127.0.0.1", 0, limits)
    try:
        yield site, server
    finally:
        await server.aclose(0.0)
        assert server.n_connections == 0


@contextlib.asynccontextmanager
async def program(server: Server, *, receive_bytes: int | None = None) -> AsyncIterator[Program]:
    end = socket.socket()
    if receive_bytes is not None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    end.setblocking(False)
    await asyncio.get_running_loop().sock_connect(end, server.addresses[0])
    reader, writer = await asyncio.open_connection(sock=end, limit=4096)
    try:
        yield Program(reader, writer)
    finally:
        writer.close()


async def test_an_answer_and_its_head() -> None:
    async with serving() as (_, server), program(server) as p:
        p.get("/now")
        status, headers = await p.head()
        assert status == 200 and await p.reader.readexactly(3) == b"now"
        assert headers.pop("date").endswith(" GMT")
        assert headers == {"server": "p2pgrid", "x-a": "b", "content-type": "text/plain", "content-length": "3"}


async def test_a_connection_is_kept_and_closed_as_asked() -> None:
    async with serving() as (_, server):
        async with program(server) as p:
            for _ in range(3):
                p.get("/now")
                assert await p.answer() == (200, b"now")
            p.get("/now", headers="Connection: close\r\n")
            assert (await p.head())[1]["connection"] == "close"
            assert await p.rest() == b"now"
        async with program(server) as p:
            p.get("/now", version="1.0", headers="Connection: keep-alive\r\n")
            assert (await p.head())[1]["connection"] == "keep-alive" and await p.reader.readexactly(3) == b"now"
            p.get("/now", version="1.0")
            assert (await p.head())[1]["connection"] == "close" and await p.rest() == b"now"


async def test_head_has_the_length_and_no_body() -> None:
    async with serving() as (_, server), program(server) as p:
        p.get("/now", method="HEAD")
        assert (await p.head())[1]["content-length"] == "3"
        p.get("/none")
        status, headers = await p.head()
        assert status == 204 and "content-length" not in headers
        p.get("/now", headers="Connection: close\r\n")
        assert (await p.head())[0] == 200 and await p.rest() == b"now"


async def test_a_stream_in_chunks_ready_together_written_together() -> None:
    async with serving() as (site, server), program(server) as p:
        p.get("/stream")
        reply = await site.stream()
        for piece in (b"a", b"", b"bc", b"d"):
            reply.write(piece)
        assert (await p.head())[1]["transfer-encoding"] == "chunked"
        assert await p.chunk() == b"abcd"
        reply.write(b"e")
        assert await p.chunk() == b"e"
        site.go.set()
        assert await p.chunk() == b""
        p.get("/now")
        assert await p.answer() == (200, b"now")
        reply.write(b"late")
        reply.end()
        p.get("/now")
        assert await p.answer() == (200, b"now")


async def test_what_is_ready_together_leaves_in_one_write() -> None:
    async with serving() as (_, server), program(server) as p:
        p.get("/pieces")
        async with asyncio.timeout(10):
            data = await p.reader.read(4096)
        assert data.endswith(b"\r\n\r\nc\r\nfirst second\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "version", "expected"),
    [
        ("GET", "1.1", b"3\r\nabc\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n"),
        ("GET", "1.0", b"abcdef"),
        ("HEAD", "1.1", b""),
    ],
)
async def test_what_is_sent_at_once_goes_behind_what_was_written(method: str, version: str, expected: bytes) -> None:
    async with serving() as (site, server), program(server) as p:
        p.get("/stream", method=method, version=version, headers="Connection: close\r\n")
        reply = await site.stream()
        reply.write(b"ab")
        for piece in (b"c", b"", b"de"):
            reply.send(piece)
        reply.write(b"f")
        site.go.set()
        await p.head()
        assert await p.rest() == expected
        reply.send(b"late")


async def test_a_stream_for_http_1_0_ends_with_the_connection() -> None:
    async with serving() as (site, server), program(server) as p:
        p.get("/stream", version="1.0", headers="Connection: keep-alive\r\n")
        reply = await site.stream()
        reply.write(b"abc")
        site.go.set()
        headers = (await p.head())[1]
        assert headers["connection"] == "close" and "transfer-encoding" not in headers
        assert await p.rest() == b"abc"


async def test_a_stream_after_which_the_program_wants_no_more() -> None:
    async with serving() as (site, server), program(server) as p:
        p.get("/stream", headers="Connection: close\r\n")
        (await site.stream()).write(b"abc")
        site.go.set()
        assert (await p.head())[1]["connection"] == "close"
        assert await p.rest() == b"3\r\nabc\r\n0\r\n\r\n"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as (site, server), program(server) as p:
        for path in ("/now", "/later", "/now", "/forbidden"):
            p.get(path)
        assert await p.answer() == (200, b"now")
        assert site.handled == ["/now", "/later"]
        p.send("POST /now HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe")
        p.send("llo")
        site.go.set()
        answers = [await p.answer() for _ in range(4)]
        assert answers == [(200, b"later"), (200, b"now"), (403, b"no"), (200, b"hello")]


async def test_more_pipelined_requests_than_are_kept() -> None:
    async with serving() as (site, server), program(server) as p:
        p.send(b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n" * (MAX_PIPELINED + 1))
        assert (await p.rest()).count(b"200 OK") == MAX_PIPELINED == len(site.handled)


async def test_requests_that_wait_are_bounded_and_none_is_lost() -> None:
    async with serving() as (site, server), program(server) as p:
        p.get("/later")
        await until(lambda: site.handled)
        body = b"x" * 200_000
        for _ in range(10):
            p.send(b"POST /now HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + body)
        (connection,) = server._connections
        await until(lambda: sum(map(len, connection._held)) > 64 * 1024)
        async with program(server) as other:  # meanwhile the loop turns, and nothing more is read
            for _ in range(20):
                other.get("/none")
                await other.answer()
        assert sum(map(len, connection._held)) < 64 * 1024 + 300_000 and site.handled[0] == "/later"
        assert "/now" not in site.handled
        site.go.set()
        assert [await p.answer() for _ in range(11)] == [(200, b"later"), *[(200, body)] * 10]


async def test_a_request_that_is_none_is_told_so_behind_what_stood_before() -> None:
    async with serving() as (site, server), program(server) as p:
        p.get("/later")
        p.send("rubbish\r\n\r\n")
        site.go.set()
        assert await p.answer() == (200, b"later")
        status, headers = await p.head()
        assert (status, headers["connection"]) == (400, "close")
        assert b"HTTP/1.1" in await p.rest()


async def test_go_on_is_said_in_its_turn() -> None:
    async with serving() as (site, server), program(server) as p:
        p.get("/later")
        p.send("POST /now HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        await until(lambda: site.handled)
        site.go.set()
        assert await p.answer() == (200, b"later")
        assert (await p.reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        p.send("ok")
        assert await p.answer() == (200, b"ok")
        p.send("POST /forbidden HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await p.answer())[0] == 403
        assert await p.rest() == b""


async def test_a_body_that_is_too_large_while_it_is_still_sent() -> None:
    """The program sees the answer, although it was written before the request's end."""
    async with serving() as (_, server), program(server) as p:
        p.send("POST /now HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                p.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await p.writer.drain()
        assert (await p.answer())[0] == 413


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ("", None),
        ("GET /now HTTP/1.1\r\nHost: x\r\n", 408),
        ("POST /now HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", 408),
    ],
)
async def test_what_does_not_come_in_time(raw: str, status: int | None) -> None:
    async with serving(QUICK) as (site, server), program(server) as p:
        p.send(raw)
        if status is not None:
            assert (await p.answer())[0] == status
        assert await p.rest() == b""
        assert not site.handled


async def test_a_body_that_trickles_is_late_too() -> None:
    async with serving(QUICK) as (_, server), program(server) as p:
        p.send("POST /now HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        answer = asyncio.create_task(p.answer())
        with contextlib.suppress(ConnectionError):
            while not answer.done():
                p.send("a")
                await asyncio.sleep(0.02)
        assert (await answer)[0] == 408


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    async with serving(QUICK) as (site, server), program(server) as idle, program(server) as busy:
        idle.get("/now")
        busy.get("/later")
        assert await idle.answer() == (200, b"now")
        assert await idle.rest() == b""
        await asyncio.sleep(2 * QUICK.idle_s)
        site.go.set()
        assert await busy.answer() == (200, b"later")


@pytest.mark.parametrize("path", ["/later", "/stream"])
async def test_a_program_that_leaves_cancels_its_handler_at_once(path: str) -> None:
    async with serving(replace(PATIENT, tick_s=600)) as (site, server):  # nothing but the end itself tells of it
        async with program(server) as p:
            p.get(path)
            await until(lambda: site.handled)
        await site.until(lambda: site.cancelled)
        for reply in site.begun:
            reply.write(b"to nobody")
            reply.end()
            assert reply.is_ended


async def test_a_slow_reader_holds_up_its_own_stream_alone() -> None:
    async with serving() as (site, server), program(server, receive_bytes=4096) as slow, program(server) as other:
        slow.get("/stream")
        reply = await site.stream()
        told: list[bool] = []
        reply.on_writable = lambda: told.append(reply.is_writable)
        written = 0
        while reply.is_writable:
            reply.write(b"x" * 50_000)
            written += 50_000
            await asyncio.sleep(0)
            assert written < 50_000_000
        assert not told
        other.get("/now")
        assert await other.answer() == (200, b"now")
        await slow.head()
        read = 0
        while not told:
            read += len(await slow.chunk())
        assert told == [True] and reply.is_writable
        while read < written:
            read += len(await slow.chunk())
        site.go.set()
        assert await slow.chunk() == b""


async def test_a_program_that_takes_nothing_is_cut_off() -> None:
    async with serving(QUICK) as (site, server), program(server, receive_bytes=4096) as p:
        p.get("/stream")
        reply = await site.stream()
        while reply.is_writable:
            reply.write(b"x" * 50_000)
            await asyncio.sleep(0)
        await site.until(lambda: site.cancelled)
        assert reply.is_ended


async def test_answers_that_are_not_taken_are_not_made() -> None:
    """A program that sends many requests and reads nothing costs the memory of one answer, not of all."""
    async with serving() as (site, server), program(server, receive_bytes=4096) as p:
        p.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        await until(lambda: site.handled)
        async with program(server) as other:
            for _ in range(20):
                other.get("/none")
                await other.answer()
        assert site.handled.count("/large") < 3
        total = 0
        for _ in range(20):
            _, headers = await p.head()
            left = int(headers["content-length"])
            total += left
            while left:
                left -= len(await p.reader.read(min(left, 1 << 20)))
        assert total == 60_000_000 and site.handled.count("/large") == 20


@pytest.mark.parametrize("path", ["/broken", "/fails"])
async def test_a_handler_that_fails_is_a_500_and_the_next_goes_on(path: str) -> None:
    async with serving() as (site, server), program(server) as p:
        site.go.set()
        p.get(path)
        assert (await p.answer())[0] == 500
        p.get("/now")
        assert await p.answer() == (200, b"now")


async def test_a_stream_whose_handler_fails_does_not_look_whole() -> None:
    class Failing(Site):
        async def later(self, request: Request, reply: Reply) -> Response | None:
            reply.begin(200, {})
            reply.write(b"half")
            raise RuntimeError("on purpose")

    server = await serve(Failing(), "127.0.0.1", 0, PATIENT)
    try:
        async with program(server) as p:
            p.get("/stream")
            with contextlib.suppress(ConnectionError):
                assert not (await p.rest()).endswith(b"0\r\n\r\n")
    finally:
        await server.aclose(0.0)


async def test_a_header_cannot_break_the_head() -> None:
    class Forging(Site):
        def handle(self, request: Request, reply: Reply) -> Response | Coroutine[Any, Any, Response | None]:
            return Response(headers={"X-A": "b\r\nSet-Cookie: c"})

    server = await serve(Forging(), "127.0.0.1", 0, PATIENT)
    try:
        async with program(server) as p:
            p.get("/")
            with contextlib.suppress(ConnectionError):
                assert b"Cookie" not in await p.rest()
    finally:
        await server.aclose(0.0)


async def test_shutdown_lets_streams_end_and_closes_what_is_idle() -> None:
    site = Site()
    server = await serve(site, "127.0.0.1", 0, PATIENT)
    (address,) = server.addresses
    async with program(server) as idle, program(server) as busy:
        idle.get("/now")
        assert await idle.answer() == (200, b"now")
        busy.get("/stream")
        reply = await site.stream()
        reply.write(b"a")
        closing = asyncio.create_task(server.aclose(600))
        assert await idle.rest() == b""
        await busy.head()
        assert await busy.chunk() == b"a"
        reply.write(b"b")
        assert await busy.chunk() == b"b" and not closing.done()
        site.go.set()
        assert await busy.rest() == b"0\r\n\r\n"
        async with asyncio.timeout(10):
            await closing
        with pytest.raises(OSError):
            await asyncio.open_connection(*address)
    assert site.cancelled == 0


async def test_shutdown_cuts_off_what_does_not_end() -> None:
    site = Site()
    server = await serve(site, "127.0.0.1", 0, PATIENT)
    async with program(server) as p:
        p.get("/stream")
        await site.stream()
        async with asyncio.timeout(10):
            await server.aclose(0.05)
        assert site.cancelled == 1
        with contextlib.suppress(ConnectionError):
            assert not (await p.rest()).endswith(b"0\r\n\r\n")


async def test_a_port_in_use_and_too_many_connections() -> None:
    site = Site()
    server = await serve(site, "127.0.0.1", 0, ServerLimits(connections=1))
    try:
        with pytest.raises(LocalError, match="cannot listen"):
            await serve(site, *server.addresses[0])
        async with program(server) as first:
            first.get("/now")
            assert await first.answer() == (200, b"now")
            async with program(server) as second:
                with contextlib.suppress(ConnectionError):
                    assert await second.rest() == b""
    finally:
        await server.aclose(0.0)


async def test_many_idle_connections() -> None:
    """Nothing of them is left when they are gone. What each costs: scripts/bench/front.py."""
    async with serving() as (_, server):
        async with contextlib.AsyncExitStack() as stack:
            programs = [await stack.enter_async_context(program(server)) for _ in range(500)]
            for p in programs:
                p.get("/now")
            for p in programs:
                assert await p.answer() == (200, b"now")
            assert server.n_connections == 500
        await until(lambda: server.n_connections == 0)
    del programs
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Connection)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the kernel's buffers tell nobody
            await asyncio.sleep(0.005)


# -- what a stream of libp2p needs ---------------------------------------------------------------------------------


HALF_OPEN = replace(PATIENT, is_half_open=True, requests_per_connection=1)
ELSEWHERE = ("127.0.0.9", 0)


@pytest.mark.parametrize("path", ["/later", "/stream", "/now"])
async def test_who_has_said_all_still_gets_its_answer_where_that_is_wanted(path: str) -> None:
    async with serving(HALF_OPEN) as (site, server):
        one = await connect(server)
        one.get(path)
        one.writer.write_eof()
        async with asyncio.timeout(10):
            while not site.handled:  # noqa: ASYNC110 (the site tells of less)
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        site.go.set()
        whole = await one.rest()
        assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Connection: close\r\n" in whole
        assert site.cancelled == 0
        await until_idle(server)


async def test_who_ends_in_the_middle_of_a_request_has_left() -> None:
    async with serving(HALF_OPEN) as (site, server):
        one = await connect(server)
        one.send("GET /later HTTP/1.1\r\nHost: x\r\n")
        one.writer.write_eof()
        assert await one.rest() == b""
        assert site.handled == []


async def test_one_request_a_connection_where_that_is_all() -> None:
    async with serving(HALF_OPEN) as (site, server):
        one = await connect(server)
        one.get("/now")
        one.get("/now")
        assert (await one.rest()).count(b"HTTP/1.1 200 OK") == 1
        assert site.handled == ["/now"]


async def test_an_address_has_so_many_connections_and_this_machine_as_many_as_there_are() -> None:
    async with serving(replace(PATIENT, connections_per_address=2)) as (_, server):
        others = [await connect(server, local_addr=ELSEWHERE) for _ in range(3)]
        with contextlib.suppress(ConnectionResetError):
            assert await others[2].rest() == b""
        for one in (*others[:2], *[await connect(server) for _ in range(4)]):
            one.get("/now")
            assert (await one.answer())[0] == 200
        others[0].writer.close()
        await others[0].writer.wait_closed()
        async with asyncio.timeout(10):
            while True:
                again = await connect(server, local_addr=ELSEWHERE)
                again.get("/now")
                with contextlib.suppress(ConnectionResetError, asyncio.IncompleteReadError):
                    if (await again.answer())[0] == 200:
                        break


async def connect(server: Server, **options: Any) -> Program:
    return Program(*await asyncio.open_connection(*server.addresses[0], **options))


async def until_idle(server: Server) -> None:
    async with asyncio.timeout(10):
        while server.n_connections:  # noqa: ASYNC110 (the server tells of none)
            await asyncio.sleep(0.01)
