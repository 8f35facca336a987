"""Evidence against peers, kept within limits: a disk must not fill with what one peer signs."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.record import Record

log = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 16
"""Records that are kept against one peer in a row."""
REFILL_MS: Final = 600_000
"""After so long one more."""
MOST_OF_ALL: Final = 1024
"""In a row, against all peers together: peer ids cost nothing."""
ALL_REFILL_MS: Final = 10_000
_MAX_PEERS: Final = 10_000


class _Allowance:
    """A token bucket."""

    def __init__(self, most: int, refill_ms: int, now_ms: int) -> None:
        self._most, self._refill_ms = most, refill_ms
        self._left: float = most
        self._since_ms = now_ms

    def is_left(self, now_ms: int) -> bool:
        self._left = min(self._most, self._left + max(now_ms - self._since_ms, 0) / self._refill_ms)
        self._since_ms = now_ms
        return self._left >= 1

    def take(self) -> None:
        self._left -= 1


class EvidenceKeeper:
    """The one way in which evidence gets into the ledger."""

    def __init__(self, ledger: Ledger, now_ms: Callable[[], int]) -> None:
        self._ledger = ledger
        self._now_ms = now_ms
        self._all = _Allowance(MOST_OF_ALL, ALL_REFILL_MS, now_ms())
        self._peers: OrderedDict[bytes, _Allowance] = OrderedDict()
        self.dropped = 0
        """Records beyond the limits, not kept."""

    def keep(self, peer: PublicKey, record: Record, reason: str) -> bool:
        """Keep a record that `peer` signed, unless too many came from it of late. True if it was taken.

        A failed write is logged: evidence is worth less than going on.
        """
        now_ms = self._now_ms()
        own = self._peers.setdefault(peer.raw, _Allowance(MOST_AT_ONCE, REFILL_MS, now_ms))
        self._peers.move_to_end(peer.raw)
        if len(self._peers) > _MAX_PEERS:
            self._peers.popitem(last=False)
        if not own.is_left(now_ms) or not self._all.is_left(now_ms):
            self.dropped += 1
            log.warning("evidence against %s is not kept: too much of it came", peer)
            return False
        own.take()
        self._all.take()
        self._ledger.append_evidence(record, reason).add_done_callback(_log_failure)
        return True


def _log_failure(future: asyncio.Future[None]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        log.error("evidence could not be kept: %s", error)
