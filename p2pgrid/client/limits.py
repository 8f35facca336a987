"""What a client puts up with in its dealings with one provider."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How long and how many. Tests shorten the times."""

    queue: int = 256
    """Orders that may wait for a slot of one channel."""
    queue_timeout_s: float = 20.0
    link_timeout_s: float = 10.0
    """How long a request waits for a link to the only provider there is."""
    drain_s: float = 2.0
    """How long orders that are cancelled on closing may take to be settled."""
    first_token_timeout_s: float = 120.0
    shares_receipts: bool = True
    """Short unstreamed requests may share an order and its receipt, where the provider's offer allows it."""
    most_disputed: int = 3
    """Receipts that we dispute and the provider stands by, before it is dealt with no more."""
