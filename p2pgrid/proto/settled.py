"""How a client has paid: what its statements and the payments of them come to, in time and late.

Pure, over checked records of one channel. Whoever lends goes by it; who sells and who buys read the same from the same
records. What was set off earns nothing here: two who owe one another make that for free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from p2pgrid.proto.credit import Balances, balances_of
from p2pgrid.proto.statement import Payment, PaymentKind, Statement


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
    statements: Iterable[Statement], payments: Iterable[Payment], *, now_ms: int, grace_ms: int, set_off_cents: int = 0
) -> PayingHistory:
    """The history of one channel. `statements`: those that both have signed.

    Statements behind one that is missing do not count. `grace_ms`: how long after its day a payment is still in time.
    `set_off_cents`: all that was set off by its records, of which statements may not know yet.
    """
    ordered = _unbroken(statements)
    balances = balances_of(ordered) or Balances()
    paid = list(payments)
    money_cents = sum(one.amount_cents for one in paid)
    on_time, late, unused = _in_time(ordered, paid, grace_ms)
    settled_cents = money_cents + max(sum(one.set_off_cents for one in ordered), set_off_cents)
    overdue = (one.cents for one in balances.open_statements(settled_cents) if one.statement.due_ms + grace_ms < now_ms)
    return PayingHistory(
        stated_cents=sum(max(one.gross_cents, 0) for one in ordered),
        on_time_cents=max(on_time - _gone_back(paid, unused), 0),
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


def _gone_back(payments: list[Payment], unused_cents: int) -> int:
    """Of money that covered statements, what went back or elsewhere. What was paid too much is sent back first."""
    returned = -sum(one.amount_cents for one in payments if one.kind is PaymentKind.RETURNED)
    sent = -sum(one.amount_cents for one in payments if one.kind is PaymentKind.REFUNDED)
    sent += max(-_reallocated(payments), 0)
    return returned + max(sent - max(unused_cents - returned, 0), 0)


def _reallocated(payments: list[Payment]) -> int:
    """What came from other channels; below zero, what went to them. Within the channel nothing moved."""
    return sum(one.amount_cents for one in payments if one.kind is PaymentKind.REALLOCATED)


def _in_time(statements: list[Statement], payments: list[Payment], grace_ms: int) -> tuple[int, int, int]:
    """Money that covered statements by their days, and after them, and none: the oldest first, in the order in which it
    came. A balance from before is the oldest, and earns nothing."""
    moved = [
        _Movement(one.booked_ms, one.amount_cents, is_money=True)
        for one in payments
        if one.kind is PaymentKind.RECEIVED
    ]
    if (came := _reallocated(payments)) > 0:
        at_ms = max(one.booked_ms for one in payments if one.kind is PaymentKind.REALLOCATED)
        moved.append(_Movement(at_ms, came, is_money=True))
    for one in statements:
        moved.append(_Movement(one.stated_ms, one.set_off_cents - min(one.gross_cents, 0), is_money=False))
    moved.sort(key=lambda one: (one.at_ms, one.is_money, one.cents))
    opening = statements[0].opening_cents if statements else 0
    if opening < 0:
        moved.insert(0, _Movement(0, -opening, is_money=False))
    dues: list[tuple[int, int | None]] = [(max(opening, 0), None)]
    dues += [(max(one.gross_cents, 0), one.due_ms + grace_ms) for one in statements]
    on_time = late = 0
    at, left = 0, [max(one.cents, 0) for one in moved]
    for due, until_ms in dues:
        while due > 0 and at < len(moved):
            part = min(due, left[at])
            if moved[at].is_money and until_ms is not None:
                is_late = moved[at].at_ms > until_ms
                on_time, late = (on_time, late + part) if is_late else (on_time + part, late)
            due -= part
            left[at] -= part
            at += left[at] <= 0
    return on_time, late, sum(cents for one, cents in zip(moved, left, strict=True) if one.is_money)
