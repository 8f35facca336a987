"""index.json of an archive, as far as it is looked at when somebody hands one over."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from p2pgrid.proto.record import Message
from p2pgrid.proto.statement import Invoice, Payment, Statement


class Format(msgspec.Struct):
    format: str


class ChannelRow(msgspec.Struct, frozen=True):
    """A channel."""

    bundle: str


class Row(msgspec.Struct, frozen=True):
    """What the index says of a record: whatever both say has to be the same."""

    message_type: ClassVar[type[Message]]

    id: str


class StatementRow(Row, frozen=True):
    message_type: ClassVar[type[Message]] = Statement

    statement_number: int
    net_cents: int
    gross_cents: int
    closing_cents: int
    currency: str
    file: str


class InvoiceRow(Row, frozen=True):
    message_type: ClassVar[type[Message]] = Invoice

    invoice_number: str
    net_cents: int
    vat_cents: int
    gross_cents: int
    currency: str
    files: tuple[str, ...]


class PaymentRow(Row, frozen=True):
    message_type: ClassVar[type[Message]] = Payment

    invoice_number: str
    amount_cents: int
    currency: str
    reference: str


class SetOffRow(msgspec.Struct, frozen=True):
    """What a set-off, or the leg of a cycle, takes off an invoice or a channel: a record may have several."""

    id: str
    channel: str
    amount_cents: int


class Totals(msgspec.Struct, frozen=True):
    debit_cents: int
    credit_cents: int


class Index(msgspec.Struct, frozen=True):
    """index.json, as far as it is looked at."""

    year: int
    channels: tuple[ChannelRow, ...]
    statements: tuple[StatementRow, ...]
    invoices: tuple[InvoiceRow, ...]
    payments: tuple[PaymentRow, ...]
    set_offs: tuple[SetOffRow, ...]
    totals: dict[str, Totals]
    missing: tuple[str, ...] = ()
    keep_until: dict[str, str] = {}
