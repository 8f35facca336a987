"""What a side would state now: the provider's draft, and either side's look ahead (docs/spec/settlement.md)."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Record, Signed, encode_payload, parse_message
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.statement_making import Period, Stated, VatOf, make_statement, receipts_of_period, vat_in
from p2pgrid.settlement.hooks import Details
from p2pgrid.settlement.statements.days import LocalDays, StatementDays, period_days
from p2pgrid.settlement.statements.periods import cut_at_rate_change, due_until
from p2pgrid.settlement.statements.position import Held, Position, StatedLedger, read_books, read_position
from p2pgrid.settlement.statements.refused import NotStated
from p2pgrid.settlement.statements.taxes import parties_of, vat_of_period

PAYMENT_DAYS: Final = 14
NOTHING_HAPPENED: Final = "nothing-happened"
"""The code of `NotStated` where there is nothing to state."""
_AT_ONCE: Final = 1000
"""Receipts of a statement that is made in one turn of the loop."""
SETTLEMENT_DAYS: Final = 30
"""Of a channel of which no offer is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A statement that nobody has signed."""

    statement: Statement
    days: StatementDays
    """By the provider's calendar."""
    receipts: tuple[Stated, ...]
    """Those that it is of."""
    ends: Held | None
    """The receipt that keeps those from it on out of this period, if it is not their time."""
    vat_missing: NotStated | None = None
    """Why its VAT is not known, where it was looked ahead all the same: it has none then."""

    @property
    def first_day(self) -> date:
        """The period's first."""
        return self.days.first

    @property
    def last_day(self) -> date:
        """The period's last."""
        return self.days.last

    @property
    def record(self) -> Record:
        """Its record, without a signature."""
        return Record(Statement.payload_type, encode_payload(self.statement), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """By what a provider states."""

    days: LocalDays | None = None
    """Its local days; left out, those of its offers."""
    payment_days: int = PAYMENT_DAYS
    """From the statement to the day by which it is to be paid; one at least, for no client agrees to less."""


async def draft(
    ledger: StatedLedger,
    channel: Signed[Channel],
    details: Details,
    *,
    now_ms: int,
    is_wanted: bool,
    until_ms: int = 0,
    until_day: date | None = None,
    terms: Terms | None = None,
    looks_ahead: bool = False,
) -> Draft:
    """The next statement of a channel: at the end of a period that is due, or where one is wanted.

    `until_ms`, `until_day`: where a period that is wanted ends at the latest; 0 and None: now. Raises NotStated and
    LedgerError; with `looks_ahead` it is made without VAT where that cannot be known.
    """
    terms = terms or Terms()
    books = read_books(ledger, channel)
    position = await read_position(ledger, books)
    days = terms.days or LocalDays.at_offset(_offset(position))
    if until_day is not None:
        until_ms = min(until_ms or now_ms, days.end_ms(min(until_day, days.of(now_ms))))
    if is_wanted:
        end_ms = _end_wanted(position, days, until_ms, now_ms)
        _check_something_happened(position, days, end_ms, now_ms)
    else:
        end_ms = _end_due(position, days, now_ms)
    missing: NotStated | None = None
    try:
        seller, _ = parties_of(details, channel.message)
        end_ms = cut_at_rate_change(books.from_ms, end_ms, seller.country, days)
        first, last = period_days(books.from_ms, end_ms, days)
        vat: VatOf = vat_of_period(details, channel.message, first, last)
    except NotStated as error:
        if not looks_ahead:
            raise
        missing, vat = error, vat_in("O", 0)
        first, last = period_days(books.from_ms, end_ms, days)
    receipts = tuple(receipts_of_period(position.receipts, until_ms=end_ms))
    due = days.of(now_ms) + timedelta(days=max(terms.payment_days, 1))
    due_ms = days.end_ms(due) - 1
    period = Period(until_ms=end_ms, stated_ms=now_ms, due_ms=max(due_ms, now_ms))
    statement = await statement_of(position, receipts, period, vat)
    checked(statement)
    ends = position.ends if len(receipts) == len(position.receipts) else None
    return Draft(
        statement=statement,
        days=StatementDays(first, last, due),
        receipts=receipts,
        ends=ends,
        vat_missing=missing,
    )


async def is_due(
    ledger: StatedLedger,
    channel: Signed[Channel],
    *,
    now_ms: int,
    terms: Terms | None = None,
) -> bool:
    """True if a statement is due, or was signed by the provider alone. Reads one receipt. Raises LedgerError."""
    books = read_books(ledger, channel)
    if books.pending is not None:
        return True
    position = await read_position(ledger, books, last_receipt=books.last_receipt + 1)
    days = (terms or Terms()).days or LocalDays.at_offset(_offset(position))
    try:
        _end_due(position, days, now_ms)
    except NotStated:
        return False
    return True


async def statement_of(
    position: Position,
    receipts: tuple[Stated, ...],
    period: Period,
    vat: VatOf,
    *,
    payments_cents: int | None = None,
    set_off_cents: int | None = None,
) -> Statement:
    """The next statement over these receipts. `payments_cents`, `set_off_cents`: where it is not what is on record by
    its time.

    Of very many receipts it is made in a thread, so that the loop has its turns.
    """
    books = position.books
    make = functools.partial(
        make_statement,
        books.channel,
        before=books.last,
        receipts=receipts,
        contests=books.contests,
        credited_pico=books.credited_pico,
        payments_cents=books.payments_cents(period.stated_ms) if payments_cents is None else payments_cents,
        set_off_cents=books.set_off_cents(period.stated_ms) if set_off_cents is None else set_off_cents,
        period=period,
        vat=vat,
    )
    return make() if len(receipts) <= _AT_ONCE else await asyncio.to_thread(make)


def checked(statement: Statement) -> None:
    """Raises NotStated (`out-of-range`) for what nobody could sign: amounts beyond all bounds, a clock set back."""
    try:
        parse_message(Record(Statement.payload_type, encode_payload(statement), ()), Statement)
    except (InvalidRecord, OverflowError) as error:
        what = error.message if isinstance(error, InvalidRecord) else str(error)
        raise NotStated("out-of-range", f"the statement cannot be written: {what}") from None


def first_event_ms(position: Position, now_ms: int) -> int | None:
    """When the first thing happened that is in no statement; None if nothing did."""
    events = [position.receipts[0].receipt.issued_ms] if position.receipts else []
    moved_ms = position.books.moved_ms(now_ms)
    if moved_ms is not None:
        events.append(moved_ms)
    return max(min(events), position.books.from_ms) if events else None


def _offset(position: Position) -> int:
    return position.offer.utc_offset_minutes if position.offer is not None else 0


def _end_wanted(position: Position, days: LocalDays, until_ms: int, now_ms: int) -> int:
    end_ms = min(until_ms or now_ms, now_ms)
    if end_ms <= position.books.from_ms:
        if position.books.last is None:
            raise NotStated("stated-already", f"the channel was opened later, on {days.of(position.books.from_ms)}.")
        raise NotStated("stated-already", f"all up to {days.of(position.books.from_ms - 1)} is stated already.")
    return end_ms


def _check_something_happened(position: Position, days: LocalDays, end_ms: int, now_ms: int) -> None:
    """A statement says something: an empty one costs a signature, and an invoice's number."""
    if position.books.moved_ms(now_ms) is None and not receipts_of_period(position.receipts, until_ms=end_ms):
        raise _nothing_happened(position, days, end_ms if end_ms < now_ms else None)


def _nothing_happened(position: Position, days: LocalDays, end_ms: int | None = None) -> NotStated:
    last, from_ms = position.books.last, position.books.from_ms
    since = f"since the channel was opened on {days.of(from_ms)}"
    if last is not None:
        since = f"since statement {last.message.statement_number}, which goes up to {days.of(from_ms - 1)}"
    until = f"up to {days.of(end_ms - 1)}, " if end_ms is not None else ""
    sentence = f"{until}nothing happened {since}: there is nothing to state."
    if position.ends is not None and not position.receipts:
        sentence = f"{sentence[:-1]}, and receipt {position.ends.receipt_number} {position.ends.reason}."
    return NotStated(NOTHING_HAPPENED, sentence)


def _end_due(position: Position, days: LocalDays, now_ms: int) -> int:
    event_ms = first_event_ms(position, now_ms)
    if event_ms is None:
        raise _nothing_happened(position, days)
    settlement_days = position.offer.terms.settlement_days if position.offer is not None else SETTLEMENT_DAYS
    end_ms = due_until(from_ms=position.books.from_ms, event_ms=event_ms, settlement_days=settlement_days, days=days)
    if end_ms > now_ms:
        raise NotStated("not-due", f"the next statement is due when {days.of(end_ms - 1)} is over.")
    return end_ms
