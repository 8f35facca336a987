"""Credit judged: a channel's total against its limit and what settling had freed (docs/spec/audit.md, rule 24a).

The provider counts a payment when it is on record there, and no record says when that was. So every doubt is the
provider's: a receipt is over the limit only if no order of the records could have made room for its orders.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from p2pgrid.proto.chain import chain_start, extend, is_total_right
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.credit import Balances, balances_of
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Draft
from p2pgrid.proto.judgement import Case
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Role
from p2pgrid.proto.rules import Fault

BOOKED_AHEAD_MS: Final = 4 * 86_400_000
"""A bank may tell of a payment before the day that it books it on: at most over a long weekend."""
_MOST_AT_ONCE: Final = 8
"""Statements of which the provider may have had any when it took an order. Of more nothing is said."""


def judge_credit(case: Case, book: Book) -> None:
    """Report each time that the channel's total passes what the provider may have lent."""
    limit = book.channel.message.credit_limit_pico
    if not any(held.message.channel_total_pico > limit for held in book.receipts.values()):
        return
    freed = _FreedAtMost.of(book)
    if freed is None:
        return  # a statement is missing, and that is reported: nobody can tell what it left unpaid
    head = chain_start(book.channel.message, book.channel.record_id)
    files = {bundle for bundle in book.bundles if case.sides[bundle] is Role.PROVIDER}
    ordered_ms, is_over = 0, False
    for number in sorted(book.receipts):
        held = book.receipts[number]
        order = book.orders.get(held.message.order_number, {}).get(held.message.order)
        ordered_ms = max(ordered_ms, order.message.ordered_ms if order is not None else 0)
        total, most = held.message.channel_total_pico, limit
        if total > limit:
            most += freed.by(ordered_ms if order is not None else 0, max(ordered_ms, held.message.issued_ms))
        was_over, is_over = is_over, total > most
        if is_over and not was_over and book.elided.is_link_judged(number) and is_total_right(head, held.message):
            _report(case, book, held, most - limit, files)
        head = extend(held.message, held.record_id)


def _report(case: Case, book: Book, held: Held[Receipt], freed_pico: int, files: set[int]) -> None:
    limit = book.channel.message.credit_limit_pico
    freed = f", and {freed_pico} more were free by then" if freed_pico else ""
    sentence = f"With {held} the total is {held.message.channel_total_pico} pico; the credit limit is {limit}{freed}."
    if files.isdisjoint(place.bundle for place in held.places):
        more = f"{sentence} What the provider was paid may stand in its own bundle."
        case.docket.add(Draft("credit-not-shown", more, held.places[:1], record_id=held.record_id, channel=book.id))
    else:
        case.report(book, held, Fault("over-credit-limit", sentence))


@dataclass(slots=True)
class _FreedAtMost:
    """What may have been freed at a time, by whatever the provider may have had on record then."""

    balances: Balances
    stated_ms: list[int]
    """When each statement was made; none is below the one before it."""
    counted_cents: list[int]
    """What the first n statements count as paid, the most of any up to there."""
    came: _Steps
    """What came in, by the earliest time that the provider can have known of it."""
    went: _Steps
    """What went back, by the time from which the provider must have known of it."""
    credits: _Steps
    set_off: _Steps
    """What was set off, by when that was proposed."""

    @classmethod
    def of(cls, book: Book) -> _FreedAtMost | None:
        """None if a statement is missing."""
        statements = sorted((h.message for h in book.statements.values()), key=lambda one: one.statement_number)
        balances = balances_of(statements)
        if balances is None:
            return None
        stated_ms = list(accumulate((one.stated_ms for one in statements), max))
        counted = accumulate((one.payments_cents for one in statements), initial=0)
        came, went = [], []
        for payment in (held.message for held in book.payments):
            if payment.amount_cents > 0:
                came.append((payment.booked_ms - BOOKED_AHEAD_MS, payment.amount_cents))
                continue
            # A statement counts what was booked by the time of the one before it: by then it was known (rule 42).
            must = bisect_right(stated_ms, payment.booked_ms + CLOCK_TOLERANCE_MS) + 1
            if must < len(stated_ms):
                went.append((stated_ms[must], -payment.amount_cents))
        credits: dict[bytes, list[tuple[int, int]]] = {}
        for contest in book.contests:
            if contest.is_accepted and contest.answered_ms is not None:
                credits.setdefault(contest.receipt, []).append((contest.answered_ms, contest.amount_pico))
        return cls(
            balances,
            stated_ms,
            list(accumulate(counted, max)),
            _Steps(came),
            _Steps(went),
            _Steps(step for of_one in credits.values() for step in _rises(of_one)),
            _Steps((one.at_ms, one.cents) for one in book.taken_off),
        )

    def by(self, since_ms: int, until_ms: int) -> int:
        """The most that can have been free at any time from the one to the other, give or take what clocks may."""
        since_ms, until_ms = since_ms - CLOCK_TOLERANCE_MS, until_ms + CLOCK_TOLERANCE_MS
        most = bisect_right(self.stated_ms, until_ms)
        least = max(bisect_right(self.stated_ms, since_ms) - 1, 0)
        if most - least > _MOST_AT_ONCE:
            return 2**80
        paid_cents = max(self.came.by(until_ms) - self.went.by(since_ms), self.counted_cents[most])
        paid_cents += max(self.set_off.by(until_ms), self.balances.set_off_cents[most])
        credited_pico = self.credits.by(until_ms)
        return max(self.balances.freed_pico(paid_cents, credited_pico, n) for n in range(least, most + 1))


class _Steps:
    """Amounts by their times, summed up."""

    def __init__(self, steps: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(steps)
        self._times: Final = [at_ms for at_ms, _ in ordered]
        self._sums: Final = list(accumulate((amount for _, amount in ordered), initial=0))

    def by(self, at_ms: int) -> int:
        """What had come by that time."""
        return self._sums[bisect_right(self._times, at_ms)]


def _rises(steps: list[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Of one receipt the accepted dispute that takes most off counts: what each adds to the one before."""
    most = 0
    for at_ms, amount in sorted(steps):
        if amount > most:
            yield at_ms, amount - most
            most = amount
