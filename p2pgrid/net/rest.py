"""Reading no more of a peer for a while, once what it sent has taken more of our time than its share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

Spend = Callable[[float], float]
"""Called with the seconds that dealing with a peer's bytes has taken; how many seconds nothing more is read of it."""
SPENT_AT_ONCE_S: Final = 0.005
"""What is collected before it is spent, so that the many who take little cost nothing."""


class Rest:
    """Of one connection. What the peer sends meanwhile waits in the sockets of both sides."""

    def __init__(self, spend: Spend) -> None:
        self._spend = spend
        self._took_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def took(self, took_s: float, transport: asyncio.Transport | None) -> None:
        """Dealing with bytes of the peer has taken so long."""
        self._took_s += took_s
        if self._took_s < SPENT_AT_ONCE_S:
            return
        rest_s, self._took_s = self._spend(self._took_s), 0.0
        if rest_s and transport is not None and not transport.is_closing():
            transport.pause_reading()
            self.cancel()
            self._timer = asyncio.get_running_loop().call_later(rest_s, self._go_on, transport)

    def cancel(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self, transport: asyncio.Transport) -> None:
        self._timer = None
        if not transport.is_closing():
            transport.resume_reading()
