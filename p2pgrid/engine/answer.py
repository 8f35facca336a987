"""An answer for whoever reads it in a loop: checks, tests, small pages. Orders hear theirs by callback instead."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from p2pgrid.engine.base import AnswerMetrics, Engine, OpenAnswer
from p2pgrid.errors import EngineError

_HIGH_WATER_BYTES: Final = 256 * 1024


class ReadAnswer:
    """One answer under way (see `base.EngineAnswer`). It reads ahead of its reader by one piece of some 256 KiB."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = ""
        self.call: OpenAnswer | None = None
        """Set by whoever asked."""
        self._pieces: deque[bytes] = deque()
        self._n_bytes = 0
        self._is_whole = False
        self._error: EngineError | None = None
        self._wakeup: asyncio.Future[None] | None = None

    @property
    def metrics(self) -> AnswerMetrics:
        """What was seen of it so far."""
        return self.call.metrics if self.call is not None else AnswerMetrics()

    async def head(self) -> None:
        """Wait for status and content type. Raises EngineError."""
        try:
            while not self.status:
                await self._change()
        except BaseException:
            # Whoever waited is gone, or has been told why there is nothing to wait for.
            self._abort()
            raise

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                while self._pieces:
                    piece = self._pieces.popleft()
                    self._n_bytes -= len(piece)
                    if not self._pieces and self.call is not None:
                        self.call.resume()
                    yield piece
                if self._is_whole:
                    return
                await self._change()
        finally:
            self._abort()

    async def abort(self) -> None:
        self._abort()

    # -- AnswerReader -----------------------------------------------------------------------------------------------

    def answer_began(self, status: int, content_type: str) -> None:
        self.status, self.content_type = status, content_type
        self._wake()

    def answer_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._n_bytes += len(data)
        if self._n_bytes >= _HIGH_WATER_BYTES and self.call is not None:
            self.call.pause()
        self._wake()

    def answer_ended(self) -> None:
        self._is_whole = True
        self._wake()

    def answer_failed(self, error: EngineError) -> None:
        self._error = error
        self._wake()

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _change(self) -> None:
        if self._error is not None:
            raise self._error
        self._wakeup = asyncio.get_running_loop().create_future()
        await self._wakeup
        if self._error is not None and not self._pieces:
            raise self._error

    def _abort(self) -> None:
        if self._is_whole or self._error is not None:
            return
        if self.call is not None:
            self.call.abort()
        self._error = EngineError("the answer was aborted.")
        self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


async def read_answer(engine: Engine, endpoint: str, body: bytes, request_id: str) -> ReadAnswer:
    """Ask, and return once the answer's head is there. Raises what `Engine.request` raises."""
    answer = ReadAnswer()
    answer.call = engine.ask(endpoint, body, request_id, answer)
    await answer.head()
    return answer
