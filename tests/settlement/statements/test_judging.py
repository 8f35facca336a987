"""A draft that is wrong in any one thing is not agreed to, and the thing is named."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import msgspec
import pytest

from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.record import Role, sign_message
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.statement_difference import differs, receipt_differences
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.settlement import MAX_DIFFERENCES, StatementDiffers
from p2pgrid.settlement.statements.days import LocalDays
from p2pgrid.settlement.statements.drafting import Draft, Terms, draft
from p2pgrid.settlement.statements.judging import judge
from p2pgrid.settlement.statements.refused import NotStated
from tests.factories import DAY_MS, NOW_MS, PROVIDER, digest
from tests.settlement.statements.parts import DictDetails, details_of, own_details
from tests.settlement.statements.two_sides import UTC, Sides, later


async def drafted(**given: Any) -> tuple[Sides, Draft]:
    """The second statement of a channel in which everything happened."""
    sides = Sides()
    await sides.begin()
    for _ in range(2):
        await sides.buy(tokens=1_000_000)
    await sides.pay_ahead(500)
    assert await sides.settle() == []
    for _ in range(3):
        await sides.buy(tokens=2_000_000)
    await sides.dispute(sides.dealings.receipts[2], 10**10)
    await sides.dispute(sides.dealings.receipts[3], 10**10)
    await sides.exchange_disputes()
    await sides.answer(Decision.ACCEPTED)
    await sides.pay_ahead(700)
    await sides.exchange_disputes()
    await sides.bring_together()
    sides.now_ms += 1000
    made = await draft(
        sides.provider,
        sides.dealings.channel,
        sides.details[1],
        now_ms=sides.now_ms,
        is_wanted=True,
        terms=UTC,
        **given,
    )
    return sides, made


async def judged(
    sides: Sides, made: Draft, statement: Statement | None = None, days: tuple[date, date] | None = None, **given: Any
) -> list[str]:
    found = await judge(
        sides.client,
        sides.dealings.channel,
        sides.details[0],
        statement or made.statement,
        days or (made.first_day, made.last_day),
        **{"now_ms": sides.now_ms, **given},
    )
    return [one.field for one in found.differences]


async def test_a_right_draft_has_no_difference() -> None:
    sides, made = await drafted()
    statement = made.statement
    assert statement.credits_pico and statement.held_pico and statement.payments_cents == 700
    assert (statement.first_receipt, statement.last_receipt, statement.statement_number) == (3, 5, 2)
    assert statement.opening_cents == sides.statements()[0].message.closing_cents
    assert await judged(sides, made) == []


def line(statement: Statement, **changes: Any) -> dict[str, Any]:
    return {"lines": (msgspec.structs.replace(statement.lines[0], **changes),)}


def vat(statement: Statement, **changes: Any) -> dict[str, Any]:
    return {"vat": (msgspec.structs.replace(statement.vat[0], **changes),)}


WRONG: dict[str, tuple[Callable[[Statement], dict[str, Any]], str]] = {
    "channel": (lambda s: {"channel": digest("another")}, "channel"),
    "number": (lambda s: {"statement_number": 3}, "statement_number"),
    "number again": (lambda s: {"statement_number": 1}, "statement_number"),
    "previous": (lambda s: {"previous": digest("another")}, "previous"),
    "first receipt": (lambda s: {"first_receipt": 2}, "first_receipt"),
    "leaves one out at the beginning": (lambda s: {"first_receipt": 4}, "first_receipt"),
    "last receipt": (lambda s: {"last_receipt": 6}, "receipt"),
    "last receipt far off": (lambda s: {"last_receipt": 2**53}, "receipt"),
    "one left out": (lambda s: {"last_receipt": 4}, "root"),
    "root": (lambda s: {"root": digest("another")}, "root"),
    "currency": (lambda s: {"currency": "USD"}, "currency"),
    "no lines": (lambda s: {"lines": ()}, "line"),
    "a line twice": (lambda s: {"lines": s.lines * 2}, "line"),
    "a line's model": (lambda s: line(s, model="dearer"), "line"),
    "a line's price": (lambda s: line(s, output_upm=s.lines[0].output_upm + 1), "line"),
    "a line's receipts": (lambda s: line(s, receipts=4), "line"),
    "a line's tokens": (lambda s: line(s, output_tokens=s.lines[0].output_tokens + 1), "line"),
    "a line's amount": (lambda s: line(s, amount_pico=s.lines[0].amount_pico + 1), "line"),
    "total": (lambda s: {"total_pico": s.total_pico + 1}, "total_pico"),
    "credits": (lambda s: {"credits_pico": s.credits_pico - 1}, "credits_pico"),
    "held": (lambda s: {"held_pico": s.held_pico - 1}, "held_pico"),
    "net": (lambda s: {"net_cents": s.net_cents + 1}, "net_cents"),
    "VAT category": (lambda s: vat(s, category="AE", rate_bp=0, vat_cents=0), "vat"),
    "VAT rate": (lambda s: vat(s, rate_bp=2200), "vat"),
    "VAT amount": (lambda s: vat(s, vat_cents=s.vat[0].vat_cents + 1), "vat"),
    "VAT twice": (lambda s: {"vat": (*s.vat, msgspec.structs.replace(s.vat[0], rate_bp=500))}, "vat"),
    "gross": (lambda s: {"gross_cents": s.gross_cents + 1}, "gross_cents"),
    "payments": (lambda s: {"payments_cents": 699}, "payments_cents"),
    "set off": (lambda s: {"set_off_cents": 1}, "set_off_cents"),
    "opening": (lambda s: {"opening_cents": s.opening_cents + 1}, "opening_cents"),
    "closing": (lambda s: {"closing_cents": s.closing_cents + 1}, "closing_cents"),
    "from": (lambda s: {"from_ms": s.from_ms + 1}, "from_ms"),
    "not over": (lambda s: {"until_ms": s.stated_ms + 200_000}, "until_ms"),
    "stated long ago": (lambda s: {"stated_ms": s.stated_ms - 121_000}, "stated_ms"),
    "stated later": (lambda s: {"stated_ms": s.stated_ms + 121_000}, "stated_ms"),
    "no time to pay": (lambda s: {"due_ms": s.stated_ms + DAY_MS - 1}, "due_ms"),
    "at the end of time": (lambda s: {"until_ms": 253_402_300_799_999}, "until_ms"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_draft_that_is_wrong_in_one_thing_is_refused_for_it(name: str) -> None:
    sides, made = await drafted()
    change, field = WRONG[name]
    wrong = msgspec.structs.replace(made.statement, **change(made.statement))
    fields = await judged(sides, made, wrong)
    assert field in fields
    assert field in await judged(sides, made, wrong, is_signed=True) or name in ("stated long ago", "payments")
    # It fits into a message, however many there are.
    found = await judge(
        sides.client,
        sides.dealings.channel,
        sides.details[0],
        wrong,
        (made.first_day, made.last_day),
        now_ms=sides.now_ms,
    )
    frame = differs(found.differences)
    assert parse_frame(frame.to_bytes(), StatementDiffers) == frame


def test_every_field_of_a_statement_is_tried() -> None:
    tried = {name.removesuffix("s") for _, name in WRONG.values()} | {"line", "last_receipt"}
    assert {name.removesuffix("s") for name in Statement.__struct_fields__} <= tried


@pytest.mark.parametrize("off", [timedelta(days=2), timedelta(days=-2), timedelta(days=40_000)])
async def test_days_that_no_calendar_has(off: timedelta) -> None:
    sides, made = await drafted()
    assert "until_ms" in await judged(sides, made, days=(made.first_day, made.last_day + off))
    assert "until_ms" in await judged(sides, made, days=(made.first_day + off, made.last_day))


async def test_a_receipt_that_is_not_signed_here_is_named() -> None:
    sides = Sides()
    await sides.begin()
    await sides.buy()
    proposal = await sides.buy(signed=False)
    await sides.buy(signed=False)
    # A provider that counts what the client never signed.
    for one in sides.dealings.receipts[1:]:
        await sides.provider.append(one.countersigned(Role.CLIENT, PROVIDER))
    await sides.bring_together()
    made = await draft(
        sides.client, sides.dealings.channel, sides.details[1], now_ms=sides.now_ms, is_wanted=True, terms=UTC
    )
    assert made.statement.last_receipt == 1
    assert made.ends is not None and made.ends.receipt_number == proposal.message.receipt_number
    wrong = msgspec.structs.replace(made.statement, last_receipt=3)
    found = await judge(
        sides.client,
        sides.dealings.channel,
        sides.details[0],
        wrong,
        (made.first_day, made.last_day),
        now_ms=sides.now_ms,
    )
    first = found.differences[0]
    assert (first.field, first.receipt_number) == ("receipt", 2)
    assert "neither signed by both nor disputed" in first.about


async def test_what_ends_a_period_goes_to_the_next() -> None:
    sides = Sides()
    await sides.begin()
    await sides.buy()
    proposal = await sides.buy(signed=False)
    await sides.settle()
    assert [one.message.last_receipt for one in sides.statements()] == [1]
    await sides.dispute(proposal, 10**9)  # in place of signing it
    await sides.settle()
    second = sides.statements()[1].message
    assert (second.first_receipt, second.last_receipt) == (2, 2)
    assert second.held_pico == proposal.message.amount_pico - 10**9
    assert second.total_pico == proposal.message.amount_pico


def test_receipts_are_compared_one_by_one() -> None:
    ours = {n: digest(f"receipt {n}") for n in range(5, 10)}
    theirs = [digest("another") if n == 7 else digest(f"receipt {n}") for n in range(5, 12)]
    found = receipt_differences(ours, theirs, 5)
    assert [(one.receipt_number, bool(one.client)) for one in found] == [(7, True), (10, False), (11, False)]
    many = differs(receipt_differences({}, [digest(str(n)) for n in range(1000)], 1))
    assert len(many.differences) == MAX_DIFFERENCES and not many.is_all


async def test_without_details_nothing_is_stated_and_the_error_says_whose_and_how() -> None:
    sides = Sides()
    await sides.begin()
    await sides.buy()
    only_ours = own_details(Role.PROVIDER)
    for details, whose in ((only_ours, "client's"), (DictDetails(), "provider's and the client's")):
        with pytest.raises(NotStated) as missing:
            await draft(sides.provider, sides.dealings.channel, details, now_ms=sides.now_ms, is_wanted=True, terms=UTC)
        assert missing.value.code == "details-missing"
        assert whose in missing.value.message and "p2pgrid billing set" in missing.value.hint
    ahead = await draft(
        sides.provider,
        sides.dealings.channel,
        only_ours,
        now_ms=sides.now_ms,
        is_wanted=True,
        terms=UTC,
        looks_ahead=True,
    )
    assert ahead.vat_missing is not None and ahead.statement.net_cents == ahead.statement.gross_cents


async def test_another_vat_is_a_difference_where_the_details_differ() -> None:
    sides, made = await drafted()
    sides.details[0].keep(details_of(Role.CLIENT, sequence=2, country="DE", vat_id="DE136695976"))
    found = await judge(
        sides.client,
        sides.dealings.channel,
        sides.details[0],
        made.statement,
        (made.first_day, made.last_day),
        now_ms=sides.now_ms,
    )
    vat_lines = [one for one in found.differences if one.field == "vat"]
    assert {one.about.split()[0] for one in vat_lines} == {"S", "AE"}
    # The exchange brings the new details over, and then both say the same.
    assert await sides.settle() == []
    assert sides.statements()[1].message.vat[0].category == "AE"


async def test_what_was_signed_before_is_taken_though_a_payment_came_since() -> None:
    sides, made = await drafted()
    signed = sign_message(made.statement, Role.PROVIDER, PROVIDER)
    await sides.provider.append(signed)
    await sides.pay_ahead(300, ago_ms=5_000)  # booked before it was stated, told of after
    later(sides, 3)
    sides.agreed = type(sides.agreed)()  # and the client's note is lost
    assert await sides.settle() == []
    assert await sides.settle() == []
    second, third = sides.statements()[1:]
    assert second.id == signed.id and third.message.payments_cents == 300
    assert not sides.faults()


async def test_what_was_signed_long_ago_and_never_agreed_to_is_refused_when_it_is_almost_due() -> None:
    sides, made = await drafted()
    await sides.provider.append(sign_message(made.statement, Role.PROVIDER, PROVIDER))
    later(sides, 14)
    assert [one.field for one in await sides.settle()] == ["due_ms"]
    # A person may accept that; what else differs it does not hide.
    assert await judged(sides, made, is_signed=True, accepts_due=True) == []
    dearer = msgspec.structs.replace(made.statement, gross_cents=made.statement.gross_cents + 1)
    assert await judged(sides, made, dearer, is_signed=True, accepts_due=True) == ["gross_cents"]
    # Of a draft that nobody signed yet there is no need to.
    short = msgspec.structs.replace(made.statement, due_ms=made.statement.stated_ms + 1000)
    assert await judged(sides, made, short, accepts_due=True, now_ms=made.statement.stated_ms) == ["due_ms"]
    # Had it been agreed to, it would be signed.
    sides.agreed.note(made.record, made.statement, sides.now_ms)
    assert await sides.settle() == []


async def test_a_number_that_was_signed_is_never_drafted_otherwise() -> None:
    sides, made = await drafted()
    await sides.provider.append(sign_message(made.statement, Role.PROVIDER, PROVIDER))
    await sides.buy()
    later(sides, 1)
    await sides.settle()
    assert sides.statements()[1].message == made.statement
    assert made.statement.stated_ms > NOW_MS


async def test_a_provider_that_has_changed_its_time_zone_is_told_by_what_it_sells_now() -> None:
    sides, made = await drafted()
    moved = Terms(days=LocalDays.at_offset(13 * 60))
    # Stated when it is already the next day there.
    sides.now_ms = LocalDays.at_offset(0).end_ms(made.last_day) - 3_600_000
    made = await draft(
        sides.provider, sides.dealings.channel, sides.details[1], now_ms=sides.now_ms, is_wanted=True, terms=moved
    )
    offer = msgspec.structs.replace(sides.dealings.offer.message, utc_offset_minutes=13 * 60)
    assert await judged(sides, made) == ["until_ms"]
    assert await judged(sides, made, offer=offer) == []
    # What was drafted before it moved is still agreed to; and days of neither zone are not.
    before = await draft(
        sides.provider, sides.dealings.channel, sides.details[1], now_ms=sides.now_ms, is_wanted=True, terms=UTC
    )
    assert await judged(sides, before, offer=offer) == []
    off = made.first_day, made.last_day + timedelta(days=1)
    assert "until_ms" in await judged(sides, made, days=off, offer=offer)
