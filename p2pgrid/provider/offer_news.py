"""Clients that are told what is on sale as it changes, each on a stream of its own (docs/spec/discovery.md, section 6).

An offer or a withdrawal leaves at once. What is free changes with every order: it is looked at every two seconds, told
where it is another, and told in any case every twenty, by which a client knows that the offer still stands.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from p2pgrid.provider.watchers import Watched, Watchers

CAPACITY_INTERVAL_S: Final = 2.0
CONFIRM_INTERVAL_S: Final = 20.0


class OfferWatcher(Watched, Protocol):
    """A stream on which a client watches the offer."""

    def look(self) -> None:
        """Tell the client what it has not been told."""


class OfferNews:
    """One for a node."""

    def __init__(self) -> None:
        self._watchers: Final = Watchers[OfferWatcher]()

    def __len__(self) -> int:
        return len(self._watchers)

    def watch(self, watcher: OfferWatcher) -> None:
        """Tell it from now on. A link has one watcher."""
        self._watchers.watch(watcher)

    def unwatch(self, watcher: OfferWatcher) -> None:
        """Its stream is gone."""
        self._watchers.unwatch(watcher)

    def changed(self) -> None:
        """Another offer is in force, or none."""
        for watcher in self._watchers.all():
            watcher.look()

    async def run(self) -> None:
        """Tell of what is free, until cancelled."""
        while True:
            await asyncio.sleep(CAPACITY_INTERVAL_S)
            self.changed()
