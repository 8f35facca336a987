"""From receipts to euros (docs/spec/messages.md): Statement, Invoice, Payment.

Their meaning to an auditor is settled here; who makes them, and when, is settlement's.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.fields import Amount, CurrencyCode, Digest, Id, ModelName, Nested, Number, Price, TimeMs
from p2pgrid.proto.record import Message
from p2pgrid.units import MAX_AMOUNT_PICO

Balance = Annotated[int, Meta(ge=-MAX_AMOUNT_PICO, le=MAX_AMOUNT_PICO)]
"""Pico-EUR that the client owes; below zero, that it has paid ahead."""
Cents = Annotated[int, Meta(ge=-(10**15), le=10**15)]
Tally = Annotated[int, Meta(ge=0, le=2**62)]
"""Tokens summed over many receipts."""


class StatementLine(Nested, frozen=True, kw_only=True):
    """The receipts of one model at one tariff."""

    model: ModelName
    input_upm: Price
    cached_input_upm: Price
    output_upm: Price
    receipts: Number
    prompt_tokens: Tally
    cached_tokens: Tally
    output_tokens: Tally
    amount_pico: Amount


class Statement(Message, frozen=True, kw_only=True):
    """What a stretch of a channel's receipts comes to. Signed by both."""

    payload_type: ClassVar[str] = "/p2pgrid/statement/1"
    max_payload_bytes: ClassVar[int] = 32 * 1024

    channel: Id
    statement_number: Number
    previous: Digest
    """The id of the statement before; empty for the first."""
    first_receipt: Number
    last_receipt: Number
    root: Id
    """RFC 6962 Merkle tree hash over the receipts' ids, in the order of their numbers."""
    currency: CurrencyCode
    lines: Annotated[tuple[StatementLine, ...], Meta(max_length=256)]
    total_pico: Amount
    """Of the lines: the receipts' amounts."""
    credits_pico: Amount
    """What accepted disputes about these receipts take off."""
    payments_pico: Amount
    """Payments booked in the period."""
    opening_pico: Balance
    closing_pico: Balance
    """opening + total - credits - payments."""
    stated_ms: TimeMs

    def check(self) -> None:
        if self.last_receipt < self.first_receipt:
            raise InvalidRecord("out-of-range", "the statement's last receipt comes before its first.")
        if len(self.previous) not in (0, 32):
            raise InvalidRecord("out-of-range", "an id has 32 bytes, or none where there is none.")


class Invoice(Message, frozen=True, kw_only=True):
    """The provider's claim to money for a statement, as its e-invoice has it. Signed by the provider."""

    payload_type: ClassVar[str] = "/p2pgrid/invoice/1"

    statement: Id
    invoice_number: Annotated[str, Meta(min_length=1, max_length=64)]
    currency: CurrencyCode
    net_cents: Cents
    """The statement's total less its credits, rounded half up to a cent for each line."""
    vat_cents: Cents
    gross_cents: Cents
    document_sha256: Id
    """Of the invoice file."""
    issued_ms: TimeMs

    def check(self) -> None:
        if self.gross_cents != self.net_cents + self.vat_cents:
            raise InvalidRecord("out-of-range", "the invoice's gross amount is not net and VAT together.")


class Payment(Message, frozen=True, kw_only=True):
    """Money that arrived for an invoice. Signed by the payee, who is the provider."""

    payload_type: ClassVar[str] = "/p2pgrid/payment/1"

    statement: Id
    invoice_number: Annotated[str, Meta(min_length=1, max_length=64)]
    reference: Annotated[str, Meta(max_length=35)]
    """The end-to-end reference in the bank's file."""
    currency: CurrencyCode
    amount_cents: Cents
    booked_ms: TimeMs
