"""What a channel owes its client is booked on what is open: once, for nothing together, and back if the money goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.billing_rules import fault_of_payments
from p2pgrid.proto.record import Role, sign_message
from p2pgrid.proto.statement import PaymentKind
from p2pgrid.settlement.allocation import allocate
from p2pgrid.settlement.open_items import AHEAD, ChannelItems, Place, State
from tests.settlement.records import NOW_MS, Billed
from tests.settlement.test_open_items import items_of


def booked(billed: Billed, reserved: dict[Place, int] | None = None) -> ChannelItems:
    """Allocate, put the Payments on record, and look again."""
    at_ms = NOW_MS + 10_000 + len(billed.payments)
    for payment in allocate(items_of(billed), reserved=reserved, at_ms=at_ms, currency="EUR"):
        billed.payments.append(sign_message(payment, Role.PROVIDER, billed.provider))
    return items_of(billed)


def test_a_credit_note_settles_what_is_open_and_both_are_closed() -> None:
    billed = Billed()
    invoice, note = billed.bill(2_000), billed.bill(-500)
    billed.pay(invoice, 1_500)
    found = booked(billed)
    assert [(item.open_cents, item.state(0)) for item in found.items] == [(0, State.PAID), (0, State.PAID)]
    assert found.balance_cents == 0 and note.message.gross_cents == -500
    assert booked(billed) == found, "a second time there is nothing to book"


def test_money_ahead_is_booked_on_the_oldest_and_the_rest_stays() -> None:
    billed = Billed()
    billed.pay(None, 1_000)
    billed.bill(600)
    billed.bill(700)
    found = booked(billed)
    assert [item.open_cents for item in found.items] == [0, 300]
    assert found.ahead_cents == 0


def test_what_is_about_to_be_refunded_is_not_used() -> None:
    billed = Billed()
    billed.pay(None, 1_000)
    note = billed.bill(-400)
    billed.bill(5_000)
    place = (note.message.statement, note.message.invoice_number)
    found = booked(billed, {AHEAD: 900, place: 400})
    assert (found.ahead_cents, [item.open_cents for item in found.items]) == (900, [-400, 4_900])


def test_money_ahead_that_the_bank_takes_back_opens_what_it_was_booked_on() -> None:
    billed = Billed()
    billed.pay(None, 1_000)
    billed.bill(600)
    billed.bill(700)
    booked(billed)
    billed.pay(None, -1_000, PaymentKind.RETURNED)
    found = booked(billed)
    assert (found.ahead_cents, [item.open_cents for item in found.items]) == (0, [600, 700])


MONTHS = st.lists(st.tuples(st.sampled_from(["bill", "ahead", "pay", "return", "allocate"]), st.integers(1, 50)))


@given(MONTHS)
def test_whatever_happened_nothing_is_lost_and_no_payment_is_at_fault(months: list[tuple[str, int]]) -> None:
    billed = Billed()
    arrived = 0
    for what, number in months:
        found = items_of(billed)
        if what == "bill":
            billed.bill(number * 10 if number % 3 else -number)
        elif what == "ahead":
            billed.pay(None, number)
            arrived += number
        elif what == "pay" and found.items:
            item = found.items[number % len(found.items)]
            if item.open_cents > 0:
                billed.pay(billed.invoices[item.statement_number - 1], min(number, item.open_cents))
                arrived += min(number, item.open_cents)
        elif what == "return":
            back = [one.message for one in billed.payments if one.message.entry and not one.message.statement]
            sent = sum(one.amount_cents for one in back)
            if sent > 0:
                billed.pay(None, -min(number, sent), PaymentKind.RETURNED)
                arrived -= min(number, sent)
        elif what == "allocate":
            booked(billed)
    found = booked(billed)
    owed = sum(invoice.message.gross_cents for invoice in billed.invoices)
    assert found.balance_cents == owed - arrived
    assert booked(billed) == found
    assert found.ahead_cents >= 0
    is_open = [item for item in found.items if item.open_cents > 0]
    assert not is_open or (found.ahead_cents == 0 and all(item.open_cents >= 0 for item in found.items))
    for invoice in billed.invoices:
        payments = [one.message for one in billed.payments if one.message.statement == invoice.message.statement]
        if payments:
            assert fault_of_payments(payments, invoices=[invoice.message]) is None
