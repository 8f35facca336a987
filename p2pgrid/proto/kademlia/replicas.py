"""A key has several places, so that whoever wants to hide a record has to surround each.

Replica 0 is at the key itself, where other implementations of libp2p put and seek records. The others are used in their
order, by whoever announces and by whoever looks, for as long as the look-up at the one before is strained: a few more
requests where strangers lie, and otherwise none. The second is begun as soon as the first looks doubtful, for clients
are in haste.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple

from p2pgrid.proto.kademlia import MAX_REPLICAS, REPLICATION
from p2pgrid.proto.kademlia.lookup import Lookup
from p2pgrid.proto.kademlia.places import Node

ANNOUNCED: Final = 2
"""Records are left at so many replicas in any case: an attack on the first may begin before they are renewed."""
_MULTIHASH_SHA2_256: Final = b"\x12\x20"


def replica_key(key: bytes, number: int) -> bytes:
    """The DHT key of a replica: `key` itself for 0, or the sha2-256 multihash of `key` and one byte, the number."""
    if number == 0:
        return key
    return _MULTIHASH_SHA2_256 + hashlib.sha256(key + bytes([number])).digest()


class Request(NamedTuple):
    """Ask `node` about `key`, and report to `lookup`."""

    lookup: Lookup
    key: bytes
    node: Node


class Search:
    """The look-ups for one key at as many replicas as it takes. Over when `next` gives None and `waiting` is 0."""

    def __init__(
        self, key: bytes, begin: Callable[[bytes], Lookup], *, at_least: int = 1, at_most: int = MAX_REPLICAS
    ) -> None:
        """`begin` begins a look-up for a DHT key."""
        self._key = key
        self._begin = begin
        self._at_least = at_least
        self._at_most = at_most
        self.lookups: dict[bytes, Lookup] = {}
        """By the replicas' keys."""
        self._add()

    @property
    def waiting(self) -> int:
        """How many requests are worth waiting for."""
        return sum(lookup.waiting for lookup in self.lookups.values())

    def next(self) -> Request | None:
        """Whom to ask about what; None if nobody, or not before something is heard."""
        while True:
            for key, lookup in self.lookups.items():
                node = lookup.next()
                if node is not None:
                    return Request(lookup, key, node)
            if len(self.lookups) >= self._at_most or not self._needs_another():
                return None
            self._add()

    def _add(self) -> None:
        key = replica_key(self._key, len(self.lookups))
        self.lookups[key] = self._begin(key)

    def _needs_another(self) -> bool:
        """Where fewer than k servers answer, all of them hold the first replica."""
        last = list(self.lookups.values())[-1]
        if last.is_strained or (last.is_doubtful and len(self.lookups) == 1):
            return True
        return len(self.lookups) < self._at_least and not last.waiting and len(last.closest()) >= REPLICATION
