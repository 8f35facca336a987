"""What comes beside a provider's signed offer: who stands behind it, and what is free.

docs/spec/card.md, section 3; docs/spec/discovery.md, section 6.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from p2pgrid.proto.fields import ModelName
from p2pgrid.proto.wire.base import MAX_NUMBER, Frame

MAX_CARD_BYTES: Final = 20 * 1024
"""Of a Card's record in wire form."""
MAX_CARDS_BYTES: Final = 60 * 1024
"""Of a Cards message."""
MAX_FREE: Final = 100_000
"""Slots: the most that an offer may state."""


class Cards(Frame, frozen=True, kw_only=True):
    """The last of an operator's cards, oldest first; none if it has no card."""

    cards: Annotated[tuple[Annotated[bytes, Meta(max_length=MAX_CARD_BYTES)], ...], Meta(max_length=64)]
    """Card records in wire form."""


class ModelCapacity(Frame, frozen=True, kw_only=True):
    """What is free of one model right now."""

    model: ModelName
    free: Annotated[int, Meta(ge=0, le=MAX_FREE)]
    """Orders that the provider would take now before it answers `busy`, as it says itself."""


class Capacity(Frame, frozen=True, kw_only=True):
    """The provider's live word beside its offer: unsigned, and true for a moment."""

    sequence: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Of the offer in force; 0 if nothing is on sale."""
    models: Annotated[tuple[ModelCapacity, ...], Meta(max_length=64)]
    """The offer's models, each once, in its order; none if nothing is on sale."""
