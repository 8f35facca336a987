"""From signed records to bookings (docs/settlement/books.md, section 1). Pure.

Invoices are booked as they are issued, payments as the bank has them, set-offs as they are signed. A statement by
itself is no booking: it says what an invoice will come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final, NamedTuple, Protocol

from p2pgrid.errors import UsageError
from p2pgrid.proto.invoice_sums import vat_of
from p2pgrid.proto.record import Role
from p2pgrid.proto.statement import Invoice, Payment, PaymentKind, Statement
from p2pgrid.settlement.books.accounts import AccountRole, expense_role, revenue_role
from p2pgrid.settlement.books.days import Span
from p2pgrid.settlement.books.journal import Booking, BookingKind, BookingLine, in_order, line
from p2pgrid.settlement.books.records import ChannelRecords, Kept, SetOffLeg

R = AccountRole
REVERSE_CHARGE: Final = "AE"


class ReverseChargeRate(Protocol):
    """What a client owes in VAT on a purchase under reverse charge."""

    def __call__(self, day: date) -> int:
        """Basis points on that day. Raises UsageError where it is not known."""


def rate_unknown(day: date) -> int:
    """Nobody said in which country we are."""
    raise UsageError(
        f"purchases under reverse charge of {day} owe VAT in our own country, and its rate is not known.",
        hint="Set reverse-charge-rate-bp under [billing.accounts] (2100 is 21 %), or give --country.",
    )


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What bookings depend on beside the records."""

    input_vat_deducted: bool = True
    reverse_charge_rate: ReverseChargeRate = rate_unknown
    country: str = ""
    """Where we are (ISO 3166); empty: not known, and no VAT is taken for another country's."""
    country_of: Callable[[bytes], str] = lambda provider: ""
    """Where a provider is, by its key; empty where it has not told."""

    def is_abroad(self, provider: bytes) -> bool:
        """True for one that is known to be in another country than we are."""
        theirs = self.country_of(provider)
        return bool(self.country and theirs) and theirs != self.country


class VatPart(NamedTuple):
    """Net and VAT of an invoice in one category and rate."""

    category: str
    rate_bp: int
    net_cents: int
    vat_cents: int


def vat_parts(invoice: Invoice, statement: Statement | None) -> tuple[VatPart, ...] | None:
    """What an invoice comes to by category and rate of VAT: its record has sums alone, its statement has the rest.

    None where nobody can say: the statement is missing, or it has several categories and several invoices.
    """
    if statement is None:
        return None
    if len(statement.vat) == 1:
        vat = statement.vat[0]
        return (VatPart(vat.category, vat.rate_bp, invoice.net_cents, invoice.vat_cents),)
    parts = tuple(VatPart(one.category, one.rate_bp, one.net_cents, one.vat_cents) for one in statement.vat)
    sums = invoice.net_cents, invoice.vat_cents
    for sign in (1, -1):  # a cancellation takes the same amounts back
        turned = tuple(VatPart(p.category, p.rate_bp, sign * p.net_cents, sign * p.vat_cents) for p in parts)
        if sums == (sum(p.net_cents for p in turned), sum(p.vat_cents for p in turned)):
            return turned
        fitting = [part for part in turned if (part.net_cents, part.vat_cents) == sums]
        if len(fitting) == 1:
            return (fitting[0],)
    return None


def bookings_of(
    channels: Iterable[ChannelRecords], rules: Rules, *, span: Span | None = None, side: Role | None = None
) -> list[Booking]:
    """All bookings of the channels, in order; of the days of `span` and of one side where those are given.

    Raises UsageError where the rate of a reverse charge is not known.
    """
    found = []
    for records in channels:
        if side is None or records.side is side:
            found += list(_channel_bookings(records, rules, span))
    return in_order(found)


def _channel_bookings(records: ChannelRecords, rules: Rules, span: Span | None) -> Iterator[Booking]:
    for invoice in records.invoices:
        message = invoice.message
        day = records.day(message.issued_ms, message.statement)
        if (span is None or day in span) and (booking := _invoice(records, invoice, day, rules)):
            yield booking
    for payment in records.payments:
        day = records.day(payment.message.booked_ms, payment.message.statement)
        if span is None or day in span:
            yield _payment(records, payment, day)
    for leg in records.set_offs:
        day = records.day(leg.set_off_ms, leg.statement)
        if (span is None or day in span) and leg.amount_cents:
            yield _set_off(records, leg, day)


def _invoice(records: ChannelRecords, kept: Kept[Invoice], day: date, rules: Rules) -> Booking | None:
    """None of an invoice over nothing."""
    invoice = kept.message
    stated = records.statement(invoice.statement)
    parts = vat_parts(invoice, stated.message if stated is not None else None)
    is_sale = records.side is Role.PROVIDER
    supply = _supplied(records, stated) if stated is not None else None
    own, sign = (R.RECEIVABLES, -1) if is_sale else (R.PAYABLES, 1)
    lines = [(own, -sign * invoice.gross_cents, "", 0)]
    if parts is None:
        lines.append((R.UNCLEAR, sign * invoice.gross_cents, "", 0))
    for part in parts or ():
        if is_sale:
            lines += _sold(part)
        else:
            is_abroad = rules.is_abroad(records.counterparty)
            lines += _bought(part, supply.last if supply is not None else day, rules, is_abroad=is_abroad)
    kind = BookingKind.CREDIT_NOTE if invoice.type_code.is_credit_note else BookingKind.INVOICE
    written = tuple(line(role, cents, category, rate) for role, cents, category, rate in lines if cents)
    if not written:
        return None
    return _booking(
        records,
        kind=kind,
        day=day,
        time_ms=invoice.issued_ms,
        number=invoice.invoice_number,
        currency=invoice.currency,
        text=f"{'Credit note' if kind is BookingKind.CREDIT_NOTE else 'Invoice'} {invoice.invoice_number}",
        record=kept.id,
        due=records.day(stated.message.due_ms, stated.id) if stated is not None else None,
        supply=supply,
        lines=written,
    )


def _supplied(records: ChannelRecords, stated: Kept[Statement]) -> Span:
    """The statement's period, in days: it ends the moment before `until_ms`."""
    first = records.day(stated.message.from_ms, stated.id)
    return Span(first, max(first, records.day(stated.message.until_ms - 1, stated.id)))


def _sold(part: VatPart) -> list[tuple[AccountRole, int, str, int]]:
    """What stands against the client: role, cents (debit above zero), category and rate."""
    category, rate_bp, net, vat = part
    return [(revenue_role(category), -net, category, rate_bp), (R.VAT_OUTPUT, -vat, category, rate_bp)]


def _bought(part: VatPart, day: date, rules: Rules, *, is_abroad: bool) -> list[tuple[AccountRole, int, str, int]]:
    """The same against the provider.

    Deducted is VAT of our own country alone (Directive 2006/112/EC, article 168); another's is asked back there.
    """
    category, rate_bp, net, vat = part
    expense = expense_role(category)
    if category == REVERSE_CHARGE:
        rate_bp = rules.reverse_charge_rate(day)
        owed = vat_of(net, rate_bp)
        deducted = (R.VAT_INPUT_REVERSE, owed, category, rate_bp)
        if not rules.input_vat_deducted:
            net, deducted = net + owed, (R.VAT_INPUT_REVERSE, 0, category, rate_bp)
        return [(expense, net, category, rate_bp), deducted, (R.VAT_OUTPUT_REVERSE, -owed, category, rate_bp)]
    if vat and is_abroad:
        return [(R.EXPENSE_FOREIGN_VAT, net + vat, category, rate_bp)]
    if not rules.input_vat_deducted:
        return [(expense, net + vat, category, rate_bp)]
    return [(expense, net, category, rate_bp), (R.VAT_INPUT, vat, category, rate_bp)]


_KINDS: Final = {
    PaymentKind.RECEIVED: BookingKind.PAYMENT,
    PaymentKind.RETURNED: BookingKind.RETURN,
    PaymentKind.REFUNDED: BookingKind.REFUND,
    PaymentKind.REALLOCATED: BookingKind.REALLOCATION,
}
_TEXTS: Final = {
    BookingKind.PAYMENT: "Payment of {}",
    BookingKind.PREPAYMENT: "Paid ahead{}",
    BookingKind.RETURN: "Returned by the bank: {}",
    BookingKind.REFUND: "Paid back: {}",
    BookingKind.REALLOCATION: "Booked for another invoice: {}",
}


def _payment(records: ChannelRecords, kept: Kept[Payment], day: date) -> Booking:
    """Above zero it lowers what the client owes; where it names no invoice, it is money ahead."""
    payment = kept.message
    is_sale = records.side is Role.PROVIDER
    if payment.statement:
        own = R.RECEIVABLES if is_sale else R.PAYABLES
    else:
        own = R.ADVANCES_RECEIVED if is_sale else R.ADVANCES_PAID
    kind = _KINDS[payment.kind]
    if kind is BookingKind.PAYMENT and not payment.statement:
        kind = BookingKind.PREPAYMENT
    other = R.REALLOCATION if kind is BookingKind.REALLOCATION else R.BANK
    cents = payment.amount_cents if is_sale else -payment.amount_cents
    what = payment.invoice_number or ("" if kind is BookingKind.PREPAYMENT else "money ahead")
    return _booking(
        records,
        kind=kind,
        day=day,
        time_ms=payment.booked_ms,
        number=payment.invoice_number or payment.reference,
        currency=payment.currency,
        text=_TEXTS[kind].format(what),
        record=kept.id,
        lines=(line(own, -cents), line(other, cents)),
    )


def _set_off(records: ChannelRecords, leg: SetOffLeg, day: date) -> Booking:
    """One leg: what it takes off here stands on the account of set-offs until its other leg is booked."""
    is_sale = records.side is Role.PROVIDER
    cents = leg.amount_cents if is_sale else -leg.amount_cents
    return _booking(
        records,
        kind=BookingKind.SET_OFF,
        day=day,
        time_ms=leg.set_off_ms,
        number=leg.invoice_number or leg.record.hex()[:16],
        currency=leg.currency,
        text=f"Set off: {leg.invoice_number or 'balance'}",
        record=leg.record,
        lines=(line(R.RECEIVABLES if is_sale else R.PAYABLES, -cents), line(R.SET_OFF, cents)),
    )


def _booking(
    records: ChannelRecords,
    *,
    kind: BookingKind,
    day: date,
    time_ms: int,
    number: str,
    currency: str,
    text: str,
    record: bytes,
    lines: tuple[BookingLine, ...],
    due: date | None = None,
    supply: Span | None = None,
) -> Booking:
    return Booking(
        kind=kind,
        side=records.side,
        day=day,
        time_ms=time_ms,
        document_number=number,
        channel=records.id,
        counterparty=records.counterparty,
        currency=currency,
        text=text,
        record=record,
        due=due,
        supply=supply,
        lines=lines,
    )
