"""A channel's settlement made in few words: statements, invoices, payments, set-offs that fit together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.statement import Invoice, Payment, PaymentKind, Statement
from p2pgrid.proto.statement_rules import statement_root
from p2pgrid.settlement.books.accounts import Chart, chart_of
from p2pgrid.settlement.books.book_set import BookSet
from p2pgrid.settlement.books.booking import Rules, bookings_of
from p2pgrid.settlement.books.days import Span
from p2pgrid.settlement.books.records import ChannelRecords, Kept, SetOffLeg
from tests.factories import (
    CLIENT,
    NOW_MS,
    PROVIDER,
    digest,
    make_channel,
    make_invoice,
    make_payment,
    make_prepayment,
    make_statement,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
EVER = Span(date(2000, 1, 1), date(2099, 12, 31))
NO_RECEIPTS = statement_root(())
KEYS = (PROVIDER.public_key.raw, CLIENT.public_key.raw)


def at_21_percent(day: date) -> int:
    """What the client owes under reverse charge."""
    return 2100


RULES = Rules(reverse_charge_rate=at_21_percent)


@dataclass
class Settling:
    """Statements of no receipts with a net of the caller's; each step is an hour after the one before."""

    name: str = "books"
    now_ms: int = NOW_MS
    rate_bp: int = 1900
    statements: list[Signed[Statement]] = field(default_factory=list)
    invoices: list[Signed[Invoice]] = field(default_factory=list)
    payments: list[Signed[Payment]] = field(default_factory=list)
    set_offs: list[SetOffLeg] = field(default_factory=list)
    stated_payments: int = 0
    stated_set_offs: int = 0

    def __post_init__(self) -> None:
        self.channel: Signed[Channel] = make_channel(name=self.name, opened_ms=self.now_ms)

    @property
    def id(self) -> bytes:
        return self.channel.message.channel

    def later(self, ms: int = HOUR_MS) -> int:
        self.now_ms += ms
        return self.now_ms

    def state(self, net_cents: int, **changes: Any) -> Signed[Statement]:
        """The next statement: it counts what was paid and set off since the one before."""
        paid = sum(one.message.amount_cents for one in self.payments)
        set_off = sum(one.amount_cents for one in self.set_offs)
        before = self.statements[-1] if self.statements else None
        at_ms = self.later()
        signed = make_statement(
            [],
            NO_RECEIPTS,
            before=before,
            rate_bp=changes.pop("rate_bp", self.rate_bp),
            **{
                "channel": self.id,
                "net_cents": net_cents,
                "payments_cents": paid - self.stated_payments,
                "set_off_cents": set_off - self.stated_set_offs,
                "from_ms": before.message.until_ms if before else self.channel.message.opened_ms,
                "until_ms": at_ms,
                "stated_ms": at_ms,
                **changes,
            },
        )
        self.stated_payments, self.stated_set_offs = paid, set_off
        self.statements.append(signed)
        return signed

    def invoice(self, statement: Signed[Statement] | None = None, **changes: Any) -> Signed[Invoice]:
        """For a statement, the last one if none is named."""
        number = f"LT-2027-{len(self.invoices) + 1:06}"
        fields = {"invoice_number": number, "issued_ms": self.later(), "document_sha256": digest(number), **changes}
        signed = make_invoice(statement or self.statements[-1], **fields)
        self.invoices.append(signed)
        return signed

    def pay(self, invoice: Signed[Invoice], cents: int, kind: PaymentKind | None = None) -> Signed[Payment]:
        kind = kind or (PaymentKind.RECEIVED if cents > 0 else PaymentKind.REFUNDED)
        reference = f"PAY-{len(self.payments)}"
        signed = make_payment(
            invoice, self.id, amount_cents=cents, kind=kind, reference=reference, booked_ms=self.later()
        )
        self.payments.append(signed)
        return signed

    def pay_ahead(self, cents: int, kind: PaymentKind | None = None) -> Signed[Payment]:
        kind = kind or (PaymentKind.RECEIVED if cents > 0 else PaymentKind.REFUNDED)
        reference = f"AHEAD-{len(self.payments)}"
        entry = digest(reference)
        signed = make_prepayment(
            self.id, amount_cents=cents, kind=kind, reference=reference, entry=entry, booked_ms=self.later()
        )
        self.payments.append(signed)
        return signed

    def set_off(self, invoice: Signed[Invoice], cents: int) -> SetOffLeg:
        leg = SetOffLeg(
            record=digest(f"set-off {len(self.set_offs)}"),
            channel=self.id,
            statement=invoice.message.statement,
            invoice_number=invoice.message.invoice_number,
            currency="EUR",
            amount_cents=cents,
            set_off_ms=self.later(),
        )
        self.set_offs.append(leg)
        return leg

    def records(self, side: Role = Role.PROVIDER) -> ChannelRecords:
        return ChannelRecords(
            channel=self.channel.message,
            side=side,
            statements=kept(self.statements),
            invoices=kept(self.invoices),
            payments=kept(self.payments),
            set_offs=tuple(self.set_offs),
            offsets=(0,) * len(self.statements),
        )


def kept(signed: list[Any]) -> tuple[Kept[Any], ...]:
    return tuple(Kept(one.id, one.message) for one in signed)


def books_of(
    *channels: ChannelRecords, chart: Chart | str = "plain", span: Span = EVER, rules: Rules = RULES, **changes: Any
) -> BookSet:
    """The channels' books, with accounts 10000 and 70000 on."""
    bookings = bookings_of(channels, rules, span=span)
    parties = dict.fromkeys((one.side, one.counterparty) for one in channels)
    firsts = {Role.PROVIDER: 10_000, Role.CLIENT: 70_000}
    made = BookSet(
        span=span,
        bookings=bookings,
        chart=chart_of(chart) if isinstance(chart, str) else chart,
        personal={one: firsts[one[0]] + n for n, one in enumerate(parties)},
    )
    return replace(made, **changes)


def month() -> Settling:
    """All that can happen, once: the golden files are of this."""
    s = Settling("month")
    s.pay_ahead(5_000)
    s.state(10_050)
    first = s.invoice()
    s.pay(first, 11_000)
    s.set_off(first, 500)
    s.later(20 * DAY_MS)
    s.state(-2_000)
    credit = s.invoice()
    s.pay(credit, -2_000)
    s.pay(credit, -380, PaymentKind.REALLOCATED)
    s.pay(first, 380, PaymentKind.REALLOCATED)
    s.later(20 * DAY_MS)
    s.state(123_456, rate_bp=0)
    abroad = s.invoice(invoice_number="LT 2027/0.3 ünlikely long number of an invoice, longer than DATEV"[:64])
    s.pay(abroad, 123_456)
    s.pay(abroad, -123_456, PaymentKind.RETURNED)
    s.pay_ahead(-5_000)
    return s
