"""What strangers may hold open and ask in a time: counted by peer, by address and over all, in bounded memory.

Peer ids cost nothing to make, so whatever a peer may have, its address has a bound too (`listening.caller_of`: an IPv4
address, or the /64 of an IPv6 one). Time is an argument; nothing here waits or knows a socket.

| here | bounds | of |
|---|---|---|
| `Seats` | how many at once | connections (swarm.py, direct.py), streams (doors.py), links (libp2p_road.py) |
| `Rates` | how many in a time | connections (as above), streams and frames (yamux_frames.py), answers (doors.py) |
| `TimeShare` | how much of our time | what comes over a link (connection.py) |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

MAX_KEYS: Final = 4096
_SWEEP_EVERY_S: Final = 1.0
_CROWD: Final = "\0 the crowd"
"""The key that newcomers share where there are too many others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """How many may be held at once: of all callers together, of one address, of one peer."""

    total: int
    per_address: int
    per_peer: int | None = None
    """None where no peer is known."""
    crowded_per_address: int | None = None
    """What an address may hold once half of all places are taken, so that a few addresses cannot fill the house."""


class Seats:
    """Places that callers take and leave. Who has one keeps it, however crowded it gets."""

    def __init__(self, allowance: Allowance, *, uncapped: Collection[str] = ()) -> None:
        """`uncapped`: addresses that have no cap of their own."""
        self._allowance = allowance
        self._uncapped = frozenset(uncapped)
        self._by_address: Counter[str] = Counter()
        self._by_peer: Counter[str] = Counter()
        self.taken = 0
        """By all."""
        self.refused = 0
        """Callers turned away so far."""

    def take(self, address: str, peer: str = "") -> bool:
        """A place for the caller, to be given back with `leave`; False where there is none for it."""
        allowance = self._allowance
        per_address = allowance.per_address
        if allowance.crowded_per_address is not None and self.taken >= allowance.total // 2:
            per_address = allowance.crowded_per_address
        if (
            self.taken >= allowance.total
            or (self._by_address[address] >= per_address and address not in self._uncapped)
            or (allowance.per_peer is not None and self._by_peer[peer] >= allowance.per_peer)
        ):
            self.refused += 1
            self._drop_zeros(address, peer)
            return False
        self._count(address, peer, 1)
        return True

    def leave(self, address: str, peer: str = "") -> None:
        """Give a place back."""
        self._count(address, peer, -1)
        self._drop_zeros(address, peer)

    def held_by(self, address: str) -> int:
        """How many places an address has."""
        return self._by_address.get(address, 0)

    def _count(self, address: str, peer: str, change: int) -> None:
        self.taken += change
        self._by_address[address] += change
        if self._allowance.per_peer is not None:
            self._by_peer[peer] += change

    def _drop_zeros(self, address: str, peer: str) -> None:
        for counter, key in ((self._by_address, address), (self._by_peer, peer)):
            if not counter.get(key, 1):
                del counter[key]


class Rates:
    """Token buckets by key: `burst` at once, and `per_s` more each second.

    A bucket that is full again says nothing, and is forgotten. Where more than `max_keys` are not full, newcomers share
    one: so nobody's debt is forgotten, and a flood of addresses slows other newcomers alone.
    """

    def __init__(self, burst: float, per_s: float, *, max_keys: int = MAX_KEYS) -> None:
        self._burst = float(burst)
        self._per_s = float(per_s)
        self._max_keys = max_keys
        self._left: dict[str, tuple[float, float]] = {}
        """By key: what was left, and when."""
        self._swept_s = float("-inf")

    def take(self, key: str, now_s: float, n: float = 1.0) -> bool:
        """Take `n` if they are there now."""
        key, left = self._find(key, now_s)
        if left < n:
            return False
        self._left[key] = (left - n, now_s)
        return True

    def spend(self, key: str, now_s: float, n: float = 1.0) -> float:
        """Take `n` in any case; how many seconds to wait before going on, so that on average the rate is kept.

        No debt is longer than ten seconds.
        """
        key, left = self._find(key, now_s)
        left = max(left - n, -10.0 * self._per_s)
        self._left[key] = (left, now_s)
        return max(0.0, -left / self._per_s)

    def __len__(self) -> int:
        return len(self._left)

    def _find(self, key: str, now_s: float) -> tuple[str, float]:
        """The key whose bucket counts, and what is in it now."""
        known = self._left.get(key)
        if known is None and len(self._left) >= self._max_keys:
            self._sweep(now_s)
            if len(self._left) >= self._max_keys:
                key = _CROWD
                known = self._left.get(key)
        if known is None:
            return key, self._burst
        left, at_s = known
        return key, min(self._burst, left + max(0.0, now_s - at_s) * self._per_s)

    def _sweep(self, now_s: float) -> None:
        if now_s - self._swept_s < _SWEEP_EVERY_S:
            return
        self._swept_s = now_s
        for key, (left, at_s) in list(self._left.items()):
            if left + (now_s - at_s) * self._per_s >= self._burst:
                del self._left[key]


class TimeShare:
    """How much of this process's time what comes from one caller may take: `share` of it, after `burst_s`."""

    def __init__(self, share: float, burst_s: float, *, max_keys: int = MAX_KEYS) -> None:
        self._rates = Rates(burst_s, share, max_keys=max_keys)

    def spend(self, caller: str, now_s: float, took_s: float) -> float:
        """Work for the caller took so long; how many seconds nothing more of it should be read."""
        return self._rates.spend(caller, now_s, took_s)
