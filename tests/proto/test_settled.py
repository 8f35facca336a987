"""How a client has paid (proto/settled.py): in time, late, not at all; and what earns nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.settled import PayingHistory, history_of
from p2pgrid.proto.statement import Payment, PaymentKind, Statement
from tests.factories import DAY_MS, digest, make_prepayment
from tests.proto.audit_cases_settlement import made
from tests.proto.chains import START_MS, Dealings

CHANNEL = Dealings().channel.message.channel


def months(*gross: int, **changes: Any) -> list[Statement]:
    """Statements a month apart, each due 14 days after it."""
    found: list[Statement] = []
    before = None
    for number, cents in enumerate(gross, 1):
        stated_ms = START_MS + 30 * number * DAY_MS
        fields = {"net_cents": cents, "gross_cents": cents, "until_ms": stated_ms, "stated_ms": stated_ms}
        start = {} if before else {"channel": CHANNEL, "from_ms": START_MS}
        before = made(Dealings(), [], before, **{**start, **fields, **changes})
        found.append(before.message)
    return found


def paid(cents: int, day: int) -> Payment:
    """So many days after the channel was opened."""
    kind = PaymentKind.RECEIVED if cents > 0 else PaymentKind.RETURNED
    entry = digest(f"{cents} on {day}")
    booked = {"booked_ms": START_MS + day * DAY_MS, "entry": entry}
    return make_prepayment(CHANNEL, amount_cents=cents, kind=kind, **booked).message


def seen(statements: list[Statement], payments: list[Payment], *, day: int = 365, grace: int = 7) -> PayingHistory:
    """By that day."""
    return history_of(statements, payments, now_ms=START_MS + day * DAY_MS, grace_ms=grace * DAY_MS)


@pytest.mark.parametrize(
    ("statements", "payments", "expected"),
    [
        ([], [], PayingHistory()),
        ([], [(500, 1)], PayingHistory(unpaid_cents=-500)),
        ([100, 100], [(100, 40), (100, 70)], PayingHistory(200, 200, 0, 0, 0, 2)),
        ([100, 100], [(100, 51), (100, 81)], PayingHistory(200, 200, 0, 0, 0, 2)),
        ([100, 100], [(100, 52), (100, 82)], PayingHistory(200, 0, 200, 0, 0, 2)),
        ([100, 100], [(150, 40)], PayingHistory(200, 150, 0, 50, 50, 2)),
        ([100, 100], [(300, 2)], PayingHistory(200, 200, 0, -100, 0, 2)),
        ([100], [(100, 40), (-100, 45)], PayingHistory(100, 0, 0, 100, 100, 1)),
        ([100, -30, 100], [(100, 40), (70, 95)], PayingHistory(200, 170, 0, 0, 0, 3)),
    ],
)
def test_histories(statements: list[int], payments: list[tuple[int, int]], expected: PayingHistory) -> None:
    assert seen(months(*statements), [paid(*one) for one in payments]) == expected


def of_kind(kind: PaymentKind, cents: int, day: int) -> Payment:
    entry = digest(f"{kind} {cents} on {day}")
    booked = {"booked_ms": START_MS + day * DAY_MS, "entry": entry}
    return make_prepayment(CHANNEL, amount_cents=cents, kind=kind, **booked).message


@pytest.mark.parametrize(
    ("payments", "on_time", "late"),
    [
        ([("received", 200, 40), ("refunded", -100, 45)], 100, 0),
        ([("received", 150, 40), ("refunded", -100, 45)], 50, 0),
        ([("received", 100, 40), ("reallocated", -100, 60), ("reallocated", 100, 60)], 100, 0),
        ([("received", 100, 40), ("reallocated", -60, 45)], 40, 0),
        ([("reallocated", 100, 40)], 100, 0),
        ([("reallocated", 100, 60)], 0, 100),
        ([("received", 100, 40), ("returned", -100, 45), ("received", 100, 60)], 0, 0),
    ],
)
def test_what_only_moved_or_was_too_much_takes_nothing_away(
    payments: list[tuple[str, int, int]], on_time: int, late: int
) -> None:
    found = seen(months(100), [of_kind(PaymentKind(kind), cents, day) for kind, cents, day in payments])
    assert (found.on_time_cents, found.late_cents) == (on_time, late)


@pytest.mark.parametrize(("opening", "cents", "on_time", "unpaid"), [(-100, 100, 100, 0), (60, 100, 40, 160)])
def test_a_balance_from_before_is_taken_off_first(opening: int, cents: int, on_time: int, unpaid: int) -> None:
    first, second = months(100, 100)
    first = msgspec.structs.replace(first, opening_cents=opening)
    found = seen([first, second], [paid(cents, 70 if opening < 0 else 40)])
    assert (found.on_time_cents, found.late_cents, found.unpaid_cents) == (on_time, 0, unpaid)


def test_what_was_set_off_since_is_not_overdue() -> None:
    found = history_of(months(100), [], set_off_cents=70, now_ms=START_MS + 365 * DAY_MS, grace_ms=0)
    assert (found.overdue_cents, found.unpaid_cents, found.on_time_cents) == (30, 30, 0)


def test_what_is_not_due_yet_is_not_overdue() -> None:
    assert seen(months(100), [], day=51).overdue_cents == 0
    assert seen(months(100), [], day=52).overdue_cents == 100


def test_what_is_set_off_earns_nothing() -> None:
    found = seen(months(100, 0, set_off_cents=50), [])
    assert (found.on_time_cents, found.late_cents, found.unpaid_cents) == (0, 0, 0)


def test_statements_behind_a_missing_one_do_not_count() -> None:
    first, _, third = months(100, 100, 100)
    assert seen([third, first], []).stated_cents == 100


@given(
    st.lists(st.integers(-50, 200), max_size=6),
    st.lists(st.tuples(st.integers(-100, 300).filter(bool), st.integers(0, 300)), max_size=8, unique=True),
)
def test_no_history_earns_more_than_was_paid_or_stated(gross: list[int], moved: list[tuple[int, int]]) -> None:
    payments = [paid(*one) for one in moved]
    found = seen(months(*gross), payments)
    came = sum(one.amount_cents for one in payments if one.amount_cents > 0)
    net = sum(one.amount_cents for one in payments)
    assert 0 <= found.on_time_cents <= max(net, 0)
    assert found.on_time_cents + found.late_cents <= min(came, found.stated_cents)
    assert found.unpaid_cents == sum(gross) - net
    assert 0 <= found.overdue_cents <= max(found.unpaid_cents, 0)
