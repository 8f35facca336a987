"""From decisions to Payments, and what a ledger lets be booked.

Pure. The desk of the node that signs looks at every booking again (`check_booking`): whoever asks for it may be wrong,
or late.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from typing import Final

from p2pgrid.errors import UsageError
from p2pgrid.proto.billing_rules import Bookings
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.statement import Payment, PaymentKind, Statement
from p2pgrid.settlement.bank.stored import StoredBooking, StoredDecision
from p2pgrid.settlement.open_items import AHEAD, OpenItem, Place
from p2pgrid.settlement.payments.decisions import Kind
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.units import format_cents

_MAX_REFERENCE: Final = 35
_NOON: Final = timedelta(hours=12)


class BookingRefused(UsageError):
    """The ledger says otherwise. Nothing was booked."""


def entry_digest(key: str) -> bytes:
    """What a Payment calls the bank's entry: 32 bytes that tell nobody the account or the text."""
    return hashlib.sha256(b"p2pgrid bank entry\0" + key.encode()).digest()


def payments_of(
    entry: BookedEntry, decision: StoredDecision, statements: Mapping[bytes, Sequence[Statement]], *, now_ms: int
) -> tuple[Payment, ...]:
    """The Payments that a booked entry comes to: one for each invoice, one for what is ahead on a channel. Of what we
    bought there are none: its seller signs them.

    `statements`: by channel, in the order of their numbers.
    """
    return tuple(
        Payment(
            channel=one.target.channel,
            statement=one.target.place[0],
            invoice_number=one.target.number,
            reference=entry.end_to_end_id[:_MAX_REFERENCE],
            currency=entry.currency,
            amount_cents=one.cents,
            kind=_kind(decision, one),
            entry=entry_digest(entry.key),
            booked_ms=booked_ms(entry, statements.get(one.target.channel, ()), now_ms=now_ms),
        )
        for one in decision.bookings
        if not one.is_purchase
    )


def booked_ms(entry: BookedEntry, statements: Sequence[Statement], *, now_ms: int) -> int:
    """When a Payment counts as booked: noon UTC of the bank's day, which is that day from UTC-12 to UTC+11.

    Never later than now; and where the bank's day is so long ago that a statement which is signed already had to count
    it (docs/spec/audit.md, rule 42), the time of the last statement but one.
    """
    noon = datetime.combine(entry.booking_date, time(), UTC) + _NOON
    day_ms = int(noon.timestamp()) * 1000
    return min(max(day_ms, earliest_ms(statements)), now_ms)


def earliest_ms(statements: Sequence[Statement]) -> int:
    """Before that nothing is booked any more: a statement that is signed had to count it. `statements`: by number."""
    return statements[-2].stated_ms if len(statements) > 1 else 0


@dataclass(frozen=True, slots=True)
class OnRecord:
    """A channel in which we sell, as the ledger has it."""

    currency: str
    items: Mapping[Place, OpenItem]
    payments: tuple[Payment, ...]
    earliest_ms: int = 0
    """As `earliest_ms` of its statements."""

    def paid_at(self, place: Place) -> int:
        """Cents booked there."""
        return sum(one.amount_cents for one in self.payments if (one.statement, one.invoice_number) == place)

    def with_payments(self, new: Sequence[Payment]) -> OnRecord:
        """As it is once these are on record."""
        return replace(self, payments=(*self.payments, *new))


def check_booking(
    payments: Sequence[Payment], on_record: Mapping[bytes, OnRecord], *, now_ms: int
) -> tuple[Payment, ...]:
    """Those of the payments that are not on record yet, if they fit what is: else BookingRefused.

    `on_record`: by channel, those in which we sell. An intended booking may be old: `earliest_ms` may be later by now.
    """
    known = {channel: one.payments for channel, one in on_record.items()}
    new = [one for one in payments if one not in known.get(one.channel, ())]
    if len(set(map(_slot, new))) != len(new):
        raise BookingRefused("one booking stands there twice.")
    for one in new:
        if one.channel not in on_record:
            raise BookingRefused(f"channel {one.channel.hex()[:16]} is none in which this node sells.")
        if one.statement and (one.statement, one.invoice_number) not in on_record[one.channel].items:
            raise BookingRefused(f"there is no invoice {one.invoice_number!r} of that statement on record.")
        if one.booked_ms <= min(on_record[one.channel].earliest_ms, now_ms) - CLOCK_TOLERANCE_MS:
            raise BookingRefused("a statement was signed meanwhile which had to count it; it gets a later time.")
    if sum(one.amount_cents for one in new if one.kind is PaymentKind.REALLOCATED):
        raise BookingRefused("what is booked from one place to another does not come to nothing.")
    moved = PaymentKind.REALLOCATED
    entries = {one.entry for one in new if one.entry and one.kind is not moved}
    others = (one for of_it in known.values() for one in of_it if one.kind is not moved and one.entry in entries)
    if any(one not in payments for one in others):
        raise BookingRefused("that entry of the bank's was booked before.")
    for channel in dict.fromkeys(one.channel for one in new):
        of_it = [one for one in new if one.channel == channel]
        _check_once(of_it, on_record[channel])
        _check_sums(of_it, on_record[channel])
    return tuple(new)


def _check_once(new: Sequence[Payment], on_record: OnRecord) -> None:
    slots = {_slot(one) for one in on_record.payments}
    for one in new:
        if _slot(one) in slots:
            raise BookingRefused(f"that entry of the bank's was booked before, for {one.invoice_number or 'ahead'}.")
    bookings = Bookings(on_record.currency)
    ours = {id(one) for one in new}
    for one in sorted([*on_record.payments, *new], key=lambda payment: payment.booked_ms):
        fault = bookings.fault_of_next(one)
        if fault is not None and id(one) in ours:
            raise BookingRefused(fault.sentence)


def _check_sums(new: Sequence[Payment], on_record: OnRecord) -> None:
    changes: Counter[Place] = Counter()
    for one in new:
        changes[one.statement, one.invoice_number] += one.amount_cents
    for place in changes:
        if place != AHEAD:
            item, paid = on_record.items[place], on_record.paid_at(place) + changes[place]
            most = item.gross_cents - item.set_off_cents
            if not min(most, 0) <= paid <= max(most, 0):
                raise BookingRefused(
                    f"{format_cents(paid)} would be booked in all on {item.number}, which comes to "
                    f"{format_cents(most)}."
                )
    is_given = any(one.kind is not PaymentKind.RETURNED and one.amount_cents < 0 and not one.statement for one in new)
    ahead = on_record.paid_at(AHEAD)
    if is_given and ahead + changes[AHEAD] < 0:
        raise BookingRefused(f"{format_cents(ahead)} are paid ahead, which is less than is to be taken from there.")


def _slot(one: Payment) -> tuple[object, ...]:
    how = (one.kind, one.reference, one.amount_cents, one.booked_ms)
    is_bare = one.kind is PaymentKind.REALLOCATED or not one.entry
    return (one.channel, one.statement, one.invoice_number, one.entry, how if is_bare else ())


def _kind(decision: StoredDecision, booking: StoredBooking) -> PaymentKind:
    if booking.cents > 0:
        return PaymentKind.RECEIVED
    return PaymentKind.RETURNED if decision.kind == Kind.RETURNED else PaymentKind.REFUNDED
