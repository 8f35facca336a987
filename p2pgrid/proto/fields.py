"""The types of fields that messages share, each with its range (docs/spec/messages.md)."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2pgrid.proto.keys import PUBLIC_KEY_BYTES
from p2pgrid.units import MAX_AMOUNT_PICO, MAX_PRICE_UPM, MAX_TOKENS, MAX_UNIX_MS

Key = Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
Id = Annotated[bytes, Meta(min_length=32, max_length=32)]
Digest = Annotated[bytes, Meta(max_length=32)]
"""SHA-256, or empty where none is stated."""
Number = Annotated[int, Meta(ge=1, le=2**53)]
Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Amount = Annotated[int, Meta(ge=0, le=MAX_AMOUNT_PICO)]
Price = Annotated[int, Meta(ge=0, le=MAX_PRICE_UPM)]
TimeMs = Annotated[int, Meta(ge=0, le=MAX_UNIX_MS)]
MAX_DURATION_MS: Final = 10**9
DurationMs = Annotated[int, Meta(ge=0, le=MAX_DURATION_MS)]
ShortText = Annotated[str, Meta(max_length=128)]
Sentence = Annotated[str, Meta(max_length=256)]
"""A few words for people."""
ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
# Patterns end in \Z: Python's `$` also matches before a last line feed.
CurrencyCode = Annotated[str, Meta(pattern=r"\A[A-Z]{3}\Z")]
CountryCode = Annotated[str, Meta(pattern=r"\A[A-Z]{2}\Z")]


class Nested(msgspec.Struct, array_like=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a message; an array inside the message's array."""
