"""A stream handler for coroutines: `await reader.receive()`. For exchanges where a wake-up a message is cheap."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

from p2pgrid.errors import P2pgridError, Refused
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.proto.frame import FIRST_CREDITED_KIND, ResetCode, reset_name

MAX_WAITING_MESSAGES: Final = 256
MAX_WAITING_BYTES: Final = 1024 * 1024


class Received(NamedTuple):
    """One frame of a stream."""

    kind: int
    payload: bytes


class StreamReader(StreamHandler):
    """Keeps what comes until it is asked for. One coroutine at a time may wait on it.

    Credited bytes are given back to the peer as they are taken out. A peer that sends more messages than
    `max_messages` or `max_bytes` ahead of their reader has its stream reset (OVERLOADED).
    """

    def __init__(self, *, max_messages: int = MAX_WAITING_MESSAGES, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[Stream, Received]] = deque()
        self._message_bytes = 0
        self._n_messages = 0
        self._ended = False
        self._error: P2pgridError | None = None
        self._wakeup: asyncio.Future[None] | None = None

    async def receive(self) -> Received | None:
        """The next frame, or None after the peer's END.

        What came before a reset or the link's loss can still be taken; then Refused (the reset's code by name) or the
        link's error is raised.
        """
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        stream, received = self._waiting.popleft()
        if received.kind >= FIRST_CREDITED_KIND:
            stream.consume(len(received.payload))
        else:
            self._n_messages -= 1
            self._message_bytes -= len(received.payload)
        return received

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if kind < FIRST_CREDITED_KIND:
            self._n_messages += 1
            self._message_bytes += len(payload)
            if self._n_messages > self._max_messages or self._message_bytes > self._max_bytes:
                text = f"more than {self._max_messages} messages or {self._max_bytes} bytes wait to be read"
                stream.reset(ResetCode.OVERLOADED, text)
                self._fail(Refused(reset_name(ResetCode.OVERLOADED), text))
                return
        self._waiting.append((stream, Received(kind, payload)))
        self._wake()

    def writable(self, stream: Stream) -> None:
        pass  # `Stream.drain` is woken by itself

    def ended(self, stream: Stream) -> None:
        self._ended = True
        self._wake()

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self._fail(Refused(reset_name(code), message or f"the peer reset the stream ({reset_name(code)})."))

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self._fail(error)

    def _fail(self, error: P2pgridError) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)
