"""Records of settlement for tests, from a few words: a channel, what it is billed, and what was paid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Message, Role, Signed, sign_message
from p2pgrid.proto.statement import Invoice, InvoiceType, Payment, PaymentKind, Statement, VatLine
from tests.factories import CLIENT, DAY_MS, NOW_MS, PROVIDER, digest, make_channel

__all__ = ["DAY_MS", "NOW_MS", "Billed"]


@dataclass
class Billed:
    """A channel with statements of no receipts, each for a gross that is given. Records in the order they were made."""

    provider: SecretKey = PROVIDER
    client: SecretKey = CLIENT
    name: str = "channel"
    currency: str = "EUR"
    prefix: str = "LT-2027-"
    channel: Signed[Channel] = field(init=False)
    statements: list[Signed[Statement]] = field(default_factory=list, init=False)
    invoices: list[Signed[Invoice]] = field(default_factory=list, init=False)
    payments: list[Signed[Payment]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.channel = make_channel(self.provider, self.client, name=self.name, currency=self.currency)

    @property
    def id(self) -> bytes:
        return self.channel.message.channel

    @property
    def records(self) -> list[Signed[Any]]:
        made: list[Signed[Message]] = [self.channel, *self.statements, *self.invoices, *self.payments]
        return made

    def state(self, gross_cents: int, **changes: Any) -> Signed[Statement]:
        """The next statement, both signed, with no VAT; a month after the one before."""
        number = len(self.statements) + 1
        from_ms = NOW_MS + 30 * (number - 1) * DAY_MS
        line = VatLine(category="AE", rate_bp=0, exemption="VATEX-EU-AE", net_cents=gross_cents, vat_cents=0)
        opening = self.statements[-1].message.closing_cents if self.statements else 0
        paid = changes.get("payments_cents", 0) + changes.get("set_off_cents", 0)
        fields: dict[str, Any] = {
            "channel": self.id,
            "statement_number": number,
            "previous": self.statements[-1].id if self.statements else b"",
            "first_receipt": 1,
            "last_receipt": 0,
            "root": digest("no receipts"),
            "currency": self.currency,
            "lines": (),
            "total_pico": 0,
            "credits_pico": 0,
            "held_pico": 0,
            "net_cents": gross_cents,
            "vat": (line,),
            "gross_cents": gross_cents,
            "payments_cents": 0,
            "set_off_cents": 0,
            "opening_cents": opening,
            "closing_cents": opening + gross_cents - paid,
            "from_ms": from_ms,
            "until_ms": from_ms + 30 * DAY_MS,
            "stated_ms": from_ms + 30 * DAY_MS,
            "due_ms": from_ms + 44 * DAY_MS,
        }
        message = Statement(**{**fields, **changes})
        signed = sign_message(message, Role.PROVIDER, self.provider).countersigned(Role.CLIENT, self.client)
        self.statements.append(signed)
        return signed

    def invoice(self, statement: Signed[Statement], gross_cents: int | None = None, **changes: Any) -> Signed[Invoice]:
        """An invoice of a statement, or a credit note."""
        gross = statement.message.gross_cents if gross_cents is None else gross_cents
        fields: dict[str, Any] = {
            "channel": self.id,
            "statement": statement.id,
            "invoice_number": f"{self.prefix}{len(self.invoices) + 1:06d}",
            "type_code": InvoiceType.CREDIT_NOTE if gross < 0 else InvoiceType.INVOICE,
            "currency": self.currency,
            "net_cents": gross,
            "vat_cents": 0,
            "gross_cents": gross,
            "document_sha256": digest("document"),
            "issued_ms": statement.message.stated_ms + 1000 + len(self.invoices),
        }
        signed = sign_message(Invoice(**{**fields, **changes}), Role.PROVIDER, self.provider)
        self.invoices.append(signed)
        return signed

    def bill(self, gross_cents: int) -> Signed[Invoice]:
        """A statement with its one invoice."""
        return self.invoice(self.state(gross_cents))

    def pay(
        self, invoice: Signed[Invoice] | None, cents: int, kind: PaymentKind = PaymentKind.RECEIVED, **changes: Any
    ) -> Signed[Payment]:
        """A payment of an invoice; None: paid ahead."""
        fields: dict[str, Any] = {
            "channel": self.id,
            "statement": invoice.message.statement if invoice else b"",
            "invoice_number": invoice.message.invoice_number if invoice else "",
            "reference": "",
            "currency": self.currency,
            "amount_cents": cents,
            "kind": kind,
            "entry": b"" if kind is PaymentKind.REALLOCATED else digest(f"entry {len(self.payments)}"),
            "booked_ms": NOW_MS + len(self.payments),
        }
        signed = sign_message(Payment(**{**fields, **changes}), Role.PROVIDER, self.provider)
        self.payments.append(signed)
        return signed
