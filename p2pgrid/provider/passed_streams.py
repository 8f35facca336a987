"""Streams that a worker passes on to the main process, and how they look there: like any stream on any link.

All that is no order and no resume goes this way: offers, cards, new channels, disputes, the log. It is rare, and what
it needs (who is watched, which channels a client has, the log) is in one place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from p2pgrid.errors import P2pgridError, Refused, Unreachable
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.road import Road
from p2pgrid.net.stream import OnStream, Stream, StreamHandler
from p2pgrid.processes.bus import Bus
from p2pgrid.proto.frame import FIRST_CREDITED_KIND, ResetCode
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.provider import worker_messages as m

log = logging.getLogger(__name__)


class PassedOn(StreamHandler):
    """In the worker: what the client says on a stream goes to the main process."""

    def __init__(self, desk: PassingDesk, stream: Stream) -> None:
        self._desk = desk
        self.number: Final = desk.add(self, stream)
        self.stream: Final = stream
        self._is_begun = False

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if kind >= FIRST_CREDITED_KIND:
            stream.consume(len(payload))
        if self._is_begun:
            self._desk.bus.send(m.StreamMessage(self.number, kind, payload))
        else:
            self._is_begun = True
            link = self._desk.link_number(stream.connection)
            self._desk.bus.send(m.StreamOpened(link, self.number, kind, payload))

    def writable(self, stream: Stream) -> None:
        pass

    def ended(self, stream: Stream) -> None:
        self._desk.bus.send(m.StreamEnded(self.number))
        self._desk.forget_if_closed(self)

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self._desk.bus.send(m.StreamLost(self.number, code, message))
        self._desk.forget(self)

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self._desk.bus.send(m.StreamLost(self.number, -1, error.message))
        self._desk.forget(self)


class PassingDesk:
    """In the worker: its streams that were passed on, by number."""

    def __init__(self, bus: Bus, link_number: Callable[[LinkConnection], int]) -> None:
        self.bus: Final = bus
        self.link_number: Final = link_number
        self._passed: dict[int, PassedOn] = {}
        self._number = 0
        bus.on(m.StreamSend, self._send)
        bus.on(m.StreamEnd, self._end)
        bus.on(m.StreamReset, self._reset)

    def add(self, passed: PassedOn, stream: Stream) -> int:
        """A number for one more."""
        self._number += 1
        self._passed[self._number] = passed
        return self._number

    def forget(self, passed: PassedOn) -> None:
        """The stream is gone."""
        self._passed.pop(passed.number, None)

    def forget_if_closed(self, passed: PassedOn) -> None:
        """Both sides may have ended it."""
        if not passed.stream.is_open:
            self.forget(passed)

    def _send(self, message: m.StreamSend) -> None:
        if (passed := self._passed.get(message.stream)) is not None:
            passed.stream.send(message.kind, message.payload)

    def _end(self, message: m.StreamEnd) -> None:
        if (passed := self._passed.get(message.stream)) is not None:
            passed.stream.end()
            self.forget_if_closed(passed)

    def _reset(self, message: m.StreamReset) -> None:
        if (passed := self._passed.get(message.stream)) is not None:
            passed.stream.reset(message.code, message.message)
            self.forget(passed)


class RemoteLink(LinkConnection):
    """In the main process: a link that a worker holds. No stream is opened on it here."""

    def __init__(self, bus: Bus, number: int, peer: PublicKey, name: str, caller: str) -> None:
        # Not the base's: there is no road here, and no protocol.
        loop = asyncio.get_running_loop()
        self.road = Road.DIRECT
        self.member_of = frozenset()  # the worker knows
        self.name = name
        self.caller = caller
        self.retired = loop.create_future()
        self.closed = loop.create_future()
        self._bus = bus
        self._number = number
        self._peer = peer

    @property
    def number(self) -> int:
        """The worker's own."""
        return self._number

    @property
    def peer(self) -> PublicKey:
        return self._peer

    async def aclose(self, message: str = "") -> None:
        """Tell the worker to close it; `closed` is done when it has."""
        self._bus.send(m.CloseLink(self._number, message))

    def abort(self) -> None:
        """As `aclose`."""
        self._bus.send(m.CloseLink(self._number, ""))

    def lost(self) -> None:
        """It is gone."""
        for future in (self.retired, self.closed):
            if not future.done():
                future.set_result(None)


class RemoteStream(Stream):
    """In the main process: a stream on a link that a worker holds. Without credit: no bulk goes this way."""

    __slots__ = ("_bus", "_has_ended", "_is_gone", "_on_closed", "_peer_has_ended")

    def __init__(self, bus: Bus, link: RemoteLink, number: int, on_closed: Callable[[int], object]) -> None:
        super().__init__(link, number)
        self._bus = bus
        self._on_closed = on_closed
        self._is_gone = self._has_ended = self._peer_has_ended = False

    @property
    def is_open(self) -> bool:
        return not self._is_gone and not (self._has_ended and self._peer_has_ended)

    @property
    def writable_bytes(self) -> int:
        return 0

    def send(self, kind: int, payload: bytes) -> None:
        if self._has_ended:
            raise ValueError("nothing is sent on a stream that was ended")
        if not self._is_gone:
            self._bus.send(m.StreamSend(self.id, kind, payload))

    def after_read(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)

    def consume(self, n_bytes: int) -> None:
        pass  # the worker has

    def end(self) -> None:
        if not self._has_ended and not self._is_gone:
            self._has_ended = True
            self._bus.send(m.StreamEnd(self.id))
            self._look()

    def peer_ended(self) -> None:
        """The client sends no more."""
        self._peer_has_ended = True
        self._look()

    def lost(self) -> None:
        """It is gone."""
        self._is_gone = True
        self._look()

    def reset(self, code: int = ResetCode.CANCELLED, message: str = "") -> None:
        if self.is_open:
            self._is_gone = True
            self._bus.send(m.StreamReset(self.id, code, message))
            self._look()

    def _look(self) -> None:
        if not self.is_open:
            self._on_closed(self.id)


class RemoteStreams:
    """In the main process: the links and streams of one worker."""

    def __init__(self, bus: Bus, on_stream: OnStream, *, on_link: Callable[[RemoteLink], None]) -> None:
        """`on_link` is called with every link before the first of its streams."""
        self._bus = bus
        self._on_stream = on_stream
        self._on_link = on_link
        self.links: Final[dict[int, RemoteLink]] = {}
        self._streams: dict[int, RemoteStream] = {}
        bus.on(m.LinkOpened, self._link_opened)
        bus.on(m.LinkClosed, lambda message: self._link_closed(message.link))
        bus.on(m.StreamOpened, self._opened)
        bus.on(m.StreamMessage, self._message)
        bus.on(m.StreamEnded, self._ended)
        bus.on(m.StreamLost, self._lost)

    def worker_gone(self) -> None:
        """The worker has ended, and its links with it."""
        error = Unreachable("the process that held the link has ended.")
        for stream in list(self._streams.values()):
            self._cut(stream, stream.handler.link_lost, error)
        for number in list(self.links):
            self._link_closed(number)

    def _link_opened(self, message: m.LinkOpened) -> None:
        link = RemoteLink(self._bus, message.link, parse_public_key(message.peer), message.name, message.caller)
        self.links[message.link] = link
        self._on_link(link)

    def _link_closed(self, number: int) -> None:
        link = self.links.pop(number, None)
        if link is not None:
            link.lost()

    def _opened(self, message: m.StreamOpened) -> None:
        link = self.links.get(message.link)
        if link is None:
            return
        stream = self._streams[message.stream] = RemoteStream(
            self._bus, link, message.stream, lambda number: self._streams.pop(number, None)
        )
        try:
            stream.handler = self._on_stream(stream)
        except Refused as refusal:
            stream.reset(ResetCode.REFUSED, refusal.message)
            return
        self._call(stream, stream.handler.message_received, stream, message.kind, message.payload)

    def _message(self, message: m.StreamMessage) -> None:
        if (stream := self._streams.get(message.stream)) is not None:
            self._call(stream, stream.handler.message_received, stream, message.kind, message.payload)

    def _ended(self, message: m.StreamEnded) -> None:
        if (stream := self._streams.get(message.stream)) is not None:
            stream.peer_ended()
            self._call(stream, stream.handler.ended, stream)

    def _lost(self, message: m.StreamLost) -> None:
        stream = self._streams.get(message.stream)
        if stream is not None and message.code < 0:
            self._cut(stream, stream.handler.link_lost, Unreachable(message.message))
        elif stream is not None:
            self._cut(stream, stream.handler.reset, message.code, message.message)

    def _cut(self, stream: RemoteStream, callback: Callable[..., None], *args: Any) -> None:
        stream.lost()
        self._call(stream, callback, stream, *args)

    def _call(self, stream: RemoteStream, callback: Callable[..., None], *args: Any) -> None:
        """A handler's fault ends its stream, as it does on a link."""
        try:
            callback(*args)
        except Exception:
            log.exception("a stream of %s failed", stream.connection.name)
            if stream.is_open:
                stream.reset(ResetCode.INTERNAL, "the provider failed")
                self._call(stream, stream.handler.reset, stream, int(ResetCode.INTERNAL), "")
