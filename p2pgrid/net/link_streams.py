"""The streams that are open on one link, and the calls of their handlers.

Handlers are callbacks, not tasks, because a message every few microseconds must not cost a wake-up. One that fails is
logged and has its stream reset; the link and its other streams go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from p2pgrid.errors import P2pgridError, Refused, Unreachable
from p2pgrid.net.stream import OnStream, Stream, StreamHandler
from p2pgrid.proto.frame import ResetCode, reset_name
from p2pgrid.proto.link_events import Cut, Ended, Event, Message, Opened, Writable

if TYPE_CHECKING:
    from p2pgrid.net.connection import LinkConnection

log = logging.getLogger(__name__)


class LinkStreams:
    """Which streams a link has. The connection tells it what happens; streams ask it whether they are open."""

    def __init__(self, connection: LinkConnection, on_stream: OnStream | None) -> None:
        """Without `on_stream` the peer may open none."""
        self.by_id: dict[int, Stream] = {}
        self.is_reading = False
        """True while what came together is being told."""
        self.after_read: list[tuple[Stream, Callable[[], None]]] = []
        """What is called when it was."""
        self._connection = connection
        self._on_stream = on_stream
        self._wake_first = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no stream is open."""
        await self._idle.wait()

    def add(self, stream_id: int, handler: StreamHandler) -> Stream:
        """This side has opened a stream."""
        stream = self._add(stream_id)
        stream.handler = handler
        return stream

    # -- what the peer does --------------------------------------------------------------------------------------

    def tell(self, events: Iterable[Event], of_link: Callable[[Event], None]) -> None:
        """All that came together. `of_link` is called with what is about no stream.

        What `events` raises is raised in the end.
        """
        by_id, self.is_reading = self.by_id, True
        try:
            for event in events:
                if type(event) is Message:
                    stream = by_id.get(event.stream)
                    if stream is None:
                        continue
                    try:
                        stream.handler.message_received(stream, event.kind, event.payload)
                    except Exception as failure:  # noqa: BLE001 - the boundary: logged, and ends this stream alone
                        self._handler_failed(stream, failure)
                else:
                    self._happened(event, of_link)
        finally:
            self.is_reading = False
            if self.after_read:
                called, self.after_read = self.after_read, []
                for stream, callback in called:
                    try:
                        callback()
                    except Exception as failure:  # noqa: BLE001 - the boundary, as above
                        self._handler_failed(stream, failure)

    def _happened(self, event: Event, of_link: Callable[[Event], None]) -> None:
        match event:
            case Opened(stream_id):
                self._opened(stream_id)
            case Writable(stream_id):
                if stream := self.by_id.get(stream_id):
                    self._tell_writable(stream)
            case Ended(stream_id):
                if stream := self.by_id.get(stream_id):
                    self.call(stream, stream.handler.ended, stream)
                    self.forget_if_done(stream_id)
            case Cut(stream_id, code, text):
                error = Refused(reset_name(code), text or f"the peer reset the stream ({reset_name(code)}).")
                if stream := self.forget(stream_id, error):
                    self.call(stream, stream.handler.reset, stream, code, text)
            case _:
                of_link(event)

    def _opened(self, stream_id: int) -> None:
        stream = self._add(stream_id)
        if self._on_stream is None:
            stream.reset(ResetCode.REFUSED, "this side takes no streams")
            return
        try:
            stream.handler = self._on_stream(stream)
        except Refused as refusal:
            stream.reset(ResetCode.REFUSED, refusal.message)
        except Exception:
            log.exception("%s: stream %d could not be taken; it was reset", self._connection.name, stream_id)
            stream.reset(ResetCode.INTERNAL, "the stream could not be taken")

    def _add(self, stream_id: int) -> Stream:
        stream = self.by_id[stream_id] = Stream(self._connection, stream_id)
        self._idle.clear()
        return stream

    # -- the handlers' calls -------------------------------------------------------------------------------------

    def call(self, stream: Stream, callback: Callable[..., None], *args: Any) -> None:
        """Call something of the stream's handler."""
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001 - the boundary: logged, and ends this stream alone
            self._handler_failed(stream, error)

    def wake_writers(self, is_full: Callable[[], bool]) -> None:
        """Tell the streams that there is room again, beginning with the first that found none the last time."""
        ids = list(self.by_id)
        first = ids.index(self._wake_first) if self._wake_first in self.by_id else 0
        for stream_id in ids[first:] + ids[:first]:
            if is_full():
                self._wake_first = stream_id
                return
            if stream := self.by_id.get(stream_id):
                self._tell_writable(stream)

    def _tell_writable(self, stream: Stream) -> None:
        stream._wake()
        self.call(stream, stream.handler.writable, stream)

    def _handler_failed(self, stream: Stream, error: Exception) -> None:
        """Log it, cut the stream, and let its handler clean up, unless it is already beyond that."""
        log.error("%s: the handler of stream %d failed; it was reset", self._connection.name, stream.id, exc_info=error)
        if stream.is_open:
            stream.reset(ResetCode.INTERNAL, "the handler failed")
            self.call(stream, stream.handler.reset, stream, ResetCode.INTERNAL, "the handler failed")

    # -- ends ----------------------------------------------------------------------------------------------------

    def forget_if_done(self, stream_id: int) -> None:
        """One side has ended the stream: it is over if the other had before."""
        if not self._connection._link.has_stream(stream_id):
            self.forget(stream_id, Unreachable("the stream is closed."))

    def forget(self, stream_id: int, error: P2pgridError) -> Stream | None:
        """The stream is over, for that reason; None if it was before."""
        stream = self.by_id.pop(stream_id, None)
        if stream is not None:
            stream._error = error
            stream._wake()
        if not self.by_id:
            self._idle.set()
        return stream

    def lose_all(self, error: P2pgridError) -> None:
        """The link is over."""
        for stream_id in list(self.by_id):
            if stream := self.forget(stream_id, error):
                self.call(stream, stream.handler.link_lost, stream, error)
