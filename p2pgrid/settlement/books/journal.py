"""Double entry: bookings, of lines in whole cents, each of them balanced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from p2pgrid.errors import P2pgridError
from p2pgrid.proto.record import Role
from p2pgrid.settlement.books.accounts import AccountRole
from p2pgrid.settlement.books.days import Span


class Unbalanced(P2pgridError):
    """Debit and credit are not the same: nothing is exported."""


class BookingKind(StrEnum):
    """What happened."""

    INVOICE = "invoice"
    CREDIT_NOTE = "credit-note"
    PAYMENT = "payment"
    PREPAYMENT = "prepayment"
    RETURN = "return"
    REFUND = "refund"
    REALLOCATION = "reallocation"
    SET_OFF = "set-off"


@dataclass(frozen=True, kw_only=True)
class BookingLine:
    """So much on one side of one account."""

    role: AccountRole
    debit_cents: int = 0
    credit_cents: int = 0
    vat_category: str = ""
    """BT-118, of lines that are a supply or its VAT."""
    vat_rate_bp: int = 0

    def __post_init__(self) -> None:
        if min(self.debit_cents, self.credit_cents) < 0 or bool(self.debit_cents) is bool(self.credit_cents):
            raise ValueError("a line of a booking has a debit or a credit, above zero")

    @property
    def signed_cents(self) -> int:
        """Debit above zero, credit below."""
        return self.debit_cents - self.credit_cents


@dataclass(frozen=True, kw_only=True)
class Booking:
    """One record, booked. `lines[0]` is on the counterparty's account, or on what stands for it."""

    kind: BookingKind
    side: Role
    """As what we are booked: provider (sales) or client (purchases)."""
    day: date
    time_ms: int
    document_number: str
    """The invoice's; of money ahead the bank's reference."""
    channel: bytes
    counterparty: bytes
    """The other party's key."""
    currency: str
    text: str
    record: bytes
    """The id of the signed record that it follows from."""
    due: date | None = None
    supply: Span | None = None
    """Of an invoice: the days in which was supplied what it is for. They decide when its VAT is due."""
    lines: tuple[BookingLine, ...]

    def __post_init__(self) -> None:
        check_balanced(self.lines, self.record)

    @property
    def total_cents(self) -> int:
        """Of either side."""
        return sum(line.debit_cents for line in self.lines)

    def contra_of(self, line: BookingLine) -> BookingLine:
        """The other account: of the first line the second's, of any other the first's."""
        return self.lines[1] if line is self.lines[0] else self.lines[0]


def line(role: AccountRole, signed_cents: int, category: str = "", rate_bp: int = 0) -> BookingLine:
    """A line: debit if above zero, credit if below."""
    return BookingLine(
        role=role,
        debit_cents=max(signed_cents, 0),
        credit_cents=max(-signed_cents, 0),
        vat_category=category,
        vat_rate_bp=rate_bp,
    )


def check_balanced(lines: Sequence[BookingLine], record: bytes) -> None:
    """Raises Unbalanced."""
    debit, credit = sum(one.debit_cents for one in lines), sum(one.credit_cents for one in lines)
    if debit != credit or len(lines) < 2:
        raise Unbalanced(
            f"the booking of record {record.hex()[:16]} has {debit} cents in debit and {credit} in credit.",
            hint="This is a fault of p2pgrid's: report it with `p2pgrid receipts export`.",
        )


def totals_of(bookings: Iterable[Booking]) -> dict[str, tuple[int, int]]:
    """Debit and credit by currency. Raises Unbalanced where they are not the same."""
    totals: dict[str, tuple[int, int]] = {}
    for booking in bookings:
        debit, credit = totals.get(booking.currency, (0, 0))
        totals[booking.currency] = (
            debit + sum(one.debit_cents for one in booking.lines),
            credit + sum(one.credit_cents for one in booking.lines),
        )
    for currency, (debit, credit) in totals.items():
        if debit != credit:
            raise Unbalanced(f"{debit} cents in debit and {credit} in credit, {currency}: nothing is exported.")
    return dict(sorted(totals.items()))


def in_order(bookings: Iterable[Booking]) -> list[Booking]:
    """By day, then time, then record: the same in every run."""
    return sorted(bookings, key=lambda one: (one.day, one.time_ms, one.record, one.side.value))
