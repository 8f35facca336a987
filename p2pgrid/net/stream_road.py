"""A road made of a stream that lives in the trio thread: an `asyncio.Transport` on this side, two tasks on that one.

Bytes cross the border in batches. What is written while trio is busy with the last batch waits and crosses as one; what
arrives while the loop is busy is delivered as one. On either side at most one wake-up is under way.

Nothing is stored without limit. Outwards, `pause_writing` is called above the high-water mark, and LinkConnection sends
no more. Inwards, the peer may send `WINDOW_BYTES` ahead of what was handed to the protocol, and loses the connection if
it sends more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.net.shielding import shielded_for

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 1024 * 1024
"""What may come ahead of the protocol. Granted anew by halves. Less than libp2p's first 256 KiB makes it no smaller."""
HIGH_WATER_BYTES: Final = 64 * 1024
LINGER_S: Final = 2.0
"""How long the peer may take to end a stream that we have ended, before it is reset."""
_RESET_S: Final = 1.0
_BROKEN: Final = (IOException, MuxedStreamError, MuxedConnError)


class TrioStream(Protocol):
    """What a road is laid on. All methods belong to the trio thread."""

    async def open(self, hear: Callable[[bytes], None], window_bytes: int) -> None:
        """Call `hear` with all that comes, and let the peer send so much ahead of `grant`."""

    async def grant(self, n_bytes: int) -> None:
        """Let the peer send so many more."""

    async def wait_end(self) -> None:
        """Return when the peer has ended. Raises an error of libp2p where it reset, or the connection is gone."""

    async def write(self, data: bytes) -> None:
        """Send all of it. Cancelled, it leaves no frame half-written."""

    async def finish(self) -> None:
        """Say that nothing more will come."""

    async def reset(self) -> None:
        """Cut both directions. Never raises."""

    def close(self) -> None:
        """Both sides have ended: let go of it."""


class StreamRoad(asyncio.Transport):
    """One road. Its public methods belong to the loop's thread, save `lay_on` and `run`, which belong to trio's.

    Made on either side. It knows its other end from `lay_on` on, and bytes flow once it has `run` and `start` both.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, window_bytes: int = WINDOW_BYTES) -> None:
        super().__init__()
        self._loop = loop
        self._window_bytes = window_bytes
        self._lock = threading.Lock()
        """Held for a few instructions at a time, over whatever both threads touch."""
        # The loop's.
        self._protocol: asyncio.Protocol | None = None
        self._is_closing = False
        self._is_lost = False
        self._loss: list[Exception | None] = []
        """The reason, once the road is gone, until the protocol was told."""
        self._reading_paused = False
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4
        # Both threads', under the lock.
        self._outbox: list[bytes] = []
        self._unsent_bytes = 0
        """Of the outbox, and of the batch that trio is sending."""
        self._trio_is_awake = True
        self._writing_paused = False
        self._is_finishing = False
        self._is_aborted = False
        self._inbox = bytearray()
        """No list: a peer may send its window a byte at a time."""
        self._loop_is_awake = False
        self._consumed_bytes = 0
        """Handed to the protocol, and not yet granted anew."""
        self._grant_is_due = False
        self._end: Exception | str | None = None
        """How reading ended: the text "eof", or an error."""
        # Trio's.
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._writable, self._grantable = trio.Event(), trio.Event()
        self._peer_ended = trio.Event()
        self._stream: TrioStream
        self._extra: dict[str, Any] = {}

    # -- asyncio.Transport -------------------------------------------------------------------------------------

    def start(self, protocol: asyncio.Protocol) -> None:
        """Call `connection_made`, and deliver what has come. Once."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._deliver()
        if self._loss:
            self._loop.call_soon(self._lose, None)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None, "the road was not started"
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`peer_id` (text): whom the road has proven to be there. `peername`: the address of the next hop, if known."""
        return self._extra.get(name, default)

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue the bytes. On a road that closes, or is gone, nothing happens."""
        if self._is_closing or not data:
            return
        with self._lock:
            self._outbox.append(bytes(data))
            self._unsent_bytes += len(data)
            pause = self._unsent_bytes > self._high and not self._writing_paused
            if pause:
                self._writing_paused = True
        self._wake_trio()
        if pause and self._protocol is not None:
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high if high is not None else (4 * low if low is not None else HIGH_WATER_BYTES)
        self._low = low if low is not None else self._high // 4
        if not 0 <= self._low <= self._high:
            raise ValueError(f"low ({low}) must be between 0 and high ({high})")

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def is_reading(self) -> bool:
        return not self._reading_paused and not self._is_closing

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._loop.call_soon(self._deliver)

    def close(self) -> None:
        """Send what is queued, end the stream, then `connection_lost(None)`. Nothing more is received."""
        if self._is_closing:
            return
        self._is_closing = True
        with self._lock:
            self._is_finishing = True
            grant = self._note_consumed(len(self._inbox))
            self._inbox.clear()
        if self._token is None:
            self.abort()  # there is no stream yet, so there is nothing to be polite to
        if grant:
            self._in_trio(self._resume_grants)
        self._wake_trio()

    def abort(self) -> None:
        """Drop what is queued, reset the stream, and `connection_lost(None)` on the loop's next turn."""
        self._is_closing = True
        with self._lock:
            self._is_aborted = True
            self._outbox.clear()
        self._loop.call_soon(self._lose, None)  # first: trio's own word on it must come behind
        self._in_trio(self._scope.cancel)

    # -- the loop's side of the border -------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Hand over all that has come, and how it ended."""
        protocol = self._protocol
        with self._lock:
            self._loop_is_awake = False
            if protocol is None:
                return
            batch = bytearray()
            if not self._reading_paused and not self._is_closing:
                batch, self._inbox = self._inbox, batch
            end, grant = self._end, self._note_consumed(len(batch))
        if grant:
            self._in_trio(self._resume_grants)
        if batch:
            self._in_protocol(protocol.data_received, bytes(batch))
        if isinstance(end, Exception):
            self._lose(end)
        elif end is not None and self.is_reading() and not self._in_protocol(protocol.eof_received):
            self.close()

    def _in_protocol(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call the protocol. A fault of its own is reported, and costs it the road, as with asyncio's transports."""
        try:
            return fn(*args)
        except Exception as error:  # noqa: BLE001 - the boundary: reported
            self._loop.call_exception_handler(
                {"message": "a road's protocol failed", "exception": error, "transport": self}
            )
            self.abort()
            return None

    def _note_consumed(self, n_bytes: int) -> bool:
        """With the lock held: so much is used up. True if it is time to have trio grant it anew."""
        self._consumed_bytes += n_bytes
        if self._grant_is_due or self._consumed_bytes < self._window_bytes // 2:
            return False
        self._grant_is_due = True
        return True

    def _resume_protocol(self) -> None:
        with self._lock:
            resume = self._writing_paused and self._unsent_bytes <= self._low
            if resume:
                self._writing_paused = False
        if resume and self._protocol is not None and not self._is_lost:
            self._protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        """The road is gone: tell the protocol, once. The first reason counts."""
        self._is_closing = True
        self._loss.append(error)
        if not self._is_lost and self._protocol is not None:
            self._is_lost = True
            self._protocol.connection_lost(self._loss[0])

    def _wake_trio(self) -> None:
        with self._lock:
            if self._trio_is_awake:
                return
            self._trio_is_awake = True
        self._in_trio(self._resume_writer)

    def _in_trio(self, fn: Callable[[], Any]) -> None:
        if self._token is None:
            return
        try:
            self._token.run_sync_soon(fn)
        except trio.RunFinishedError:
            self._loop.call_soon(self._lose, _host_stopped())

    # -- trio's side -------------------------------------------------------------------------------------------

    def lay_on(self, stream: TrioStream, extra: dict[str, Any]) -> None:
        """Say what it runs on, and what `get_extra_info` tells. `run` must follow."""
        self._stream, self._extra = stream, extra
        self._token = trio.lowlevel.current_trio_token()

    async def run(self) -> None:
        """Carry bytes until the road is closed at either end. Never raises, save on cancellation: then it is lost."""
        is_done = False
        try:
            with self._scope:
                if self._is_aborted:
                    self._scope.cancel()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guarded, self._watch_end)
                    nursery.start_soon(self._guarded, self._grant)
                    is_done = await self._guarded(self._write_out)
                    nursery.cancel_scope.cancel()
        finally:
            self._in_loop(self._lose, self._why_cancelled())  # unheard, where the road was closed from here
            if is_done:
                self._stream.close()
            else:
                with shielded_for(_RESET_S):
                    await self._stream.reset()

    async def _guarded(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Do it. What it raises ends this road, and not the host."""
        try:
            return await work()
        except _BROKEN as error:
            reason: Exception = ConnectionResetError(f"the other side is gone ({error or type(error).__name__})")
        except Exception as error:
            log.error("a road over libp2p failed", exc_info=error)
            reason = ConnectionAbortedError(f"a fault on this side: {error!r}")
        self._ended(reason)
        self._scope.cancel()
        return False

    async def _write_out(self) -> bool:
        """True once all was sent, and the stream ended by both sides."""
        await self._stream.open(self._received, self._window_bytes)
        while True:
            with self._lock:
                batch = b"".join(self._outbox)
                self._outbox.clear()
                is_finishing = self._is_finishing
                self._trio_is_awake = bool(batch) or is_finishing
            if batch:
                await self._stream.write(batch)
                self._sent(len(batch))
            elif is_finishing:
                break
            else:
                await self._writable.wait()
                self._writable = trio.Event()
        await self._stream.finish()
        self._in_loop(self._lose, None)
        with trio.move_on_after(LINGER_S):
            await self._peer_ended.wait()
        return self._peer_ended.is_set()

    async def _watch_end(self) -> bool:
        """True once the peer has ended."""
        try:
            await self._stream.wait_end()
        except trio.Cancelled:
            # Told from here, for the writer may be held up in a frame for a while.
            self._in_loop(self._lose, self._why_cancelled())
            raise
        self._ended("eof")
        self._peer_ended.set()
        return True

    async def _grant(self) -> bool:
        """A task of its own: where both sides' writers wait for the other's window, somebody must grant it."""
        while True:
            await self._grantable.wait()
            self._grantable = trio.Event()
            with self._lock:
                consumed, self._consumed_bytes = self._consumed_bytes, 0
                self._grant_is_due = False
            await self._stream.grant(consumed)

    def _received(self, data: bytes) -> None:
        if self._is_closing:
            # Nobody wants it, and yet it is granted anew: the peer may have to get rid of it to hear our end.
            with self._lock:
                grant = self._note_consumed(len(data))
            if grant:
                self._grantable.set()
            return
        with self._lock:
            self._inbox += data
        self._wake_loop()

    def _ended(self, end: Exception | str) -> None:
        with self._lock:
            if not isinstance(self._end, Exception):
                self._end = end
        self._wake_loop()

    def _why_cancelled(self) -> Exception:
        return self._end if isinstance(self._end, Exception) else _host_stopped()

    def _wake_loop(self) -> None:
        with self._lock:
            if self._loop_is_awake:
                return
            self._loop_is_awake = True
        self._in_loop(self._deliver)

    def _sent(self, n_bytes: int) -> None:
        with self._lock:
            self._unsent_bytes -= n_bytes
            resume = self._writing_paused and self._unsent_bytes <= self._low
        if resume:
            self._in_loop(self._resume_protocol)

    def _resume_writer(self) -> None:
        self._writable.set()

    def _resume_grants(self) -> None:
        self._grantable.set()

    def _in_loop(self, fn: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:
            log.debug("a road outlived its loop")


def _host_stopped() -> ConnectionAbortedError:
    return ConnectionAbortedError("the libp2p host stopped")
