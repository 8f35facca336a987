"""Who is said to provide a key, by servers of which some lie: whom to ask first, and how many at all.

The replicas of a key take turns in naming a provider, of each its look-up's paths, and of each of those its servers,
drawn by weight (`lookup.py`). So the share of invented providers is no greater than that of lying servers, however many
each names, and small where they are a crowd of their own. Servers that should hold no record come last. Few providers
of one IP prefix come first, and no more than `PER_HOST` of one public address at all: a victim whose address is claimed
is not dialled for every one of a flood of keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
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


@dataclass(frozen=True, slots=True)
class Voice:
    """A server, as one of those who name providers."""

    replica: int = 0
    path: int = 0
    weight: float = 1.0
    """Beside others of its path."""
    is_holder: bool = True
    """It is where the records of the key should be."""


class Claims:
    """What all servers asked in one look-up have said."""

    def __init__(self, own: bytes) -> None:
        self._own = own
        self._named: list[tuple[Voice, list[bytes]]] = []
        self._signed: dict[bytes, tuple[int, tuple[Address, ...]]] = {}
        self._hearsay: dict[bytes, Counter[Address]] = {}

    def add(self, claims: Iterable[Claim], voice: Voice) -> None:
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
        if named:
            self._named.append((voice, named))

    def chosen(self, limit: int, draw: Callable[[], float]) -> list[Provider]:
        """At most `limit` providers: those whose addresses they signed themselves before the others."""
        said = [(v, sorted(named, key=lambda p: (p not in self._signed, draw()))) for v, named in self._named]
        picked = _Picked(limit)
        for holders_only, per_group in ((True, PER_GROUP), (False, PER_GROUP), (False, limit)):
            streams = [
                _turns([self._naming(servers, picked, per_group, draw) for servers in _split(replica, "path")])
                for replica in _split([one for one in said if one[0].is_holder or not holders_only], "replica")
            ]
            for _ in _turns(streams):
                if picked.is_full:
                    break
        return sorted(self._in_turn(list(picked.providers.values())), key=lambda provider: not provider.is_signed)

    def _in_turn(self, picked: list[Provider]) -> list[Provider]:
        """In turn the one that most servers name and the one that was picked first.

        Whom liars invent afresh in every answer is named once; whom they all name is soon through.
        """
        servers = Counter(peer for _, named in self._named for peer in named)
        by_servers = sorted(picked, key=lambda provider: -servers[provider.peer])
        return list(dict.fromkeys(chain.from_iterable(zip(by_servers, picked, strict=True))))

    def _naming(
        self, servers: list[_Said], picked: _Picked, per_group: int, draw: Callable[[], float]
    ) -> Iterator[Provider]:
        """Each time, have a server drawn by weight name the next provider that may be taken, and take it."""
        going = [(voice.weight, map(self._provider, named)) for voice, named in servers]
        while going:
            index = _drawn([weight for weight, _ in going], draw)
            taken = next((one for one in going[index][1] if picked.take(one, per_group)), None)
            if taken is None:
                del going[index]
            else:
                yield taken

    def _provider(self, peer: bytes) -> Provider:
        signed = self._signed.get(peer, (0, ()))[1]
        hearsay = [address for address, _ in self._hearsay.get(peer, Counter()).most_common()]
        return Provider(peer, tuple(dict.fromkeys([*signed, *hearsay]))[:MAX_ADDRESSES], bool(signed))


_Said = tuple[Voice, list[bytes]]


class _Picked:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.providers: dict[bytes, Provider] = {}
        self._by_group: Counter[str] = Counter()
        self._by_host: Counter[str] = Counter()

    @property
    def is_full(self) -> bool:
        return len(self.providers) >= self.limit

    def take(self, provider: Provider, per_group: int) -> bool:
        """Add one that is new, unless too many of its prefix or address are in."""
        if self.is_full or provider.peer in self.providers:
            return False
        hosts = {address.host for address in provider.addresses if is_public(address.host)}
        groups = groups_of(hosts)
        if any(self._by_host[host] >= PER_HOST for host in hosts) or any(
            self._by_group[group] >= per_group for group in groups
        ):
            return False
        self.providers[provider.peer] = provider
        self._by_host.update(hosts)
        self._by_group.update(groups)
        return True


def _split(said: list[_Said], by: str) -> list[list[_Said]]:
    """What was said, by replica or by path."""
    parts: dict[int, list[_Said]] = {}
    for one in said:
        parts.setdefault(getattr(one[0], by), []).append(one)
    return list(parts.values())


def _turns(streams: list[Iterator[Provider]]) -> Iterator[Provider]:
    """One of each in turn, for as long as any has more."""
    while streams:
        for stream in list(streams):
            one = next(stream, None)
            if one is None:
                streams.remove(stream)
            else:
                yield one


def _drawn(weights: list[float], draw: Callable[[], float]) -> int:
    mark = draw() * sum(weights)
    for index, weight in enumerate(weights):
        mark -= weight
        if mark < 0:
            return index
    return len(weights) - 1
