"""What exchanges on new links changed without being asked for, kept for whoever asks later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from p2pgrid.desk.standing import ChannelChanges, EarlierExchange

MOST_KEPT: Final = 16
"""Of one provider."""


class EarlierExchanges:
    """By the provider's peer id, since this process began: the last that changed something."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._kept: dict[str, deque[EarlierExchange]] = {}

    def note(self, peer_id: str, changes: Sequence[ChannelChanges]) -> None:
        """An exchange is over. One that changed nothing is not worth a note."""
        changed = tuple(one for one in changes if one.is_changed)
        if changed:
            kept = self._kept.setdefault(peer_id, deque(maxlen=MOST_KEPT))
            kept.append(EarlierExchange(at_ms=self._now_ms(), channels=changed))

    def of(self, peer_id: str) -> tuple[EarlierExchange, ...]:
        """Those with this provider, oldest first."""
        return tuple(self._kept.get(peer_id, ()))
