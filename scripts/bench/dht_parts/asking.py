"""A client that asks those whom its look-up names as it goes on: `p2pgrid/client/early_asks.py` in simulated time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

from p2pgrid.client.early_asks import EarlyAsks, UnderWay
from p2pgrid.client.offers import FETCH_TIMEOUT_S
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.kademlia.walk import HAND_ON_INTERVAL_S, Walk

from .population import Peer, Population
from .wire import CONNECT_TRIPS, FOUND, WORK_S

OFFER_TRIPS: Final = CONNECT_TRIPS + 3
"""For an offer, on a new connection."""


class _Ask:
    """One ask under way."""

    def __init__(self, ends_s: float) -> None:
        self.ends_s = ends_s
        self.over: Callable[[Any], object] = lambda _: None

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        self.over = fn

    def __lt__(self, other: _Ask) -> bool:
        return self.ends_s < other.ends_s


class Asking:
    """To be called with the time, in seconds since the look-up began, before each of its answers is taken in."""

    def __init__(self, asker: Peer, population: Population, wanted: set[bytes]) -> None:
        """Once all of `wanted` have been asked, there is nothing more to see."""
        self.asked_s: dict[bytes, float] = {}
        """When a provider was asked for its offer."""
        self.answered_s: dict[bytes, float] = {}
        """When an honest one's offer was there."""
        self._asker, self._population, self._wanted = asker, population, wanted
        self._early = EarlyAsks(self._ask)
        self._under_way: list[_Ask] = []
        self._now_s, self._next_s = 0.0, HAND_ON_INTERVAL_S

    def __call__(self, now_s: float, walk: Walk) -> None:
        """What was known by now has not changed since the last answer."""
        while self._next_s <= now_s and not self._wanted <= self.asked_s.keys():
            self._until(self._next_s)
            self._early.found(self._named(walk))
            self._next_s += HAND_ON_INTERVAL_S

    def end(self, now_s: float, walk: Walk) -> None:
        """The look-up is over: the rest is asked."""
        self(now_s, walk)
        self._until(now_s)
        self._early.close()
        for peer in () if self._wanted <= self.asked_s.keys() else self._named(walk):
            if bytes.fromhex(peer.peer_id) not in self.asked_s:
                self._ask(peer)
        self._until(float("inf"))

    def _named(self, walk: Walk) -> list[PeerAddress]:
        return [PeerAddress(one.peer.hex(), ()) for one in walk.providers(FOUND, self._population.rng.random)]

    def _until(self, now_s: float) -> None:
        while self._under_way and self._under_way[0].ends_s <= now_s:
            ask = heapq.heappop(self._under_way)
            self._now_s = ask.ends_s
            ask.over(ask)
        self._now_s = now_s

    def _ask(self, peer: PeerAddress) -> UnderWay:
        raw = bytes.fromhex(peer.peer_id)
        provider = self._population.peers.get(raw)
        self.asked_s[raw] = self._now_s
        took_s = FETCH_TIMEOUT_S
        if provider is not None and provider.is_alive and not provider.liar:
            took_s = OFFER_TRIPS * self._asker.round_trip_s(provider) + 2 * WORK_S
            self.answered_s[raw] = self._now_s + took_s
        ask = _Ask(self._now_s + took_s)
        heapq.heappush(self._under_way, ask)
        return ask
