"""How fast announcements may follow one another to one server."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

ADD_PROVIDER_WINDOW_S: Final = 10.0
MAX_ADD_PROVIDER_PER_WINDOW: Final = 100
"""What a server takes from one peer in a window."""


class Pace:
    """Keeps our announcements to one server well under what it takes."""

    def __init__(self, per_window: int = MAX_ADD_PROVIDER_PER_WINDOW // 2) -> None:
        self._per_window = per_window
        self._sent: dict[bytes, deque[float]] = {}

    async def wait_for(self, server: bytes) -> None:
        """Return when another may be sent to `server`."""
        sent = self._sent.setdefault(server, deque())
        sent.append(
            max(trio.current_time(), sent[-self._per_window] + ADD_PROVIDER_WINDOW_S)
            if len(sent) >= self._per_window
            else trio.current_time()
        )
        due = sent[-1]
        while len(sent) > self._per_window:
            sent.popleft()
        if len(self._sent) > 1000:
            self._sent = {s: times for s, times in self._sent.items() if times[-1] > due - ADD_PROVIDER_WINDOW_S}
        await trio.sleep_until(due)
