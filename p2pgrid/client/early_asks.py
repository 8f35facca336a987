"""Asking those who are named while a look-up goes on: among liars it ends long after it has found everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from p2pgrid.net.peer_address import PeerAddress

EARLY_ASKS: Final = 8
"""At once, in one look-up: somebody invented costs a dial, and the first to answer may be a liar."""

Ask = Callable[[PeerAddress], "asyncio.Task[None] | None"]
"""Begins to ask a provider; None where there is nothing to be asked."""


class EarlyAsks:
    """One look-up's: of what it has found so far the most credible are asked, a few at once, each once."""

    def __init__(self, ask: Ask, at_once: int = EARLY_ASKS) -> None:
        self._ask = ask
        self._at_once = at_once
        self._found: Sequence[PeerAddress] = ()
        self._begun: set[str] = set()
        self._under_way: set[asyncio.Task[None]] = set()

    def found(self, peers: Sequence[PeerAddress]) -> None:
        """All that the look-up has found so far, the most credible first."""
        self._found = peers
        self._go_on()

    def close(self) -> None:
        """The look-up is over: begin with nobody any more."""
        self._found = ()

    def _go_on(self) -> None:
        for peer in self._found:
            if len(self._under_way) >= self._at_once:
                return
            if peer.peer_id not in self._begun:
                self._begun.add(peer.peer_id)
                task = self._ask(peer)
                if task is not None:
                    self._under_way.add(task)
                    task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._go_on()
