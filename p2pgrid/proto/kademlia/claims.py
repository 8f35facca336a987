"""Who is said to provide a key, by servers of which some lie: whom to ask first, and how many at all.

Servers take turns in naming a provider, so that the share of invented ones is that of the servers that lie, however
many each of them names. Few providers of one IP prefix come first, and no more than `PER_HOST` of one public address at
all: a victim whose address is claimed is not dialled for every one of a flood of keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.proto.kademlia import PER_GROUP
from p2pgrid.proto.kademlia.groups import groups_of, is_public

PER_HOST: Final = 4
MAX_ADDRESSES: Final = 8


@dataclass(frozen=True, slots=True)
class Address:
    """Where a provider is said to be."""

    host: str
    """IP address or DNS name."""
    raw: bytes
    """What the network dials."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one server says of one provider."""

    peer: bytes
    addresses: tuple[Address, ...]
    signed_at: int | None = None
    """The sequence number of the provider's own signed peer record; None where the addresses are hearsay."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider that is worth asking, and its addresses, the most credible first."""

    peer: bytes
    addresses: tuple[Address, ...]
    is_signed: bool


class Claims:
    """What all servers asked in one look-up have said."""

    def __init__(self, own: bytes) -> None:
        self._own = own
        self._named: list[list[bytes]] = []
        self._signed: dict[bytes, tuple[int, tuple[Address, ...]]] = {}
        self._hearsay: dict[bytes, Counter[Address]] = {}

    def add(self, claims: Iterable[Claim]) -> None:
        """Take in one server's claims, each provider once."""
        named: list[bytes] = []
        for claim in {claim.peer: claim for claim in claims}.values():
            if claim.peer == self._own or not claim.addresses:
                continue
            named.append(claim.peer)
            if claim.signed_at is None:
                self._hearsay.setdefault(claim.peer, Counter()).update(set(claim.addresses))
            elif claim.signed_at > self._signed.get(claim.peer, (-1, ()))[0]:
                self._signed[claim.peer] = (claim.signed_at, claim.addresses)
        self._named.append(named)

    def chosen(self, limit: int, draw: Callable[[], float]) -> list[Provider]:
        """At most `limit` providers: those whose addresses they signed themselves before the others."""
        providers = {peer: self._provider(peer) for named in self._named for peer in named}
        lists = [sorted(named, key=lambda peer: (peer not in self._signed, draw())) for named in self._named]
        lists.sort(key=lambda _: draw())
        picked = _Picked(limit)
        for per_group in (PER_GROUP, limit):
            _take_turns(lists, providers, picked, per_group)
        return sorted(picked.providers.values(), key=lambda provider: not provider.is_signed)

    def _provider(self, peer: bytes) -> Provider:
        signed = self._signed.get(peer, (0, ()))[1]
        hearsay = [address for address, _ in self._hearsay.get(peer, Counter()).most_common()]
        return Provider(peer, tuple(dict.fromkeys([*signed, *hearsay]))[:MAX_ADDRESSES], bool(signed))


class _Picked:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.providers: dict[bytes, Provider] = {}
        self._by_group: Counter[str] = Counter()
        self._by_host: Counter[str] = Counter()

    def take(self, provider: Provider, per_group: int) -> bool:
        """Add one that is new, unless too many of its prefix or address are in."""
        hosts = {address.host for address in provider.addresses if is_public(address.host)}
        groups = groups_of(hosts)
        if (
            provider.peer in self.providers
            or any(self._by_host[host] >= PER_HOST for host in hosts)
            or any(self._by_group[group] >= per_group for group in groups)
        ):
            return False
        self.providers[provider.peer] = provider
        self._by_host.update(hosts)
        self._by_group.update(groups)
        return True


def _take_turns(
    lists: Sequence[Sequence[bytes]], providers: dict[bytes, Provider], picked: _Picked, per_group: int
) -> None:
    turns = [iter(named) for named in lists]
    while turns and len(picked.providers) < picked.limit:
        going = []
        for turn in turns:
            if len(picked.providers) < picked.limit and any(picked.take(providers[p], per_group) for p in turn):
                going.append(turn)
        turns = going
