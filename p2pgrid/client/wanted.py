"""Channels with one provider in which something is to be exchanged as soon as there is a link."""

from __future__ import annotations

import asyncio
from typing import Final

BUSY_PAUSE_S: Final = 30.0
"""Until a provider that was too busy is asked again: it may never have news of that channel."""


class Wanted:
    """Filled from anywhere on the loop; one task waits for it and takes what is there."""

    def __init__(self) -> None:
        self._now: dict[bytes, bool] = {}
        self._later: dict[bytes, bool] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """How many channels wait to be taken."""
        return len(self._now)

    def add(self, channel: bytes, *, has_news: bool = False) -> None:
        """Now. `has_news`: the provider says that there is something new."""
        self._now[channel] = has_news or self._now.get(channel, False)
        self.wake()

    def add_later(self, channel: bytes, *, has_news: bool = False) -> None:
        """In BUSY_PAUSE_S, once however often it is asked for."""
        if channel not in self._later:
            asyncio.get_running_loop().call_later(BUSY_PAUSE_S, self._add_again, channel)
        self._later[channel] = has_news or self._later.get(channel, False)

    def wake(self) -> None:
        """Whoever waits looks again, even if nothing came."""
        self._wake.set()

    async def wait(self) -> None:
        """Until something came, or `wake` was called, since the last time."""
        await self._wake.wait()
        self._wake.clear()

    def take(self) -> dict[bytes, bool]:
        """All that waits, and of each channel whether the provider has news of it."""
        taken, self._now = self._now, {}
        return taken

    def _add_again(self, channel: bytes) -> None:
        self.add(channel, has_news=self._later.pop(channel))
