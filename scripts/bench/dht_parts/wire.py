"""A simulated wire: carries out the look-ups of `p2pgrid/proto/kademlia/` among simulated peers, in simulated time.

An ask costs `ASK_TRIPS` round trips on a connection that is there, and `CONNECT_TRIPS` more for a new one: TCP 1, the
choice of Noise 2, its handshake 1, the choice of yamux 2; then the stream's protocol 2 and the answer 1. Each side
takes `WORK_S` of it. A peer that has left is silent, and an ask of it ends after `TIMEOUT_S`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pgrid.proto.kademlia.claims import Address, Claim
from p2pgrid.proto.kademlia.member import Member
from p2pgrid.proto.kademlia.places import Node
from p2pgrid.proto.kademlia.records import ProviderRecord
from p2pgrid.proto.kademlia.replicas import Request
from p2pgrid.proto.kademlia.walk import Walk

from .population import Peer, Population

CONNECT_TRIPS: Final = 6
ASK_TRIPS: Final = 3
WORK_S: Final = 0.005
TIMEOUT_S: Final = 6.0
MOST_CONNECTIONS: Final = 300
FOUND: Final = 50
"""What `Network.find_providers` returns at most."""

Answer = tuple[list[Node], list[Claim]]
Lie = Callable[[Peer, bytes, bytes], Answer]
"""What a liar answers about a key to an asker."""


@dataclass(slots=True)
class Outcome:
    """What a look-up came to."""

    asks: int = 0
    messages: int = 0
    """Requests and answers, also those of servers that look at who asked them."""
    hops: int = 0
    """How many peers led to the closest node found, the one asked first included."""
    took_s: float = 0.0
    silent: int = 0
    replicas: int = 0
    named_at_s: dict[bytes, float] = field(default_factory=dict)
    """When a provider was first named."""
    providers: set[bytes] = field(default_factory=set)
    """Those that would be asked for their offers: at most `FOUND`."""


class Wire:
    """Asks and answers among the peers of a population. `clock_s` is the time of all that is not a look-up."""

    def __init__(self, population: Population, lie: Lie | None = None) -> None:
        self.population = population
        self.clock_s = 0.0
        self._lie = lie

    def look_up(
        self,
        asker: Peer,
        walk: Walk,
        *,
        is_server: bool = True,
        time_limit_s: float = 60.0,
        on_answer: Callable[[float, Walk], None] | None = None,
        on_end: Callable[[float, Walk], None] | None = None,
    ) -> Outcome:
        """Carry a walk out, as `net/dht.py` does. `on_answer` is called before each is taken in, with the seconds so
        far, `on_end` once it is over.
        """
        outcome = Outcome()
        depth: dict[bytes, int] = {}
        events: list[tuple[float, int, Request, Answer | None]] = []
        began_s = now_s = self.clock_s
        while True:
            for request in walk.due(now_s):
                outcome.asks += 1
                delay_s, answer = self._ask(asker, request, outcome, is_server)
                heapq.heappush(events, (now_s + delay_s, outcome.asks, request, answer))
            if walk.is_over or now_s >= began_s + time_limit_s:
                break
            if not events or walk.wakes_at_s < events[0][0]:
                now_s = walk.wakes_at_s
                continue
            now_s, _, request, answer = heapq.heappop(events)
            if answer is None:
                outcome.silent += 1
                walk.silent(request)
                continue
            closer, claims = answer
            for claim in claims:
                outcome.named_at_s.setdefault(claim.peer, now_s - began_s)
            for node in closer:
                depth.setdefault(node.peer, depth.get(request.node.peer, 1) + 1)
            asker.member.answered(request.node, now_s)
            if on_answer is not None:
                on_answer(now_s - began_s, walk)
            walk.answered(request, request.node, closer, claims)
        if on_end is not None:
            on_end(now_s - began_s, walk)
        outcome.providers = {one.peer for one in walk.providers(FOUND, self.population.rng.random)}
        outcome.took_s = now_s - began_s
        outcome.replicas = len(walk.search.lookups)
        closest = [node for lookup in walk.search.lookups.values() for node in lookup.closest()[:1]]
        outcome.hops = max((depth.get(node.peer, 1) for node in closest), default=0)
        return outcome

    def join(self, peer: Peer, seeds: Sequence[Peer], *, is_server: bool = True) -> Outcome:
        """Have a peer look up its own place, beginning with `seeds`."""
        peer.member.seeds = tuple(seed.node for seed in seeds)
        walk = peer.member.joining(self.clock_s)
        outcome = self.look_up(peer, walk, is_server=is_server)
        peer.member.looked_around(walk)
        return outcome

    def announce(self, peer: Peer, key: bytes) -> tuple[Outcome, int]:
        """Leave a provider record; with how many honest servers it is now."""
        walk = self.population.settled(peer).looking_for_holders(key, self.clock_s)
        outcome = self.look_up(peer, walk)
        peer.member.ended(walk)
        kept = 0
        for replica, node in Member.holders(walk):
            server = self.population.peers.get(node.peer)
            outcome.messages += 1
            if server is None or not server.is_alive or server.liar:
                continue
            outcome.messages += 1
            group = peer.node.groups[0]
            record = ProviderRecord(peer.node.peer, peer.node.addresses, group, b"signed", self.clock_s)
            kept += server.member.records.add(replica, record)
        return outcome, kept

    def find_providers(
        self,
        peer: Peer,
        key: bytes,
        *,
        is_server: bool = True,
        time_limit_s: float = 60.0,
        on_answer: Callable[[float, Walk], None] | None = None,
        on_end: Callable[[float, Walk], None] | None = None,
    ) -> Outcome:
        """Look for providers."""
        walk = self.population.settled(peer).looking_for_providers(key, self.clock_s)
        outcome = self.look_up(
            peer, walk, is_server=is_server, time_limit_s=time_limit_s, on_answer=on_answer, on_end=on_end
        )
        peer.member.ended(walk)
        return outcome

    def maintain(self, peer: Peer) -> Outcome:
        """A round of maintenance, as `net/dht.py` makes it."""
        total = Outcome()
        self.population.settled(peer).records.expire(self.clock_s)
        for node in peer.member.silent(self.clock_s):
            other = self.population.peers.get(node.peer)
            total.asks += 1
            if other is not None and other.is_alive:
                total.messages += 2
                peer.member.answered(node, self.clock_s)
            else:
                total.messages += 1
                peer.member.table.failed(node)
        for key in peer.member.refreshed(self.clock_s, self.population.rng.randbytes(16)):
            walk = peer.member.looking_around(key, self.clock_s)
            outcome = self.look_up(peer, walk)
            peer.member.looked_around(walk)
            total.asks += outcome.asks
            total.messages += outcome.messages
        return total

    def _ask(self, asker: Peer, request: Request, outcome: Outcome, is_server: bool) -> tuple[float, Answer | None]:
        server = self.population.peers.get(request.node.peer)
        outcome.messages += 1
        if server is None or not server.is_alive:
            return TIMEOUT_S, None
        outcome.messages += 1
        trips = ASK_TRIPS
        if server.node.peer not in asker.connected:
            trips += CONNECT_TRIPS
            if len(asker.connected) >= MOST_CONNECTIONS:
                del asker.connected[next(iter(asker.connected))]
            if is_server and not server.liar and self.population.settled(server).table.has_room(asker.node):
                # It looks at who is new, and finds a server.
                outcome.messages += 2
                server.member.answered(asker.node, self.clock_s)
        else:
            del asker.connected[server.node.peer]
        asker.connected[server.node.peer] = None
        delay_s = trips * asker.round_trip_s(server) + 2 * WORK_S
        if server.liar and self._lie is not None:
            return delay_s, self._lie(server, request.key, asker.node.peer)
        return delay_s, self._answer(server, request.key, asker)

    def _answer(self, server: Peer, key: bytes, asker: Peer) -> Answer:
        records = self.population.settled(server).records.of(key, self.clock_s, self.population.rng.random)
        claims = [Claim(one.peer, tuple(map(_address, one.addresses)), 1) for one in records]
        return server.member.closest(key, asker.node.peer), claims


def _address(raw: bytes) -> Address:
    return Address(".".join(map(str, raw[1:5])), raw)
