"""How a client has paid: what its statements and the payments of them come to, in time and late.

Pure, over checked records of one channel. Whoever lends goes by it; who sells and who buys read the same from the same
records. What was set off earns nothing here: two who owe one another make that for free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from p2pgrid.proto.credit import Balances, balances_of
from p2pgrid.proto.statement import Payment, Statement


class PayingHistory(NamedTuple):
    """What a client has paid, in cents; of several channels the sum."""

    stated_cents: int = 0
    """What its statements came to, credit notes apart."""
    on_time_cents: int = 0
    """Paid in money by the day it was due, and not gone back."""
    late_cents: int = 0
    unpaid_cents: int = 0
    """What is open of all statements; below zero: paid ahead."""
    overdue_cents: int = 0
    """Of that, what should have been paid by now."""
    statements: int = 0

    def plus(self, other: PayingHistory) -> PayingHistory:
        """Both together."""
        return PayingHistory(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class _Movement:
    """Something that took off what was owed."""

    at_ms: int
    cents: int
    is_money: bool


def history_of(
    statements: Iterable[Statement], payments: Iterable[Payment], *, now_ms: int, grace_ms: int
) -> PayingHistory:
    """The history of one channel. `statements`: those that both have signed.

    Statements behind one that is missing do not count. `grace_ms`: how long after its day a payment is still in time.
    """
    ordered = _unbroken(statements)
    balances = balances_of(ordered) or Balances()
    paid = list(payments)
    money_cents = sum(one.amount_cents for one in paid)
    set_off_cents = sum(one.set_off_cents for one in ordered)
    on_time, late = _in_time(ordered, paid, grace_ms)
    gone_back = -sum(one.amount_cents for one in paid if one.amount_cents < 0)
    settled_cents = money_cents + set_off_cents
    overdue = (one.cents for one in balances.open_statements(settled_cents) if one.statement.due_ms + grace_ms < now_ms)
    return PayingHistory(
        stated_cents=sum(max(one.gross_cents, 0) for one in ordered),
        on_time_cents=max(on_time - gone_back, 0),
        late_cents=late,
        unpaid_cents=balances.unpaid_cents(settled_cents),
        overdue_cents=sum(overdue),
        statements=len(ordered),
    )


def _unbroken(statements: Iterable[Statement]) -> list[Statement]:
    """From the first on, as far as none is missing."""
    by_number = {one.statement_number: one for one in statements}
    found: list[Statement] = []
    while (following := by_number.get(len(found) + 1)) is not None:
        found.append(following)
    return found


def _in_time(statements: list[Statement], payments: list[Payment], grace_ms: int) -> tuple[int, int]:
    """Money that covered statements by their days, and after them: the oldest first, in the order in which it came."""
    moved = [_Movement(one.booked_ms, one.amount_cents, is_money=True) for one in payments if one.amount_cents > 0]
    for one in statements:
        moved.append(_Movement(one.stated_ms, one.set_off_cents - min(one.gross_cents, 0), is_money=False))
    moved.sort(key=lambda one: (one.at_ms, one.is_money, one.cents))
    on_time = late = 0
    at, left = 0, [one.cents for one in moved]
    for statement in statements:
        due = max(statement.gross_cents, 0)
        while due > 0 and at < len(moved):
            part = min(due, max(left[at], 0))
            if moved[at].is_money and moved[at].at_ms <= statement.due_ms + grace_ms:
                on_time += part
            elif moved[at].is_money:
                late += part
            due -= part
            left[at] -= part
            at += left[at] <= 0
    return on_time, late
