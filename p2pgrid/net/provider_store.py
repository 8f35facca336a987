"""Provider records as a server of the DHT keeps them: who said they provide what, and where. Bounded in every way.

libp2p's own store keeps any number of keys, the first 20 providers of a key, and all for 48 hours. This one lets
go of a silent provider within the hour, has room for a large network, and takes no more than a fair share from one
peer. Nothing in it is trusted: a provider is believed only when it answers itself.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final

from libp2p.kad_dht.provider_store import ProviderRecord, ProviderStore
from libp2p.peer.peerinfo import PeerInfo

from p2pgrid.net.addresses import usable_addresses

RECORD_TTL_S: Final = 60 * 60
MAX_KEYS: Final = 20_000
MAX_PROVIDERS_PER_KEY: Final = 500
MAX_KEYS_PER_PROVIDER: Final = 200
MAX_RECORDS: Final = 50_000
"""Over all keys: about 100 MB. A server of a network of any size is closest to far fewer."""
MAX_PROVIDERS_PER_ANSWER: Final = 60


class BoundedProviderStore(ProviderStore):  # type: ignore[misc]
    """As the base class, whose message handler calls it, with limits."""

    max_keys = MAX_KEYS
    max_records = MAX_RECORDS

    def __init__(self, host: Any, now: Callable[[], float] = time.time) -> None:
        """`now`: the clock, in Unix seconds."""
        super().__init__(host)
        self._now = now
        self.providers: dict[bytes, dict[str, ProviderRecord]] = {}
        self._keys_of: dict[str, set[bytes]] = {}
        self._n_records = 0

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Keep or renew a record. Over a limit it is not kept: the peer tries again, and others keep theirs."""
        peer_id = str(provider.peer_id)
        addresses = usable_addresses((a.to_bytes() for a in provider.addrs), peer_id, circuits=True)
        records = self.providers.get(key, {})
        keys = self._keys_of.get(peer_id, set())
        full = (
            (not records and len(self.providers) >= self.max_keys)
            or len(records) >= MAX_PROVIDERS_PER_KEY
            or self._n_records >= self.max_records
        )
        if not addresses or (peer_id not in records and (full or len(keys) >= MAX_KEYS_PER_PROVIDER)):
            return
        self._n_records += peer_id not in records
        self.providers.setdefault(key, {})[peer_id] = ProviderRecord(PeerInfo(provider.peer_id, addresses), self._now())
        self._keys_of.setdefault(peer_id, set()).add(key)

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        """Those of the last hour; a random choice of 60 where there are more."""
        oldest = self._now() - RECORD_TTL_S
        live = [r.provider_info for r in self.providers.get(key, {}).values() if r.timestamp > oldest]
        return random.sample(live, MAX_PROVIDERS_PER_ANSWER) if len(live) > MAX_PROVIDERS_PER_ANSWER else live

    def withdraw(self, peer_id: str) -> None:
        """Forget all that `peer_id` provides."""
        for key in self._keys_of.pop(peer_id, set()):
            records = self.providers.get(key, {})
            self._n_records -= records.pop(peer_id, None) is not None
            if not records:
                self.providers.pop(key, None)

    def cleanup_expired(self) -> None:
        """Drop what is older than an hour."""
        oldest = self._now() - RECORD_TTL_S
        kept = {
            key: live
            for key, records in self.providers.items()
            if (live := {peer_id: record for peer_id, record in records.items() if record.timestamp > oldest})
        }
        self.providers = kept
        self._keys_of = {}
        self._n_records = sum(map(len, kept.values()))
        for key, records in kept.items():
            for peer_id in records:
                self._keys_of.setdefault(peer_id, set()).add(key)
