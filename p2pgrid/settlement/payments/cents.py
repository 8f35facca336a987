"""Cents: whole numbers, as bank files and people write them."""

from __future__ import annotations

import re
from typing import Final

from p2pgrid.units import format_cents

MAX_CENTS: Final = 10**15
"""Ten million million euros: a cap on nonsense."""

_AMOUNT: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,5}))?")
_SHOWN: Final = 40


class NotAnAmount(ValueError):
    """Text that is no amount of cents; says what is wrong with it."""


def cents_of(text: str) -> int:
    """Cents from an unsigned decimal of ISO 20022 ("12.40", "12", "12.4", "12.40000").

    Raises NotAnAmount for a comma, a sign, an exponent, a fraction of a cent, or more than `MAX_CENTS`.
    """
    found = _AMOUNT.fullmatch(text)
    if not found:
        raise NotAnAmount(_complaint(text))
    whole, decimals = found[1], (found[2] or "").rstrip("0")
    if len(decimals) > 2:
        raise NotAnAmount(f"the amount {text!r} is finer than a cent")
    cents = int(whole) * 100 + int(decimals.ljust(2, "0"))
    if cents > MAX_CENTS:
        raise NotAnAmount(f"the amount {text!r} is more than {format_cents(MAX_CENTS)}")
    return cents


def signed_cents_of(text: str) -> int:
    """Cents from a decimal that may begin with a minus, as people type it. Raises NotAnAmount as `cents_of` does."""
    return -cents_of(text[1:]) if text.startswith("-") else cents_of(text)


def _complaint(text: str) -> str:
    shown = repr(text[:_SHOWN])
    if "," in text:
        return f"the amount {shown} has a comma; amounts are written with a point, like 1234.50"
    if text.startswith(("-", "+")):
        return f"the amount {shown} has a sign; an amount is positive, and its direction is told beside it"
    return f"{shown} is no amount; one is written like 1234.50"
