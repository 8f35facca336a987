"""Whether a provider is there: what it said itself, when, and whether it has answered since. Pure.

Only the provider's own word counts: an offer, a withdrawal or a number of free slots, over a road that has proven its
key. What a look-up says, and what a file remembers, is where to ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pgrid.proto.wire.offers import Capacity

ASK_INTERVAL_MS: Final = 30_000
"""A provider that has said nothing for so long is asked."""
LIVE_MS: Final = 60_000
"""One that has said nothing for so long is not shown as live. To ask one that is gone takes up to ten seconds of it."""
FREE_MS: Final = 35_000
"""So long the last word on what is free is held to be worth something."""
DEAD_AFTER_FAILURES: Final = 3
"""A provider that did not answer so many times in a row is forgotten until it is found again."""
RECENT_MS: Final = 180_000
_FIRST_PAUSE_MS: Final = 1_000
_RECENT_PAUSE_MS: Final = 15_000
_LONGEST_PAUSE_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """One provider. Immutable: each event makes the next one. Times are Unix milliseconds."""

    confirmed_ms: int = 0
    """When it last said that its offer stands; 0 if it has not since this program started."""
    failures: int = 0
    """How often in a row it was asked since, and did not answer with anything good."""
    failed_ms: int = 0
    capacity: Capacity | None = None
    capacity_ms: int = 0
    """When it said so."""

    def confirmed(self, now_ms: int) -> Presence:
        """It said that its offer stands."""
        return Presence(confirmed_ms=now_ms, capacity=self.capacity, capacity_ms=self.capacity_ms)

    def told(self, capacity: Capacity, now_ms: int) -> Presence:
        """It said what it has free, and nothing new of its offer."""
        return Presence(
            confirmed_ms=self.confirmed_ms,
            failures=self.failures,
            failed_ms=self.failed_ms,
            capacity=capacity,
            capacity_ms=now_ms,
        )

    def failed(self, now_ms: int) -> Presence:
        """It was asked, or dialled, in vain."""
        return Presence(confirmed_ms=self.confirmed_ms, failures=self.failures + 1, failed_ms=now_ms)

    @property
    def is_here(self) -> bool:
        """True if it has answered in this run, and always since."""
        return self.confirmed_ms > 0 and not self.failures

    def is_live(self, now_ms: int) -> bool:
        """True if it answered within the last minute."""
        return self.is_here and now_ms - self.confirmed_ms <= LIVE_MS

    def free(self, model: str, now_ms: int) -> int | None:
        """How many orders for the model it would take, by its own last word; None if that is too old, or unsaid."""
        if self.capacity is None or not self.is_live(now_ms) or now_ms - self.capacity_ms > FREE_MS:
            return None
        return next((one.free for one in self.capacity.models if one.model == model), None)

    @property
    def was_here(self) -> bool:
        """True if it failed no more than three minutes after its last word."""
        return self.confirmed_ms > 0 and self.failed_ms - self.confirmed_ms < RECENT_MS

    def ask_ms(self) -> int:
        """When it should be asked again: half a minute after its last word; sooner, and ever later, if it failed."""
        if not self.failures:
            return self.confirmed_ms + ASK_INTERVAL_MS if self.confirmed_ms else 0
        longest_ms = _RECENT_PAUSE_MS if self.was_here else _LONGEST_PAUSE_MS
        return self.failed_ms + min(_FIRST_PAUSE_MS << min(self.failures, 6), longest_ms)


UNSEEN: Final = Presence()
"""One that has said nothing yet."""
