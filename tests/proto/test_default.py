"""Claims of default (docs/spec/messages.md, rules 24g and 24h): honest ones, and what more records make of a claim.

Each case of the rule is in tests/vectors/defaults.json.
"""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.proto.default import make_default
from p2pgrid.proto.default_rules import DefaultState, verify_default
from p2pgrid.proto.record import Record, Role, Signed, sign_message
from p2pgrid.proto.statement import Payment, PaymentKind
from tests.factories import CLIENT, DAY_MS, PROVIDER, make_invoice, make_payment
from tests.proto.credit_vectors import Debt


def claimed(debt: Debt) -> Record | None:
    """What an honest provider claims of the debt, which counts all that it had booked."""
    message = make_default(debt.statement, debt.payments, as_of_ms=debt.as_of_ms, now_ms=debt.as_of_ms + DAY_MS)
    return sign_message(message, Role.PROVIDER, PROVIDER).record if message is not None else None


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-80, 150).filter(bool), st.integers(-20, 20)), max_size=6))
def test_an_honest_claim_stands_for_what_is_left_and_is_never_false(moved: list[tuple[int, int]]) -> None:
    debt = Debt()
    for cents, days in moved:
        kind = PaymentKind.RECEIVED if cents > 0 else PaymentKind.RETURNED
        debt.pay(cents, before_ms=days * DAY_MS, kind=kind)
    claim = claimed(debt)
    paid = sum(cents for cents, days in moved if days >= 0)
    if claim is None:
        assert paid >= debt.open_cents
        return
    verdict = verify_default(claim, debt.records(), debt.at_ms())
    assert verdict.state in (DefaultState.STANDS, DefaultState.CLEARED)
    left = debt.open_cents - sum(cents for cents, _ in moved)
    assert verdict.unpaid_cents == max(min(left, debt.open_cents - paid), 0)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 200), max_size=4), st.booleans())
def test_records_that_come_later_take_no_claim_back(rng: random.Random, cents: list[int], states: bool) -> None:
    """Payments in and statements, shown one after the other in any order: what is cleared or false stays it."""
    debt = Debt()
    for number, one in enumerate(cents):
        debt.pay(one, before_ms=(number * 9 - 14) * DAY_MS)
    if states:
        debt.follow(DAY_MS, payments_cents=sum(cents))
    claim = debt.claim()
    base = Debt().records()
    more = [one for one in debt.records() if one.id not in {known.id for known in base}]
    rng.shuffle(more)
    seen = [verify_default(claim, [*base, *more[:n]], debt.at_ms()) for n in range(len(more) + 1)]
    for before, after in itertools.pairwise(seen):
        assert after.unpaid_cents <= before.unpaid_cents
        assert before.state is not DefaultState.FALSE or after.state is DefaultState.FALSE
        assert before.state is not DefaultState.CLEARED or after.state is not DefaultState.STANDS


def late_booked(debt: Debt, cents: int) -> Signed[Payment]:
    """For the first statement, booked before the second was made, and known of after it: that does not count it."""
    return make_payment(
        make_invoice(debt.first),
        debt.grid.channel.message.channel,
        amount_cents=cents,
        reference="late",
        booked_ms=debt.statement.message.stated_ms - DAY_MS,
    )


def test_a_payment_that_its_bank_told_of_late_is_not_claimed() -> None:
    debt = Debt()
    debt.payments.append(late_booked(debt, 7))
    message = make_default(
        debt.statement,
        debt.payments,
        statements=[debt.first, debt.statement],
        as_of_ms=debt.as_of_ms,
        now_ms=debt.as_of_ms + DAY_MS,
    )
    assert message is not None and message.unpaid_cents == debt.open_cents - 7
    verdict = verify_default(sign_message(message, Role.PROVIDER, PROVIDER).record, debt.records(), debt.at_ms())
    assert (verdict.state, verdict.unpaid_cents) == (DefaultState.STANDS, debt.open_cents - 7)


def test_what_went_round_a_cycle_is_not_claimed() -> None:
    """A leg is no SetOff: the provider's books know of it, and those that judge the claim need not."""
    debt = Debt()
    times = {"as_of_ms": debt.as_of_ms, "now_ms": debt.as_of_ms}
    statements = [debt.first, debt.statement]
    message = make_default(debt.statement, [], (), statements=statements, set_off_cents=8, **times)
    assert message is not None and message.unpaid_cents == debt.open_cents - 8
    assert make_default(debt.statement, [], (), statements=statements, set_off_cents=debt.open_cents, **times) is None


def test_a_payment_that_its_bank_told_of_late_clears_a_claim_once_all_statements_are_there() -> None:
    debt = Debt()
    debt.payments.append(late_booked(debt, debt.open_cents))
    assert verify_default(debt.claim(), debt.records(), debt.at_ms()).state is DefaultState.CLEARED
    hiding = debt.without(debt.first)  # nobody can tell then what the statement counts
    assert verify_default(debt.claim(), hiding.records(), debt.at_ms()).state is DefaultState.STANDS


def test_a_stranger_claims_nothing() -> None:
    debt = Debt()
    message = make_default(debt.statement, [], as_of_ms=debt.as_of_ms, now_ms=debt.as_of_ms)
    assert message is not None
    forged = sign_message(message, Role.PROVIDER, CLIENT).record
    verdict = verify_default(forged, debt.records(), debt.at_ms())
    assert (verdict.state, verdict.claim) == (DefaultState.UNPROVEN, None)


def test_what_is_no_claim_raises_nothing() -> None:
    debt = Debt()
    for record in (*debt.records(), Record("/p2pgrid/default/1", b"\x00", ())):
        assert verify_default(record, debt.records(), debt.at_ms()).state is DefaultState.UNPROVEN
