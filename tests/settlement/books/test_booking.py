"""Records as double entry: what is booked where, and that the books agree with the statements."""

from __future__ import annotations

from collections import Counter
from datetime import date

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import UsageError
from p2pgrid.proto.record import Role
from p2pgrid.proto.statement import InvoiceType, PaymentKind, VatLine
from p2pgrid.settlement.books.accounts import AccountRole
from p2pgrid.settlement.books.booking import Rules, VatPart, bookings_of, vat_parts
from p2pgrid.settlement.books.days import Span
from p2pgrid.settlement.books.journal import Booking, BookingKind, BookingLine, Unbalanced, line, totals_of
from p2pgrid.settlement.books.trial_balance import channel_balance, channel_balances, trial_balance
from p2pgrid.settlement.clock import days_of_zone
from tests.factories import NOW_MS, make_invoice
from tests.settlement.books.makers import DAY_MS, EVER, RULES, Settling, at_21_percent, books_of, month

R = AccountRole
SALE, PURCHASE = Role.PROVIDER, Role.CLIENT


def booked(s: Settling, side: Role = SALE, rules: Rules = RULES) -> list[Booking]:
    return bookings_of([s.records(side)], rules)


def lines(booking: Booking) -> list[tuple[AccountRole, int]]:
    return [(one.role, one.signed_cents) for one in booking.lines]


@pytest.mark.parametrize(
    ("category", "rate", "sale", "purchase"),
    [
        (
            "S",
            1900,
            [(R.RECEIVABLES, 1190), (R.REVENUE_S, -1000), (R.VAT_OUTPUT, -190)],
            [(R.PAYABLES, -1190), (R.EXPENSE_S, 1000), (R.VAT_INPUT, 190)],
        ),
        (
            "AE",
            0,
            [(R.RECEIVABLES, 1000), (R.REVENUE_AE, -1000)],
            [
                (R.PAYABLES, -1000),
                (R.EXPENSE_AE, 1000),
                (R.VAT_INPUT_REVERSE, 210),
                (R.VAT_OUTPUT_REVERSE, -210),
            ],
        ),
        ("E", 0, [(R.RECEIVABLES, 1000), (R.REVENUE_E, -1000)], [(R.PAYABLES, -1000), (R.EXPENSE_E, 1000)]),
        ("O", 0, [(R.RECEIVABLES, 1000), (R.REVENUE_O, -1000)], [(R.PAYABLES, -1000), (R.EXPENSE_O, 1000)]),
        ("Z", 0, [(R.RECEIVABLES, 1000), (R.REVENUE_OTHER, -1000)], [(R.PAYABLES, -1000), (R.EXPENSE_OTHER, 1000)]),
    ],
)
def test_an_invoice_in_each_case_of_vat(
    category: str, rate: int, sale: list[tuple[AccountRole, int]], purchase: list[tuple[AccountRole, int]]
) -> None:
    s = Settling()
    vat = VatLine(category=category, rate_bp=rate, exemption="", net_cents=1000, vat_cents=rate // 10)
    s.state(1000, vat=(vat,))
    s.invoice()
    for side, expected in ((SALE, sale), (PURCHASE, purchase)):
        (booking,) = booked(s, side)
        assert lines(booking) == expected
        assert (booking.kind, booking.document_number) == (BookingKind.INVOICE, "LT-2027-000001")
        assert booking.due is not None


def test_a_credit_note_turns_every_side() -> None:
    s = Settling()
    s.state(-1000)
    s.invoice()
    (booking,) = booked(s)
    assert booking.kind is BookingKind.CREDIT_NOTE
    assert lines(booking) == [(R.RECEIVABLES, -1190), (R.REVENUE_S, 1000), (R.VAT_OUTPUT, 190)]


def test_who_may_not_deduct_has_vat_in_the_expense() -> None:
    rules = Rules(input_vat_deducted=False, reverse_charge_rate=at_21_percent)
    s = Settling()
    s.state(1000)
    s.invoice()
    s.state(1000, rate_bp=0)
    s.invoice()
    domestic, abroad = booked(s, PURCHASE, rules)
    assert lines(domestic) == [(R.PAYABLES, -1190), (R.EXPENSE_S, 1190)]
    assert lines(abroad) == [(R.PAYABLES, -1000), (R.EXPENSE_AE, 1210), (R.VAT_OUTPUT_REVERSE, -210)]


@pytest.mark.parametrize(
    ("ours", "theirs", "is_foreign"),
    [("DE", "LT", True), ("LT", "LT", False), ("", "LT", False), ("DE", "", False)],
)
@pytest.mark.parametrize("deducts", [True, False])
def test_vat_of_another_country_is_no_input_vat(ours: str, theirs: str, is_foreign: bool, deducts: bool) -> None:
    s = Settling()
    countries = {s.records(PURCHASE).counterparty: theirs}
    rules = Rules(
        input_vat_deducted=deducts,
        reverse_charge_rate=at_21_percent,
        country=ours,
        country_of=lambda provider: countries[provider],
    )
    for rate_bp in (1900, 0):
        s.state(1000, rate_bp=rate_bp)
        s.invoice()
    charged, reverse = booked(s, PURCHASE, rules)
    if is_foreign:
        assert lines(charged) == [(R.PAYABLES, -1190), (R.EXPENSE_FOREIGN_VAT, 1190)]
    else:
        assert (R.VAT_INPUT, 190) in lines(charged) or not deducts
        assert R.EXPENSE_FOREIGN_VAT not in [role for role, _ in lines(charged)]
    assert R.EXPENSE_AE in [role for role, _ in lines(reverse)], "what has no VAT on it is as it was"
    assert R.VAT_OUTPUT in [role for role, _ in lines(booked(s, SALE, rules)[0])]


def test_a_period_that_ends_at_midnight_is_of_the_days_before() -> None:
    """Until 1 January 2027, 00:00 UTC; the rate of a reverse charge is that of the supply, not of the invoice."""
    asked: list[date] = []

    def rate(day: date) -> int:
        asked.append(day)
        return 2100

    midnight_ms = 1_798_761_600_000
    s = Settling(now_ms=midnight_ms - 40 * DAY_MS, rate_bp=0)
    s.state(1000, until_ms=midnight_ms, stated_ms=midnight_ms, due_ms=midnight_ms + DAY_MS)
    s.now_ms = midnight_ms
    s.invoice()
    (booking,) = booked(s, PURCHASE, Rules(reverse_charge_rate=rate))
    assert booking.day == date(2027, 1, 1)
    assert booking.supply == Span(date(2026, 11, 22), date(2026, 12, 31))
    assert asked == [date(2026, 12, 31)]


def test_reverse_charge_without_a_known_rate_is_refused() -> None:
    s = Settling()
    s.state(1000, rate_bp=0)
    s.invoice()
    with pytest.raises(UsageError, match="rate is not known"):
        booked(s, PURCHASE, Rules())
    assert len(booked(s, SALE, Rules())) == 1


@pytest.mark.parametrize(
    ("pay", "sale", "purchase", "kind"),
    [
        (
            lambda s, i: s.pay(i, 100),
            [(R.RECEIVABLES, -100), (R.BANK, 100)],
            [(R.PAYABLES, 100), (R.BANK, -100)],
            BookingKind.PAYMENT,
        ),
        (
            lambda s, i: s.pay_ahead(100),
            [(R.ADVANCES_RECEIVED, -100), (R.BANK, 100)],
            [(R.ADVANCES_PAID, 100), (R.BANK, -100)],
            BookingKind.PREPAYMENT,
        ),
        (
            lambda s, i: s.pay(i, -100, PaymentKind.RETURNED),
            [(R.RECEIVABLES, 100), (R.BANK, -100)],
            [(R.PAYABLES, -100), (R.BANK, 100)],
            BookingKind.RETURN,
        ),
        (
            lambda s, i: s.pay(i, -100),
            [(R.RECEIVABLES, 100), (R.BANK, -100)],
            [(R.PAYABLES, -100), (R.BANK, 100)],
            BookingKind.REFUND,
        ),
        (
            lambda s, i: s.pay_ahead(-100),
            [(R.ADVANCES_RECEIVED, 100), (R.BANK, -100)],
            [(R.ADVANCES_PAID, -100), (R.BANK, 100)],
            BookingKind.REFUND,
        ),
        (
            lambda s, i: s.pay(i, 100, PaymentKind.REALLOCATED),
            [(R.RECEIVABLES, -100), (R.REALLOCATION, 100)],
            [(R.PAYABLES, 100), (R.REALLOCATION, -100)],
            BookingKind.REALLOCATION,
        ),
        (
            lambda s, i: s.pay_ahead(-100, PaymentKind.REALLOCATED),
            [(R.ADVANCES_RECEIVED, 100), (R.REALLOCATION, -100)],
            [(R.ADVANCES_PAID, -100), (R.REALLOCATION, 100)],
            BookingKind.REALLOCATION,
        ),
        (
            lambda s, i: s.set_off(i, 100),
            [(R.RECEIVABLES, -100), (R.SET_OFF, 100)],
            [(R.PAYABLES, 100), (R.SET_OFF, -100)],
            BookingKind.SET_OFF,
        ),
    ],
)
def test_what_moves_is_booked(pay, sale, purchase, kind) -> None:  # type: ignore[no-untyped-def]
    s = Settling()
    s.state(1000)
    pay(s, s.invoice())
    for side, expected in ((SALE, sale), (PURCHASE, purchase)):
        movement = booked(s, side)[-1]
        assert (lines(movement), movement.kind) == (expected, kind)


def test_a_set_off_is_nothing_once_both_legs_are_booked() -> None:
    sales, purchases = Settling("sales"), Settling("purchases")
    for s in (sales, purchases):
        s.state(1000)
        s.set_off(s.invoice(), 700)
    books = books_of(sales.records(SALE), purchases.records(PURCHASE))
    (account,) = [one for one in trial_balance(books) if one.name == "Set-off"]
    assert (account.debit_cents, account.credit_cents, account.closing_cents) == (700, 700, 0)


def test_an_invoice_over_nothing_is_no_booking() -> None:
    s = Settling()
    s.state(0)
    s.invoice()
    assert booked(s) == []


def test_an_invoice_without_its_statement_has_to_be_cleared_up() -> None:
    s = Settling()
    s.invoice(s.state(1000))
    s.statements.clear()
    (booking,) = booked(s)
    assert lines(booking) == [(R.RECEIVABLES, 1190), (R.UNCLEAR, -1190)]


def test_several_categories_of_vat() -> None:
    s = Settling()
    vat = (
        VatLine(category="S", rate_bp=1900, exemption="", net_cents=1000, vat_cents=190),
        VatLine(category="O", rate_bp=0, exemption="", net_cents=50, vat_cents=0),
    )
    stated = s.state(1050, vat=vat)

    def parts(net: int, vat_cents: int) -> tuple[VatPart, ...] | None:
        invoice = make_invoice(stated, net_cents=net, vat_cents=vat_cents, gross_cents=net + vat_cents)
        return vat_parts(invoice.message, stated.message)

    assert parts(1050, 190) == (VatPart("S", 1900, 1000, 190), VatPart("O", 0, 50, 0))
    assert parts(-1050, -190) == (VatPart("S", 1900, -1000, -190), VatPart("O", 0, -50, 0))
    assert parts(50, 0) == (VatPart("O", 0, 50, 0),)
    assert parts(-50, 0) == (VatPart("O", 0, -50, 0),)
    assert parts(500, 95) is None


def test_self_billed_documents_are_booked_as_any() -> None:
    s = Settling()
    s.state(1000)
    s.invoice(type_code=InvoiceType.SELF_BILLED_INVOICE)
    s.state(-1000)
    s.invoice(type_code=InvoiceType.SELF_BILLED_CREDIT_NOTE)
    assert [one.kind for one in booked(s)] == [BookingKind.INVOICE, BookingKind.CREDIT_NOTE]


def test_a_booking_that_does_not_balance_cannot_be_made() -> None:
    s = Settling()
    s.state(1000)
    s.invoice()
    (booking,) = booked(s)
    with pytest.raises(Unbalanced):
        Booking(**{**_fields(booking), "lines": (line(R.BANK, 5), line(R.RECEIVABLES, -4))})
    with pytest.raises(ValueError, match="above zero"):
        BookingLine(role=R.BANK, debit_cents=1, credit_cents=1)


def _fields(booking: Booking) -> dict[str, object]:
    return {name: getattr(booking, name) for name in booking.__dataclass_fields__}


def test_totals_are_told_apart_by_currency() -> None:
    s = Settling()
    s.state(1000)
    s.pay(s.invoice(), 1190)
    dollars = [msgspec.structs.replace(one.message, currency="USD") for one in s.payments]
    records = s.records()
    paid = tuple(type(one)(one.id, message) for one, message in zip(records.payments, dollars, strict=True))
    bookings = bookings_of([type(records)(**{**_fields(records), "payments": paid})], RULES)
    assert totals_of(bookings) == {"EUR": (1190, 1190), "USD": (1190, 1190)}


def test_days_are_the_providers() -> None:
    s = Settling(now_ms=1_798_758_000_000)  # 31 December 2026, 23:00 UTC
    s.state(1000)
    s.invoice()
    at_utc = s.records()
    ahead = type(at_utc)(**{**_fields(at_utc), "offsets": (-240,)})
    in_vilnius = type(at_utc)(**{**_fields(at_utc), "days": days_of_zone("Europe/Vilnius"), "offsets": (-240,)})
    days = [bookings_of([one], RULES)[0].day for one in (at_utc, ahead, in_vilnius)]
    assert days == [date(2027, 1, 1), date(2026, 12, 31), date(2027, 1, 1)]
    assert bookings_of([ahead], RULES, span=Span(date(2027, 1, 1), date(2027, 12, 31))) == []


def test_money_ahead_before_any_statement_has_the_first_ones_clock() -> None:
    s = Settling(now_ms=NOW_MS)
    s.pay_ahead(5)
    s.state(100)
    records = s.records()
    shifted = type(records)(**{**_fields(records), "offsets": (600,)})
    assert shifted.offset_at(s.payments[0].message.booked_ms) == 600


def test_side_and_span_choose() -> None:
    s = month()
    both = [s.records(SALE), s.records(PURCHASE)]
    assert len(bookings_of(both, RULES)) == 2 * len(bookings_of(both, RULES, side=SALE))
    first = bookings_of(both, RULES, span=Span(date(2027, 1, 1), date(2027, 1, 31)), side=SALE)
    assert 0 < len(first) < len(bookings_of(both, RULES, side=SALE))


CENTS = st.integers(1, 100_000)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("state"), st.integers(-50_000, 100_000), st.sampled_from([0, 1900, 2100, 2550])),
        st.tuples(st.just("state and invoice"), st.integers(-50_000, 100_000), st.sampled_from([0, 1900, 2100])),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("pay"), st.integers(0, 9), CENTS),
        st.tuples(st.just("return"), st.integers(0, 9), CENTS),
        st.tuples(st.just("reallocate"), st.integers(0, 9), CENTS),
        st.tuples(st.just("ahead"), st.just(0), CENTS),
        st.tuples(st.just("ahead back"), st.just(0), CENTS),
        st.tuples(st.just("set off"), st.integers(0, 9), CENTS),
    ),
    max_size=14,
)


def play(steps: list[tuple[str, int, int]]) -> tuple[Settling, Counter[str]]:
    """The steps as records, and an independent sum of what they do."""
    s, sums = Settling(), Counter[str]()
    for what, n, cents in steps:
        if what.startswith("state"):
            sums["stated"] += s.state(n, rate_bp=cents).message.gross_cents
        if what == "state and invoice":
            sums["owed"] += s.invoice().message.gross_cents
        elif what == "ahead":
            sums["ahead"] += s.pay_ahead(cents).message.amount_cents
        elif what == "ahead back":
            sums["ahead"] += s.pay_ahead(-cents).message.amount_cents
        elif s.invoices and not what.startswith("state"):
            invoice = s.invoices[n % len(s.invoices)]
            if what == "cancel":
                stated = next(one for one in s.statements if one.id == invoice.message.statement)
                message = invoice.message
                made = s.invoice(stated, net_cents=-message.net_cents, vat_cents=-message.vat_cents)
                sums["owed"] += made.message.gross_cents
            elif what == "set off":
                sums["owed"] -= s.set_off(invoice, cents).amount_cents
            elif what == "reallocate":
                s.pay_ahead(-cents, PaymentKind.REALLOCATED)
                s.pay(invoice, cents, PaymentKind.REALLOCATED)
                sums["owed"] -= cents
                sums["ahead"] -= cents
            else:
                cents = cents if what == "pay" else -cents
                s.pay(invoice, cents, PaymentKind.RECEIVED if cents > 0 else PaymentKind.RETURNED)
                sums["owed"] -= cents
    return s, sums


@given(STEPS)
def test_any_sequence_of_records_balances_and_agrees_with_its_statements(steps: list[tuple[str, int, int]]) -> None:
    s, sums = play(steps)
    both = [s.records(SALE), s.records(PURCHASE)]
    for records, owed, ahead, sign in (
        (both[0], R.RECEIVABLES, R.ADVANCES_RECEIVED, 1),
        (both[1], R.PAYABLES, R.ADVANCES_PAID, -1),
    ):
        bookings = bookings_of([records], RULES)
        totals_of(bookings)
        on: Counter[AccountRole] = Counter()
        for booking in bookings:
            for one in booking.lines:
                on[one.role] += one.signed_cents
        assert sum(on.values()) == 0
        # receivables are the open items
        assert sign * on[owed] == sums["owed"]
        assert sign * on[ahead] == -sums["ahead"]
        assert on[R.REALLOCATION] == 0
        # ... which are the closing balance of the last statement, and what moved since
        balance = channel_balance(records, bookings, EVER.last)
        assert balance.books_cents == sums["owed"] - sums["ahead"]
        assert balance.difference_cents == 0
        assert balance.not_invoiced_cents == sums["stated"] - sum(one.message.gross_cents for one in s.invoices)
        closing = s.statements[-1].message.closing_cents if s.statements else 0
        assert balance.closing_cents == closing
        # no line of the trial balance is lost
        books = books_of(records)
        rows = trial_balance(books)
        assert sum(row.closing_cents for row in rows) == 0
        assert sum(row.debit_cents for row in rows) == sum(booking.total_cents for booking in bookings)


def test_a_trial_balance_opens_with_what_was_before() -> None:
    s = month()
    records = s.records()
    january = Span(date(2027, 1, 1), date(2027, 1, 31))
    after = Span(date(2027, 2, 1), date(2027, 12, 31))
    before = bookings_of([records], RULES, span=january)
    opened = {row.number: row for row in trial_balance(books_of(records, span=after), before)}
    whole = {row.number: row for row in trial_balance(books_of(records))}
    assert {n: row.closing_cents for n, row in opened.items()} == {n: row.closing_cents for n, row in whole.items()}
    assert any(row.opening_cents for row in opened.values())


def test_the_balances_of_all_channels_are_those_of_each() -> None:
    made = [month(), Settling("two")]
    made[1].pay_ahead(7)
    channels = [one.records(side) for one in made for side in (SALE, PURCHASE)]
    bookings = bookings_of(channels, RULES)
    each = [channel_balance(one, bookings, EVER.last) for one in channels]
    assert channel_balances(channels, bookings, EVER.last) == each
    assert [one.books_cents for one in each][2:] == [-7, -7]


def test_contradicting_statements_show_as_a_difference() -> None:
    s = Settling()
    s.state(1000)
    s.invoice()
    s.state(0, opening_cents=1_191, closing_cents=1_191)
    bookings = booked(s)
    balance = channel_balance(s.records(), bookings, EVER.last)
    assert balance.difference_cents == -1


def test_an_opening_balance_carried_over_is_told() -> None:
    s = Settling()
    s.state(1000, opening_cents=77)
    s.invoice()
    balance = channel_balance(s.records(), booked(s), EVER.last)
    assert (balance.carried_cents, balance.difference_cents, balance.books_cents) == (77, 0, 1190)
