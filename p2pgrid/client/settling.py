"""What exchanges on new links changed without being asked for, kept for whoever asks; and what is signed meanwhile."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from p2pgrid.desk.standing import ChannelChanges, EarlierExchange
from p2pgrid.proto.record import Signed
from p2pgrid.proto.statement import Statement

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


class SignedStatements:
    """Statements that both have signed, for whoever looks on: a link that comes up signs what is due by itself."""

    def __init__(self) -> None:
        self._watching: list[list[Signed[Statement]]] = []

    def add(self, statement: Signed[Statement]) -> None:
        """Both have signed it just now."""
        for seen in self._watching:
            seen.append(statement)

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[Signed[Statement]]]:
        """A list that all go into which are signed until the block is left."""
        seen: list[Signed[Statement]] = []
        self._watching.append(seen)
        try:
            yield seen
        finally:
            self._watching = [one for one in self._watching if one is not seen]
