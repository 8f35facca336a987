"""Nodes at places of the test's choice, and draws that can be told beforehand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from hypothesis import strategies as st

from p2pgrid.proto.kademlia import PLACE_BITS
from p2pgrid.proto.kademlia.claims import Address, Claim
from p2pgrid.proto.kademlia.places import Node

places = st.integers(0, 2**PLACE_BITS - 1)


def node(place: int, *groups: str, peer: bytes = b"", at: bytes = b"") -> Node:
    """A node at that place; its name says so."""
    return Node(peer or b"peer at %x" % place, place, groups, (at or b"at %x" % place,))


def spread(count: int, seed: int = 1) -> list[Node]:
    """Nodes at random places."""
    rng = random.Random(seed)
    return [node(rng.getrandbits(PLACE_BITS)) for _ in range(count)]


def closest(nodes: Iterable[Node], place: int, count: int) -> list[Node]:
    """As everybody who knows all of them would say."""
    return sorted(nodes, key=lambda one: one.place ^ place)[:count]


def draws(seed: int = 1) -> Callable[[], float]:
    """Numbers from 0 up to 1."""
    return random.Random(seed).random


def claim(peer: bytes, *hosts: str, signed_at: int | None = 1) -> Claim:
    """That a provider is at these hosts."""
    return Claim(peer, tuple(Address(host, host.encode()) for host in hosts or ("127.0.0.1",)), signed_at)
