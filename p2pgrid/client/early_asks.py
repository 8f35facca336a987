"""Asking those who are named while a look-up goes on: among liars it ends long after it has found everybody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from p2pgrid.net.peer_address import PeerAddress

EARLY_ASKS: Final = 64
"""At once, in one look-up: somebody invented costs a dial."""
ASKS_AT_A_TIME: Final = 2
"""Each time that the look-up says what it has found: the first to answer it may be a liar."""


class UnderWay(Protocol):
    """An ask: an `asyncio.Task` is one."""

    def add_done_callback(self, fn: Callable[[Any], object], /) -> object:
        """Call `fn` with this once it is over."""
        ...


ASK_ALL_AT: Final = 25
"""Of what it has found by then all are asked, as at its end: five seconds are long for somebody who waits."""

Ask = Callable[[PeerAddress], UnderWay | None]
"""Begins to ask a provider; None where there is nothing to be asked."""


class EarlyAsks:
    """One look-up's: of what it has found so far the most credible are asked, a few at a time, each once."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._found: Sequence[PeerAddress] = ()
        self._n_told = 0
        self._is_over = False
        self._begun: set[str] = set()
        self._under_way: set[UnderWay] = set()

    def found(self, peers: Sequence[PeerAddress]) -> None:
        """All that the look-up has found so far, the most credible first. After `close` it comes too late."""
        if self._is_over:
            return
        self._found = peers
        self._n_told += 1
        if self._n_told == ASK_ALL_AT:
            self._go_on(len(peers), at_once=EARLY_ASKS + len(peers))
        else:
            self._go_on(ASKS_AT_A_TIME)

    def close(self) -> None:
        """The look-up is over: begin with nobody any more."""
        self._is_over = True
        self._found = ()

    def _go_on(self, most: int, at_once: int = EARLY_ASKS) -> None:
        for peer in self._found:
            if not most or len(self._under_way) >= at_once:
                return
            if peer.peer_id not in self._begun:
                self._begun.add(peer.peer_id)
                ask = self._ask(peer)
                if ask is not None:
                    most -= 1
                    self._under_way.add(ask)
                    ask.add_done_callback(self._ended)

    def _ended(self, ask: UnderWay) -> None:
        self._under_way.discard(ask)
        self._go_on(1)
