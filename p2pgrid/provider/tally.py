"""What a node has done since it started: for `/metrics` and `/health`, never for money. The ledger keeps the books."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from p2pgrid.proto.messages import Receipt


@dataclass(slots=True)
class Tally:
    """Counters that only grow."""

    receipts: Counter[str] = field(default_factory=Counter)
    """Receipts that carry both signatures, by status."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Orders and requests refused, by code."""
    proposals: int = 0
    """Receipts that the provider signed."""
    disputes: int = 0
    """Receipts that a client refused to sign."""
    faults: int = 0
    """Streams on which a client broke the rules."""
    ledger_failures: int = 0
    engine_failures: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    earned_pico: int = 0
    """Sum of the receipts that carry both signatures."""

    def settled(self, receipt: Receipt) -> None:
        """Count a receipt that both have signed."""
        self.receipts[receipt.status.value] += 1
        self.prompt_tokens += receipt.usage.prompt_tokens
        self.cached_tokens += receipt.usage.cached_tokens
        self.output_tokens += receipt.usage.output_tokens
        self.earned_pico += receipt.amount_pico

    def add(self, other: Tally) -> None:
        """Count what another process of the node has done, too."""
        self.receipts.update(other.receipts)
        self.refusals.update(other.refusals)
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def copy(self) -> Tally:
        """The counters as they are now."""
        copied = Tally()
        copied.add(self)
        return copied


NUMBERS: Final = (
    "proposals",
    "disputes",
    "faults",
    "ledger_failures",
    "engine_failures",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "earned_pico",
)
"""The counters that are one number."""
