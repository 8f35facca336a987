"""engine.read_rounds: the answers are the same whoever reads them, and rounds end where they no longer pay."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from p2pgrid.engine import read_rounds
from p2pgrid.engine.http_client import EngineLimits, HttpClient, Road
from p2pgrid.engine.http_connection import AT_ONCE_READS
from p2pgrid.engine.read_rounds import ReadRounds
from tests.engine.test_http_client import CHUNKED, REQUEST, Heard, ask

STREAMS = 32
PIECES = 30
pytestmark = pytest.mark.skipif(not hasattr(__import__("select"), "epoll"), reason="rounds need epoll")


def piece(number: int) -> bytes:
    data = b"piece %d\n" % number
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = b"".join(b"piece %d\n" % number for number in range(PIECES))


class Engine:
    """Answers that are all fed together, a piece each, when `feed` is called."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(CHUNKED)
                self.writers.append(writer)

    def feed(self, data: bytes) -> None:
        for writer in self.writers:
            writer.write(data)


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Engine, HttpClient]]:
    engine = Engine()
    path = str(folder / "e")
    async with await asyncio.start_unix_server(engine.serve, path):
        client = HttpClient(Road(socket_path=path), EngineLimits(), "e")
        try:
            yield engine, client
        finally:
            client.close()
            for writer in engine.writers:
                writer.close()


async def begun(engine: Engine, client: HttpClient, count: int = STREAMS) -> list[Heard]:
    engine.writers.clear()
    answers = [ask(client, REQUEST) for _ in range(count)]
    for one in answers:
        await one.until(lambda one=one: one.status)
    return answers


async def fed(engine: Engine, answers: list[Heard], first: int, last: int) -> None:
    """The pieces from `first` to `last`, each when all have heard the one before."""
    for number in range(first, last):
        engine.feed(piece(number))
        for one in answers:
            await one.until(lambda one=one, n=number: one.error or one.pieces > n)


def rounds_of(client: HttpClient) -> ReadRounds:
    assert client.rounds is not None
    return client.rounds


def in_rounds(client: HttpClient) -> int:
    return len(rounds_of(client)._readers)


@pytest.fixture(autouse=True)
def always_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is that runs this."""
    monkeypatch.setattr(read_rounds, "BUSY_READS_PER_S", 0.001)
    monkeypatch.setattr(read_rounds, "LEAST_PER_ROUND", 0.0)


async def test_answers_read_in_rounds_are_whole_and_their_connections_are_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, client):
        for _ in range(2):
            answers = await begun(engine, client)
            await fed(engine, answers, 0, PIECES)
            assert in_rounds(client) == STREAMS
            engine.feed(b"0\r\n\r\n")
            for one in answers:
                assert (await one.over()).is_whole and one.body == WHOLE
            assert in_rounds(client) == 0
        assert engine.connections == client.idle_connections == STREAMS


async def test_the_first_reads_of_an_answer_wait_for_no_round(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, client):
        await fed(engine, await begun(engine, client), 0, PIECES)
        assert rounds_of(client).is_busy
        answers = await begun(engine, client)
        await fed(engine, answers, 0, AT_ONCE_READS - 1)  # the head was a read as well
        assert in_rounds(client) == STREAMS  # the ones from before
        await fed(engine, answers, AT_ONCE_READS - 1, AT_ONCE_READS + 1)
        assert in_rounds(client) == 2 * STREAMS


async def test_few_answers_wait_for_no_round(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, client):
        answers = await begun(engine, client, read_rounds.FEWEST_STREAMS - 1)
        await fed(engine, answers, 0, PIECES)
        assert rounds_of(client).is_busy and in_rounds(client) == 0
        engine.feed(b"0\r\n\r\n")
        for one in answers:
            assert (await one.over()).body == WHOLE


async def test_an_answer_larger_than_a_read_is_read_in_several_rounds(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, client):
        answers = await begun(engine, client)
        await fed(engine, answers, 0, PIECES)
        large = b"y" * 50_000
        engine.feed(b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large))
        for one in answers:
            assert (await one.over()).body == WHOLE + large


@pytest.mark.parametrize("end", [lambda w: w.close(), lambda w: w.transport.abort(), lambda w: w.write(b"no chunk")])
async def test_an_answer_that_breaks_off_in_rounds_is_one_that_broke_off(
    tmp_path: Path, end: Callable[[asyncio.StreamWriter], None]
) -> None:
    async with running(tmp_path) as (engine, client):
        answers = await begun(engine, client)
        await fed(engine, answers, 0, PIECES)
        for writer in engine.writers:
            end(writer)
        for one in answers:
            assert (await one.over()).error is not None and "broke off" in one.error.message
        assert in_rounds(client) == client.idle_connections == 0


async def test_a_pause_leaves_what_comes_in_the_kernel(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, client):
        answers = await begun(engine, client)
        await fed(engine, answers, 0, PIECES - 1)
        slow, *others = answers
        assert slow.call is not None
        slow.call.pause()
        engine.feed(piece(PIECES - 1) + b"0\r\n\r\n")
        for one in others:
            assert (await one.over()).body == WHOLE
        assert slow.pieces == PIECES - 1
        slow.call.resume()
        assert (await slow.over()).body == WHOLE


async def test_an_answer_that_is_aborted_is_out_of_the_rounds_before_its_socket_is_closed(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, client):
        answers = await begun(engine, client)
        await fed(engine, answers, 0, PIECES - 1)
        for one in answers[::2]:
            assert one.call is not None
            one.call.abort()
        assert in_rounds(client) == STREAMS // 2
        engine.feed(piece(PIECES - 1) + b"0\r\n\r\n")
        for one in answers[1::2]:
            assert (await one.over()).body == WHOLE
        assert all(one.pieces == PIECES - 1 and one.error is None for one in answers[::2])


async def test_rounds_that_bring_little_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as (engine, client):
        answers = await begun(engine, client)
        await fed(engine, answers, 0, 10)
        assert in_rounds(client) == STREAMS
        monkeypatch.setattr(read_rounds, "LEAST_PER_ROUND", 10 * STREAMS)
        monkeypatch.setattr(read_rounds, "BUSY_READS_PER_S", 1e9)
        rounds, number = rounds_of(client), 10
        while rounds.is_busy:
            await fed(engine, answers, number, number + 1)
            number += 1
        assert in_rounds(client) == 0
        await fed(engine, answers, number, number + 2)
        assert all(one.pieces == number + 2 for one in answers) and in_rounds(client) == 0


async def test_nothing_runs_while_nothing_comes() -> None:
    """A round that was empty is the last until something comes."""
    loop, rounds = asyncio.get_running_loop(), ReadRounds()
    near, far = socket.socketpair()
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    class Reader:
        def round_received(self, data: bytes) -> None:
            heard.put_nowait(data)

        def leave_rounds(self) -> None:
            rounds.leave(near.fileno())
            heard.put_nowait(b"")

    with near, far:
        near.setblocking(False)
        rounds.enter(near.fileno(), Reader())
        async with asyncio.timeout(30):
            for word in (b"one", b"two"):
                while rounds._timer is not None:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0)
                far.send(word)
                assert await heard.get() == word
            far.close()
            assert await heard.get() == b""
        rounds.close()
        assert loop.remove_reader(near.fileno()) is False
