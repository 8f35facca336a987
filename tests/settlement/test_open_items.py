"""Open items add up, whatever was billed and paid; and what covers what is what an audit counts."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.billing_rules import spread
from p2pgrid.proto.statement import PaymentKind
from p2pgrid.settlement.open_items import AHEAD, ChannelItems, SetOffShare, State, channel_items, cover
from tests.settlement.records import Billed


def items_of(billed: Billed, *shares: SetOffShare) -> ChannelItems:
    payments = [payment.message for payment in billed.payments]
    return channel_items(billed.id, billed.statements, billed.invoices, payments, set_off=shares)


def test_what_is_paid_returned_and_set_off() -> None:
    billed = Billed()
    first, _ = billed.bill(12_100), billed.bill(5_000)
    billed.pay(first, 10_000)
    billed.pay(first, -1_000, PaymentKind.RETURNED)
    billed.pay(None, 300)
    found = items_of(billed, SetOffShare(billed.id, first.message.invoice_number, 2_000))
    one, other = found.items
    assert (one.gross_cents, one.paid_cents, one.returned_cents, one.set_off_cents) == (12_100, 9_000, 1_000, 2_000)
    assert (one.open_cents, one.covered_cents, one.left_cents) == (1_100, 300, 800)
    assert (other.open_cents, other.left_cents) == (5_000, 5_000)
    assert (found.ahead_cents, found.prepaid_cents, found.balance_cents) == (300, 0, 5_800)
    due_ms = billed.statements[0].message.due_ms
    assert (one.due_ms, one.state(due_ms), one.state(due_ms + 1)) == (due_ms, State.PART_PAID, State.OVERDUE)
    assert other.state(0) is State.OPEN


@pytest.mark.parametrize(
    ("gross", "paid", "state"),
    [
        (100, 0, State.OPEN),
        (100, 40, State.PART_PAID),
        (100, 100, State.PAID),
        (100, 101, State.OVERPAID),
        (-100, 0, State.OPEN),
        (-100, -100, State.PAID),
        (-100, -101, State.OVERPAID),
        (0, 0, State.PAID),
    ],
)
def test_states(gross: int, paid: int, state: State) -> None:
    billed = Billed()
    invoice = billed.bill(gross)
    if paid:
        billed.pay(invoice, paid, PaymentKind.RECEIVED if paid > 0 else PaymentKind.REFUNDED)
    (item,) = items_of(billed).items
    assert item.state(0) is state


def test_an_invoice_taken_back_and_written_anew_leaves_the_new_one() -> None:
    billed = Billed()
    old = billed.bill(500)
    statement = billed.state(10_000)
    wrong = billed.invoice(statement, 12_100)
    back = billed.invoice(statement, -12_100)
    right = billed.invoice(statement, 10_000)
    found = items_of(billed)
    assert [item.left_cents for item in found.items] == [500, 0, 0, 10_000]
    assert [(one.source, one.target) for one in found.covers] == [
        ((statement.id, back.message.invoice_number), (statement.id, wrong.message.invoice_number))
    ]
    assert {item.number: item.state(0) for item in found.items} == {
        old.message.invoice_number: State.OPEN,
        wrong.message.invoice_number: State.COVERED,
        back.message.invoice_number: State.COVERED,
        right.message.invoice_number: State.OPEN,
    }


def test_money_that_the_bank_took_back_covers_nothing_and_is_the_first_to_be_covered() -> None:
    billed = Billed()
    invoice, note = billed.bill(1_000), billed.bill(-300)
    billed.pay(None, -200, PaymentKind.RETURNED)
    found = items_of(billed)
    assert [(one.target, one.cents) for one in found.covers] == [
        (AHEAD, 200),
        ((invoice.message.statement, invoice.message.invoice_number), 100),
    ]
    assert found.balance_cents == 900 == sum(item.left_cents for item in found.items)
    assert found.items[1].number == note.message.invoice_number


def test_an_invoice_without_its_statement_is_due_when_it_was_issued() -> None:
    billed = Billed()
    invoice = billed.bill(100)
    billed.statements.clear()
    (item,) = items_of(billed).items
    assert (item.statement, item.statement_number, item.due_ms) == (None, 0, invoice.message.issued_ms)


def test_payments_of_invoices_that_are_not_there_are_in_the_balance() -> None:
    billed = Billed()
    billed.pay(billed.bill(100), 60)
    billed.invoices.clear()
    found = items_of(billed)
    assert (found.items, found.unplaced_cents, found.balance_cents) == ((), 60, -60)


CENTS = st.integers(-500, 500)


@given(st.lists(st.tuples(st.lists(CENTS, min_size=1, max_size=4), CENTS), max_size=5), CENTS)
def test_they_add_up_and_cover_as_an_audit_does(months: list[tuple[list[int], int]], ahead: int) -> None:
    """Of each statement some invoices, and a payment for the first of them."""
    billed = Billed()
    owed: dict[bytes, int] = defaultdict(int)
    for grosses, paid in months:
        statement = billed.state(sum(grosses))
        invoices = [billed.invoice(statement, gross) for gross in grosses]
        if paid:
            billed.pay(invoices[0], paid, PaymentKind.REALLOCATED)
        owed[statement.id] = sum(grosses) - paid
    if ahead:
        billed.pay(None, ahead, PaymentKind.REALLOCATED)
    found = items_of(billed)
    assert found.balance_cents == sum(owed.values()) - ahead
    assert sum(item.left_cents for item in found.items) == found.balance_cents + found.prepaid_cents
    left: dict[bytes, int] = defaultdict(int)
    for item in found.items:
        assert abs(item.left_cents) <= abs(item.open_cents) and item.left_cents * item.open_cents >= 0
        left[item.invoice.statement] += max(item.left_cents, 0)
    expected = spread([owed[one.id] for one in billed.statements], ahead)
    assert [left[one.id] for one in billed.statements] == expected
    assert found.prepaid_cents * ahead >= 0 and abs(found.prepaid_cents) <= abs(ahead)
    is_in_debt = any(item.left_cents > 0 for item in found.items)
    assert not (is_in_debt and (found.prepaid_cents > 0 or any(item.left_cents < 0 for item in found.items)))


@given(st.dictionaries(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from("xyz")), CENTS), CENTS)
def test_no_cent_covers_twice(left: dict[tuple[bytes, str], int], ahead: int) -> None:
    given_by: dict[tuple[bytes, str], int] = defaultdict(int)
    taken_by: dict[tuple[bytes, str], int] = defaultdict(int)
    for one in cover(left, ahead):
        assert one.cents > 0
        given_by[one.source] += one.cents
        taken_by[one.target] += one.cents
    have = left | {AHEAD: -ahead}
    assert all(cents <= -have[place] for place, cents in given_by.items())
    assert all(cents <= have[place] for place, cents in taken_by.items())
