"""The client's look at what the provider states: its own statement from its own ledger, and every difference.

No difference means that both made the same bytes. What the provider had signed before an exchange was cut off is judged
likewise, but that payments and set-offs which came since may be counted in the next one (docs/spec/audit.md, rules 42
and 42a).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.messages import Channel, Offer
from p2pgrid.proto.record import Signed
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.statement_difference import difference, differences
from p2pgrid.proto.statement_making import Period, VatOf, receipts_of_period, vat_in
from p2pgrid.proto.wire.settlement import StatementDifference
from p2pgrid.settlement.hooks import Details
from p2pgrid.settlement.statements.days import DAY_MS, may_be_days
from p2pgrid.settlement.statements.drafting import statement_of
from p2pgrid.settlement.statements.position import (
    MOST_RECEIPTS,
    Books,
    Position,
    StatedLedger,
    read_books,
    read_position,
)
from p2pgrid.settlement.statements.refused import NotStated
from p2pgrid.settlement.statements.taxes import vat_of_period

MIN_PAYMENT_MS: Final = DAY_MS
"""The least time to pay that a client agrees to."""
_MOST_NAMED: Final = 16


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of it."""

    differences: list[StatementDifference]
    ids: dict[int, bytes]
    """Of the receipts that this side would state, by number."""

    @property
    def is_of_other_receipts(self) -> bool:
        """True if the provider's list of receipts would tell which."""
        return any(one.field == "root" for one in self.differences)


async def judge(
    ledger: StatedLedger,
    channel: Signed[Channel],
    details: Details,
    theirs: Statement,
    days: tuple[date, date],
    *,
    now_ms: int,
    offer: Offer | None = None,
    is_signed: bool = False,
    accepts_due: bool = False,
) -> Judged:
    """What this side states differently, and what it does not agree to. Raises LedgerError.

    `days`: what the provider calls the period's first and last. `offer`: what it sells by now, which may tell of
    another time zone than what was bought by. `is_signed`: the provider had signed it before. `accepts_due`: then it
    may be due at any time.
    """
    books = read_books(ledger, channel)
    found = _fixed(books, theirs)
    if found:
        return Judged(found, {})  # of another place in the chain: nothing else can be held against it
    position = await read_position(
        ledger, books, last_receipt=min(theirs.last_receipt, books.last_receipt + MOST_RECEIPTS)
    )
    receipts = tuple(receipts_of_period(position.receipts, until_ms=theirs.until_ms + CLOCK_TOLERANCE_MS))
    found += _of_times(theirs, now_ms, is_signed=is_signed, accepts_due=is_signed and accepts_due)
    if theirs.from_ms == books.from_ms and not any(one.field == "until_ms" for one in found):
        found += _of_days(position, offer, theirs, days)
    found += _of_range(position, theirs, books.last_receipt + len(receipts))
    vat: VatOf = vat_in("O", 0)
    try:
        vat = vat_of_period(details, channel.message, *days)
    except NotStated as error:
        found.append(difference("vat", about=error.message, client=error.code))
    period = Period(until_ms=theirs.until_ms, stated_ms=theirs.stated_ms, due_ms=theirs.due_ms)
    payments_cents = books.payments_cents(theirs.stated_ms)
    if is_signed and _may_be_counted(books, theirs):
        payments_cents = theirs.payments_cents
    set_off_cents = books.set_off_cents(theirs.stated_ms)
    if is_signed and 0 <= theirs.set_off_cents <= books.set_off_cents(theirs.stated_ms + CLOCK_TOLERANCE_MS):
        # The second signature may have come since: the provider could not count it, and cannot draft anew.
        set_off_cents = theirs.set_off_cents
    ours = await statement_of(
        position, receipts, period, vat, payments_cents=payments_cents, set_off_cents=set_off_cents
    )
    known = {one.field for one in found}
    found += [one for one in differences(ours, theirs) if one.field not in known]
    found += _explained(books, {one.field for one in found}, theirs)
    return Judged(found, {one.receipt.receipt_number: one.receipt_id for one in receipts})


def _fixed(books: Books, theirs: Statement) -> list[StatementDifference]:
    """Is it the next of this channel's?"""
    last = books.last
    expected = {
        "channel": books.channel.channel,
        "statement_number": last.message.statement_number + 1 if last is not None else 1,
        "previous": last.id if last is not None else b"",
        "first_receipt": books.last_receipt + 1,
        "currency": books.channel.currency,
    }
    return [
        difference(name, client=_shown(value), provider=_shown(getattr(theirs, name)))
        for name, value in expected.items()
        if getattr(theirs, name) != value
    ]


def _of_times(theirs: Statement, now_ms: int, *, is_signed: bool, accepts_due: bool) -> list[StatementDifference]:
    found = []
    off_ms = theirs.stated_ms - now_ms
    if off_ms > CLOCK_TOLERANCE_MS or (off_ms < -CLOCK_TOLERANCE_MS and not is_signed):
        about = f"the clocks are {abs(off_ms) // 1000} s apart; {CLOCK_TOLERANCE_MS // 1000} s are accepted"
        found.append(difference("stated_ms", about=about, client=_utc(now_ms), provider=_utc(theirs.stated_ms)))
    if theirs.until_ms > now_ms + CLOCK_TOLERANCE_MS:
        about = "the period is not over"
        found.append(difference("until_ms", about=about, client=_utc(now_ms), provider=_utc(theirs.until_ms)))
    # What was signed long ago and comes now leaves as much time to pay as any other.
    least_ms = max(theirs.stated_ms, now_ms - CLOCK_TOLERANCE_MS if is_signed else 0) + MIN_PAYMENT_MS
    if theirs.due_ms < least_ms and not accepts_due:
        about = "that leaves less than a day to pay"
        found.append(difference("due_ms", about=about, client=_utc(least_ms), provider=_utc(theirs.due_ms)))
    return found


def _of_days(
    position: Position, offer: Offer | None, theirs: Statement, days: tuple[date, date]
) -> list[StatementDifference]:
    known = [one.utc_offset_minutes for one in (position.offer, offer) if one is not None]
    if not known or may_be_days(theirs.from_ms, theirs.until_ms, *days, known):
        return []
    offsets = " or ".join(str(one) for one in dict.fromkeys(known))
    about = f"local days of a provider whose offers are {offsets} minutes ahead of UTC"
    period = f"{_utc(theirs.from_ms)} to {_utc(theirs.until_ms)}"
    return [difference("until_ms", about=about, client=period, provider=f"{days[0]} to {days[1]}")]


def _of_range(position: Position, theirs: Statement, last: int) -> list[StatementDifference]:
    """Receipts of the draft that this side would not state yet."""
    if last >= theirs.last_receipt:
        return []
    reason = "was made after the period, or makes too many lines"
    if position.ends is not None and position.ends.receipt_number == last + 1:
        reason = position.ends.reason
    elif last == position.books.last_receipt + len(position.receipts):
        reason = "is not on record here"
    about = f"{reason}; so are those after it" if theirs.last_receipt > last + 1 else reason
    return [
        difference("receipt", about=about, receipt_number=last + 1, provider="stated"),
        difference("last_receipt", client=str(last), provider=str(theirs.last_receipt)),
    ]


def _may_be_counted(books: Books, theirs: Statement) -> bool:
    """Could its payments be what the provider knew when it signed? As an audit would take them."""
    before_ms = books.last.message.stated_ms - CLOCK_TOLERANCE_MS if books.last is not None else -1
    least = most = -sum(one.message.payments_cents for one in books.statements)
    for payment in books.payments:
        if payment.booked_ms <= before_ms:
            least, most = least + payment.amount_cents, most + payment.amount_cents
        elif payment.booked_ms <= theirs.stated_ms + CLOCK_TOLERANCE_MS:
            least, most = least + min(payment.amount_cents, 0), most + max(payment.amount_cents, 0)
    return least <= theirs.payments_cents <= most


def _explained(books: Books, fields: set[str], theirs: Statement) -> list[StatementDifference]:
    """What this side counts where the sums differ, one by one."""
    found = []
    if "payments_cents" in fields:
        since_ms = books.last.message.stated_ms if books.last is not None else -1
        counted = [one for one in books.payments if since_ms < one.booked_ms <= theirs.stated_ms]
        found += [
            difference("payment", about=f"{one.reference} of {_utc(one.booked_ms)}", client=f"{one.amount_cents} cents")
            for one in counted[:_MOST_NAMED]
        ]
    if "set_off_cents" in fields:
        counted_cents = 0
        for taken in reversed([one for one in books.set_off if one.at_ms <= theirs.stated_ms]):
            if counted_cents >= books.set_off_cents(theirs.stated_ms) or len(found) == 2 * _MOST_NAMED:
                break  # those before are in statements
            counted_cents += taken.cents
            what = "a leg of a cycle" if taken.is_cycle else "a set-off"
            about = f"{what}, {taken.record_id.hex()[:16]}, of {_utc(taken.at_ms)}"
            found.append(difference("set_off", about=about, client=f"{taken.cents} cents"))
    if fields & {"credits_pico", "held_pico"}:
        of_it = [one for one in books.contests if one.receipt_number <= theirs.last_receipt]
        for one in [c for c in of_it if c.is_credited(theirs.stated_ms) or c.is_open(theirs.stated_ms)][-_MOST_NAMED:]:
            state = "credited" if one.is_credited(theirs.stated_ms) else "held back"
            found.append(
                difference(
                    "receipt",
                    about=f"disputed, {state}",
                    receipt_number=one.receipt_number,
                    client=f"{one.amount_pico} pico",
                )
            )
    return found


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _utc(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"
