"""An answer's bytes on their way from its delivery to a program, as fast as both allow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from p2pgrid.client.background import is_done_within
from p2pgrid.client.delivery import Delivery
from p2pgrid.errors import P2pgridError


class Flow(Protocol):
    """What says whether a program keeps up with its answer: `p2pgrid.http.reply.Reply` is one."""

    on_writable: Callable[[], None] | None
    """Called when it has caught up."""

    @property
    def is_writable(self) -> bool:
        """False while it has not."""
        ...


class Pour:
    """The bytes of one order on their way to a program: moved by callbacks, from whichever side is ready."""

    def __init__(self, order: Delivery, write: Callable[[bytes], None], flow: Flow | None) -> None:
        self._order = order
        self._write = write
        self._flow = flow
        self._error: P2pgridError | None = None
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._moved_s = self._loop.time()

    async def run(self, stall_timeout_s: float, first_timeout_s: float | None) -> bool:
        """Until the answer's end; False if the provider sent nothing for so long. Raises what `take` and `write` do."""
        self._order.on_progress = self.move
        if self._flow is not None:
            self._flow.on_writable = self.move
        if first_timeout_s is not None:
            self._moved_s += first_timeout_s - stall_timeout_s
        try:
            self.move()
            while not self._over.done():
                left_s = self._moved_s + stall_timeout_s - self._loop.time()
                if left_s <= 0:
                    return False
                await is_done_within(self._over, left_s)
                if not self._is_writable:
                    self._moved_s = self._loop.time()  # the program is late, and not the provider
        finally:
            self._order.on_progress = None
            if self._flow is not None:
                self._flow.on_writable = None
        if self._error is not None:
            raise self._error
        return True

    @property
    def _is_writable(self) -> bool:
        return self._flow is None or self._flow.is_writable

    def move(self) -> None:
        """Hand over what there is, as far as the program keeps up."""
        flow, order = self._flow, self._order
        try:
            while not self._over.done() and (flow is None or flow.is_writable):
                data = order.take()
                if data is None:
                    self._over.set_result(None)
                    break
                if data:
                    self._moved_s = self._loop.time()
                    self._write(data)
                if not order.is_answered:
                    break  # all that has come is taken
        except P2pgridError as error:
            self._error = error
            self._over.set_result(None)
