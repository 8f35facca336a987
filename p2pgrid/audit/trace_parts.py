"""What a trace says, as plain values: `p2pgrid trace --json` prints them (docs/settlement/trace.md).

Amounts in `_cents` are cents of the currency, in `_pico` 10^-12 of it; times are Unix milliseconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from p2pgrid.proto.findings import Finding
from p2pgrid.proto.settlement_summary import ChannelSettlement


class PartyNames(msgspec.Struct, frozen=True, kw_only=True):
    """Between whom."""

    channel: str
    provider: str
    client: str
    operator: str
    """The provider's name by its latest offer; empty if there is none."""
    currency: str


class MoneyPart(msgspec.Struct, frozen=True, kw_only=True):
    """So many cents of one record that count for a statement."""

    kind: str
    """`allotment.CoverKind`: paid, paid_ahead, paid_over, credit, set_off."""
    cents: int
    source_id: str
    """The payment's record id; of a credit or set-off that of the statement which states it."""
    source_kind: str
    """`allotment.MoneyKind` of the payment; empty for a credit."""
    reference: str = ""
    at_ms: int = 0
    invoice_number: str = ""
    statement_number: int = 0
    """Of a credit or set-off: the statement that states it."""


class UndonePart(msgspec.Struct, frozen=True, kw_only=True):
    """So many cents that came and went back, or were booked elsewhere."""

    cents: int
    payment_id: str
    """The other movement's."""
    kind: str
    """`returned`, `refunded`, `reallocated`; of the one that came `received` or `reallocated`."""
    reference: str
    at_ms: int


class ComponentPart(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the invoice: where pico become cents."""

    kind: str
    tokens: int
    price_upm: int
    amount_pico: int
    net_cents: int


class LinePart(msgspec.Struct, frozen=True, kw_only=True):
    """The receipts of one model at one tariff, as the statement counts them and as they are at hand."""

    model: str
    input_upm: int
    cached_input_upm: int
    output_upm: int
    receipts: int
    """As stated."""
    receipts_at_hand: int
    at_hand_pico: int
    receipt_numbers: tuple[tuple[int, int], ...]
    """First and last of each unbroken range of those at hand."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    amount_pico: int
    components: tuple[ComponentPart, ...]
    net_cents: int


class ContestedPart(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt of which a dispute takes something off, or holds it back."""

    receipt_number: int
    receipt_id: str
    amount_pico: int


class VatPart(msgspec.Struct, frozen=True, kw_only=True):
    """The VAT of one category and rate."""

    category: str
    rate_bp: int
    exemption: str
    net_cents: int
    vat_cents: int


class InvoicePart(msgspec.Struct, frozen=True, kw_only=True):
    """One invoice of a statement."""

    invoice_id: str
    invoice_number: str
    type_code: int
    net_cents: int
    vat_cents: int
    gross_cents: int
    issued_ms: int
    document_sha256: str


class ReceiptPart(msgspec.Struct, frozen=True, kw_only=True):
    """One receipt."""

    receipt_id: str
    receipt_number: int
    order_number: int
    model: str
    status: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    amount_pico: int
    issued_ms: int
    countersigned: bool


class StatementTrace(msgspec.Struct, frozen=True, kw_only=True):
    """One statement in both directions: down to its receipts, up to the money that covers it."""

    parties: PartyNames
    statement_id: str
    statement_number: int
    countersigned: bool
    from_ms: int
    until_ms: int
    due_ms: int
    first_receipt: int
    last_receipt: int
    receipts_at_hand: int
    missing_receipts: tuple[tuple[int, int], ...]
    """Numbers of its range that no bundle shows, as ranges."""
    receipts_pico: int
    """Of those at hand."""
    total_pico: int
    """As stated."""
    lines: tuple[LinePart, ...]
    unplaced_receipts: tuple[tuple[int, int], ...]
    """At hand, and of no line: their order or offer is not there, or the line is not."""
    components_cents: int
    rounding_pico: int
    """What rounding to cents adds to `total_pico`; below zero takes off."""
    credits_pico: int
    credits_cents: int
    credited: tuple[ContestedPart, ...]
    """Receipts with disputes that were accepted since the statement before."""
    held_pico: int
    held_cents: int
    held: tuple[ContestedPart, ...]
    """Receipts with open disputes, then."""
    held_before_pico: int
    held_before_cents: int
    net_cents: int
    vat: tuple[VatPart, ...]
    gross_cents: int
    invoices: tuple[InvoicePart, ...]
    invoiced_cents: int | None
    money: tuple[MoneyPart, ...]
    """What covers it."""
    given: tuple[MoneyPart, ...]
    """Of a credit: what it covers; `statement_number` is the other's."""
    covered_cents: int
    open_cents: int
    owed_back_cents: int
    is_overdue: bool
    receipts: tuple[ReceiptPart, ...] = ()
    """With `--receipts`."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What a transfer pays of one statement."""

    kind: str
    cents: int
    invoice_number: str
    """Empty where it covers the statement without naming its invoice."""
    of_cents: int
    """What the invoice, or else the statement's invoices, come to."""
    statement: StatementTrace


class TransferTrace(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the bank (or one typed in by hand), with all that is booked of it."""

    payment_ids: tuple[str, ...]
    entry: str
    kind: str
    reference: str
    booked_ms: int
    amount_cents: int
    currency: str
    shares: tuple[Share, ...]
    undone: tuple[UndonePart, ...]
    """What went back of it; of one that went back, what it took back."""
    unused_cents: int
    """Paid ahead, and counts for nothing yet."""
    astray_cents: int
    """For what is not there. There is a finding."""
    reference_of: str
    """What the reference was made for, where the transfer pays something else; empty if there is nothing to say."""
    same_reference: tuple[str, ...]
    """Record ids of other transfers with its reference, those apart that undid it or that it undid."""
    parties: PartyNames


class InvoiceTrace(msgspec.Struct, frozen=True, kw_only=True):
    """One invoice: what it asks for, and its statement in both directions."""

    invoice: InvoicePart
    paid_cents: int
    """By payments that name it."""
    statement: StatementTrace


class ReceiptTrace(msgspec.Struct, frozen=True, kw_only=True):
    """One receipt, upwards."""

    receipt: ReceiptPart
    parties: PartyNames
    credited_pico: int
    """What accepted disputes take off it."""
    credited_in: int
    """The statement that credits it; 0 if none does."""
    held_pico: int
    """What open disputes contest."""
    in_statements: tuple[int, ...]
    """Numbers of the statements that hold it: one, if all is right; none, if it is yet to be stated."""
    state: str
    """Of its money: `not_stated`, `nothing_owed`, `credited`, `held`, `not_invoiced`, `paid`, `part_paid`, `open`,
    `overdue`."""
    sentence: str
    """The same in words."""
    statement: StatementTrace | None


class TransferRow(msgspec.Struct, frozen=True, kw_only=True):
    """One transfer in the table of all, every cent of it allotted."""

    parties: PartyNames
    payment_ids: tuple[str, ...]
    kind: str
    reference: str
    booked_ms: int
    amount_cents: int
    invoices: tuple[str, ...]
    covers_cents: int
    undone_cents: int
    """Above zero: so much of it went back. Below: so much of others it took back."""
    unused_cents: int
    astray_cents: int
    left_over_cents: int
    """0: the four make the amount."""
    reference_of: str
    """As in `TransferTrace`, and so is the next."""
    same_reference: tuple[str, ...]


class PeerRow(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of all channels between two peers in one currency."""

    provider: str
    client: str
    operator: str
    currency: str
    channels: int
    gross_cents: int
    payments_cents: int
    set_off_cents: int
    balance_cents: int
    open_cents: int
    overdue_cents: int
    owed_back_cents: int
    paid_ahead_cents: int
    not_invoiced_cents: int


class StatementRow(msgspec.Struct, frozen=True, kw_only=True):
    """One statement in the table of all, every cent of it accounted for."""

    parties: PartyNames
    statement_id: str
    statement_number: int
    invoices: tuple[str, ...]
    gross_cents: int
    paid_cents: int
    """By payments that name it, less what went back."""
    paid_ahead_cents: int
    """By money that came for no invoice, or too much for another."""
    set_off_cents: int
    credit_cents: int
    """By what the provider owes for another statement; below zero: what this one gives to others."""
    open_cents: int
    owed_back_cents: int
    not_invoiced_cents: int
    left_over_cents: int
    """What the others do not explain; not 0: there is a finding, and `codes` has it."""
    codes: tuple[str, ...]
    due_ms: int
    is_overdue: bool


class WholeTrace(msgspec.Struct, frozen=True, kw_only=True):
    """Every cent of every statement and of every transfer."""

    statements: tuple[StatementRow, ...]
    transfers: tuple[TransferRow, ...]
    peers: tuple[PeerRow, ...]
    channels: tuple[ChannelSettlement, ...]
    left_over_cents: int
    """Of statements and transfers together, each by its magnitude."""


Kind = Literal["transfer", "invoice", "statement", "receipt", "all"]


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, and what the audit says of it."""

    kind: Kind
    transfer: TransferTrace | None = None
    invoice: InvoiceTrace | None = None
    statement: StatementTrace | None = None
    receipt: ReceiptTrace | None = None
    all: WholeTrace | None = None
    touched: tuple[Finding, ...] = ()
    """Findings about a part of it."""
    notes: tuple[Finding, ...] = ()
    """Notes about a part of it."""
    other_findings: int = 0
    """How many others there are."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One of several things that a name fits."""

    kind: Kind
    name: str
    """What names it alone."""
    what: str
