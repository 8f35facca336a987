"""libp2p 0.8.1's yamux, with the faults mended that a peer or a cancelled task could use to end a connection or a host.

| fault | here |
|---|---|
| a writer cancelled half-way tears the frame, and with it the connection and all its streams | writes are shielded |
| a peer that stops reading holds a shielded writer for ever | a write has a time bound; past it the connection goes |
| a task cancelled while it opens a stream loses one of the connection's 256 slots for good | opening is shielded |
| a peer may send past the window it was given, without end | unread bytes of a connection are capped |
| frames and streams come as fast as the peer sends them, each 0.05 to 3 ms of work | read no faster than rates allow |
| a stream that was reset reads like one that ended in good order | it reads as reset |
| an exception in the connection's task ends the host | it ends the connection |
| a window grows to 4 MiB while a protocol is negotiated, and an update is sent after every read | neither |
| a busy stream costs many turns of the scheduler a frame | it may be tapped (yamux_frames.py) |
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import DEFAULT_WINDOW_SIZE, Yamux, YamuxStream

from p2pgrid.net.shielding import shielded_for
from p2pgrid.net.yamux_frames import BODY_TIMEOUT_S, FrameSource, Throttle

logger = logging.getLogger(__name__)

WRITE_TIMEOUT_S: Final = 10.0
"""A frame of at most 64 KiB that the peer's socket does not take in this time."""
MAX_UNREAD_BYTES: Final = 1024 * 1024
"""Received and not read by our handlers, over all streams of one connection."""


class SteadyStream(YamuxStream):  # type: ignore[misc]
    """A yamux stream whose window keeps its size, and is granted anew by halves."""

    _pending_recv_release: int
    recv_window: int

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        self._pending_recv_release += bytes_read
        if self._pending_recv_release >= DEFAULT_WINDOW_SIZE // 2:
            n_bytes, self._pending_recv_release = self._pending_recv_release, 0
            self.recv_window += n_bytes
            await self.send_window_update(n_bytes)


class UnreadLimit(trio.TooSlowError):
    """The peer sent more than our handlers had room for. A TooSlowError, because yamux closes on that one alone."""


class ShieldedYamux(Yamux):  # type: ignore[misc]
    """A yamux connection that neither a cancellation nor its peer can leave half-written or half-closed."""

    write_timeout_s: float = WRITE_TIMEOUT_S

    def __init__(self, secured_conn: Any, *args: Any, throttle: Throttle | None = None, **kwargs: Any) -> None:
        self.frames = FrameSource(secured_conn, throttle)
        self.is_broken = False
        """True once a write failed: the connection is about to end."""
        super().__init__(self.frames, *args, **kwargs)

    async def start(self) -> None:
        try:
            await super().start()
        except Exception as error:  # noqa: BLE001 (the connection's boundary: whatever it was, it ends this connection)
            logger.debug("a connection to %s ended: %r", self.peer_id, error)
            await self._cleanup_on_error()
        finally:
            self.event_started.set()  # or the swarm would wait for it for ever

    async def open_stream(self) -> YamuxStream:
        with shielded_for(self.write_timeout_s):
            return await super().open_stream()
        raise MuxedStreamError(f"no stream to {self.peer_id} could be opened in {self.write_timeout_s:g} s")

    async def _write_frame(self, data: bytes) -> None:
        with shielded_for(self.write_timeout_s):
            try:
                self._write_lock.acquire_nowait()  # a turn of the scheduler less than acquire()
            except trio.WouldBlock:
                await self._write_lock.acquire()
            try:
                await self.secured_conn.write(data)
            except IOException:
                await self._give_up()
                raise
            finally:
                self._write_lock.release()
            return
        await self._give_up()
        raise MuxedStreamError(f"{self.peer_id} took no data for {self.write_timeout_s:g} s")

    async def _give_up(self) -> None:
        """Nothing can be written any more."""
        self.is_broken = True
        # Only the socket is closed here: callers may hold the lock that a full clean-up takes. The reader notices.
        with shielded_for(1):
            await self.secured_conn.close()

    async def read_stream(self, stream_id: int, n: int = -1) -> bytes:
        stream = self.streams.get(stream_id)
        try:
            data: bytes = await super().read_stream(stream_id, n)
        except MuxedStreamEOF:
            # A reset forgets the stream before its reader looks; an end in good order is known to the stream itself.
            if stream is None or stream.reset_received:
                raise MuxedStreamReset("the stream was reset") from None
            raise
        return data

    async def _read_data_body(self, length: int) -> bytes:
        if length + sum(map(len, self.stream_buffers.values())) > MAX_UNREAD_BYTES:
            raise UnreadLimit(f"{self.peer_id} sent more than {MAX_UNREAD_BYTES} bytes that nobody has read")
        with trio.fail_after(BODY_TIMEOUT_S):
            return await self.frames.read_body(length)


class ShieldedMuxer(MuxerMultistream):  # type: ignore[misc]
    """Negotiates yamux as the base class does, and then uses ours: the base names its own class."""

    throttle_of: Callable[[Any], Throttle] | None = None
    """How fast the peer at the other end of a secured connection may talk."""

    async def new_conn(self, conn: Any, peer_id: Any) -> Any:
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        throttle = self.throttle_of(conn) if self.throttle_of is not None else None
        muxed = ShieldedYamux(conn, peer_id, is_initiator=conn.is_initiator, throttle=throttle)
        return self._annotate_connection(muxed, conn, protocol)
