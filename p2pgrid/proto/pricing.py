"""Tariff times usage, and the refund rule (docs/spec/session.md, section 6). Integers only."""

from __future__ import annotations

from typing import Final

from p2pgrid.errors import InvalidRecord, Refused
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.messages import Order, Status, Tariff, Usage
from p2pgrid.units import MAX_AMOUNT_PICO, AmountPico

_BY_VOUCHER: Final = frozenset({Status.INTERRUPTED, Status.UNACKNOWLEDGED})
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


def usage_of(counter: TokenCounter) -> Usage:
    """What a counter says is billed, the same on both sides. Cached tokens beyond the prompt lower nothing."""
    prompt_tokens = counter.prompt_tokens
    # Before the final usage there are none; this is asked at every event.
    cached_tokens = min(counter.cached_tokens, prompt_tokens) if counter.usage is not None else 0
    return Usage(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, output_tokens=counter.output_tokens)


def is_within_caps(usage: Usage, order: Order) -> bool:
    """True if the usage stays within the order's caps, and the client's own count of the prompt if it gave one."""
    prompt_tokens = usage.prompt_tokens
    return (
        usage.output_tokens <= order.max_output_tokens
        and prompt_tokens <= order.max_prompt_tokens
        and (not order.prompt_tokens or prompt_tokens <= order.prompt_tokens)
    )


def is_billed_by_voucher(status: Status) -> bool:
    """True for the endings that bill what the last voucher acknowledged."""
    return status in _BY_VOUCHER


def owes_nothing(status: Status) -> bool:
    """True for the endings that the provider bears."""
    return status in _NOTHING_OWED


def amount_owed(tariff: Tariff, usage: Usage, status: Status) -> AmountPico:
    """Pico-EUR owed for an order that ended in `status` with `usage`."""
    return AmountPico(0) if owes_nothing(status) else price_of(tariff, usage)


def most_owed(tariff: Tariff, *, max_prompt_tokens: int, max_output_tokens: int) -> AmountPico:
    """The most that an order within these counts can cost. Raises Refused (`credit-exhausted`) beyond 63 bits."""
    try:
        return price_of(tariff, Usage(prompt_tokens=max_prompt_tokens, output_tokens=max_output_tokens))
    except InvalidRecord:
        raise Refused(
            "credit-exhausted", "the order may cost more than any channel's credit.", hint="Lower max_tokens."
        ) from None
