"""Places, distance, and keys into a bucket."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.kademlia import PLACE_BITS
from p2pgrid.proto.kademlia.places import MAX_SEARCHED_BITS, key_beside, place_of, shared_bits
from tests.proto.kademlia.nodes import places


def test_a_place_is_the_sha256_of_the_key() -> None:
    assert place_of(b"key").to_bytes(32) == hashlib.sha256(b"key").digest()


@pytest.mark.parametrize(
    ("one", "other", "bits"), [(0, 0, PLACE_BITS), (0, 1, 255), (0, 1 << 255, 0), (3 << 254, 1 << 255, 1)]
)
def test_shared_bits(one: int, other: int, bits: int) -> None:
    assert shared_bits(one, other) == shared_bits(other, one) == bits


@given(places, st.integers(0, 8), st.binary(min_size=16, max_size=16))
def test_a_key_beside_a_place_shares_so_many_bits_and_no_more(place: int, bits: int, seed: bytes) -> None:
    assert shared_bits(place_of(key_beside(place, bits, seed)), place) == bits


@pytest.mark.parametrize("bits", [-1, MAX_SEARCHED_BITS + 1])
def test_what_would_take_too_long_is_not_looked_for(bits: int) -> None:
    with pytest.raises(ValueError, match="bits are not looked for"):
        key_beside(0, bits, b"")
