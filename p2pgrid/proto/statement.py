"""From receipts to euros (docs/spec/messages.md, section 7): Statement, Invoice, Payment.

Receipts are exact, in pico of the currency. A statement is where cents begin: what it states is what is invoiced, VAT
included, and its balance is in the money that is paid (docs/decisions/statements-are-in-cents.md).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.fields import Amount, CurrencyCode, Digest, Id, ModelName, Nested, Number, Price, TimeMs
from p2pgrid.proto.record import Message

MAX_CENTS: Final = 10**15
MAX_LINES: Final = 256
MAX_NAME_BYTES: Final = 8192
"""Models' names in all lines of a statement that is made, in UTF-8: with `MAX_LINES` of them it is still no larger than
a Statement may be, whatever its numbers are."""
Cents = Annotated[int, Meta(ge=-MAX_CENTS, le=MAX_CENTS)]
"""Cents of the currency; in a balance what the client owes, below zero what it has paid ahead."""
Tally = Annotated[int, Meta(ge=0, le=2**62)]
"""Tokens summed over many receipts."""
LastNumber = Annotated[int, Meta(ge=0, le=2**53)]
RateBp = Annotated[int, Meta(ge=0, le=10_000)]
"""Basis points: 2100 is 21 %."""

_RATED: Final = frozenset({"S", "L", "M"})
"""Categories of VAT that can have a rate above 0: standard, Canary Islands, Ceuta and Melilla (EN 16931, BT-118)."""


class StatementLine(Nested, frozen=True, kw_only=True):
    """The receipts of one model at one tariff."""

    model: ModelName
    input_upm: Price
    cached_input_upm: Price
    output_upm: Price
    receipts: Number
    prompt_tokens: Tally
    """Of the receipts that bill their tokens: `statement_rules.billed_tokens`. So are the next two."""
    cached_tokens: Tally
    output_tokens: Tally
    amount_pico: Amount
    """The receipts' amounts."""


class VatLine(Nested, frozen=True, kw_only=True):
    """The VAT of one category and rate (EN 16931, BG-23)."""

    category: Annotated[str, Meta(pattern=r"\A[A-Z]{1,2}\Z")]
    """BT-118, a code of UNTDID 5305: S standard, AE reverse charge, E exempt, O outside of VAT, Z zero, G export, K."""
    rate_bp: RateBp
    exemption: Annotated[str, Meta(max_length=32)]
    """BT-121, a code of the VATEX list (`VATEX-EU-AE`); empty where there is none."""
    net_cents: Cents
    vat_cents: Cents
    """`invoice_sums.vat_of` of the net."""


class Statement(Message, frozen=True, kw_only=True):
    """What a stretch of a channel's receipts comes to, and where the balance stands. Signed by both."""

    payload_type: ClassVar[str] = "/p2pgrid/statement/1"
    max_payload_bytes: ClassVar[int] = 32 * 1024

    channel: Id
    statement_number: Number
    previous: Digest
    """The id of the statement before; empty for the first."""
    first_receipt: Number
    last_receipt: LastNumber
    """`first_receipt` - 1 in a statement of no receipts."""
    root: Id
    """RFC 6962 Merkle tree hash over the receipts' ids, in the order of their numbers."""
    currency: CurrencyCode
    lines: Annotated[tuple[StatementLine, ...], Meta(max_length=MAX_LINES)]
    """None in a statement of no receipts."""
    total_pico: Amount
    """Of the lines: the receipts' amounts."""
    credits_pico: Amount
    """What accepted disputes about receipts up to the last take off, and no statement before did."""
    held_pico: Amount
    """What disputes about receipts up to the last that are open at `stated_ms` contest, in all: not invoiced yet."""
    net_cents: Cents
    """`invoice_sums.net_of`: below zero where more is credited or held back than was sold."""
    vat: Annotated[tuple[VatLine, ...], Meta(min_length=1, max_length=4)]
    gross_cents: Cents
    """Net and VAT together: what its invoices come to."""
    payments_cents: Cents
    """Payments booked since the statement before, what was returned or refunded taken off."""
    set_off_cents: Cents
    """What was set off since the statement before against what the provider owes the client elsewhere."""
    opening_cents: Cents
    closing_cents: Cents
    """opening + gross - payments - set off."""
    from_ms: TimeMs
    """Where the period before ended; the channel's `opened_ms` for the first."""
    until_ms: TimeMs
    due_ms: TimeMs
    """When the gross is to be paid by."""
    stated_ms: TimeMs

    def check(self) -> None:
        if self.last_receipt < self.first_receipt - 1:
            raise InvalidRecord("out-of-range", "the statement's last receipt comes before its first.")
        if len(self.previous) not in (0, 32):
            raise InvalidRecord("out-of-range", "an id has 32 bytes, or none where there is none.")
        if not self.from_ms < self.until_ms <= self.stated_ms <= self.due_ms:
            raise InvalidRecord(
                "out-of-range", "a statement's period ends after it begins, then it is stated, and then it is due."
            )
        if any(line.cached_tokens > line.prompt_tokens for line in self.lines):
            raise InvalidRecord("out-of-range", "a line counts more cached tokens than prompt tokens.")
        if len({(line.category, line.rate_bp) for line in self.vat}) != len(self.vat):
            raise InvalidRecord("out-of-range", "a statement has one category and rate of VAT twice.")
        for line in self.vat:
            if line.rate_bp and line.category not in _RATED:
                raise InvalidRecord("out-of-range", f"VAT of the category {line.category} has no rate above 0.")
            if not line.rate_bp and line.category == "S":
                raise InvalidRecord("out-of-range", "VAT of the category S has a rate above 0.")


class InvoiceType(IntEnum):
    """What kind of document it is (EN 16931, BT-3; UNTDID 1001)."""

    INVOICE = 380
    CREDIT_NOTE = 381
    SELF_BILLED_INVOICE = 389
    SELF_BILLED_CREDIT_NOTE = 261

    @property
    def is_credit_note(self) -> bool:
        """True if its amounts are below zero here, and above zero in the document."""
        return self in (InvoiceType.CREDIT_NOTE, InvoiceType.SELF_BILLED_CREDIT_NOTE)


InvoiceNumber = Annotated[str, Meta(min_length=1, max_length=64)]


class Invoice(Message, frozen=True, kw_only=True):
    """The provider's claim to money for a statement, as its e-invoice has it. Signed by the provider."""

    payload_type: ClassVar[str] = "/p2pgrid/invoice/1"

    channel: Id
    statement: Id
    invoice_number: InvoiceNumber
    type_code: InvoiceType
    currency: CurrencyCode
    net_cents: Cents
    """All invoices of a statement come to its net, its VAT and its gross together. A credit note's are below zero."""
    vat_cents: Cents
    gross_cents: Cents
    document_sha256: Id
    """Of the invoice file."""
    issued_ms: TimeMs

    def check(self) -> None:
        if self.gross_cents != self.net_cents + self.vat_cents:
            raise InvalidRecord("out-of-range", "the invoice's gross amount is not net and VAT together.")
        if self.net_cents and (self.net_cents < 0) is not self.type_code.is_credit_note:
            raise InvalidRecord("out-of-range", "a credit note's net is below zero, an invoice's is not.")


class PaymentKind(StrEnum):
    """How the money moved."""

    RECEIVED = "received"
    """It came in. The amount is above zero, as it is below for the next two."""
    RETURNED = "returned"
    """The bank took back what had come in (ISO 20022, ReturnInformation)."""
    REFUNDED = "refunded"
    """The provider sent it back."""
    REALLOCATED = "reallocated"
    """It did not move: what was booked for one invoice, or as paid ahead, is booked for another. One Payment below zero
    takes it from there, one above zero puts it here."""


class Payment(Message, frozen=True, kw_only=True):
    """Money that arrived, or went back. Signed by the payee, who is the provider."""

    payload_type: ClassVar[str] = "/p2pgrid/payment/1"

    channel: Id
    statement: Digest
    """Empty: paid ahead."""
    invoice_number: Annotated[str, Meta(max_length=64)]
    """Of the statement's invoice; empty if and only if `statement` is."""
    reference: Annotated[str, Meta(max_length=35)]
    """The end-to-end reference in the bank's file."""
    currency: CurrencyCode
    amount_cents: Cents
    kind: PaymentKind
    entry: Digest
    """What identifies the entry in the bank's file; empty where it was typed in by hand. An entry may pay several
    invoices."""
    booked_ms: TimeMs

    def check(self) -> None:
        if any(len(digest) not in (0, 32) for digest in (self.statement, self.entry)):
            raise InvalidRecord("out-of-range", "an id has 32 bytes, or none where there is none.")
        if bool(self.invoice_number) is not bool(self.statement):
            raise InvalidRecord("out-of-range", "a payment names a statement and its invoice, or neither.")
        may_be_above = self.kind in (PaymentKind.RECEIVED, PaymentKind.REALLOCATED)
        may_be_below = self.kind is not PaymentKind.RECEIVED
        if not (may_be_above if self.amount_cents > 0 else self.amount_cents and may_be_below):
            raise InvalidRecord("out-of-range", f"{self.amount_cents} cents cannot have been {self.kind}.")
