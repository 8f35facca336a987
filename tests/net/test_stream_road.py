"""The transport of the libp2p road: back-pressure, and its end in every order, between two real hosts in threads."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from p2pgrid.errors import LocalError
from p2pgrid.net.libp2p_road import SessionListener
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.stream_road import WINDOW_BYTES, StreamRoad
from tests.net.road_rigs import CLIENT, LOOPBACK, PROVIDER, Echo

DEADLINE_S = 10.0


class End(asyncio.Protocol):
    """One end of a road: notes all that it is told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.calls: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()
        self.road: StreamRoad

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StreamRoad)
        self.road = transport
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        assert data
        assert not self.lost.done()
        self.received += data
        self.changed.set()

    def eof_received(self) -> None:
        self.changed.set()

    def pause_writing(self) -> None:
        self.calls.append("pause")
        self.changed.set()

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.lost.set_result(exc)  # InvalidStateError if it is told twice
        self.changed.set()

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class RawListener(SessionListener):
    """Takes roads, and lays no link on them."""

    def __init__(self) -> None:
        super().__init__(PROVIDER, on_stream=lambda stream: Echo())
        self.ends: asyncio.Queue[End] = asyncio.Queue()

    def _accept(self, road: StreamRoad, peer_id: str) -> None:
        end = End()
        road.start(end)
        self.ends.put_nowait(end)


@dataclass
class Pair:
    """Both ends of a road, and the hosts below."""

    near: End
    far: End
    client: Network
    provider: Network
    listener: RawListener

    async def crash(self, network: Network) -> None:
        """The host's trio program ends by an error that nothing foresaw."""

        async def fault() -> None:
            raise RuntimeError("a crash on purpose")

        async def crash() -> None:
            trio.lowlevel.spawn_system_task(fault)
            await trio.sleep_forever()

        with contextlib.suppress(LocalError):
            await network._thread.call(crash)


@contextlib.asynccontextmanager
async def hosts() -> AsyncIterator[tuple[Network, Network, RawListener]]:
    listener = RawListener()
    async with (
        Network(PROVIDER, "test", listen=[LOOPBACK], sessions=listener) as provider,
        Network(CLIENT, "test") as client,
    ):
        yield provider, client, listener


async def opened(provider: Network, client: Network, listener: RawListener) -> Pair:
    road = StreamRoad(asyncio.get_running_loop())
    address = PeerAddress(provider.peer_id, provider.addresses)
    await client._thread.call(client._service.open_session, address, road, DEADLINE_S)
    near = End()
    road.start(near)
    async with asyncio.timeout(DEADLINE_S):
        far = await listener.ends.get()
    return Pair(near, far, client, provider, listener)


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    async with hosts() as (provider, client, listener):
        yield await opened(provider, client, listener)


async def ended(*ends: End) -> list[Exception | None]:
    async with asyncio.timeout(DEADLINE_S):
        return [await asyncio.shield(end.lost) for end in ends]


async def test_bytes_arrive_whole_and_in_order_in_both_directions() -> None:
    rng = random.Random(1)
    async with pair() as p:
        totals = {}
        for end in (p.near, p.far):
            sent = [rng.randbytes(rng.choice((1, 250, 9_000, 200_000))) for _ in range(150)]
            totals[end] = b"".join(sent)

            async def send(end: End = end, sent: list[bytes] = sent) -> None:
                for data in sent:
                    end.road.write(data)
                    if rng.random() < 0.3:
                        await asyncio.sleep(0)
                    await end.until(lambda: end.calls.count("pause") == end.calls.count("resume"))

            totals[end, "task"] = asyncio.create_task(send())
        await asyncio.gather(totals[p.near, "task"], totals[p.far, "task"])
        await p.far.until(lambda: len(p.far.received) >= len(totals[p.near]))
        await p.near.until(lambda: len(p.near.received) >= len(totals[p.far]))
        for sender, receiver in ((p.near, p.far), (p.far, p.near)):
            assert hashlib.sha256(receiver.received).digest() == hashlib.sha256(totals[sender]).digest()


async def test_each_end_knows_whom_noise_has_proven_to_be_at_the_other() -> None:
    async with pair() as p:
        assert p.near.road.get_extra_info("peer_id") == PROVIDER.public_key.peer_id
        assert p.far.road.get_extra_info("peer_id") == CLIENT.public_key.peer_id
        assert p.far.road.get_extra_info("peername")[0] == "127.0.0.1"
        assert p.near.road.get_extra_info("ssl_object") is None


async def test_what_was_written_before_a_close_arrives() -> None:
    async with pair() as p:
        data = random.Random(2).randbytes(3 * WINDOW_BYTES)
        p.near.road.write(data)
        p.near.road.close()
        p.near.road.write(b"too late")
        assert p.near.road.is_closing()
        assert await ended(p.near, p.far) == [None, None]
        assert p.far.received == data
        assert p.near.calls.count("lost") == 1


async def test_a_reader_that_pauses_stops_the_writer_and_neither_stores_more_than_a_window() -> None:
    """Also for longer than the 5 s after which libp2p's own writer fails."""
    async with pair() as p:
        p.far.road.pause_reading()
        assert not p.far.road.is_reading()
        block, n_blocks = bytes(64 * 1024), 48
        for _ in range(n_blocks):  # 3 MiB: a window, and more
            p.near.road.write(block)
        assert p.near.calls == ["made", "pause"]
        left = n_blocks * len(block) - WINDOW_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.5):
                await p.near.until(lambda: p.near.lost.done() or "resume" in p.near.calls)
        assert p.near.calls == ["made", "pause"]
        assert p.near.road.get_write_buffer_size() >= left
        assert len(p.far.road._inbox) == WINDOW_BYTES
        assert not p.far.received
        p.far.road.resume_reading()
        await p.far.until(lambda: len(p.far.received) == n_blocks * len(block))
        await p.near.until(lambda: p.near.calls == ["made", "pause", "resume"])


async def test_both_ends_may_fill_the_others_window_at_once() -> None:
    async with pair() as p:
        for end in (p.near, p.far):
            end.road.write(bytes(4 * WINDOW_BYTES))
        for end in (p.near, p.far):
            await end.until(lambda end=end: len(end.received) == 4 * WINDOW_BYTES)


async def test_what_is_written_in_one_turn_crosses_with_one_wake_up() -> None:
    async with pair() as p:
        crossings: list[Any] = []
        in_trio = p.near.road._in_trio
        # One turn: trio's thread takes none of its own in between, however busy the machine is.
        held, go_on = threading.Event(), threading.Event()
        in_trio(lambda: (held.set(), go_on.wait(DEADLINE_S)))
        assert await asyncio.to_thread(held.wait, DEADLINE_S)
        p.near.road._in_trio = lambda fn: (crossings.append(fn), in_trio(fn))  # type: ignore[method-assign,assignment,func-returns-value]
        for n in range(500):
            p.near.road.write(bytes([n % 256]))
        assert len(crossings) <= 1
        go_on.set()
        await p.far.until(lambda: len(p.far.received) == 500)


ENDS = ("close", "abort", "peer closes", "peer aborts", "host crashes", "peer's host crashes")


async def end_by(p: Pair, how: str) -> None:
    match how:
        case "close":
            p.near.road.close()
        case "abort":
            p.near.road.abort()
        case "peer closes":
            p.far.road.close()
        case "peer aborts":
            p.far.road.abort()
        case "host crashes":
            await p.crash(p.client)
        case "peer's host crashes":
            await p.crash(p.provider)


@pytest.mark.parametrize(
    ("first", "second"),
    list(itertools.product(ENDS, repeat=2)),
)
async def test_a_road_that_ends_twice_is_lost_once(first: str, second: str) -> None:
    """Whoever ends it and how, with bytes under way both ways: each side is told once, and stores nothing after."""
    async with pair() as p:
        for end in (p.near, p.far):
            end.road.write(bytes(2 * WINDOW_BYTES))
        await end_by(p, first)
        await end_by(p, second)
        await ended(p.near, p.far)
        for end in (p.near, p.far):
            assert end.calls.count("lost") == 1
            end.road.write(b"nobody hears it")
            end.road.close()
            end.road.abort()
        await asyncio.sleep(0)
        assert [end.calls[-1] for end in (p.near, p.far)] == ["lost", "lost"]


@pytest.mark.parametrize(
    ("how", "near", "far"),
    [
        ("abort", type(None), ConnectionResetError),
        ("peer aborts", ConnectionResetError, type(None)),
        ("host crashes", ConnectionAbortedError, ConnectionResetError),
        ("peer's host crashes", ConnectionResetError, ConnectionAbortedError),
    ],
)
async def test_each_end_learns_why(how: str, near: type, far: type) -> None:
    async with pair() as p:
        await end_by(p, how)
        assert [type(reason) for reason in await ended(p.near, p.far)] == [near, far]


async def test_an_end_while_the_writer_waits_for_the_window() -> None:
    async with pair() as p:
        p.far.road.pause_reading()
        p.near.road.write(bytes(2 * WINDOW_BYTES))
        await p.far.until(lambda: True)
        p.near.road.abort()
        assert await ended(p.near) == [None]
        p.far.road.resume_reading()
        assert isinstance((await ended(p.far))[0], ConnectionResetError)


async def test_a_reset_after_an_end_reaches_a_writer_that_waits_for_the_window() -> None:
    async with pair() as p:
        far: Any = p.far.road._stream
        p.far.road.pause_reading()
        p.near.road.write(bytes(2 * WINDOW_BYTES))
        await p.provider._thread.call(far.finish)
        await p.near.until(p.near.road.is_closing)  # it has heard the end, and would like to send the rest
        await asyncio.sleep(0)
        assert not p.near.lost.done()
        await p.provider._thread.call(far.reset)
        assert isinstance((await ended(p.near))[0], ConnectionResetError)


@pytest.mark.parametrize("where", ["open", "write", "grant", "wait_end"])
async def test_a_fault_of_ours_ends_the_road_and_not_the_host(where: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fault(*_: object) -> None:
        raise RuntimeError("a bug")

    async with hosts() as (provider, client, listener):
        opened_by_others = await opened(provider, client, listener)
        road, near = StreamRoad(asyncio.get_running_loop()), End()
        lay_on = road.lay_on

        def lay_on_faulty(stream: Any, extra: dict[str, Any]) -> None:
            setattr(stream, where, fault)
            lay_on(stream, extra)

        road.lay_on = lay_on_faulty  # type: ignore[method-assign]
        address = PeerAddress(provider.peer_id, provider.addresses)
        await client._thread.call(client._service.open_session, address, road, DEADLINE_S)
        road.start(near)
        far = await asyncio.wait_for(listener.ends.get(), DEADLINE_S)
        far.road.write(bytes(WINDOW_BYTES))  # something to grant
        if not road.is_closing():
            road.write(b"x")
        reason, _ = await ended(near, far)
        assert "a bug" in str(reason)
        assert "a road over libp2p failed" in caplog.text
        assert client.health().restarts == 0
        opened_by_others.near.road.write(b"still here")
        await opened_by_others.far.until(lambda: opened_by_others.far.received == b"still here")


async def test_a_road_outlives_no_host() -> None:
    async with hosts() as (provider, client, listener):
        p = await opened(provider, client, listener)
        await client._thread.stop()
        near, far = await ended(p.near, p.far)
        assert "host stopped" in str(near)
        assert isinstance(far, ConnectionResetError)
        p.near.road.write(b"nothing happens")


async def test_a_road_begun_before_it_is_wanted_is_reset() -> None:
    """The dial was given up while the stream was being opened."""
    async with hosts() as (provider, client, listener):
        road = StreamRoad(asyncio.get_running_loop())
        road.abort()
        await client._thread.call(
            client._service.open_session, PeerAddress(provider.peer_id, provider.addresses), road, DEADLINE_S
        )
        far = await asyncio.wait_for(listener.ends.get(), DEADLINE_S)
        assert isinstance((await ended(far))[0], ConnectionResetError)
        end = End()
        road.start(end)
        assert await ended(end) == [None]


async def test_who_sends_past_its_window_loses_the_connection_alone() -> None:
    async with hosts() as (provider, client, listener):
        p = await opened(provider, client, listener)
        p.far.road.pause_reading()

        async def forget_the_window() -> None:
            stream: Any = p.near.road._stream
            stream.granted(1 << 30)

        await client._thread.call(forget_the_window)
        p.near.road.write(bytes(2 * WINDOW_BYTES))
        await ended(p.near)
        assert len(p.far.road._inbox) <= WINDOW_BYTES
        p.far.road.resume_reading()
        assert isinstance((await ended(p.far))[0], ConnectionResetError)
        assert provider.health().restarts == 0
        again = await opened(provider, client, listener)
        again.near.road.write(b"hello")
        await again.far.until(lambda: again.far.received == b"hello")


async def test_a_protocol_that_fails_loses_its_road_and_is_reported() -> None:
    class Faulty(End):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("a bug")

    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
    async with pair() as p:
        faulty = Faulty()
        faulty.road = p.near.road
        p.near.road.set_protocol(faulty)
        p.far.road.write(b"x")
        assert await ended(faulty) == [None]
        assert isinstance((await ended(p.far))[0], ConnectionResetError)
    assert [str(report["exception"]) for report in reports] == ["a bug"]
