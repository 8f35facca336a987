"""Words and numbers as they may stand in an invoice."""

from __future__ import annotations

import unicodedata
from typing import Final

from p2pgrid.settlement.invoices.refused import InvoiceRefused

_NOT_PRINTED: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Control, format (the marks that turn text around among them), unassigned, private, surrogates, line ends."""
MAX_TEXT: Final = 200


def check_text(what: str, text: str, *, most: int = MAX_TEXT, is_required: bool = True) -> str:
    """The text, in Unicode's form NFC, without blanks around it.

    Raises InvoiceRefused (`text`) where it is missing, too long, or has characters that cannot be seen: those
    cannot stand in XML, or let a page show another text than the one that was signed.
    """
    clean = unicodedata.normalize("NFC", text).strip()
    if not clean and is_required:
        raise InvoiceRefused("text", f"{what} is missing.")
    if len(clean) > most:
        raise InvoiceRefused("text", f"{what} has {len(clean)} characters: at most {most} are allowed.")
    hidden = next((char for char in clean if unicodedata.category(char) in _NOT_PRINTED), None)
    if hidden is not None:
        raise InvoiceRefused("text", f"{what} has the character U+{ord(hidden):04X}, which cannot be seen.")
    return clean


def decimal_text(value: int, decimals: int, *, least: int = 0) -> str:
    """An integer of 10^-decimals as a decimal number, at least `least` decimals: (200000, 6, least=2) -> "0.20"."""
    sign, digits = ("-" if value < 0 else ""), f"{abs(value):0{decimals + 1}d}"
    whole, fraction = digits[:-decimals], digits[-decimals:]
    fraction = fraction.rstrip("0").ljust(least, "0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def euros(cents: int) -> str:
    """Cents as EN 16931 writes amounts: 1234 -> "12.34"."""
    return decimal_text(cents, 2, least=2)


def percent(rate_bp: int) -> str:
    """Basis points as EN 16931 writes rates: 2550 -> "25.5"."""
    return decimal_text(rate_bp, 2)


def price(price_micro: int) -> str:
    """Micro-EUR as EN 16931 writes prices: 200000 -> "0.20"."""
    return decimal_text(price_micro, 6, least=2)
