"""One conversation on a link: `Stream`, and what its owner implements, `StreamHandler`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from p2pgrid.errors import P2pgridError, Refused, Unreachable
from p2pgrid.proto.frame import MAX_PAYLOAD_BYTES, ResetCode, reset_name
from p2pgrid.proto.keys import PublicKey

if TYPE_CHECKING:
    from p2pgrid.net.connection import LinkConnection


class StreamHandler(Protocol):
    """What hears a stream. All calls come from the loop, in the order of the wire, and must not block.

    After `reset` or `link_lost` no further call comes. An exception from any of them is logged, resets that stream
    (`reset` is then called, to clean up), and harms nothing else.
    """

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        """A frame came. For kinds from 128 up, call `stream.consume(len(payload))` once its bytes are used up."""

    def writable(self, stream: Stream) -> None:
        """Bulk may be sent again: look at `stream.writable_bytes`. May be called without need."""

    def ended(self, stream: Stream) -> None:
        """The peer sends no more on this stream."""

    def reset(self, stream: Stream, code: int, message: str) -> None:
        """The peer cut the stream (`p2pgrid.proto.frame.ResetCode`)."""

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        """The link under the stream is gone."""


class Stream:
    """One conversation on a link. Its methods return at once; on a stream that is gone they do nothing."""

    __slots__ = ("_connection", "_error", "_waiters", "handler", "id")

    def __init__(self, connection: LinkConnection, stream_id: int) -> None:
        self.id = stream_id
        self.handler: StreamHandler
        self._connection = connection
        self._error: P2pgridError | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def connection(self) -> LinkConnection:
        return self._connection

    @property
    def peer(self) -> PublicKey:
        """The proven key of the other side."""
        return self._connection.peer

    @property
    def is_open(self) -> bool:
        """False once both sides have ended, one has reset, or the link is gone."""
        return self._connection._streams.by_id.get(self.id) is self

    @property
    def writable_bytes(self) -> int:
        """Bytes of credited kinds that may be sent now. When it was too few, `writable` tells of more."""
        connection = self._connection
        return 0 if connection._writer.is_paused else connection._link.credit(self.id)

    def send(self, kind: int, payload: bytes) -> None:
        """Queue a frame of at most 64 KiB. Kinds 16-127 always go; for 128-255 keep to `writable_bytes`.

        ValueError for what must not be sent: too many bytes, no credit, after `end`.
        """
        connection = self._connection
        connection._do(connection._link.send, self.id, kind, payload)

    def send_if_credited(self, kind: int, payload: bytes) -> bool:
        """`send` a credited kind if `writable_bytes` has room for it, in one step. False if not; nothing is sent."""
        connection = self._connection
        writer = connection._writer
        if writer.is_paused:
            return False
        try:
            is_sent = connection._link.send_if_credited(self.id, kind, payload)
        except Unreachable as error:
            connection._loop.call_soon(connection._shut, error, True)
            return True
        if not writer.is_scheduled:
            writer.schedule()
        return is_sent

    async def drain(self, wanted_bytes: int = 1) -> None:
        """Wait until `writable_bytes` is `wanted_bytes` (at most 64 KiB). Raises if the stream or link goes first."""
        if wanted_bytes > MAX_PAYLOAD_BYTES:
            raise ValueError(f"{wanted_bytes} bytes is more than a frame holds")
        while self.writable_bytes < wanted_bytes:
            if not self.is_open:
                raise self._error or Unreachable("the stream is closed.")
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def after_read(self, callback: Callable[[], None]) -> None:
        """Call it once all that has come with the message that is being told was told.

        For a handler that works better on much at once than on each of many messages. An exception from it counts as
        one of the handler's. Where no message is being told, it is called at the loop's next turn.
        """
        streams = self._connection._streams
        if streams.is_reading:
            streams.after_read.append((self, callback))
        else:
            self._connection._loop.call_soon(streams.call, self, callback)

    def consume(self, n_bytes: int) -> None:
        """Received credited bytes are used up: let the peer send as many more."""
        connection = self._connection
        connection._do(connection._link.consume, self.id, n_bytes)

    def end(self) -> None:
        """Send no more. The stream is closed once the peer has ended too."""
        connection = self._connection
        connection._do(connection._link.end, self.id)
        connection._streams.forget_if_done(self.id)

    def reset(self, code: int = ResetCode.CANCELLED, message: str = "") -> None:
        """Cut the stream in both directions; the handler is not called again."""
        connection = self._connection
        if self.is_open:
            connection._do(connection._link.reset, self.id, code, message)
            connection._streams.forget(self.id, Refused(reset_name(code), message))

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


OnStream = Callable[[Stream], StreamHandler]
"""Called when the peer opens a stream; raise Refused to reset it with REFUSED and the message."""
