from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import UsageError
from p2pgrid.net.lookup_keys import MAX_KEY_CHARS, PROVIDER, country_key, model_key, record_key


def test_keys_as_text() -> None:
    assert PROVIDER == "provider"
    assert model_key("qwen3-8b") == "model/qwen3-8b"
    assert model_key("org/qwen3-8b", "DE") == "model/org/qwen3-8b@DE"
    assert country_key("FR") == "country/FR"


def test_a_record_key_is_the_multihash_of_network_and_key() -> None:
    assert record_key("main", "provider") == b"\x12\x20" + hashlib.sha256(b"main\0provider").digest()


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_record_keys_differ_by_network_and_by_key(one: str, other: str) -> None:
    assert record_key("main", one) != record_key("test", one)
    assert (record_key("main", one) == record_key("main", other)) == (one == other)


@pytest.mark.parametrize("name", ["", "Main", "a/b", "a b", "-a", "a-", "a" * 33, "a\0b", "ä"])
def test_a_network_name_is_plain(name: str) -> None:
    with pytest.raises(UsageError, match="network name"):
        record_key(name, "provider")


@pytest.mark.parametrize("key", ["", "x" * (MAX_KEY_CHARS + 1)])
def test_a_key_has_bounds(key: str) -> None:
    with pytest.raises(UsageError, match="look-up key"):
        record_key("main", key)


@pytest.mark.parametrize("country", ["", "de", "DEU", "D1"])
def test_a_country_is_two_capital_letters(country: str) -> None:
    with pytest.raises(UsageError, match="country code"):
        country_key(country)
    with pytest.raises(UsageError, match="country code"):
        model_key("m", country)
