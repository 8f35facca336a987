"""What the main process and a worker say to one another: typed messages over a Unix socket that only they hold.

A message is a msgspec struct that is registered by its class, written as

    4 bytes  length of what follows, little-endian
    1 byte   the class's number
    the rest the struct's fields, MessagePack, an array

Messages arrive in the order in which they were sent; what is sent in one turn of the loop leaves in one write. Both
ends run the same code as the same user and trust one another: a message that cannot be read is a bug, and ends the bus.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar, cast

import msgspec

from p2pgrid.errors import LocalError

log = logging.getLogger(__name__)

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
_HEAD_BYTES: Final = 5

Encoder = msgspec.msgpack.Encoder()


class BusMessage(msgspec.Struct, array_like=True, frozen=True):
    """Base of all messages. `NUMBER` (0 to 255) is the class's own."""

    NUMBER: ClassVar[int] = -1


T = TypeVar("T", bound=BusMessage)


class Bus(asyncio.Protocol):
    """One end. `closed` is done when the other end is gone, for whatever reason."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self._loop = asyncio.get_running_loop()
        self.closed: Final[asyncio.Future[None]] = self._loop.create_future()
        self._handlers: dict[int, tuple[msgspec.msgpack.Decoder[Any], Callable[[Any], None]]] = {}
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._waiting: list[bytes] = []
        self._is_flush_due = False
        self._is_started = False

    @classmethod
    async def over(cls, end: socket.socket, name: str) -> Bus:
        """A bus on one end of a socket pair. Nothing is dealt with before `start`."""
        bus = cls(name)
        end.setblocking(False)
        await bus._loop.create_unix_connection(lambda: bus, sock=end)
        return bus

    def on(self, message_type: type[T], handler: Callable[[T], None]) -> None:
        """Call `handler` with every message of that type. Its exception ends the bus: what follows relied on it."""
        number = message_type.NUMBER
        if number in self._handlers or not 0 <= number <= 255:
            raise ValueError(f"the number {number} of {message_type.__name__} is taken or none")
        self._handlers[number] = msgspec.msgpack.Decoder(message_type), handler

    def start(self) -> None:
        """Deal with what comes, and has come: every handler is in its place."""
        self._is_started = True
        self._deal_with_received()

    def send(self, message: BusMessage) -> None:
        """Queue a message. On a bus that is closed it goes nowhere, as it would a moment before."""
        body = Encoder.encode(message)
        self._waiting.append((len(body) + 1).to_bytes(4, "little") + bytes((message.NUMBER,)) + body)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what waits, and close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._is_started:
            self._deal_with_received()

    def _deal_with_received(self) -> None:
        received, start = self._received, 0
        try:
            while len(received) - start >= _HEAD_BYTES:
                length = int.from_bytes(received[start : start + 4], "little")
                if not 0 < length <= MAX_FRAME_BYTES:
                    raise LocalError(f"a message of {length} bytes came; at most {MAX_FRAME_BYTES} were expected.")
                end = start + 4 + length
                if len(received) < end:
                    break
                number, body = received[start + 4], bytes(received[start + _HEAD_BYTES : end])
                start = end
                decoder, handler = self._handlers[number]
                handler(decoder.decode(body))
        except Exception:
            # The boundary: whatever it was, what this process now holds to be true may be wrong.
            log.exception("what came from %s could not be dealt with", self.name)
            self.abort()
        finally:
            del received[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._waiting and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._waiting))
        self._waiting.clear()
