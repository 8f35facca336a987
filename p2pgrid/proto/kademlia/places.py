"""Where peers and keys lie: a place is the SHA-256 of a peer id or key, as a number. Distance is exclusive or.

As in libp2p's kad-dht specification, so that other implementations put peers and keys at the same places.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from p2pgrid.proto.kademlia import PLACE_BITS

MAX_SEARCHED_BITS: Final = 14


@dataclass(frozen=True, slots=True)
class Node:
    """A server of the DHT as others see it. Whether it is there, only asking it tells."""

    peer: bytes
    """The peer id's bytes."""
    place: int
    groups: tuple[str, ...] = ()
    """The IP prefixes that it is said to be in (`groups.py`); none where they do not count."""
    addresses: tuple[bytes, ...] = ()
    """Whatever the network dials it by."""


def place_of(key: bytes) -> int:
    """The place of a peer id or key."""
    return int.from_bytes(hashlib.sha256(key).digest())


def shared_bits(one: int, other: int) -> int:
    """How many leading bits two places have in common: 0 to 256."""
    return PLACE_BITS - (one ^ other).bit_length()


def key_beside(place: int, bits: int, seed: bytes) -> bytes:
    """A key whose place shares exactly `bits` leading bits with `place`: what a look-up into one bucket asks for.

    Found by trying, about 2^(bits + 1) times: `bits` up to `MAX_SEARCHED_BITS` takes some 20 ms. `seed` is random.
    """
    if not 0 <= bits <= MAX_SEARCHED_BITS:
        raise ValueError(f"{bits} bits are not looked for: 0 to {MAX_SEARCHED_BITS} are")
    count = 0
    while True:
        key = hashlib.sha256(seed + count.to_bytes(4)).digest()
        if shared_bits(place_of(key), place) == bits:
            return key
        count += 1
