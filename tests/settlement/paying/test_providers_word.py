"""What a provider signs about money that went back or elsewhere makes nobody pay twice, nor more than is invoiced."""

from __future__ import annotations

import pytest

from p2pgrid.proto.statement import PaymentKind
from p2pgrid.settlement.paying.carried_out import carried_out
from p2pgrid.settlement.paying.plan import plan
from tests.factories import NOW_MS, digest
from tests.settlement.paying.test_plan import Buyer

BACK = [PaymentKind.RETURNED, PaymentKind.REFUNDED, PaymentKind.REALLOCATED]


def waiting(buyer: Buyer) -> int:
    return sum(plan([buyer.side()], carried_out(buyer.orders, buyer.decided)).waiting.values())


@pytest.mark.parametrize("kind", BACK)
def test_what_was_paid_is_not_paid_again(kind: PaymentKind) -> None:
    buyer = Buyer()
    invoice = buyer.billed.bill(100)
    assert buyer.pay() == 100
    buyer.book(buyer.sent.pop())
    assert waiting(buyer) == 0
    buyer.billed.pay(invoice, -100, kind)
    assert buyer.pay() == 0 and waiting(buyer) == 100
    assert buyer.pay() == 0


@pytest.mark.parametrize("kind", BACK)
def test_no_more_is_paid_than_the_invoice_says(kind: PaymentKind) -> None:
    buyer = Buyer()
    invoice = buyer.billed.bill(100)
    buyer.billed.pay(invoice, -70, kind)
    assert buyer.pay() == 100


@pytest.mark.parametrize("kind", BACK)
def test_nothing_is_paid_for_a_credit_note(kind: PaymentKind) -> None:
    buyer = Buyer()
    note = buyer.billed.bill(-5)
    buyer.billed.pay(note, -500, kind)
    assert buyer.pay() == 0


def test_a_refund_of_a_credit_note_and_of_what_is_ahead_count() -> None:
    buyer = Buyer()
    buyer.happen("ahead", 99)
    buyer.book(buyer.sent.pop())
    buyer.billed.pay(None, -100, PaymentKind.REFUNDED)
    note = buyer.billed.bill(-5)
    buyer.billed.pay(note, -5, PaymentKind.REFUNDED)
    buyer.billed.bill(30)
    assert waiting(buyer) == 0 and buyer.pay() == 30


def test_anothers_money_that_was_booked_here_and_moved_away_is_not_paid_by_us_again() -> None:
    buyer = Buyer()
    invoice = buyer.billed.bill(100)
    assert buyer.pay() == 100
    buyer.billed.pay(invoice, 100, entry=digest("another's"))
    assert waiting(buyer) == 0
    buyer.billed.pay(invoice, -100, PaymentKind.REALLOCATED, entry=digest("another's"))
    assert buyer.pay() == 0 and waiting(buyer) == 100, "ours is still on its way"
    buyer.book(buyer.sent.pop())
    assert buyer.pay() == 0 and waiting(buyer) == 0


def test_our_money_that_was_booked_elsewhere_and_moved_here_is_confirmed() -> None:
    buyer = Buyer()
    invoice = buyer.billed.bill(100)
    assert buyer.pay() == 100
    buyer.billed.pay(invoice, 100, PaymentKind.REALLOCATED, entry=digest("ours"))
    assert waiting(buyer) == 0
    buyer.billed.bill(40)
    assert buyer.pay() == 40, "and is no credit besides"


def test_what_is_moved_within_the_channel_is_paid_as_it_stands() -> None:
    buyer = Buyer()
    first, second = buyer.billed.bill(100), buyer.billed.bill(100)
    buyer.billed.pay(first, 100)
    for invoice, cents in ((first, -100), (second, 100)):
        moved = {"entry": digest("moved"), "booked_ms": NOW_MS + 5}
        buyer.billed.pay(invoice, cents, PaymentKind.REALLOCATED, **moved)
    assert buyer.pay() == 100 and buyer.pay() == 0
    (order,) = buyer.orders
    assert order.shares[0].number == first.message.invoice_number
