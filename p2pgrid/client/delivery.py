"""Answer bytes on their way to the program that asked, from whatever order they come under."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from p2pgrid.errors import P2pgridError, Refused
from p2pgrid.net.stream import Stream
from p2pgrid.printable import printable
from p2pgrid.proto.counting import TokenCounter

MAX_BUFFERED_BYTES: Final = 1024 * 1024
"""Answer bytes that wait for a slow program before the provider is given no more credit."""
CONSUMED_BYTES: Final = 8 * 1024
"""Answer bytes that are given back as credit at once. With less than a CHUNK's 32 KiB held back, any can still come."""


class Delivery:
    """One answer. `take` gives its bytes; `ended_future` is done when nothing more will happen to it at all."""

    def __init__(self, counter: TokenCounter) -> None:
        """`counter` has read every byte that is handed over here."""
        self.error: P2pgridError | None = None
        """Why the answer broke off, or never came."""
        self.on_progress: Callable[[], None] | None = None
        """Called when there is something to `take`, or the answer is over."""
        self.first_token_s: float | None = None
        """From the request's departure to the first token's arrival."""
        self._loop = asyncio.get_running_loop()
        self.ended_future: Final[asyncio.Future[None]] = self._loop.create_future()
        self._counter = counter
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._stream: Stream | None = None
        self._unconsumed = 0
        """Bytes that came on the stream and were not given back as credit. They are, as the program takes them."""
        self._is_answered = False
        self._wakeup: asyncio.Future[None] | None = None
        self._began_s = self._loop.time()

    @property
    def is_whole(self) -> bool:
        """True once the answer has come to its proper end."""
        counter = self._counter
        return counter.done and counter.error is None

    @property
    def is_answered(self) -> bool:
        """True once nothing more will come of the answer."""
        return self._is_answered

    async def wait(self) -> bool:
        """Wait for answer bytes. False at the answer's end. Raises what `take` raises."""
        while not self._buffer:
            if self.error is not None:
                raise self.error
            if self._is_answered:
                return False
            self._wakeup = self._loop.create_future()
            await self._wakeup
        return True

    def take(self) -> bytes | None:
        """The bytes that have come since the last call; empty if none have, None at the answer's end.

        Raises Refused (the provider's refusal), AnswerLost (link or stream lost), ProtocolViolation (a breach),
        LedgerError, or RemoteError where the provider failed or its receipt is disputed.
        """
        if not self._buffer:
            if self.error is not None:
                raise self.error
            return None if self._is_answered else b""
        data = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        self._buffered = 0
        if self._unconsumed >= CONSUMED_BYTES and self._stream is not None:
            self._consume(self._stream)
        return data

    def _consume(self, stream: Stream) -> None:
        stream.consume(self._unconsumed)
        self._unconsumed = 0

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)
        if self.on_progress is not None:
            self.on_progress()


def refused_with(code: str, message: str, retry_after_ms: int) -> Refused:
    """A provider's refusal in its own words; 0 ms where it does not say when to try again."""
    hint = f"Try again in {-(-retry_after_ms // 1000)} s." if retry_after_ms else ""
    return Refused(code, f"the provider refused: {printable(message)}", hint=hint)
