"""Integers with names: money, tokens, time.

Prices are micro-EUR per million tokens (`_upm`), amounts pico-EUR (`_pico`): one micro-EUR per million tokens
is one pico-EUR per token, so `tokens * price_upm` is an amount, exactly, and nothing is rounded before an
invoice line. Times are Unix milliseconds (`_ms`). No float is ever money.
"""

from __future__ import annotations

import re
from typing import Final, NewType

from p2pgrid.errors import UsageError

PriceUpm = NewType("PriceUpm", int)
"""Micro-EUR for a million tokens."""
AmountPico = NewType("AmountPico", int)
"""Pico-EUR (10^-12 EUR)."""
UnixMs = NewType("UnixMs", int)
"""Milliseconds since 1970-01-01T00:00:00Z."""

PICO_PER_EUR: Final = 10**12
MICRO_PER_EUR: Final = 10**6
MAX_PRICE_UPM: Final = 10**12
"""A million EUR for a million tokens: a cap on nonsense. What still passes 63 bits has no price."""
MAX_TOKENS: Final = 10**6 * 8
"""Most tokens in one order, either way."""
MAX_AMOUNT_PICO: Final = 2**63 - 1
MAX_UNIX_MS: Final = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z."""

_DECIMAL: Final = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,40})?")


def parse_price_eur(text: str) -> PriceUpm:
    """Turn EUR per million tokens, as people write it ("0.20"), into micro-EUR per million tokens.

    Raises UsageError for what is no decimal number, is negative, or is finer than a micro-EUR.
    """
    if not _DECIMAL.fullmatch(text):
        raise UsageError(f"the price {text[:40]!r} is no number.", hint='Write EUR per million tokens, like "0.20".')
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0")
    if len(decimals) > 6:
        raise UsageError(f"the price {text!r} is finer than a micro-EUR.", hint="Give at most 6 decimals.")
    price = abs(int(whole)) * MICRO_PER_EUR + int(decimals.ljust(6, "0"))
    if text.startswith("-") or price > MAX_PRICE_UPM:
        raise UsageError(f"the price {text!r} is out of range.", hint="Give EUR per million tokens, 0 to 1000000.")
    return PriceUpm(price)


def parse_amount_eur(text: str) -> AmountPico:
    """Turn EUR as people write it ("0.05") into pico-EUR.

    Raises UsageError for what is no decimal number, is negative, too much, or finer than a pico-EUR.
    """
    hint = 'Write EUR, like "0.05".'
    if not _DECIMAL.fullmatch(text):
        raise UsageError(f"the amount {text[:40]!r} is no number.", hint=hint)
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0")
    amount = abs(int(whole)) * PICO_PER_EUR + int(decimals[:12].ljust(12, "0"))
    if text.startswith("-") or len(decimals) > 12 or amount > MAX_AMOUNT_PICO:
        raise UsageError(f"the amount {text!r} is out of range.", hint=f"{hint} At most 12 decimals.")
    return AmountPico(amount)


def format_price_eur(price_upm: int) -> str:
    """EUR per million tokens for people: 200000 -> '0.20'."""
    return _format(price_upm, 6)


def format_amount_eur(amount_pico: int) -> str:
    """EUR, exact, at least two decimals: 12_340_000_000 -> '0.01234'."""
    return _format(amount_pico, 12)


def format_cents(cents: int) -> str:
    """Euros with two decimals, as invoices and banks have them: 1240 -> '12.40'."""
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d}"


def _format(value: int, decimals: int) -> str:
    sign, digits = ("-" if value < 0 else ""), f"{abs(value):0{decimals + 1}d}"
    whole, fraction = digits[:-decimals], digits[-decimals:]
    return f"{sign}{whole}.{fraction.rstrip('0'):0<2}"
