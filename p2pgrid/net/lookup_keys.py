"""The keys under which providers are found (docs/spec/discovery.md): text, and its place in the DHT.

provider                every provider of the network
country/DE              providers in a country
model/qwen3-8b          providers of a model
model/qwen3-8b@DE       providers of a model in a country
relay                   peers that relay for others (docs/spec/relay.md)
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from p2pgrid.errors import UsageError

PROVIDER: Final = "provider"
RELAY: Final = "relay"
MAX_KEY_CHARS: Final = 300
_COUNTRY: Final = re.compile(r"[A-Z]{2}")
_NETWORK_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_SHA2_256_MULTIHASH_PREFIX: Final = b"\x12\x20"


def model_key(model: str, country: str | None = None) -> str:
    """The key for providers of `model`, or of `model` in `country` (ISO 3166-1 alpha-2)."""
    return f"model/{model}" if country is None else f"model/{model}@{_checked_country(country)}"


def country_key(country: str) -> str:
    """The key for providers in `country` (ISO 3166-1 alpha-2, upper case)."""
    return f"country/{_checked_country(country)}"


def record_key(network_name: str, key: str) -> bytes:
    """The DHT key of `key` in a network: the sha2-256 multihash (34 bytes) of name, NUL and key.

    The name is hashed in so that a peer of another network, should it get here, asks for nothing that exists.
    Raises UsageError for an empty or overlong key.
    """
    return scoped_key(check_network_name(network_name), key)


def scoped_key(scope: str, key: str) -> bytes:
    """`record_key` for what stands for a network: an open one's name, or what a closed one's is derived to be."""
    return _SHA2_256_MULTIHASH_PREFIX + hashlib.sha256(f"{scope}\0{check_key(key)}".encode()).digest()


def check_key(key: str) -> str:
    """The key itself, or UsageError for an empty or overlong one."""
    if not key or len(key) > MAX_KEY_CHARS:
        raise UsageError(f"a look-up key has 1 to {MAX_KEY_CHARS} characters; this has {len(key)}.")
    return key


def check_network_name(name: str) -> str:
    """The name itself, or UsageError: it becomes part of protocol ids, so it is kept plain."""
    if _NETWORK_NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} is no network name.",
            hint="Use 1 to 32 lower-case letters, digits and inner hyphens, like main.",
        )
    return name


def _checked_country(country: str) -> str:
    if _COUNTRY.fullmatch(country) is None:
        raise UsageError(
            f"{country!r} is no country code.", hint="Use two capital letters of ISO 3166-1, like DE or FR."
        )
    return country
