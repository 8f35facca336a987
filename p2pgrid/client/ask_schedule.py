"""Whom a client asks next whether its offer stands, where it cannot ask everybody twice a minute. Pure.

Most of what it allows itself is for providers of what is bought or looked at, the rest for whoever has been due the
longest, so that none is forgotten. Below these rates everybody has its turn as soon as it is due. How old a provider's
word is, is told with its offer: nothing here makes one look alive.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

ASKS_PER_S: Final = 20.0
"""At most. One takes 11 ms of CPU time where a connection is made for it, 1.6 ms where there is one."""
OLDEST_SHARE: Final = 0.25
"""Of that, for whoever has been due the longest. Where nobody wants anything, it is all that is used."""
FIRST_ASKS: Final = 50
"""So many of either share may be asked at once after a while of silence, as after the start."""
RETRIES: Final = 4
"""Every so many-th question goes to one that did not answer the last time."""
WANTED_MS: Final = 120_000
"""What was bought, or looked at, is wanted for so long after."""
MOST_WISHES: Final = 256
MOST_PREFERRED: Final = 1_000

K = TypeVar("K")
_PREFERRED, _BOUGHT, _LISTED, _UNWANTED = range(4)


@dataclass(frozen=True, slots=True)
class Due:
    """A provider whose turn it is."""

    peer_id: str
    since_ms: int
    is_failing: bool = False
    """It did not answer the last time."""
    models: Collection[str] = ()
    """What it sells, and where, as far as that is known."""
    country: str = ""


class Wanted:
    """What is bought and looked at. Times are Unix milliseconds."""

    def __init__(self) -> None:
        self._wishes: dict[tuple[str | None, str | None], int] = {}
        """Model and country, None for any, and until when they are wanted; the longest first wanted first."""
        self._preferred: dict[str, int] = {}

    def note(self, model: str | None, countries: Collection[str], now_ms: int) -> None:
        """Somebody wants a model, or looks at all of them; in some countries, or in any."""
        for country in countries or (None,):
            _put(self._wishes, (model, country), now_ms + WANTED_MS, MOST_WISHES)

    def prefer(self, peer_ids: Iterable[str], now_ms: int) -> None:
        """These are the ones that a request for it would go to."""
        for peer_id in peer_ids:
            _put(self._preferred, peer_id, now_ms + WANTED_MS, MOST_PREFERRED)

    def expire(self, now_ms: int) -> None:
        """Forget what is not wanted any more."""
        self._wishes = {wish: until_ms for wish, until_ms in self._wishes.items() if now_ms < until_ms}
        self._preferred = {peer_id: until_ms for peer_id, until_ms in self._preferred.items() if now_ms < until_ms}

    def rank(self, due: Due) -> int:
        """How much the provider is wanted: 0 most, 3 not at all."""
        if due.peer_id in self._preferred:
            return _PREFERRED
        if not self._wishes:
            return _UNWANTED
        wishes, country = self._wishes, due.country
        if any((model, None) in wishes or (model, country) in wishes for model in due.models):
            return _BOUGHT
        return _LISTED if (None, None) in wishes or (None, country) in wishes else _UNWANTED


class AskSchedule:
    """How many may be asked, and of those that are due, who."""

    def __init__(self, per_s: float = ASKS_PER_S, *, first: int = FIRST_ASKS) -> None:
        """`per_s` is for all together, `first` for either share after silence."""
        self.wanted: Final = Wanted()
        self._lanes = (_Lane(per_s * (1 - OLDEST_SHARE), first), _Lane(per_s * OLDEST_SHARE, first))

    def choose(self, due: Iterable[Due], *, now_ms: int, now_s: float) -> list[str]:
        """The peer ids of those to be asked now, in this order. `now_s` is of a clock that is never set."""
        self.wanted.expire(now_ms)
        everybody = list(due)
        ranks = {one.peer_id: rank for one in everybody if (rank := self.wanted.rank(one)) < _UNWANTED}
        wanted, oldest = self._lanes
        for lane in self._lanes:
            lane.fill(now_s)
        chosen = wanted.choose(
            [one for one in everybody if one.peer_id in ranks],
            lambda one: (ranks[one.peer_id], one.since_ms, one.peer_id),
        )
        asked = set(chosen)
        rest = [one for one in everybody if one.peer_id not in asked] if asked else everybody
        return chosen + oldest.choose(rest, lambda one: (0, one.since_ms, one.peer_id))


class _Lane:
    """A rate of its own, and whose turn it is within."""

    def __init__(self, per_s: float, most: int) -> None:
        self._per_s = per_s
        self._most = float(most)
        self._left = float(most)
        self._filled_s: float | None = None
        self._asked = 0

    def fill(self, now_s: float) -> None:
        if self._filled_s is not None:
            self._left = min(self._left + (now_s - self._filled_s) * self._per_s, self._most)
        self._filled_s = now_s

    def choose(self, due: Sequence[Due], order: Callable[[Due], tuple[int, int, str]]) -> list[str]:
        """As many as may be asked, in that order, some that are failing in between."""
        most = int(self._left)
        well = heapq.nsmallest(most, (one for one in due if not one.is_failing), order)[::-1]
        failing = heapq.nsmallest(most, (one for one in due if one.is_failing), order)[::-1]
        chosen: list[str] = []
        while len(chosen) < most and (well or failing):
            self._asked += 1
            is_retry = bool(failing) and (not well or self._asked % RETRIES == 0)
            chosen.append((failing if is_retry else well).pop().peer_id)
        self._left -= len(chosen)
        return chosen


def _put(there: dict[K, int], key: K, until_ms: int, most: int) -> None:
    there.pop(key, None)
    while len(there) >= most:
        del there[next(iter(there))]
    there[key] = until_ms
