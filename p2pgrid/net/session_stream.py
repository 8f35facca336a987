"""A yamux stream as a road wants it: read by a tap, written in batches, with a window of its own.

libp2p 0.8.1's stream grants a window of 256 KiB, sends an update after every read, and gives up 5 s after the peer's
window is used up, for which it looks a hundred times a second. Here the window is 1 MiB, updates go out when half of it
is used, and a writer waits as long as the link above it lets it (`WRITE_STALL_S`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import TYPE_DATA

from p2pgrid.net.host import close_stream
from p2pgrid.net.relay.kind import circuit_of
from p2pgrid.net.yamux import UnreadLimit
from p2pgrid.net.yamux_frames import HEADER

FRAME_BYTES: Final = 60 * 1024
"""With its header it fits one message of Noise."""


class SessionStream:
    """Made from a libp2p stream that has been negotiated. All methods belong to the trio thread."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._muxed = stream.muxed_stream
        self._connection = self._muxed.conn
        self._id: int = self._muxed.stream_id
        self._window_opened = trio.Event()
        self._is_broken = False
        self._hear: Callable[[bytes], None] = _drop

    @property
    def peer_id(self) -> str:
        """Whom Noise has proven to be at the other end."""
        return str(self._connection.peer_id)

    @property
    def peer_address(self) -> tuple[str, int] | None:
        """Where the connection comes from, or leads to."""
        address: tuple[str, int] | None = self._connection.get_remote_address()
        return address

    @property
    def relay(self) -> str | None:
        """The peer id of the relay that the connection leads through; None where it leads through none."""
        circuit = circuit_of(self._connection)
        return circuit.relay if circuit is not None else None

    async def open(self, hear: Callable[[bytes], None], window_bytes: int) -> None:
        """Call `hear` with all that comes, and let the peer send so much ahead of `grant`."""
        self._hear = hear
        self._connection.frames.taps[self._id] = self
        self._hear_buffered()
        await self.grant(window_bytes - self._muxed.recv_window)

    async def grant(self, n_bytes: int) -> None:
        """Let the peer send so many more."""
        if n_bytes > 0:
            self._muxed.recv_window += n_bytes
            await self._muxed.send_window_update(n_bytes)

    async def wait_end(self) -> None:
        """Return when the peer has ended. Raises MuxedStreamReset where it reset, or the connection is gone."""
        try:
            while True:  # the tap leaves nothing to read, save what yamux's loop already had in hand
                self._hear(await self._connection.read_stream(self._id, FRAME_BYTES))
        except MuxedStreamEOF:
            if self._connection.event_shutting_down.is_set():
                raise MuxedStreamReset("the connection under the stream ended") from None

    async def write(self, data: bytes) -> None:
        """Send all of it, as the peer's window allows. Raises MuxedStreamReset; cancelled, it tears no frame."""
        muxed, sent = self._muxed, 0
        while sent < len(data):
            if self._is_broken or muxed.closed or muxed.send_closed:
                raise MuxedStreamReset("the stream is closed")
            if muxed.send_window <= 0:
                self._window_opened = trio.Event()
                await self._window_opened.wait()
                continue
            chunk = data[sent : sent + min(muxed.send_window, FRAME_BYTES)]
            muxed.send_window -= len(chunk)
            sent += len(chunk)
            await self._connection._write_frame(HEADER.pack(0, TYPE_DATA, 0, self._id, len(chunk)) + chunk)

    async def finish(self) -> None:
        """Say that nothing more will come."""
        await close_stream(self._stream)

    async def reset(self) -> None:
        """Cut both directions, and let go of the tap. Never raises."""
        self._connection.frames.taps.pop(self._id, None)
        await self._stream.reset()

    def close(self) -> None:
        """Let go of the tap of a stream that both sides have ended."""
        self._connection.frames.taps.pop(self._id, None)

    def received(self, data: bytes) -> None:
        """The tap. Who sends past its window loses the connection."""
        self._muxed.recv_window -= len(data)
        if self._muxed.recv_window < 0:
            raise UnreadLimit(f"{self.peer_id} sent past the window of a stream")
        self._hear_buffered()
        self._hear(data)

    def _hear_buffered(self) -> None:
        """What yamux's loop had taken before the tap was there comes first."""
        if waiting := self._connection.stream_buffers.get(self._id):
            data = bytes(waiting)
            waiting.clear()
            self._hear(data)

    def granted(self, n_bytes: int) -> None:
        """The tap."""
        self._muxed.send_window += n_bytes
        self._window_opened.set()

    def broken(self) -> None:
        """The tap. Whoever waits for the window waits in vain."""
        self._is_broken = True
        self._window_opened.set()


def _drop(_: bytes) -> None:
    """What comes before anybody listens."""
