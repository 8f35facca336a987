"""The peers of a simulated network: who they are, where, how far apart, and whom they know once all has settled."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from p2pgrid.proto.kademlia import PLACE_BITS, REPLICATION
from p2pgrid.proto.kademlia.lookup import Limits
from p2pgrid.proto.kademlia.member import Member
from p2pgrid.proto.kademlia.places import Node, place_of

EARTH_KM: Final = 6371.0
KM_PER_S: Final = 200_000.0
"""Light in fibre."""
DETOUR: Final = 1.5
ACCESS_S: Final = 0.005
"""Mean of what each end adds to a round trip; exponentially distributed."""
SIZE_SAMPLES: Final = 4
"""Random places by which a settled peer knows the network's size, beside its own."""
_ED25519_ID_PREFIX: Final = bytes.fromhex("002408011220")
_REGIONS: Final = ((50, 10, 8), (40, -75, 10), (37, -120, 8), (35, 138, 6), (1, 104, 6), (-23, -46, 6), (20, 78, 6))
"""Latitude, longitude and spread in degrees: where peers live."""


class Peer:
    """One peer, honest unless `liar` is set."""

    __slots__ = (
        "access_s",
        "connected",
        "is_alive",
        "is_settled",
        "is_sybil",
        "latitude",
        "liar",
        "longitude",
        "member",
        "node",
    )

    def __init__(self, node: Node, rng: random.Random, limits: Limits | None = None) -> None:
        latitude, longitude, spread = rng.choice(_REGIONS)
        self.latitude = math.radians(rng.gauss(latitude, spread))
        self.longitude = math.radians(rng.gauss(longitude, spread))
        self.access_s = rng.expovariate(1 / ACCESS_S)
        self.node = node
        self.member = Member(node.peer, rng.random, limits)
        self.connected: dict[bytes, None] = {}
        self.is_alive = True
        self.is_settled = True
        self.liar = False
        self.is_sybil = False

    def round_trip_s(self, other: Peer) -> float:
        """To another peer and back."""
        half = (
            math.sin((self.latitude - other.latitude) / 2) ** 2
            + math.cos(self.latitude) * math.cos(other.latitude) * math.sin((self.longitude - other.longitude) / 2) ** 2
        )
        distance_km = 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, half)))
        return 2 * distance_km * DETOUR / KM_PER_S + self.access_s + other.access_s


class Population:
    """All peers, by place. `rng` makes everything that happens by chance, so a seed makes a run."""

    def __init__(self, rng: random.Random, limits: Limits | None = None) -> None:
        self.rng = rng
        self.limits = limits
        self.peers: dict[bytes, Peer] = {}
        self._order: list[tuple[int, Peer]] = []
        self._places: list[int] = []
        self._sybils_came_late = True

    def __len__(self) -> int:
        return len(self.peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self.peers.values())

    def add(self, count: int, *, prefixes: int = 0) -> list[Peer]:
        """New peers at random places, in networks of their own or spread over so many IP prefixes."""
        return [self._new(self.rng.randbytes(32), None, prefixes) for _ in range(count)]

    def add_beside(self, place: int, radius: int, *, prefixes: int = 0) -> Peer:
        """A peer that has made itself a key at most `radius` from a place: the simulation's privilege."""
        return self._new(self.rng.randbytes(32), place ^ self.rng.randrange(max(1, radius)), prefixes)

    def settle(self, *, sybils_came_late: bool = True) -> None:
        """Bring every honest peer's table to what it is in a network that has been there for long.

        It is done for each when it is first needed, by `settled`: of a large network most are never asked.
        """
        self._sort()
        self._sybils_came_late = sybils_came_late
        for peer in self.peers.values():
            peer.is_settled = peer.liar

    def settled(self, peer: Peer) -> Member:
        """A peer's state, to read and change."""
        if not peer.is_settled:
            peer.is_settled = True
            self._fill(peer, self._sybils_came_late)
        return peer.member

    def nearest(self, place: int, count: int = REPLICATION) -> list[Peer]:
        """The `count` peers closest to a place, of those there were when all was settled."""
        for bits in range(PLACE_BITS, -1, -1):
            low, high = self._range(place, bits)
            if high - low >= count or bits == 0:
                found = sorted(self._order[low:high], key=lambda one: one[0] ^ place)
                return [peer for _, peer in found[:count]]
        raise AssertionError

    def _new(self, key: bytes, place: int | None, prefixes: int) -> Peer:
        own = _ED25519_ID_PREFIX + key
        number = self.rng.randrange(prefixes) if prefixes else self.rng.getrandbits(22)
        # Networks of the honest are in 16.0.0.0 to 79.0.0.0, those shared by attackers in 80.0.0.0.
        network = (80 << 16) + number if prefixes else (16 << 16) + number
        ip = network.to_bytes(3) + bytes([self.rng.randrange(1, 255)])
        group = f"{ip[0]}.{ip[1]}.{ip[2]}.0/24"
        node = Node(own, place_of(own) if place is None else place, (group,), (b"\x04" + ip + b"\x06\x0f\xa1",))
        peer = self.peers[own] = Peer(node, self.rng, self.limits)
        if place is not None:
            peer.member.place = place
        return peer

    def _sort(self) -> None:
        self._order = sorted(((peer.node.place, peer) for peer in self.peers.values()), key=lambda one: one[0])
        self._places = [place for place, _ in self._order]

    def _range(self, place: int, bits: int) -> tuple[int, int]:
        """Whose places share the first `bits` bits."""
        below = PLACE_BITS - bits
        first = place >> below << below
        return bisect_left(self._places, first), bisect_left(self._places, first + (1 << below))

    def _fill(self, peer: Peer, sybils_came_late: bool) -> None:
        place, member = peer.node.place, peer.member
        for bits in range(PLACE_BITS):
            low, high = self._range(place ^ (1 << (PLACE_BITS - 1 - bits)), bits + 1)
            for other in self._known_of(low, high, sybils_came_late):
                member.answered(other.node, 0.0)
            low, high = self._range(place, bits + 1)
            if high - low <= 1:
                break
        samples = [place, *(self.rng.getrandbits(PLACE_BITS) for _ in range(SIZE_SAMPLES))]
        for sample in samples:
            member.size.add(sample, [other.node for other in self.nearest(sample)])

    def _known_of(self, low: int, high: int, sybils_came_late: bool) -> list[Peer]:
        """Which of the peers of a bucket were met, in this order: a few more than it holds."""
        most = REPLICATION + 5
        if high - low > 40 * most:  # sybils, if any, are few among so many
            return [self._order[index][1] for index in self.rng.sample(range(low, high), most)]
        peers = [peer for _, peer in self._order[low:high]]
        self.rng.shuffle(peers)
        if sybils_came_late:
            peers.sort(key=lambda peer: peer.is_sybil)
        return peers[:most]
