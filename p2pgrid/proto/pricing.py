"""Tariff times usage, and the refund rule (docs/spec/session.md, section 6). Integers only."""

from __future__ import annotations

from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.messages import ModelOffer, Status, Tariff, Usage
from p2pgrid.units import MAX_AMOUNT_PICO, AmountPico

_NOTHING_OWED: Final = frozenset({Status.FAILED, Status.EMPTY, Status.REFUSED, Status.LATE})


def price_of(tariff: Tariff, usage: Usage) -> AmountPico:
    """Pico-EUR for the usage, before any refund. Raises InvalidRecord (`out-of-range`) beyond 63 bits."""
    amount = (
        (usage.prompt_tokens - usage.cached_tokens) * tariff.input_upm
        + usage.cached_tokens * tariff.cached_input_upm
        + usage.output_tokens * tariff.output_upm
    )
    if usage.cached_tokens > usage.prompt_tokens or amount > MAX_AMOUNT_PICO:
        raise InvalidRecord("out-of-range", "the usage has no price: cached exceeds prompt, or the amount 63 bits.")
    return AmountPico(amount)


def owes_nothing(status: Status) -> bool:
    """True for the endings that the provider bears."""
    return status in _NOTHING_OWED


def amount_owed(tariff: Tariff, usage: Usage, status: Status) -> AmountPico:
    """Pico-EUR owed for an order that ended in `status` with `usage`."""
    return AmountPico(0) if owes_nothing(status) else price_of(tariff, usage)


def most_owed(entry: ModelOffer, *, max_prompt_tokens: int, max_output_tokens: int) -> AmountPico:
    """The most that an order within these counts can cost."""
    return price_of(entry.tariff, Usage(prompt_tokens=max_prompt_tokens, output_tokens=max_output_tokens))
