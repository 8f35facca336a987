"""Money allotted cent by cent: none is lost, none counts twice, and what is open is what the audit's rule says."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.proto.allotment import (
    ChannelMoney,
    CoverKind,
    MoneyKind,
    Movement,
    MovementMoney,
    StatementMoney,
    allot,
    movements_of,
    stated_set_offs,
)
from p2pgrid.proto.billing_rules import spread
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.statement import Invoice, InvoiceType, Statement
from tests.factories import make_invoice, make_payment, make_prepayment, vat_line
from tests.proto.chains import DAY_MS, START_MS, digest

CHANNEL = digest("channel")


def statement_of(number: int, gross: int, *, set_off: int = 0) -> tuple[bytes, Statement]:
    message = Statement(
        channel=CHANNEL,
        statement_number=number,
        previous=b"",
        first_receipt=1,
        last_receipt=0,
        root=digest("root"),
        currency="EUR",
        lines=(),
        total_pico=0,
        credits_pico=0,
        held_pico=0,
        net_cents=gross,
        vat=(vat_line(gross),),
        gross_cents=gross,
        payments_cents=0,
        set_off_cents=set_off,
        opening_cents=0,
        closing_cents=0,
        from_ms=START_MS,
        until_ms=START_MS + number,
        due_ms=START_MS + number * DAY_MS,
        stated_ms=START_MS + number,
    )
    return digest("statement", number), message


def invoice_of(number: int, gross: int, name: str = "") -> Invoice:
    return Invoice(
        channel=CHANNEL,
        statement=digest("statement", number),
        invoice_number=name or f"R{number}",
        type_code=InvoiceType.CREDIT_NOTE if gross < 0 else InvoiceType.INVOICE,
        currency="EUR",
        net_cents=gross,
        vat_cents=0,
        gross_cents=gross,
        document_sha256=digest("document"),
        issued_ms=START_MS,
    )


def moved(index: int, cents: int, number: int = 0, kind: str = "received", reference: str = "") -> Movement:
    """`number`: of the statement; 0 for none."""
    return Movement(
        digest("movement", index),
        MoneyKind(kind),
        cents,
        START_MS + index,
        digest("statement", number) if number else b"",
        f"R{number}" if number else "",
        reference,
    )


Sums = tuple[list[tuple[int, int | None, int]], list[Movement]]

kinds = st.sampled_from(["received", "returned", "refunded", "reallocated"])
amounts = st.integers(-60, 100)


@st.composite
def channels(draw: st.DrawFn) -> Sums:
    """Statements as number, what is invoiced and what they set off; and movements, right or not."""
    count = draw(st.integers(0, 5))
    rows = [
        (number, draw(st.one_of(st.none(), amounts)), draw(st.sampled_from([0, 0, 0, 7, -3])))
        for number in range(1, count + 1)
    ]
    chosen = draw(st.lists(st.tuples(amounts.filter(bool), st.integers(0, count + 1), kinds, st.sampled_from("AB"))))
    movements = [moved(index, cents, number, kind, ref) for index, (cents, number, kind, ref) in enumerate(chosen)]
    return rows, movements


def allotted(rows: list[tuple[int, int | None, int]], movements: list[Movement]) -> ChannelMoney:
    statements = [statement_of(number, gross or 0, set_off=set_off) for number, gross, set_off in rows]
    invoices = [invoice_of(number, gross) for number, gross, _ in rows if gross is not None]
    return allot(statements, invoices, [*movements, *stated_set_offs(statements)])


@settings(max_examples=400)
@given(channels())
def test_every_cent_is_somewhere_and_once(channel: Sums) -> None:
    rows, movements = channel
    money = allotted(rows, movements)
    for one in money.movements:
        assert one.accounted_cents == one.movement.amount_cents, one
        assert one.unused_cents >= 0
        if one.movement.amount_cents > 0:
            assert all(cover.cents > 0 for cover in one.covers)
    for statement in money.statements.values():
        assert statement.open_cents >= 0 <= statement.owed_back_cents
        if statement.invoiced_cents is None:
            assert not statement.covers and not statement.open_cents
            continue
        made = statement.covered_cents + statement.open_cents - statement.owed_back_cents - statement.given_cents
        assert made == statement.invoiced_cents, statement


@settings(max_examples=400)
@given(channels())
def test_both_directions_tell_of_the_same_cents(channel: Sums) -> None:
    """From the movements down to statements, and from the statements up to what covers them."""
    money = allotted(*channel)
    down: Counter[tuple[bytes, bytes, str]] = Counter()
    up: Counter[tuple[bytes, bytes, str]] = Counter()
    for one in money.movements:
        for cover in one.covers:
            assert cover.source == one.movement.record_id
            down[cover.source, cover.statement, cover.kind] += cover.cents
    for statement in money.statements.values():
        for cover in statement.given:
            down[cover.source, cover.statement, cover.kind] += cover.cents
        for cover in statement.covers:
            assert cover.statement == statement.statement_id
            up[cover.source, cover.statement, cover.kind] += cover.cents
    assert down == up
    went: dict[tuple[bytes, bytes], set[int]] = defaultdict(set)
    for one in money.movements:
        for undone in one.undone:
            went[undone.came, undone.went].add(one.movement.amount_cents > 0)
    assert all(sides == {True, False} for sides in went.values()), "both movements say that one undid the other"


@settings(max_examples=400)
@given(channels())
def test_what_is_open_is_what_rule_43b_says(channel: Sums) -> None:
    rows, movements = channel
    money = allotted(rows, movements)
    billed = [(number, gross) for number, gross, _ in rows if gross is not None]
    paid: Counter[bytes] = Counter()
    for movement in movements:
        paid[movement.statement] += movement.amount_cents
    rests = [gross - paid[digest("statement", number)] for number, gross in billed]
    ahead = paid[b""] + sum(set_off for _, _, set_off in rows)
    open_cents = [money.statements[digest("statement", number)].open_cents for number, _ in billed]
    assert open_cents == spread(rests, ahead)


@given(channels(), st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(channel: Sums, random: Random) -> None:
    rows, movements = channel
    shuffled = list(movements)
    random.shuffle(shuffled)
    assert allotted(rows, shuffled) == allotted(rows, movements)


def by_number(money: ChannelMoney, number: int) -> StatementMoney:
    return money.statements[digest("statement", number)]


def by_index(money: ChannelMoney, index: int) -> MovementMoney:
    return next(one for one in money.movements if one.movement.record_id == digest("movement", index))


def test_a_part_is_a_share_of_the_invoice() -> None:
    money = allotted([(1, 2000, 0)], [moved(0, 1240, 1)])
    (cover,) = by_number(money, 1).covers
    assert (cover.kind, cover.cents, cover.invoice_number) == (CoverKind.PAID, 1240, "R1")
    assert by_number(money, 1).open_cents == 760


def test_the_oldest_money_covers_the_lowest_statement_first() -> None:
    money = allotted([(1, 10, 0), (2, 10, 0)], [moved(1, 8), moved(0, 5)])
    assert [(c.source, c.cents) for c in by_number(money, 1).covers] == [
        (digest("movement", 0), 5),
        (digest("movement", 1), 5),
    ]
    assert [(c.source, c.cents) for c in by_number(money, 2).covers] == [(digest("movement", 1), 3)]
    assert by_number(money, 2).open_cents == 7


@pytest.mark.parametrize(("reference", "undone"), [("A", 0), ("B", 1), ("C", 1)])
def test_what_comes_back_undoes_its_own_reference_or_else_the_latest(reference: str, undone: int) -> None:
    came = [moved(0, 10, 1, reference="A"), moved(1, 10, 1, reference="B")]
    money = allotted([(1, 20, 0)], [*came, moved(2, -10, 1, "returned", reference)])
    assert [bool(by_index(money, index).undone) for index in (0, 1)] == [undone == 0, undone == 1]
    assert by_number(money, 1).open_cents == 10


def test_a_credit_is_paid_back_in_part_and_the_rest_counts_for_the_next() -> None:
    money = allotted([(1, 10, 0), (2, -6, 0), (3, 10, 0)], [moved(0, 10, 1), moved(1, -2, 2, "refunded")])
    credit = by_number(money, 2)
    assert [cover.cents for cover in credit.covers] == [-2]
    assert [(cover.kind, cover.cents, cover.statement) for cover in credit.given] == [
        (CoverKind.CREDIT, 4, digest("statement", 3))
    ]
    assert (credit.owed_back_cents, by_number(money, 3).open_cents) == (0, 6)


def test_what_is_paid_too_much_covers_another_and_is_ahead_for_the_rest() -> None:
    money = allotted([(1, 10, 0), (2, 3, 0)], [moved(0, 15, 1)])
    one = by_index(money, 0)
    assert [(cover.kind, cover.cents) for cover in one.covers] == [(CoverKind.PAID, 10), (CoverKind.OVER, 3)]
    assert one.unused_cents == 2


def test_what_was_moved_is_no_money_of_the_first_invoice() -> None:
    moves = [moved(0, 9, 1), moved(1, -9, 1, "reallocated"), moved(2, 9, 2, "reallocated")]
    money = allotted([(1, 9, 0), (2, 9, 0)], moves)
    assert (by_number(money, 1).open_cents, by_number(money, 2).open_cents) == (9, 0)


def test_set_off_covers_the_oldest() -> None:
    money = allotted([(1, 9, 0), (2, 9, 12)], [])
    assert [(c.kind, c.cents) for c in by_number(money, 1).covers] == [(CoverKind.SET_OFF, 9)]
    assert [(c.kind, c.cents) for c in by_number(money, 2).covers] == [(CoverKind.SET_OFF, 3)]


def test_a_set_off_that_names_an_invoice_covers_that_one() -> None:
    """And is not counted once more for the statement that states it."""
    statements = [statement_of(1, 9), statement_of(2, 9, set_off=12)]
    named = moved(0, 7, 2, "set_off")
    movements = [named, *stated_set_offs(statements, known_cents=7)]
    money = allot(statements, [invoice_of(1, 9), invoice_of(2, 9)], movements)
    assert [(c.kind, c.cents, c.invoice_number) for c in by_number(money, 2).covers] == [(CoverKind.SET_OFF, 7, "R2")]
    assert [(c.kind, c.cents) for c in by_number(money, 1).covers] == [(CoverKind.SET_OFF, 5)]


@pytest.mark.parametrize("number", [2, 3])
def test_money_for_what_is_not_there_is_astray(number: int) -> None:
    """Of a statement that has no invoice, and of one that is nowhere."""
    money = allotted([(1, 9, 0), (2, None, 0)], [moved(0, 5, number)])
    assert (by_index(money, 0).astray_cents, by_number(money, 1).open_cents) == (5, 9)


def test_payments_are_read_into_movements() -> None:
    statement_id, statement = statement_of(1, 9)
    invoice = make_invoice(Signed(statement, Record(Statement.payload_type, b"", ()), statement_id, {}))
    payment = make_payment(invoice, CHANNEL, reference="REF", booked_ms=START_MS)
    ahead = make_prepayment(CHANNEL)
    first, second = movements_of([(payment.id, payment.message), (ahead.id, ahead.message)])
    assert (first.statement, first.invoice_number, first.reference) == (statement_id, "2027-0001", "REF")
    assert (second.statement, second.amount_cents, second.kind) == (b"", 5, MoneyKind.RECEIVED)
