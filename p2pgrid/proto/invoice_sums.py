"""From pico to cents: what a statement, and so its invoice, comes to (docs/spec/messages.md, rules 22a to 23).

Plain functions over integers. A receipt is exact, in pico of the currency; rounding begins with the components of a
statement's lines, each of which is a line of the invoice (EN 16931, BG-25), and everything after it is whole cents.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

PICO_PER_CENT: Final = 10**10
RATE_DENOMINATOR: Final = 10_000
"""Rates are in basis points: 2100 is 21 %."""


class ComponentKind(StrEnum):
    """What is counted at one price."""

    UNCACHED_INPUT = "uncached_input"
    """Prompt tokens that no cache served."""
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    DIFFERENCE = "difference"
    """No tokens: by how much receipts bill more (or, below zero, less) than their tokens cost. An audit finds such
    receipts at fault (`wrong-amount`, `refund-rule`); where all are right there is none."""


class Component(NamedTuple):
    """A part of a statement's line that is a line of the invoice: `tokens` at `price_upm` each million."""

    kind: ComponentKind
    tokens: int
    price_upm: int
    """Micro-units of the currency for a million tokens, which is pico for one. 0 for a difference."""
    amount_pico: int
    net_cents: int
    """`amount_pico`, rounded half up to a cent."""


def cents_of(pico: int) -> int:
    """Pico rounded half up to a cent by magnitude: -0.5 cents are -1, as 0.5 cents are 1."""
    return _divided(pico, PICO_PER_CENT)


def line_components(
    *,
    prompt_tokens: int,
    cached_tokens: int,
    output_tokens: int,
    input_upm: int,
    cached_input_upm: int,
    output_upm: int,
    amount_pico: int,
) -> tuple[Component, ...]:
    """A statement's line as lines of an invoice, in this order: uncached input, cached input, output.

    The first three are always there, without tokens too. Their amounts are `amount_pico` together where the receipts
    are right; if not, a difference follows, so that the amounts always are.
    """
    components = [
        _component(ComponentKind.UNCACHED_INPUT, prompt_tokens - cached_tokens, input_upm),
        _component(ComponentKind.CACHED_INPUT, cached_tokens, cached_input_upm),
        _component(ComponentKind.OUTPUT, output_tokens, output_upm),
    ]
    difference = amount_pico - sum(component.amount_pico for component in components)
    if difference:
        components.append(Component(ComponentKind.DIFFERENCE, 0, 0, difference, cents_of(difference)))
    return tuple(components)


def net_of(components: Iterable[Component], *, credits_pico: int, held_pico: int, held_before_pico: int) -> int:
    """A statement's net in cents: its lines' components, less its credits, less what it holds back more than before.

    `held_pico` is what open disputes contest in all, `held_before_pico` that of the statement before: what was held
    and is resolved comes back. Credits and what is held are each rounded once.
    """
    return sum(component.net_cents for component in components) - allowance_of(
        credits_pico=credits_pico, held_pico=held_pico, held_before_pico=held_before_pico
    )


def allowance_of(*, credits_pico: int, held_pico: int, held_before_pico: int) -> int:
    """What is taken off the components' sum, in cents; below zero where more comes back than is taken off."""
    return cents_of(credits_pico) + cents_of(held_pico) - cents_of(held_before_pico)


def vat_of(net_cents: int, rate_bp: int) -> int:
    """VAT on a net, in cents, rounded half up by magnitude: a credit note takes back what its invoice had."""
    return _divided(net_cents * rate_bp, RATE_DENOMINATOR)


def _component(kind: ComponentKind, tokens: int, price_upm: int) -> Component:
    amount_pico = tokens * price_upm
    return Component(kind, tokens, price_upm, amount_pico, cents_of(amount_pico))


def _divided(amount: int, divisor: int) -> int:
    whole = (abs(amount) + divisor // 2) // divisor
    return whole if amount >= 0 else -whole
