"""Frames of tapped streams go to their taps, all others to yamux, however the bytes are cut into messages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from libp2p.stream_muxer.yamux.yamux import FLAG_FIN, FLAG_RST, FLAG_SYN, MAX_WINDOW_SIZE, TYPE_DATA, TYPE_WINDOW_UPDATE

from p2pgrid.net.yamux_frames import HEADER, FrameSource

PING, GO_AWAY = 2, 3
TAPPED, OTHER, SESSION = 1, 3, 0


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    body: bytes = b""
    number: int = 0

    def to_bytes(self) -> bytes:
        length = len(self.body) if self.kind == TYPE_DATA else self.number
        return HEADER.pack(0, self.kind, self.flags, self.stream, length) + self.body


@dataclass
class Heard:
    """A tap that notes what it is told."""

    data: bytes = b""
    granted_bytes: int = 0
    breaks: int = 0

    def received(self, data: bytes) -> None:
        assert data
        self.data += data

    def granted(self, n_bytes: int) -> None:
        self.granted_bytes += n_bytes

    def broken(self) -> None:
        self.breaks += 1


class Messages:
    """What Noise hands up: messages of any size, and an error at the end."""

    def __init__(self, messages: list[bytes]) -> None:
        self.messages = messages

    async def read(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.messages:
            raise EOFError
        return self.messages.pop(0)


FRAMES = st.lists(
    st.one_of(
        st.builds(
            Frame,
            st.just(TYPE_DATA),
            st.sampled_from([0, 0, 0, FLAG_FIN, FLAG_RST, FLAG_SYN]),
            st.sampled_from([TAPPED, OTHER]),
            st.binary(max_size=40),
        ),
        st.builds(
            Frame,
            st.just(TYPE_WINDOW_UPDATE),
            st.sampled_from([0, 0, FLAG_FIN, FLAG_RST, FLAG_SYN]),
            st.sampled_from([TAPPED, OTHER]),
            number=st.integers(0, 2**20),
        ),
        st.builds(Frame, st.sampled_from([PING, GO_AWAY]), st.just(0), st.just(SESSION), number=st.integers(0, 9)),
    ),
    max_size=20,
)


async def read_all(source: FrameSource) -> list[Frame]:
    """What yamux's own loop sees."""
    seen = []
    with pytest.raises(EOFError):
        while True:
            _, kind, flags, stream, length = HEADER.unpack(await source.read(HEADER.size))
            if kind == TYPE_DATA:
                seen.append(Frame(kind, flags, stream, await source.read_body(length)))
            else:
                seen.append(Frame(kind, flags, stream, number=length))
    return seen


@given(frames=FRAMES, cuts=st.lists(st.integers(1, 30), min_size=1))
def test_every_frame_reaches_whom_it_is_for(frames: list[Frame], cuts: list[int]) -> None:
    wire, messages = b"".join(frame.to_bytes() for frame in frames), []
    while wire:
        size = cuts[len(messages) % len(cuts)]
        messages.append(wire[:size])
        wire = wire[size:]
    source, heard = FrameSource(Messages(messages)), Heard()
    source.taps[TAPPED] = heard
    seen = trio.run(read_all, source)

    tapped = [f for f in frames if f.stream == TAPPED and not f.flags & FLAG_SYN]
    assert heard.data == b"".join(f.body for f in tapped)
    assert heard.breaks == 1 + sum(bool(f.flags & FLAG_RST) for f in tapped)  # one for the end of all
    assert heard.granted_bytes == sum(f.number for f in tapped if f.kind == TYPE_WINDOW_UPDATE)
    # Yamux sees the changes of a tapped stream's state, without what the tap has taken, and all of the others.
    expected = [Frame(f.kind, f.flags, f.stream) if f in tapped else f for f in frames if f not in tapped or f.flags]
    assert seen == expected


def test_a_frame_that_no_window_could_hold_is_refused_before_it_is_read() -> None:
    header = HEADER.pack(0, TYPE_DATA, 0, TAPPED, MAX_WINDOW_SIZE + 1)
    source = FrameSource(Messages([header]))
    source.taps[TAPPED] = Heard()

    async def read() -> None:
        with pytest.raises(trio.TooSlowError):
            await source.read(HEADER.size)

    trio.run(read)


def test_a_body_that_does_not_come_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    source = FrameSource(Stalled(HEADER.pack(0, TYPE_DATA, 0, TAPPED, 10) + b"half"))
    source.taps[TAPPED] = Heard()

    async def read() -> None:
        with pytest.raises(trio.TooSlowError):
            await source.read(HEADER.size)

    trio.run(read, clock=autojump_clock)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


class Stalled:
    """Sends something once, and then nothing."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self) -> bytes:
        if self.data:
            data, self.data = self.data, b""
            return data
        await trio.sleep_forever()
        raise AssertionError
