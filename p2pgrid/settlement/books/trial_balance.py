"""The trial balance: what stands on every account, and that a channel's books agree with its statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date

from p2pgrid.proto.record import Role
from p2pgrid.settlement.books.accounts import AccountRole, is_of_result
from p2pgrid.settlement.books.book_set import BookSet
from p2pgrid.settlement.books.days import fiscal_year_of
from p2pgrid.settlement.books.journal import Booking
from p2pgrid.settlement.books.records import ChannelRecords

_OWED = {
    Role.PROVIDER: (AccountRole.RECEIVABLES, AccountRole.ADVANCES_RECEIVED),
    Role.CLIENT: (AccountRole.PAYABLES, AccountRole.ADVANCES_PAID),
}


@dataclass(frozen=True, kw_only=True)
class AccountBalance:
    """One account in one currency; a balance above zero is a debit."""

    number: str
    name: str
    currency: str
    opening_cents: int
    debit_cents: int
    credit_cents: int

    @property
    def closing_cents(self) -> int:
        return self.opening_cents + self.debit_cents - self.credit_cents


def trial_balance(books: BookSet, before: Iterable[Booking] = ()) -> list[AccountBalance]:
    """Every account by its number: `before` are the bookings of the days before the span, which open it.

    Revenue and expense of earlier fiscal years open as their result.
    """
    found: dict[tuple[str, str], AccountBalance] = {}
    year = fiscal_year_of(books.span.first, books.chart.fiscal_year_begins)
    for is_opening, bookings in ((True, before), (False, books.bookings)):
        for booking in bookings:
            for one in booking.lines:
                is_earlier = booking.day < year and is_of_result(one.role)
                account = books.general(AccountRole.EARLIER_RESULT) if is_earlier else books.account(booking, one)
                key = account.number, booking.currency
                balance = found.get(key) or AccountBalance(
                    number=account.number,
                    name=account.name,
                    currency=booking.currency,
                    opening_cents=0,
                    debit_cents=0,
                    credit_cents=0,
                )
                found[key] = (
                    replace(balance, opening_cents=balance.opening_cents + one.signed_cents)
                    if is_opening
                    else replace(
                        balance,
                        debit_cents=balance.debit_cents + one.debit_cents,
                        credit_cents=balance.credit_cents + one.credit_cents,
                    )
                )
    rows = [found[key] for key in sorted(found)]
    return [row for row in rows if row.opening_cents or row.debit_cents or row.credit_cents]


@dataclass(frozen=True, kw_only=True)
class ChannelBalance:
    """What the client owes on a channel at the end of a day, by the books and by the statements.

    books = closing + invoices - payments - set-offs that no statement counts yet - what was carried over from another
    channel + what is stated and not invoiced.
    """

    channel: bytes
    side: Role
    counterparty: bytes
    currency: str
    books_cents: int
    """Receivables (for a client payables) less what was paid ahead."""
    statements: int
    """How many there are."""
    closing_cents: int
    """Of the last one; 0 if there is none."""
    not_invoiced_cents: int
    """Stated, without an invoice yet; below zero: invoiced beyond what is stated."""
    payments_not_stated_cents: int
    set_off_not_stated_cents: int
    carried_cents: int
    """Opening balance of the first statement: it came from another channel, in whose books it is."""

    @property
    def difference_cents(self) -> int:
        """What none of these explains: 0, or the records contradict one another."""
        explained = self.closing_cents - self.not_invoiced_cents - self.carried_cents
        return self.books_cents - explained + self.payments_not_stated_cents + self.set_off_not_stated_cents


def channel_balances(
    channels: Iterable[ChannelRecords], bookings: Iterable[Booking], last: date
) -> list[ChannelBalance]:
    """Each channel at the end of the day `last`. `bookings` are those of all."""
    of_channel: dict[tuple[bytes, Role], list[Booking]] = defaultdict(list)
    for booking in bookings:
        of_channel[booking.channel, booking.side].append(booking)
    return [channel_balance(one, of_channel[one.id, one.side], last) for one in channels]


def channel_balance(records: ChannelRecords, bookings: Sequence[Booking], last: date) -> ChannelBalance:
    """A channel at the end of the day `last`. `bookings` are all of the channel's."""
    owed, ahead = _OWED[records.side]
    sign = 1 if records.side is Role.PROVIDER else -1
    currency = records.channel.currency
    books_cents = sum(
        sign * one.signed_cents
        for booking in bookings
        if (booking.channel, booking.side, booking.currency) == (records.id, records.side, currency)
        and booking.day <= last
        for one in booking.lines
        if one.role in (owed, ahead)
    )
    stated = [one.message for one in records.statements if records.day(one.message.stated_ms, one.id) <= last]
    invoiced = sum(
        one.message.gross_cents
        for one in records.invoices
        if one.message.currency == currency and records.day(one.message.issued_ms, one.message.statement) <= last
    )
    paid = sum(
        one.message.amount_cents
        for one in records.payments
        if one.message.currency == currency and records.day(one.message.booked_ms, one.message.statement) <= last
    )
    set_off = sum(
        one.amount_cents
        for one in records.set_offs
        if one.currency == currency and records.day(one.set_off_ms, one.statement) <= last
    )
    return ChannelBalance(
        channel=records.id,
        side=records.side,
        counterparty=records.counterparty,
        currency=currency,
        books_cents=books_cents,
        statements=len(stated),
        closing_cents=stated[-1].closing_cents if stated else 0,
        not_invoiced_cents=sum(one.gross_cents for one in stated) - invoiced,
        payments_not_stated_cents=paid - sum(one.payments_cents for one in stated),
        set_off_not_stated_cents=set_off - sum(one.set_off_cents for one in stated),
        carried_cents=stated[0].opening_cents if stated else 0,
    )
