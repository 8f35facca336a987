"""Statements: whatever is sold, disputed and paid, they close exactly, and an audit finds nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.contested import Contest, bounds_at, contest_of, taken_at
from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.invoice_sums import cents_of
from p2pgrid.proto.messages import Receipt, Status, Tariff, Usage
from p2pgrid.proto.pricing import amount_owed
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.statement import Payment, PaymentKind, Statement
from p2pgrid.proto.statement_making import Period, Stated, make_statement, receipts_of_period, vat_in
from p2pgrid.proto.statement_rules import (
    billed_tokens,
    components_of,
    faults_of_succession,
    faults_of_sums,
    statement_lines,
)
from p2pgrid.proto.verdict import audit_records
from tests.factories import (
    CLIENT,
    PROVIDER,
    make_answer,
    make_channel,
    make_dispute,
    make_invoice,
    make_payment,
    make_prepayment,
    make_set_off,
    set_off_side,
)
from tests.proto.audit_cases import both
from tests.proto.chains import DAY_MS, START_MS, TARIFF, Dealings, digest

CLOCKS_MS = 120_000


@dataclass
class Books:
    """One channel, and how both sides settle it."""

    rate_bp: int
    grid: Dealings = field(default_factory=Dealings)
    statements: list[Signed[Statement]] = field(default_factory=list)
    contests: list[Contest] = field(default_factory=list)
    disputed: set[bytes] = field(default_factory=set)
    open_disputes: list[tuple[Signed[Any], Signed[Receipt]]] = field(default_factory=list)
    uncounted_cents: int = 0
    set_off_cents: int = 0
    off: dict[bytes, int] = field(default_factory=dict)
    """By statement, what was set off in all."""
    payments: int = 0

    @property
    def now_ms(self) -> int:
        return self.grid.now_ms

    def sell(self, tokens: int, status: Status) -> None:
        order = self.grid.order(max_output_tokens=200_000, max_amount_pico=10**12)
        usage = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=tokens)
        self.grid.receipt(order, usage, status)

    def dispute(self, number: int, share: int) -> None:
        """The client owes only so many thousandths of a receipt, if it has not disputed it yet."""
        receipt = self.grid.receipts[number % len(self.grid.receipts)]
        if not receipt.message.amount_pico or receipt.id in self.disputed:
            return
        self.disputed.add(receipt.id)
        self.grid.now_ms += 1000
        owed = receipt.message.amount_pico * share // 1000
        signed = receipt.countersigned(Role.CLIENT, self.grid.client)
        dispute = self.grid.keep(make_dispute(signed, owed_pico=owed, disputed_ms=self.now_ms))
        self.open_disputes.append((dispute, receipt))
        self._contest(dispute, None, receipt)

    def answer(self, *, accepts: bool) -> None:
        if not self.open_disputes:
            return
        dispute, receipt = self.open_disputes.pop(0)
        self.grid.now_ms += 1000
        changes = {} if accepts else {"decision": Decision.REJECTED, "owed_pico": receipt.message.amount_pico}
        answer = self.grid.keep(make_answer(dispute, answered_ms=self.now_ms, **changes))
        self.contests = [c for c in self.contests if c.receipt != receipt.id]
        self._contest(dispute, answer, receipt)

    def _contest(self, dispute: Signed[Any], answer: Signed[Any] | None, receipt: Signed[Receipt]) -> None:
        made = contest_of(
            dispute.message,
            answer.message if answer else None,
            receipt=receipt.message,
            receipt_id=receipt.id,
            countersigned=True,
            days=self.grid.channel.message.dispute_days,
        )
        self.contests += [made] if made else []

    def pay_ahead(self, cents: int) -> None:
        self.grid.now_ms += 1000
        self.payments += 1
        kind = PaymentKind.RECEIVED if cents > 0 else PaymentKind.REFUNDED
        changes = {"amount_cents": cents, "kind": kind, "booked_ms": self.now_ms, "entry": bytes([self.payments]) * 32}
        self.grid.keep(make_prepayment(self.grid.channel.message.channel, **changes))
        self.uncounted_cents += cents

    def pay_last(self) -> None:
        """All of the last statement's invoice or credit note, if nobody has paid it."""
        last = self.statements[-1] if self.statements else None
        paid = {s.message.statement for s in self.grid.client_has if isinstance(s.message, Payment)}
        if last is None or not last.message.gross_cents or last.id in paid:
            return
        self.grid.now_ms += 1000
        self.payments += 1
        invoice = make_invoice(last)
        left = last.message.gross_cents - self.off.get(last.id, 0)
        if not left:
            return
        changes = {"amount_cents": left, "booked_ms": self.now_ms, "reference": f"P{self.payments}"}
        payment = make_payment(invoice, self.grid.channel.message.channel, **changes)
        self.grid.keep(payment)
        self.uncounted_cents += payment.message.amount_cents

    def set_off(self, cents: int) -> None:
        """So much of what is open of the last invoice, against what the provider owes elsewhere."""
        last = self.statements[-1] if self.statements else None
        paid = {s.message.statement for s in self.grid.client_has if isinstance(s.message, Payment)}
        left = last.message.gross_cents - self.off.get(last.id, 0) if last is not None else 0
        if last is None or last.id in paid or left <= 0:
            return
        self.grid.now_ms += 1000
        cents = min(cents, left)
        back = make_channel(CLIENT, PROVIDER, name="back")
        sides = (set_off_side(channel, (make_invoice(last), cents)) for channel in (self.grid.channel, back))
        nonce = digest("set-off", self.now_ms)
        signed = make_set_off(*sides, [PROVIDER, CLIENT], agreed_ms=self.now_ms, nonce=nonce)
        self.grid.keep(signed)
        self.off[last.id] = self.off.get(last.id, 0) + cents
        self.set_off_cents += cents

    def state(self) -> None:
        self.grid.now_ms += 1000
        before = self.statements[-1] if self.statements else None
        receipts = [Stated(r.id, r.message, TARIFF) for r in self.grid.receipts]
        message = make_statement(
            self.grid.channel.message,
            before=before,
            receipts=receipts_of_period(receipts[before.message.last_receipt if before else 0 :], until_ms=self.now_ms),
            contests=self.contests,
            credited_pico=sum(s.message.credits_pico for s in self.statements),
            payments_cents=self.uncounted_cents,
            set_off_cents=self.set_off_cents,
            period=Period(until_ms=self.now_ms, stated_ms=self.now_ms, due_ms=self.now_ms + DAY_MS),
            vat=vat_in("S" if self.rate_bp else "AE", self.rate_bp),
        )
        self.uncounted_cents = self.set_off_cents = 0
        signed = sign_message(message, Role.PROVIDER, self.grid.provider).countersigned(Role.CLIENT, self.grid.client)
        self.statements.append(self.grid.keep(signed))
        if message.gross_cents:
            self.grid.keep(make_invoice(signed))


STEPS = st.one_of(
    st.tuples(st.just("sell"), st.integers(0, 100_000), st.sampled_from([Status.COMPLETED, Status.FAILED])),
    st.tuples(st.just("sell"), st.integers(1, 100_000), st.just(Status.CANCELLED)),
    st.tuples(st.just("dispute"), st.integers(0, 20), st.integers(0, 1000)),
    st.tuples(st.just("answer"), st.booleans()),
    st.tuples(st.just("pay_ahead"), st.integers(1, 500)),
    st.tuples(st.just("pay_ahead"), st.integers(-500, -1)),
    st.tuples(st.just("set_off"), st.integers(1, 100)),
    st.tuples(st.just("pay_last")),
    st.tuples(st.just("state")),
    st.tuples(st.just("wait"), st.integers(1, 13 * 24)),
)


def settle(rate_bp: int, steps: list[tuple[Any, ...]], *, stated_apart: bool = False) -> Books:
    """With `stated_apart` the clocks' tolerance passes before and after each statement."""
    books = Books(rate_bp)
    apart_ms = CLOCKS_MS + 1000 if stated_apart else 0

    def state() -> None:
        books.grid.now_ms += apart_ms
        books.state()
        books.grid.now_ms += apart_ms

    books.grid.now_ms = START_MS + 1000
    for name, *values in steps:
        match name:
            case "sell":
                tokens, status = values
                books.sell(max(tokens, 1) if status is Status.COMPLETED else tokens, status)
            case "dispute" if books.grid.receipts:
                books.dispute(*values)
            case "answer":
                books.answer(accepts=values[0])
            case "pay_ahead":
                books.pay_ahead(*values)
            case "set_off":
                books.set_off(values[0])
            case "pay_last":
                books.pay_last()
            case "state":
                state()
            case "wait":
                later_ms = min(books.now_ms + values[0] * 3_600_000, START_MS + 29 * DAY_MS)
                books.grid.now_ms = max(books.now_ms, later_ms)
    state()
    return books


@settings(max_examples=120, deadline=None)
@given(st.sampled_from([0, 700, 1900, 2100]), st.lists(STEPS, max_size=30))
def test_any_statements_close_exactly_and_are_clean(rate_bp: int, steps: list[tuple[Any, ...]]) -> None:
    books = settle(rate_bp, steps)
    messages = [signed.message for signed in books.statements]
    payments = [s.message for s in books.grid.client_has if isinstance(s.message, Payment)]
    last = messages[-1]
    assert sum(m.payments_cents for m in messages) == sum(p.amount_cents for p in payments)
    gross = sum(m.gross_cents for m in messages)
    assert last.closing_cents == gross - sum(m.payments_cents + m.set_off_cents for m in messages)
    # What was held at any time is either held still, or invoiced, or credited: it comes to nothing in the end.
    components = [c for m in messages for line in m.lines for c in components_of(line)]
    off = sum(cents_of(m.credits_pico) for m in messages) + cents_of(last.held_pico)
    assert sum(m.net_cents for m in messages) == sum(c.net_cents for c in components) - off
    assert sum(c.amount_pico for c in components) == sum(r.message.amount_pico for r in books.grid.receipts)
    assert abs(sum(c.net_cents for c in components) * 10**10 - sum(c.amount_pico for c in components)) <= (
        5 * 10**9 * len(components)
    )
    verdict = audit_records(both(books.grid))
    told = [(f.code, f.sentence) for f in verdict.findings if f.code != "dispute-unanswered"]
    # A payment for more than its invoice is no step, and so none is found.
    assert told == [], told


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=20), st.data())
def test_no_cent_of_a_statement_can_be_changed(steps: list[tuple[Any, ...]], data: st.DataObject) -> None:
    """One amount altered, by a provider that signs it anew, is found, or no longer adds up.

    Nobody disputes or answers within the clocks' tolerance of a statement: what such a one takes off may be counted or
    not (docs/spec/audit.md, 41), so that an amount in between is not told from either.
    """
    books = settle(2100, steps, stated_apart=True)
    index = data.draw(st.integers(0, len(books.statements) - 1))
    right = books.statements[index]
    amounts = ("total_pico", "credits_pico", "held_pico", "net_cents", "gross_cents")
    name = data.draw(st.sampled_from((*amounts, "opening_cents", "closing_cents", "payments_cents", "set_off_cents")))
    off = data.draw(st.sampled_from([1, -1, 10**10]))
    changed = {name: getattr(right.message, name) + off}
    try:
        wrong = sign_message(msgspec.structs.replace(right.message, **changed), Role.PROVIDER, books.grid.provider)
    except InvalidRecord:
        return
    for book in (books.grid.provider_has, books.grid.client_has):
        book[book.index(right)] = wrong
    codes = {finding.code for finding in audit_records(both(books.grid)).findings}
    assert codes & {"statement-mismatch", "wrong-opening-balance"}, (name, codes)


# -- lines ---------------------------------------------------------------------------------------------------------

COUNTS = st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
PRICES = st.tuples(st.integers(0, 3), st.integers(0, 10**12), st.integers(0, 10**12))


@given(st.lists(st.tuples(COUNTS, PRICES, st.sampled_from(list(Status)), st.booleans()), max_size=12))
def test_components_of_right_receipts_come_to_their_amounts(sold: list[tuple[Any, ...]]) -> None:
    """Amounts are right by tariff and status, or waived; then no line has a difference."""
    grid = Dealings()
    base = grid.deal().message
    pairs = []
    for (uncached, cached, output), (low, mid, high), status, is_waived in sold:
        tariff = Tariff(input_upm=max(low, mid), cached_input_upm=low, output_upm=high)
        usage = Usage(prompt_tokens=uncached + cached, cached_tokens=cached, output_tokens=output)
        amount = 0 if is_waived else amount_owed(tariff, usage, status)
        pairs.append((msgspec.structs.replace(base, usage=usage, amount_pico=amount, status=status), tariff))
    lines = statement_lines(pairs)
    assert sum(line.receipts for line in lines) == len(pairs)
    for line in lines:
        components = components_of(line)
        assert len(components) == 3, components
        assert sum(component.amount_pico for component in components) == line.amount_pico


def test_tokens_that_cost_nothing_are_counted() -> None:
    receipt = Dealings().deal().message
    free = Tariff(input_upm=0, cached_input_upm=0, output_upm=0)
    assert billed_tokens(msgspec.structs.replace(receipt, amount_pico=0), free) == receipt.usage
    assert billed_tokens(msgspec.structs.replace(receipt, amount_pico=0), TARIFF) == Usage()


# -- disputes at a time --------------------------------------------------------------------------------------------

TIMES = st.integers(0, 10 * CLOCKS_MS)


def sound(contest: Contest) -> Contest:
    """Each receipt has its number, what is open is not accepted, and an answer comes after its dispute."""
    answered_ms = contest.answered_ms if contest.answered_ms is None else max(contest.answered_ms, contest.disputed_ms)
    is_accepted = contest.is_accepted and answered_ms is not None
    number = int(contest.receipt)
    return replace(contest, receipt_number=number, answered_ms=answered_ms, is_accepted=is_accepted)


CONTESTS = st.builds(
    Contest,
    receipt=st.sampled_from([b"1", b"2", b"3"]),
    receipt_number=st.just(1),
    amount_pico=st.integers(0, 10),
    disputed_ms=TIMES,
    answered_ms=st.none() | TIMES,
    is_accepted=st.booleans(),
).map(sound)


@given(st.lists(CONTESTS, max_size=6), st.lists(st.tuples(st.integers(0, 4), TIMES), max_size=6), st.integers(0, 3))
def test_bounds_are_what_any_time_within_the_tolerance_makes(
    contests: list[Contest], moments: list[tuple[int, int]], unit: int
) -> None:
    tolerance_ms = unit * CLOCKS_MS // 2
    for (last, at_ms), bounds in zip(moments, bounds_at(contests, moments, tolerance_ms=tolerance_ms), strict=True):
        events = {t for c in contests for t in (c.disputed_ms, c.answered_ms or 0)}
        times = {at_ms - tolerance_ms, *(t for t in events if abs(t - at_ms) <= tolerance_ms)}
        # Each receipt by itself: two may be seen at two different moments.
        each = [
            [taken_at([c for c in contests if c.receipt == receipt], last_receipt=last, at_ms=t) for t in times]
            for receipt in {c.receipt for c in contests}
        ]
        for index in (0, 1):
            assert bounds.least[index] == sum(min(one[index] for one in found) for found in each)
            assert bounds.most[index] == sum(max(one[index] for one in found) for found in each)


@pytest.mark.parametrize(
    ("is_dispute_known", "is_answer_known", "expected"),
    [
        (True, True, (5, 5, 0, 0)),
        (True, False, (0, 5, 0, 5)),
        (False, True, (0, 5, 0, 0)),
        (False, False, (0, 5, 0, 5)),
    ],
)
def test_what_the_other_side_may_not_have_is_counted_or_not(
    is_dispute_known: bool, is_answer_known: bool, expected: tuple[int, ...]
) -> None:
    contest = Contest(b"1", 1, 5, 10, 20, True, False, is_dispute_known, is_answer_known)
    (bounds,) = bounds_at([contest], [(1, 1000)], tolerance_ms=0)
    assert (bounds.least.credits_pico, bounds.most.credits_pico) == expected[:2]
    assert (bounds.least.held_pico, bounds.most.held_pico) == expected[2:]


# -- what one statement has room for -------------------------------------------------------------------------------

FREE = Tariff(input_upm=0, cached_input_upm=0, output_upm=0)
DEAREST = Tariff(input_upm=10**12, cached_input_upm=10**12, output_upm=10**12)
MOST_PICO = 2**63 - 1
MOST_USAGE = Usage(prompt_tokens=8_000_000, cached_tokens=1, output_tokens=8_000_000)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300),
    st.sampled_from(["m", "\U0001f600"]),
    st.integers(1, 125),
    st.sampled_from([FREE, DEAREST]),
    st.sampled_from([0, 10_000]),
    st.sampled_from([None, False, True]),
)
@example(300, "\U0001f600", 125, DEAREST, 10_000, True)
@example(300, "m", 1, FREE, 10_000, None)
def test_whatever_was_sold_can_be_stated(
    count: int, letter: str, length: int, tariff: Tariff, rate_bp: int, is_accepted: bool | None
) -> None:
    """Many models, long names, the highest amounts, all disputed or not: several statements, each of them valid."""
    grid = Dealings()
    base, channel = grid.deal().message, grid.channel.message
    each_pico = MOST_PICO // count
    changes = {"usage": MOST_USAGE, "amount_pico": each_pico}
    sold = [
        Stated(
            number.to_bytes(32, "big"),
            msgspec.structs.replace(base, receipt_number=number, model=f"{letter * length}{number:03}", **changes),
            tariff,
        )
        for number in range(1, count + 1)
    ]
    answered_ms = None if is_accepted is None else 1
    contests = [
        Contest(one.receipt_id, one.receipt.receipt_number, each_pico, 0, answered_ms, bool(is_accepted))
        for one in sold
    ]
    made: list[Signed[Statement]] = []
    while not made or made[-1].message.last_receipt < count:
        stated_ms = base.issued_ms + 1 + len(made)
        message = make_statement(
            channel,
            before=made[-1] if made else None,
            receipts=receipts_of_period(sold[made[-1].message.last_receipt if made else 0 :], until_ms=stated_ms),
            contests=contests,
            credited_pico=sum(one.message.credits_pico for one in made),
            payments_cents=-(10**9),
            set_off_cents=10**9,
            period=Period(until_ms=stated_ms, stated_ms=stated_ms, due_ms=stated_ms),
            vat=vat_in("S" if rate_bp else "AE", rate_bp),
        )
        made.append(sign_message(message, Role.PROVIDER, grid.provider))
        before = made[-2] if len(made) > 1 else None
        succession = (before.message, before.id) if before else (None, b"")
        assert not faults_of_sums(message, channel=channel)
        assert not faults_of_succession(message, channel=channel, before=succession[0], before_id=succession[1])
        assert len(made) < 50
    assert sum(one.message.lines[0].receipts * len(one.message.lines) for one in made) == count
