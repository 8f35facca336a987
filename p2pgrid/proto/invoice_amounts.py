"""What an invoice will come to, before it exists: net, VAT and gross in cents (docs/settlement/invoices.md).

Both sides compute this for the statement that they sign, and the invoice is made of the same numbers. Integers only.
A statement line becomes up to three invoice lines, one for each kind of token; every invoice line is rounded half up
to a cent, VAT once on their sum. Below zero everything mirrors: what is rounded up above zero is rounded down below,
so a credit note is an invoice with its signs turned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from p2pgrid.errors import InvalidRecord
from p2pgrid.units import MAX_AMOUNT_PICO, PICO_PER_EUR

PICO_PER_CENT: Final = PICO_PER_EUR // 100
FULL_RATE_BP: Final = 10_000
"""A hundred per cent, in basis points."""


class TokenKind(Enum):
    """What a token is billed as. The value is how an invoice names it."""

    INPUT = "input tokens"
    CACHED_INPUT = "cached input tokens"
    OUTPUT = "output tokens"


class BilledLine(Protocol):
    """What is read of a statement's line (`p2pgrid.proto.statement.StatementLine`): one model at one tariff."""

    @property
    def model(self) -> str: ...
    @property
    def input_upm(self) -> int: ...
    @property
    def cached_input_upm(self) -> int: ...
    @property
    def output_upm(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLine:
    """One invoice line: tokens of one kind at one price."""

    model: str
    kind: TokenKind
    tokens: int
    price_upm: int
    """Micro-EUR for a million tokens."""
    net_cents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InvoiceAmounts:
    """What a document comes to. All below zero for what the seller owes the buyer."""

    net_cents: int
    vat_cents: int
    gross_cents: int


def cents_of(amount_pico: int) -> int:
    """Pico-EUR in cents, half a cent away from zero: 5_000_000_000 -> 1, -5_000_000_000 -> -1."""
    cents = (2 * abs(amount_pico) + PICO_PER_CENT) // (2 * PICO_PER_CENT)
    return -cents if amount_pico < 0 else cents


def vat_of(net_cents: int, rate_bp: int) -> int:
    """VAT in cents on a taxable amount, half a cent away from zero. The rate is in basis points (2100 is 21 %)."""
    vat = (2 * abs(net_cents) * rate_bp + FULL_RATE_BP) // (2 * FULL_RATE_BP)
    return -vat if net_cents < 0 else vat


def token_lines(lines: Iterable[BilledLine]) -> tuple[TokenLine, ...]:
    """The invoice lines of statement lines, in their order; kinds of which there are no tokens are left out.

    Raises InvalidRecord (`out-of-range`) where more is cached than was prompted, a number is below zero, or an
    amount passes 63 bits.
    """
    made = []
    for line in lines:
        uncached = line.prompt_tokens - line.cached_tokens
        for kind, tokens, price_upm in (
            (TokenKind.INPUT, uncached, line.input_upm),
            (TokenKind.CACHED_INPUT, line.cached_tokens, line.cached_input_upm),
            (TokenKind.OUTPUT, line.output_tokens, line.output_upm),
        ):
            if tokens < 0 or price_upm < 0 or tokens * price_upm > MAX_AMOUNT_PICO:
                raise InvalidRecord(
                    "out-of-range", f"{tokens} {kind.value} of {line.model!r} at {price_upm} micro-EUR have no amount."
                )
            if tokens:
                net_cents = cents_of(tokens * price_upm)
                made.append(
                    TokenLine(model=line.model, kind=kind, tokens=tokens, price_upm=price_upm, net_cents=net_cents)
                )
    return tuple(made)


def amounts_of(net_cents: int, rate_bp: int) -> InvoiceAmounts:
    """Net, VAT and gross of a document that has one VAT category throughout."""
    vat_cents = vat_of(net_cents, rate_bp)
    return InvoiceAmounts(net_cents=net_cents, vat_cents=vat_cents, gross_cents=net_cents + vat_cents)


def invoice_amounts(lines: Iterable[BilledLine], *, credits_pico: int, rate_bp: int) -> InvoiceAmounts:
    """What the invoice of these statement lines and credits will come to, at this VAT rate.

    `credits_pico` is what accepted disputes take off, at least zero; it is rounded to cents by itself. The result is
    below zero where the credits outweigh the lines: the document is a credit note then. Raises InvalidRecord like
    `token_lines`, and for credits or a rate out of range.
    """
    if not 0 <= credits_pico <= MAX_AMOUNT_PICO or not 0 <= rate_bp <= FULL_RATE_BP:
        raise InvalidRecord("out-of-range", f"credits of {credits_pico} pico-EUR at {rate_bp} basis points of VAT.")
    net_cents = sum(line.net_cents for line in token_lines(lines)) - cents_of(credits_pico)
    return amounts_of(net_cents, rate_bp)
