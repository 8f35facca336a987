"""Credit that settling frees (docs/spec/session.md, section 8a): the rule, both sides' books, and the audit of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pgrid.errors import Refused
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.credit import Balances, ChannelCredit
from p2pgrid.proto.messages import Order, Receipt, Usage
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.restore import note_credit, restore_books
from p2pgrid.proto.set_off_rules import TakenOff
from p2pgrid.proto.statement import Payment, PaymentKind, Statement
from p2pgrid.proto.verdict import audit_records
from tests.factories import make_answer, make_dispute, make_invoice, make_prepayment
from tests.proto.audit_cases import both
from tests.proto.audit_cases_settlement import made
from tests.proto.chains import DAY_MS, START_MS, TARIFF, Dealings, bundle_of, digest

CENT = 10**10
EUR = 100 * CENT


def stated(number: int, pico: int, gross: int, **changes: Any) -> Statement:
    """A statement as the rule reads it."""
    grid = Dealings()
    fields: dict[str, Any] = {"channel": grid.id} if hasattr(grid, "id") else {}
    fields |= {"statement_number": number, "total_pico": pico, "gross_cents": gross, "lines": (), **changes}
    fields.setdefault("net_cents", gross)
    one = made(grid, [], None, **{"channel": grid.channel.message.channel, "from_ms": START_MS, **fields})
    return one.message


def balances(*statements: Statement) -> Balances:
    """Of these, one after the other."""
    found = Balances()
    for one in statements:
        found.add(one)
    return found


TWO = balances(stated(1, 100 * CENT, 121), stated(2, 10 * CENT, 13))


@pytest.mark.parametrize(
    ("paid", "freed"),
    [
        (0, 0),
        (60, 100 * CENT - (100 * CENT * 61 + 120) // 121),
        (121, 100 * CENT),
        (122, 100 * CENT + 10 * CENT - (10 * CENT * 12 + 12) // 13),
        (134, 110 * CENT),
        (135, 111 * CENT),
    ],
)
def test_the_oldest_is_paid_first_each_at_its_own_vat(paid: int, freed: int) -> None:
    assert TWO.freed_pico(paid, 0) == freed


def test_before_any_statement_the_highest_vat_is_taken_off_what_is_paid_ahead() -> None:
    assert Balances().freed_pico(127, 0) == 100 * CENT
    assert Balances().freed_pico(126, 0) == 126 * CENT * 100 // 127


def test_money_that_went_back_takes_its_credit_along() -> None:
    credit = ChannelCredit()
    channel = Dealings().channel.message.channel
    credit.note_payment(make_prepayment(channel, amount_cents=127))
    credit.note_payment(make_prepayment(channel, amount_cents=-127, kind=PaymentKind.RETURNED))
    assert credit.freed_pico == 0 == credit.paid_cents


def test_what_is_held_back_stays_owed_until_it_is_credited() -> None:
    one = balances(stated(1, 100 * CENT, 80, held_pico=20 * CENT))
    assert one.freed_pico(80, 0) == 80 * CENT
    assert one.freed_pico(80, 20 * CENT) == 100 * CENT


def test_a_balance_brought_in_is_owed_at_its_face() -> None:
    one = balances(stated(1, 100 * CENT, 121, opening_cents=50))
    assert one.freed_pico(0, 0) == -50 * CENT
    assert one.freed_pico(50, 0) == 0
    assert one.freed_pico(171, 0) == 100 * CENT


def test_what_is_open_is_of_the_newest_statements() -> None:
    assert [(one.statement.statement_number, one.cents) for one in TWO.open_statements(0)] == [(1, 121), (2, 13)]
    assert [(one.statement.statement_number, one.cents) for one in TWO.open_statements(120)] == [(1, 1), (2, 13)]
    assert [(one.statement.statement_number, one.cents) for one in TWO.open_statements(121)] == [(2, 13)]
    assert list(TWO.open_statements(134)) == list(TWO.open_statements(999)) == []
    brought = balances(stated(1, 100 * CENT, 121, opening_cents=50))
    assert [one.cents for one in brought.open_statements(10)] == [161]


def test_a_statement_counts_with_both_signatures_and_all_before_it() -> None:
    grid = Dealings()
    first = made(grid, [], None, channel=grid.channel.message.channel, from_ms=START_MS, total_pico=CENT)
    second = made(grid, [], first, total_pico=CENT)
    credit = ChannelCredit()
    credit.note_statement(second)
    assert len(credit.balances) == 0
    half = Signed(first.message, first.record, first.id, {Role.PROVIDER: first.signers[Role.PROVIDER]})
    credit.note_statement(half)
    assert len(credit.balances) == 0
    credit.note_statement(first)
    credit.note_statement(first)
    assert len(credit.balances) == 2


def test_a_record_of_another_channel_frees_nothing() -> None:
    grid, other = Dealings(), Dealings(nonce="other")
    books = ChannelBooks(grid.channel, ChannelHead(0, 0, grid.channel.id, 0, 0))
    books.note_settled(make_prepayment(other.channel.message.channel, amount_cents=127))
    assert books.credit.freed_pico == 0
    for _ in range(2):
        books.note_settled(make_prepayment(grid.channel.message.channel, amount_cents=127))
    assert books.credit.freed_pico == 100 * CENT
    assert books.credit_left_pico() == grid.channel.message.credit_limit_pico + 100 * CENT


# -- live books, the truth and the audit ------------------------------------------------------------------------------

LIMIT = 3 * EUR


@dataclass
class Market:
    """A channel that is bought on and settled, each step at a time of its own. The provider's books decide."""

    rate_bp: int
    grid: Dealings = field(init=False)
    books: ChannelBooks = field(init=False)
    open: list[Signed[Order]] = field(default_factory=list)
    unsigned: list[Signed[Statement]] = field(default_factory=list)
    made: list[Signed[Statement]] = field(default_factory=list)
    payments: list[Signed[Payment]] = field(default_factory=list)
    credited_pico: int = 0
    disputed: set[int] = field(default_factory=set)
    refused: int = 0
    sold_beyond_the_limit: bool = False
    cheats: bool = False

    def __post_init__(self) -> None:
        self.grid = Dealings(
            channel_changes={"credit_limit_pico": LIMIT, "expires_ms": START_MS + 10_000 * DAY_MS, "dispute_days": 366},
            offer_changes={"valid_until_ms": START_MS + 10_000 * DAY_MS},
        )
        self.books = ChannelBooks(self.grid.channel, ChannelHead(0, 0, self.grid.channel.id, 0, 1000, 10**16))

    def order(self, cents: int) -> None:
        tokens = cents * CENT // TARIFF.output_upm
        order = self.grid.order(
            by="client", max_output_tokens=max(tokens, 1), max_prompt_tokens=1, max_amount_pico=cents * CENT + 10**6
        )
        if order.message.max_amount_pico > self.books.credit_left_pico():
            self.refused += 1
            return
        self.grid.keep(order)
        self.books.open_order(order.message, TARIFF)
        self.open.append(order)
        if not self.cheats:
            self.check_truth()

    def end(self, share: int) -> None:
        if not self.open:
            return
        order = self.open.pop(share // 11 % len(self.open))
        tokens = max(order.message.max_output_tokens * (share % 11) // 10, 1)
        receipt = self.grid.receipt(order, Usage(output_tokens=min(tokens, order.message.max_output_tokens)))
        self.books.release(order.message.order_number)
        self.books.append(receipt)
        self.books.settle(receipt.message)
        self.sold_beyond_the_limit |= receipt.message.channel_total_pico > LIMIT

    def fill(self, _: int) -> None:
        """Use up what credit is left."""
        while (cents := (self.books.credit_left_pico() - 10**6) // CENT) > 0:
            self.order(min(cents, 700))
        while self.open:
            self.end(10)

    def state(self, _: int) -> None:
        before = self.made[-1] if self.made else None
        if self.unsigned:  # not before the one before has both signatures
            self.sign(0)
        first = before.message.last_receipt + 1 if before else 1
        start: dict[str, Any] = {} if before else {"from_ms": START_MS, "channel": self.grid.channel.message.channel}
        credits = sum(one.message.credits_pico for one in self.made)
        until_ms = max(self.grid.now_ms, before.message.until_ms + 1 if before else 0)
        counted = sum(one.message.payments_cents for one in self.made)
        one = made(
            self.grid,
            self.grid.receipts[first - 1 :],
            before,
            rate_bp=self.rate_bp,
            credits_pico=self.credited_pico - credits,
            payments_cents=sum(one.message.amount_cents for one in self.payments) - counted,
            until_ms=until_ms,
            stated_ms=until_ms,
            due_ms=until_ms + 14 * DAY_MS,
            **start,
        )
        self.made.append(one)
        self.unsigned.append(one)
        self.grid.keep(one)
        self.grid.keep(make_invoice(one))

    def sign(self, _: int) -> None:
        for one in self.unsigned:
            self.books.note_settled(one)
        self.unsigned = []

    def pay(self, cents: int, late_days: int = 0) -> None:
        reference = f"P{len(self.payments)}"
        booked = {"booked_ms": max(self.grid.now_ms - late_days * DAY_MS, START_MS), "reference": reference}
        entry = digest("entry", reference)
        channel = self.grid.channel.message.channel
        self.note(self.grid.keep(make_prepayment(channel, amount_cents=max(cents, 1), entry=entry, **booked)))

    def pay_early(self, cents: int) -> None:
        """The bank books it four days later."""
        self.pay(cents, late_days=-4)

    def give_back(self, which: int) -> None:
        came = [one for one in self.payments if one.message.amount_cents > 0]
        back = {one.message.reference for one in self.payments if one.message.amount_cents < 0}
        left = [one for one in came if one.message.reference not in back]
        if left:
            one = left[which % len(left)].message
            channel = self.grid.channel.message.channel
            fields = {"amount_cents": -one.amount_cents, "kind": PaymentKind.RETURNED, "reference": one.reference}
            entry = digest("back", one.reference)
            booked_ms = max(self.grid.now_ms - which % 5 * DAY_MS, one.booked_ms)
            self.note(self.grid.keep(make_prepayment(channel, booked_ms=booked_ms, entry=entry, **fields)))

    def note(self, payment: Signed[Payment]) -> None:
        self.payments.append(payment)
        self.books.note_settled(payment)

    def credit(self, which: int) -> None:
        left = [r for r in self.grid.receipts if r.message.receipt_number not in self.disputed]
        if not left:
            return
        receipt: Signed[Receipt] = left[which % len(left)]
        self.disputed.add(receipt.message.receipt_number)
        owed = receipt.message.amount_pico * (which % 4) // 4
        dispute = make_dispute(receipt, owed_pico=owed, disputed_ms=self.grid.now_ms)
        answer = make_answer(dispute, answered_ms=self.grid.now_ms)
        self.grid.keep(dispute)
        self.grid.keep(answer)
        signed = receipt.countersigned(Role.CLIENT, self.grid.client)
        note_credit(self.books, dispute.message, answer.message, signed)
        self.credited_pico += receipt.message.amount_pico - owed

    def wait(self, days: int) -> None:
        self.grid.now_ms += days * DAY_MS // 3

    def check_truth(self) -> None:
        """What was delivered and is not paid, by plain sums: at most the limit, and what rounding comes to."""
        paid = sum(one.message.amount_cents for one in self.payments)
        net = Fraction(paid * CENT * 10_000, 10_000 + self.rate_bp) if paid > 0 else Fraction(paid * CENT)
        at_most = self.books.total_pico + self.books.reserved_pico - self.credited_pico - net
        slack = 2 * CENT * (len(self.made) + 1)  # a component and VAT of each statement are rounded to a cent
        assert at_most <= LIMIT + slack


STEPS = st.one_of(
    st.tuples(st.just("fill"), st.just(0)),
    st.tuples(st.just("fill"), st.just(0)),
    st.tuples(st.just("pay_early"), st.integers(1, 700)),
    st.tuples(st.just("order"), st.integers(1, 200)),
    st.tuples(st.just("order"), st.integers(50, 200)),
    st.tuples(st.just("end"), st.integers(0, 1000)),
    st.tuples(st.just("end"), st.integers(0, 1000)),
    st.tuples(st.just("state"), st.just(0)),
    st.tuples(st.just("sign"), st.just(0)),
    st.tuples(st.just("pay"), st.integers(1, 700)),
    st.tuples(st.just("pay"), st.integers(100, 700)),
    st.tuples(st.just("give_back"), st.integers(0, 20)),
    st.tuples(st.just("credit"), st.integers(0, 50)),
    st.tuples(st.just("wait"), st.integers(0, 60)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=5, max_size=60), st.sampled_from([0, 2100, 2550]))
async def test_the_limit_holds_and_no_audit_accuses(steps: list[tuple[str, int]], rate_bp: int) -> None:
    market = Market(rate_bp)
    for name, value in steps:
        getattr(market, name)(value)
    assert {f.code for f in audit_records(both(market.grid)).findings} & {"over-credit-limit"} == set()
    market.sign(0)
    ledger = MemoryLedger()
    await ledger.append(*market.grid.provider_has)
    for own in (Role.PROVIDER, Role.CLIENT):
        restored = restore_books(ledger, market.grid.channel, own)
        assert restored.credit.freed_pico == market.books.credit.freed_pico
        assert restored.credit_left_pico() == market.books.credit_left_pico()


def test_who_pays_is_sold_more_than_the_limit_and_the_audit_agrees() -> None:
    market = Market(2100)
    for month in range(6):
        for _ in range(4):
            market.order(70)
            market.end(10)
            market.wait(3)
        market.state(0)
        market.sign(0)
        market.wait(30)
        owed = market.books.credit.unpaid_cents
        assert owed > 0
        market.pay(owed)
        assert market.books.credit.unpaid_cents == 0
        assert market.books.paid_ahead_pico() == 0, month
    assert market.sold_beyond_the_limit and not market.refused
    assert not audit_records(both(market.grid)).findings


def test_what_went_back_and_two_statements_say_so_frees_nothing_any_more() -> None:
    market = Market(0)
    market.pay(400)
    for _ in range(6):
        market.order(100)
        market.end(10)
    market.wait(9)
    market.give_back(0)
    for _ in range(3):
        market.wait(9)
        market.state(0)
        market.sign(0)
    market.wait(9)
    with pytest.raises(Refused):
        raise_if_refused(market, 100)
    market.cheats = True
    market.books.credit.freed_pico += 10 * EUR  # a provider that does not count it
    market.order(100)
    market.end(10)
    verdict = audit_records(both(market.grid))
    assert [one.code for one in verdict.findings] == ["over-credit-limit"]
    alone = audit_records([bundle_of(market.grid.bundles()[1], Role.CLIENT)])
    assert "credit-not-shown" in {one.code for one in alone.notes}
    assert not alone.findings


def raise_if_refused(market: Market, cents: int) -> None:
    before = market.refused
    market.order(cents)
    if market.refused > before:
        raise Refused("credit-exhausted", "refused")


def test_what_is_set_off_counts_once_by_its_record_and_in_the_statement() -> None:
    grid = Dealings()
    start = {"channel": grid.channel.message.channel, "from_ms": START_MS}
    first = made(grid, [], None, total_pico=100 * CENT, net_cents=100, gross_cents=100, **start)
    second = made(grid, [], first, set_off_cents=40)
    credit = ChannelCredit()
    credit.note_statement(first)
    for _ in range(2):
        credit.note_set_off(TakenOff(digest("off"), 40, START_MS, (), is_cycle=False))
    assert (credit.freed_pico, credit.unpaid_cents) == (40 * CENT, 60)
    credit.note_statement(second)
    assert (credit.freed_pico, credit.unpaid_cents) == (40 * CENT, 60)
    fresh = ChannelCredit()
    for one in (first, second):
        fresh.note_statement(one)
    assert fresh.freed_pico == 40 * CENT
