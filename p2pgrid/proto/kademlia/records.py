"""Provider records as a server keeps them: who said they provide what, and where. Bounded in every way.

A silent provider is let go within the hour. Of one key there is room for many providers; when it is used up, whoever is
of an IP prefix with few gets the place of one of the prefix with most, and otherwise those stay who renew. Nothing here
is trusted: a provider is believed when it answers itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

RECORD_TTL_S: Final = 60 * 60
MAX_KEYS: Final = 40_000
MAX_PROVIDERS_PER_KEY: Final = 500
MAX_KEYS_PER_PROVIDER: Final = 400
MAX_RECORDS: Final = 50_000
"""Over all keys: about 100 MB. A server of a network of any size is closest to far fewer."""
MAX_PROVIDERS_PER_ANSWER: Final = 60


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """One provider of one key."""

    peer: bytes
    addresses: tuple[bytes, ...]
    group: str
    """The IP prefix it announced itself from; empty where that does not count."""
    signed: bytes
    """Its signed peer record, if it sent one, for others to check; else empty."""
    heard_s: float


class ProviderRecords:
    """The records of one server. Times are seconds on any clock that does not go back."""

    __slots__ = ("_count", "_keys_of", "_max_keys", "_max_records", "_records")

    def __init__(self, max_keys: int = MAX_KEYS, max_records: int = MAX_RECORDS) -> None:
        self._max_keys = max_keys
        self._max_records = max_records
        self._count = 0
        self._records: dict[bytes, dict[bytes, ProviderRecord]] = {}
        self._keys_of: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, key: bytes, record: ProviderRecord) -> bool:
        """Keep or renew a record; False where there is no room for it."""
        known = self._records.get(key, {})
        if record.peer not in known:
            if self._count >= self._max_records or len(self._keys_of.get(record.peer, ())) >= MAX_KEYS_PER_PROVIDER:
                return False
            if not known and len(self._records) >= self._max_keys:
                return False
            if len(known) >= MAX_PROVIDERS_PER_KEY and not self._make_room(key, known, record.group):
                return False
            self._count += 1
        self._records.setdefault(key, {})[record.peer] = record
        self._keys_of.setdefault(record.peer, set()).add(key)
        return True

    def of(self, key: bytes, now_s: float, draw: Callable[[], float]) -> list[ProviderRecord]:
        """Those of the last hour, at most 60: where there are more, drawn, with prefixes taking turns."""
        live = [record for record in self._records.get(key, {}).values() if record.heard_s > now_s - RECORD_TTL_S]
        if len(live) <= MAX_PROVIDERS_PER_ANSWER:
            return live
        live.sort(key=lambda _: draw())
        turn = Counter[str]()
        ranks = []
        for record in live:
            ranks.append(turn[record.group] if record.group else 0)
            turn[record.group] += 1
        order = sorted(range(len(live)), key=ranks.__getitem__)
        return [live[index] for index in order[:MAX_PROVIDERS_PER_ANSWER]]

    def withdraw(self, peer: bytes) -> None:
        """Forget all that `peer` provides."""
        for key in list(self._keys_of.get(peer, ())):
            self._drop(key, peer)

    def expire(self, now_s: float) -> None:
        """Drop what is older than an hour."""
        old = [
            (key, record.peer)
            for key, records in self._records.items()
            for record in records.values()
            if record.heard_s <= now_s - RECORD_TTL_S
        ]
        for key, peer in old:
            self._drop(key, peer)

    def _make_room(self, key: bytes, known: dict[bytes, ProviderRecord], group: str) -> bool:
        counts = Counter(record.group for record in known.values() if record.group)
        fullest, most = counts.most_common(1)[0] if counts else ("", 0)
        if most <= counts[group] + 1:
            return False
        self._drop(key, next(record.peer for record in reversed(known.values()) if record.group == fullest))
        return True

    def _drop(self, key: bytes, peer: bytes) -> None:
        records, keys = self._records[key], self._keys_of[peer]
        del records[peer]
        self._count -= 1
        if not records:
            del self._records[key]
        keys.discard(key)
        if not keys:
            del self._keys_of[peer]
