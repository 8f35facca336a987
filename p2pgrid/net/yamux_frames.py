"""Reading yamux frames ahead of libp2p 0.8.1's own loop, for streams that are too busy for it.

That loop takes turns of trio's scheduler and formats log lines for every frame, and so does its reader. A stream that
is *tapped* gets its bytes in a plain call, as they are taken off the connection; only what changes a stream's state
(SYN, FIN, RST) and what belongs to other streams is left to the loop.

All that a peer says passes here, so here it is slowed down where it says too much: what is read no further waits in the
sockets of both sides.
"""

from __future__ import annotations

import struct
from typing import Any, Final, Protocol

import trio
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_RST,
    FLAG_SYN,
    HEADER_SIZE,
    MAX_WINDOW_SIZE,
    TYPE_DATA,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
)

from p2pgrid.net.limits import Rates

HEADER: Final = struct.Struct(YAMUX_HEADER_FORMAT)
"""Version, type, flags, stream, length (https://github.com/hashicorp/yamux/blob/master/spec.md)."""
BODY_TIMEOUT_S: Final = 60.0
"""How long a frame's bytes may take once its header came, as in the base class."""


class Throttle:
    """How fast the peer of one connection may talk. The rates are shared by all connections of an address."""

    def __init__(self, address: str, opens: Rates, frames: Rates) -> None:
        """`opens`: streams; `frames`: frames that no tap takes, and messages of Noise with whatever is in them."""
        self._address = address
        self._opens = opens
        self._frames = frames

    async def message(self) -> None:
        """A message came. Returns when the next may be read."""
        await self._wait(self._frames)

    async def frame(self, *, opens: bool) -> None:
        """A frame came that no tap takes. Returns when it may be dealt with."""
        await self._wait(self._frames)
        if opens:
            await self._wait(self._opens)

    async def _wait(self, rates: Rates) -> None:
        pause_s = rates.spend(self._address, trio.current_time())
        if pause_s:
            await trio.sleep(pause_s)


class Tap(Protocol):
    """What hears a tapped stream. Called within the connection's reading task: quick, and without waiting."""

    def received(self, data: bytes) -> None:
        """The peer sent bytes. Raise `trio.TooSlowError` to close the connection."""

    def granted(self, n_bytes: int) -> None:
        """The peer lets us send so many more."""

    def broken(self) -> None:
        """The peer has reset the stream, or the connection is gone."""


class FrameSource:
    """Stands where yamux has its secured connection: hands it headers and bodies, without those of tapped streams."""

    def __init__(self, inner: Any, throttle: Throttle | None = None) -> None:
        self._inner = inner
        self._throttle = throttle
        self._buffer = bytearray()
        self.taps: dict[int, Tap] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def read(self, n: int) -> bytes:
        """The next frame's header, where `n` is its size: yamux's loop asks for nothing else."""
        try:
            return await self._next_header(n)
        except BaseException:
            for tap in self.taps.values():
                tap.broken()
            raise

    async def _next_header(self, n: int) -> bytes:
        while True:
            await self._fill(HEADER_SIZE)
            header = bytes(self._buffer[:HEADER_SIZE])
            version, kind, flags, stream_id, length = HEADER.unpack(header)
            tap = self.taps.get(stream_id)
            if tap is None or flags & FLAG_SYN or kind not in (TYPE_DATA, TYPE_WINDOW_UPDATE):
                del self._buffer[:n]
                if self._throttle is not None:
                    await self._throttle.frame(opens=bool(flags & FLAG_SYN) and kind != TYPE_PING)
                return header
            if kind == TYPE_WINDOW_UPDATE:
                del self._buffer[:HEADER_SIZE]
                tap.granted(length)
            else:
                body = await self._body_of_next(length)
                if body:
                    tap.received(body)
            if flags & FLAG_RST:
                tap.broken()
            if flags:
                return HEADER.pack(version, kind, flags, stream_id, 0)

    async def read_body(self, n: int) -> bytes:
        """The bytes behind a header that `read` handed out."""
        await self._fill(n)
        body = bytes(self._buffer[:n])
        del self._buffer[:n]
        return body

    async def _body_of_next(self, length: int) -> bytes:
        """Take the frame at the buffer's beginning; its body."""
        if length > MAX_WINDOW_SIZE:
            raise trio.TooSlowError("a frame is announced that no window could hold")
        end = HEADER_SIZE + length
        if len(self._buffer) < end:
            with trio.fail_after(BODY_TIMEOUT_S):
                await self._fill(end)
        body = bytes(memoryview(self._buffer)[HEADER_SIZE:end])
        del self._buffer[:end]
        return body

    async def _fill(self, n: int) -> None:
        while len(self._buffer) < n:
            if self._throttle is not None:
                await self._throttle.message()
            self._buffer += await self._inner.read()  # the next message of Noise
