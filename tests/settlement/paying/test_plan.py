"""Whatever is billed, ordered, confirmed late, returned and paid besides: nothing is ordered twice."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pgrid.proto.statement import PaymentKind
from p2pgrid.settlement.bank.stored import StoredBooking, StoredDecision, Target
from p2pgrid.settlement.bank.view import Side
from p2pgrid.settlement.open_items import channel_items
from p2pgrid.settlement.paying.carried_out import carried_out
from p2pgrid.settlement.paying.make_orders import ahead_order, invoice_order
from p2pgrid.settlement.paying.orders_book import Ordered
from p2pgrid.settlement.paying.plan import plan
from p2pgrid.settlement.payments.entries import BookedEntry, with_keys
from p2pgrid.settlement.payments.orders import Account
from tests.settlement.payments.makers import OURS
from tests.settlement.records import Billed

PAYEE = Account(name="Seller", iban=OURS)


class Buyer:
    """A client, its bank, and a provider that books what arrives when it likes."""

    def __init__(self) -> None:
        self.billed = Billed()
        self.orders: list[Ordered] = []
        self.decided: list[tuple[BookedEntry, StoredDecision]] = []
        self.sent: list[Ordered] = []
        """Carried out by the bank, and not booked by the provider."""
        self.executed: set[str] = set()
        self.gone = Counter[bytes]()
        """By statement, what has left the account and did not come back."""

    def side(self) -> Side:
        payments = tuple(one.message for one in self.billed.payments)
        found = channel_items(self.billed.id, self.billed.statements, self.billed.invoices, payments)
        return Side(
            channel=self.billed.channel.message,
            is_purchase=True,
            found=found,
            payments=payments,
            statements=(),
            details=None,
            utc_offset_minutes=0,
        )

    def pay(self) -> int:
        found = plan([self.side()], carried_out(self.orders, self.decided))
        for due in found.due:
            _, row = invoice_order(due, PAYEE, self.orders)
            self.orders.append(row)
            self.sent.append(row)
        return sum(due.amount_cents for due in found.due)

    def entry(self, cents: int, order: Ordered, *, is_return: bool = False) -> BookedEntry:
        day = date(2027, 1, 1) + timedelta(days=len(self.decided))
        made = BookedEntry(
            account_iban=OURS, source_kind="camt.053", statement_id="S", line=1, amount_cents=cents, currency="EUR",
            booking_date=day, end_to_end_id=order.end_to_end_id, bank_reference=f"B{len(self.decided)}",
            is_return=is_return, instruction_id=order.key if self.is_one_of_several(order) else "",
        )  # fmt: skip
        return with_keys([made])[0]

    def decide(self, entry: BookedEntry, order: Ordered, **changes: Any) -> None:
        sign = 1 if entry.amount_cents > 0 else -1
        bookings = tuple(StoredBooking.of(share.target, sign * share.cents) for share in order.shares)
        fields: dict[str, Any] = {"kind": "exact", "reason": "", "decided_ms": 0, "bookings": bookings, **changes}
        self.decided.append((entry, StoredDecision(**fields)))

    def happen(self, what: str, at: int) -> None:
        if what == "bill":
            self.billed.bill(at + 1)
        elif what == "credit":
            self.billed.bill(-(at % 200) - 1)
        elif what == "pay":
            self.pay()
        elif what == "ahead":
            _, row = ahead_order(self.side(), PAYEE, at + 1, self.orders)
            self.orders.append(row)
            self.sent.append(row)
        elif what == "our bank" and self.sent:
            order = self.sent[at % len(self.sent)]
            if order.key not in self.executed:
                self.executed.add(order.key)
                self.decide(self.entry(-order.amount_cents, order), order)
        elif what == "provider books" and self.sent:
            self.book(self.sent.pop(at % len(self.sent)))
        elif what == "comes back" and self.sent:
            order = self.sent[at % len(self.sent)]
            if order.key in self.executed:
                out = self.entry_of(order)
                self.sent.remove(order)
                back = self.entry(order.amount_cents, order, is_return=True)
                self.decide(back, order, kind="returned", undoes=out.key)

    def entry_of(self, order: Ordered) -> BookedEntry:
        """The one that carried it out and has not come back."""
        alike = [one for one, _ in self.decided if one.end_to_end_id == order.end_to_end_id]
        alike = [one for one in alike if one.amount_cents == -order.amount_cents and one.key not in self.undone()]
        return next((one for one in alike if one.instruction_id == order.key), alike[0])

    def is_one_of_several(self, order: Ordered) -> bool:
        """Of orders with one reference and amount only the bank's copy of our id tells which it carried out."""
        said = order.end_to_end_id, order.amount_cents
        return [(one.end_to_end_id, one.amount_cents) for one in self.orders].count(said) > 1

    def undone(self) -> set[str]:
        return {decision.undoes for _, decision in self.decided}

    def book(self, order: Ordered) -> None:
        """As the provider's side books: what is open of the invoice, and the rest ahead."""
        left = order.amount_cents
        for share in order.shares:
            invoice = next((one for one in self.billed.invoices if one.message.invoice_number == share.number), None)
            item = next((one for one in self.side().found.items if one.number == share.number), None)
            part = min(left, max(item.open_cents, 0)) if item is not None else 0
            if part:
                self.billed.pay(invoice, part, reference=order.end_to_end_id)
            left -= part
        if left:
            self.billed.pay(None, left, reference=order.end_to_end_id)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["bill", "bill", "credit", "pay", "pay", "ahead", "our bank", "provider books", "comes back"]),
        st.integers(0, 1_000),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(EVENTS)
@example([("bill", 1), ("ahead", 0), ("provider books", 0), ("ahead", 0), ("our bank", 0), ("comes back", 0)])
def test_no_cent_is_ordered_twice(events: list[tuple[str, int]]) -> None:
    buyer = Buyer()
    for what, at in events:
        buyer.happen(what, at)
    assert len({order.key for order in buyer.orders}) == len(buyer.orders)
    buyer.pay()
    assert buyer.pay() == 0, "what was just ordered is not ordered again"
    carried = carried_out(buyer.orders, buyer.decided)
    active = sum(fate.active_cents for fate in carried.fates.values())
    owed = sum(one.message.gross_cents for one in buyer.billed.invoices)
    ahead = sum(fate.active_cents for fate in carried.fates.values() if fate.order.purpose == "ahead")
    assert active - ahead <= max(owed, sum(max(one.message.gross_cents, 0) for one in buyer.billed.invoices))
    assert active >= owed, "and all that is owed is on its way or there"
    while buyer.sent:
        buyer.book(buyer.sent.pop())
    found = buyer.side().found
    assert found.balance_cents == owed - active
    assert not any(item.left_cents > 0 for item in found.items)
    assert plan([buyer.side()], carried).waiting == {}
    assert buyer.pay() == 0


def test_what_was_paid_by_hand_before_is_not_taken_for_what_is_ordered_now() -> None:
    buyer = Buyer()
    invoice = buyer.billed.bill(100)
    buyer.billed.pay(invoice, 40)
    assert buyer.pay() == 60
    assert buyer.pay() == 0
    buyer.billed.pay(invoice, 30)
    assert buyer.pay() == 0
    buyer.book(buyer.sent.pop())
    assert buyer.side().found.ahead_cents == 30 and buyer.pay() == 0


def test_what_our_bank_shows_as_paid_without_an_order_is_not_ordered() -> None:
    buyer = Buyer()
    invoice = buyer.billed.bill(100)
    target = Target(buyer.billed.id, (invoice.message.statement, invoice.message.invoice_number), is_purchase=True)
    entry = with_keys(
        [
            BookedEntry(
                account_iban=OURS,
                source_kind="manual",
                statement_id="S",
                line=1,
                amount_cents=-70,
                currency="EUR",
                booking_date=date(2027, 1, 1),
            )
        ]
    )[0]
    bookings = (StoredBooking.of(target, -70),)
    buyer.decided.append((entry, StoredDecision(kind="part", reason="", decided_ms=0, bookings=bookings)))
    assert buyer.pay() == 30 and buyer.pay() == 0
    buyer.billed.pay(invoice, 70)
    assert buyer.pay() == 0
    buyer.book(buyer.sent.pop())
    assert buyer.side().found.balance_cents == 0 and buyer.pay() == 0


def test_the_providers_word_that_money_went_back_is_not_enough() -> None:
    buyer = Buyer()
    invoice = buyer.billed.bill(100)
    buyer.pay()
    buyer.book(buyer.sent[0])
    buyer.billed.pay(invoice, -100, PaymentKind.RETURNED)
    assert buyer.side().found.items[0].open_cents == 100
    assert buyer.pay() == 0
    assert plan([buyer.side()], carried_out(buyer.orders, [])).waiting == {
        (buyer.billed.id, invoice.message.statement): 100
    }


def test_what_was_paid_by_hand_before_an_order_did_not_carry_it_out() -> None:
    """It came back, and our bank's file tells of both only after the order was made."""
    buyer = Buyer()
    buyer.billed.bill(100)
    assert buyer.pay() == 100
    order = buyer.orders[0] = msgspec.structs.replace(buyer.orders[0], ordered_ms=1_800_000_000_000)  # 15 January 2027
    out = buyer.entry(-100, order)
    buyer.decide(out, order)
    buyer.decide(buyer.entry(100, order, is_return=True), order, kind="returned", undoes=out.key)
    assert buyer.pay() == 0
