"""The bus: order, frames in pieces, what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import hypothesis.strategies as st
import pytest
from hypothesis import given

from p2pgrid.processes.bus import MAX_FRAME_BYTES, Bus, BusMessage


class Word(BusMessage, frozen=True):
    NUMBER = 200

    text: str
    data: bytes = b""


class Other(BusMessage, frozen=True):
    NUMBER = 201


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Bus, Bus]]:
    left, right = socket.socketpair()
    one, two = await Bus.over(left, "one"), await Bus.over(right, "two")
    try:
        yield one, two
    finally:
        one.abort()
        two.abort()


async def wait(condition: asyncio.Event) -> None:
    await asyncio.wait_for(condition.wait(), 10)


async def test_messages_come_whole_and_in_order_whatever_their_size() -> None:
    async with pair() as (one, two):
        came: list[Word] = []
        done = asyncio.Event()

        def take(word: Word) -> None:
            came.append(word)
            if word.text == "last":
                done.set()

        sent = [Word(str(n), bytes(n * 10_000)) for n in range(40)] + [Word("last")]
        for word in sent:
            one.send(word)
        await asyncio.sleep(0)
        two.on(Word, take)
        two.start()  # what came before is not lost
        await wait(done)
        assert came == sent


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_a_stream_cut_anywhere_gives_the_same_messages(payloads: list[bytes], data: st.DataObject) -> None:
    async def check() -> None:
        async with pair() as (one, two):
            written: list[bytes] = []
            one._transport = _Catching(written)  # type: ignore[assignment]
            for payload in payloads:
                one.send(Word("", payload))
            one._flush()
            stream, came = b"".join(written), list[bytes]()
            two.on(Word, lambda word: came.append(word.data))
            two.start()
            while stream:
                n = data.draw(st.integers(1, len(stream)))
                two.data_received(stream[:n])
                stream = stream[n:]
            assert came == payloads

    asyncio.run(check())


class _Catching:
    def __init__(self, written: list[bytes]) -> None:
        self._written = written

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self._written.append(data)

    def abort(self) -> None:
        pass


@pytest.mark.parametrize(
    "stream",
    [
        (MAX_FRAME_BYTES + 1).to_bytes(4, "little") + b"\xc8",
        (0).to_bytes(4, "little") + b"\xc8",
        (2).to_bytes(4, "little") + b"\xc8\xc1",
        (1).to_bytes(4, "little") + b"\x07",
    ],
    ids=["too long", "empty", "no MessagePack", "nobody's"],
)
async def test_what_cannot_be_read_ends_the_bus(stream: bytes) -> None:
    async with pair() as (one, two):
        two.on(Word, lambda _: None)
        two.start()
        assert one._transport is not None
        one._transport.write(stream)
        await asyncio.wait_for(asyncio.gather(one.closed, two.closed), 10)


async def test_a_handler_that_fails_ends_the_bus() -> None:
    async with pair() as (one, two):

        def fail(_: Word) -> None:
            raise RuntimeError("a bug")

        two.on(Word, fail)
        two.start()
        one.send(Word("x"))
        await asyncio.wait_for(one.closed, 10)


async def test_the_other_end_notices_that_one_is_gone_and_later_words_go_nowhere() -> None:
    async with pair() as (one, two):
        two.start()
        one.send(Other())
        one.abort()
        await asyncio.wait_for(two.closed, 10)
        two.send(Word("to nobody"))


async def test_two_handlers_for_one_number_are_a_mistake() -> None:
    async with pair() as (one, _):
        one.on(Word, lambda _: None)
        with pytest.raises(ValueError, match="taken"):
            one.on(Word, lambda _: None)
