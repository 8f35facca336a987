"""Which of the addresses that a peer claims are told to others: those at which it was met.

Anybody can claim an address, and whoever looks the claimant up would dial it: a thousand clients, a victim who never
joined. So a public address is passed on if the peer's own connection comes from it or leads to it; where none does (a
name, a load balancer, another way out than in) it is dialled once, and a handshake shows whether that peer is there.
Addresses that are not public are passed on only for a peer that is itself met at such a one, in one's own building: it
is believed all it claims. Of addresses over a relay, which nobody is met at, the first two are passed on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

from p2pgrid.net.addresses import host_of, leads_over_relay
from p2pgrid.net.listening import caller_of
from p2pgrid.proto.kademlia.groups import is_public

PROVEN_FOR_S: Final = 6 * 60 * 60.0
REFUSED_FOR_S: Final = 10 * 60.0
"""A host that did not prove to be a claimant is not dialled again for so long, for nobody."""
MAX_REMEMBERED: Final = 4096
MAX_DIALS: Final = 4
MAX_WAITING: Final = 32
MAX_ADDRESSES_DIALLED: Final = 2
MAX_RELAYED: Final = 2

Key = TypeVar("Key")


class AddressProof:
    """What one host has found out about where peers are."""

    def __init__(self, dial: Callable[[bytes, bytes], Awaitable[bool]]) -> None:
        """`dial` says whether a peer (its id's bytes) proves its key at a binary address. It raises nothing."""
        self._dial = dial
        self._proven: dict[tuple[bytes, bytes], float] = {}
        self._refused: dict[str, float] = {}
        self._slots = trio.CapacityLimiter(MAX_DIALS)
        self._waiting: Counter[bytes] = Counter()

    def known(self, peer: bytes, addresses: Sequence[bytes], met_at: str) -> tuple[bytes, ...]:
        """Those of `addresses` that may be told to others about a peer whose connection has `met_at` at its end."""
        over_relays = [address for address in addresses if leads_over_relay(address)][:MAX_RELAYED]
        return tuple(a for a in addresses if a in over_relays or self._is_met(peer, a, met_at))

    def needs_proof(self, addresses: Sequence[bytes], known: Sequence[bytes]) -> bool:
        """True where a peer claims public addresses, and none of them is known."""
        return any(map(_is_direct, addresses)) and not any(map(_is_direct, known))

    async def prove(self, peer: bytes, addresses: Sequence[bytes], met_at: str) -> tuple[bytes, ...]:
        """As `known`, after dialling the public ones that are not. Nobody is dialled for more than one at a time."""
        if self._waiting[peer] or self._waiting.total() >= MAX_WAITING:
            return self.known(peer, addresses, met_at)
        self._waiting[peer] += 1
        try:
            async with self._slots:
                unknown = [a for a in addresses if _is_direct(a) and self._refused_until(a) <= trio.current_time()]
                for address in unknown[:MAX_ADDRESSES_DIALLED]:
                    await self._prove_one(peer, address)
        finally:
            del self._waiting[peer]
        return self.known(peer, addresses, met_at)

    def _is_met(self, peer: bytes, address: bytes, met_at: str) -> bool:
        if leads_over_relay(address):
            return False
        host = host_of(address)
        if not is_public(met_at):
            return met_at != "" or self._is_proven(peer, address)
        return is_public(host) and (caller_of(host) == caller_of(met_at) or self._is_proven(peer, address))

    def _is_proven(self, peer: bytes, address: bytes) -> bool:
        return self._proven.get((peer, address), 0.0) > trio.current_time()

    def _refused_until(self, address: bytes) -> float:
        return self._refused.get(host_of(address), 0.0)

    async def _prove_one(self, peer: bytes, address: bytes) -> None:
        # Noted before the dial, so that a victim is not dialled for several claimants at once.
        _remember(self._refused, host_of(address), trio.current_time() + REFUSED_FOR_S)
        if await self._dial(peer, address):
            del self._refused[host_of(address)]
            _remember(self._proven, (peer, address), trio.current_time() + PROVEN_FOR_S)


def _is_direct(address: bytes) -> bool:
    return is_public(host_of(address)) and not leads_over_relay(address)


def _remember(book: dict[Key, float], key: Key, until_s: float) -> None:
    book.pop(key, None)
    if len(book) >= MAX_REMEMBERED:
        del book[next(iter(book))]
    book[key] = until_s
