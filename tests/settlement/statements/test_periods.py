"""When statements are due, and where their periods end."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.messages import Terms as OfferTerms
from p2pgrid.proto.record import Role
from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.statements.days import LocalDays, StatementDays, may_be_days, period_days
from p2pgrid.settlement.statements.drafting import Draft, Terms, draft, is_due
from p2pgrid.settlement.statements.periods import cut_at_rate_change, due_until
from p2pgrid.settlement.statements.refused import NotStated
from tests.factories import DAY_MS, NOW_MS, make_statement
from tests.settlement.statements.parts import DictDetails, details_of
from tests.settlement.statements.two_sides import UTC as AT_UTC
from tests.settlement.statements.two_sides import Sides, later

VILNIUS = LocalDays(ZoneInfo("Europe/Vilnius"))
TALLINN = LocalDays(ZoneInfo("Europe/Tallinn"))


def ms(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def test_days_are_the_providers() -> None:
    assert VILNIUS.of(ms("2027-01-31T22:00")) == date(2027, 2, 1)
    assert VILNIUS.begin_ms(date(2027, 2, 1)) == ms("2027-01-31T22:00")
    assert VILNIUS.begin_ms(date(2027, 7, 1)) == ms("2027-06-30T21:00")
    assert VILNIUS.end_ms(date(2027, 3, 28)) - VILNIUS.begin_ms(date(2027, 3, 28)) == 23 * 3_600_000
    assert period_days(ms("2027-01-31T22:00"), ms("2027-02-28T22:00"), VILNIUS) == (date(2027, 2, 1), date(2027, 2, 28))


@given(st.integers(0, 4 * 10**12), st.integers(0, 400 * DAY_MS), st.integers(1, 366), st.sampled_from(["V", "U", "S"]))
def test_a_period_ends_with_a_day_after_what_happened_in_it(from_ms: int, after_ms: int, n: int, zone: str) -> None:
    days = {"V": VILNIUS, "U": LocalDays.at_offset(-840), "S": LocalDays(ZoneInfo("America/Sao_Paulo"))}[zone]
    event_ms = from_ms + after_ms
    until_ms = due_until(from_ms=from_ms, event_ms=event_ms, settlement_days=n, days=days)
    assert until_ms > event_ms and days.begin_ms(days.of(until_ms)) == until_ms
    assert (days.of(until_ms) - days.of(from_ms)).days % n == 0
    # And it is the first that does.
    assert (days.of(until_ms) - days.of(event_ms)).days <= n


def stated(first: str, until: str, due: str) -> Statement:
    times: dict[str, Any] = {"from_ms": ms(first), "until_ms": ms(until), "stated_ms": ms(until), "due_ms": ms(due) - 1}
    return make_statement((), bytes(32), channel=bytes(32), **times).message


@pytest.mark.parametrize(
    ("offset", "first", "until", "due", "said"),
    [
        # A day in Vilnius, and what is stated of a part of it.
        (120, "2026-11-25T22:00", "2026-11-26T22:00", "2026-12-10T22:00", "2026-11-26 2026-11-26 2026-12-10"),
        (120, "2026-11-25T22:00", "2026-11-26T09:00", "2026-12-10T22:00", "2026-11-26 2026-11-26 2026-12-10"),
        (120, "2026-11-26T09:00", "2026-11-26T23:30", "2026-12-10T22:00", "2026-11-26 2026-11-27 2026-12-10"),
        # Over a change of the clocks, told by an offer of either side of it.
        (120, "2026-10-19T21:00", "2026-11-18T22:00", "2026-12-02T22:00", "2026-10-20 2026-11-18 2026-12-02"),
        (180, "2026-10-19T21:00", "2026-11-18T22:00", "2026-12-02T22:00", "2026-10-20 2026-11-18 2026-12-02"),
        (180, "2027-03-19T22:00", "2027-04-18T21:00", "2027-05-02T21:00", "2027-03-20 2027-04-18 2027-05-02"),
        # No offer is known: by when it is due.
        (None, "2026-11-25T22:00", "2026-11-26T22:00", "2026-12-10T22:00", "2026-11-26 2026-11-26 2026-12-10"),
        (None, "2026-11-26T05:00", "2026-11-27T05:00", "2026-12-10T05:00", "2026-11-26 2026-11-26 2026-12-09"),
        (None, "2026-11-26T00:00", "2026-11-27T00:00", "2026-12-10T00:00", "2026-11-26 2026-11-26 2026-12-09"),
        # A day that ends as no day does is the one that it is in.
        (None, "2026-11-26T00:00", "2026-11-27T00:00", "2026-12-10T00:00:30", "2026-11-26 2026-11-26 2026-12-10"),
        (840, "2026-11-26T00:00", "2026-11-27T00:00", "9999-12-31T23:59", "2026-11-26 2026-11-27 9999-12-31"),
    ],
)
def test_a_statements_days_are_told_from_an_offer(
    offset: int | None, first: str, until: str, due: str, said: str
) -> None:
    found = StatementDays.of(stated(first, until, due), offset)
    assert [one.isoformat() for one in (found.first, found.last, found.due)] == said.split()


def test_a_period_is_cut_where_the_rate_changes() -> None:
    from_ms, until_ms = ms("2025-06-10T12:00"), ms("2025-07-10T00:00")
    cut_ms = cut_at_rate_change(from_ms, until_ms, "EE", TALLINN)
    assert cut_ms == ms("2025-07-01T00:00", "Europe/Tallinn")
    assert cut_at_rate_change(cut_ms, until_ms, "EE", TALLINN) == until_ms
    assert cut_at_rate_change(from_ms, until_ms, "LT", TALLINN) == until_ms


@pytest.mark.parametrize("offset", [-840, -120, 0, 120, 180, 840])
def test_days_of_a_provider_are_told_from_its_offers_but_for_summer_time(offset: int) -> None:
    days = LocalDays.at_offset(offset)
    from_ms, until_ms = ms("2027-03-10T09:00"), ms("2027-04-10T00:00")
    first, last = period_days(from_ms, until_ms, days)
    for off in (-60, 0, 60):
        if abs(offset + off) <= 840:
            assert may_be_days(from_ms, until_ms, first, last, [offset + off])
    assert not may_be_days(from_ms, until_ms, date(2027, 3, 7), last, [offset])
    assert not may_be_days(from_ms, until_ms, first, date(2027, 4, 13), [offset])


async def sides_with(settlement_days: int) -> Sides:
    sides = Sides()
    offer = sides.dealings.offer
    terms = msgspec.structs.replace(offer.message.terms, settlement_days=settlement_days)
    assert isinstance(terms, OfferTerms)
    from p2pgrid.proto.record import sign_message
    from tests.factories import PROVIDER

    sides.dealings.offer = sign_message(msgspec.structs.replace(offer.message, terms=terms), Role.PROVIDER, PROVIDER)
    await sides.begin()
    return sides


async def test_a_node_settles_at_the_end_of_its_periods_and_not_before() -> None:
    sides = await sides_with(7)
    await sides.buy()
    first_day = AT_UTC.days.of(NOW_MS) if AT_UTC.days else date.min
    due_ms = LocalDays.at_offset(0).begin_ms(first_day) + 7 * DAY_MS
    for ledger in (sides.client, sides.provider):
        assert not await is_due(ledger, sides.dealings.channel, now_ms=due_ms - 1, terms=AT_UTC)
        assert await is_due(ledger, sides.dealings.channel, now_ms=due_ms, terms=AT_UTC)
    sides.now_ms = due_ms - 2000
    with pytest.raises(NotStated, match="due when"):
        await sides.settle(is_wanted=False)
    sides.now_ms = due_ms + 3_600_000
    assert await sides.settle(is_wanted=False) == []
    (signed,) = sides.statements()
    assert (signed.message.from_ms, signed.message.until_ms) == (NOW_MS, due_ms)
    # Nothing happened since: no statement, whatever time goes by.
    later(sides, 40)
    with pytest.raises(NotStated) as nothing:
        await sides.settle(is_wanted=False)
    assert nothing.value.code == "nothing-happened"
    # A payment alone is something; the period in which it came is the one that is stated.
    await sides.pay_ahead(100)
    booked_ms = sides.now_ms
    later(sides, 8)
    assert await sides.settle(is_wanted=False) == []
    second = sides.statements()[1].message
    assert second.payments_cents == 100 and second.from_ms == due_ms
    assert 0 < second.until_ms - booked_ms <= 7 * DAY_MS and (second.until_ms - due_ms) % (7 * DAY_MS) == 0
    assert not sides.faults()


async def test_a_receipt_of_the_next_period_goes_into_the_next_statement() -> None:
    sides = await sides_with(7)
    await sides.buy()
    later(sides, 8)
    await sides.buy()
    assert await sides.settle(is_wanted=False) == []
    (signed,) = sides.statements()
    assert signed.message.last_receipt == 1
    later(sides, 8)
    assert await sides.settle(is_wanted=False) == []
    assert sides.statements()[1].message.first_receipt == 2
    assert not sides.faults()


async def test_before_a_change_of_the_rate_there_is_an_empty_statement_where_the_rest_is_not() -> None:
    """A period ends with the old rate, so one of nothing has to, or nothing after it could be stated."""
    change_ms = ms("2021-01-01T00:00", "Europe/Berlin")
    berlin = Terms(days=LocalDays(ZoneInfo("Europe/Berlin")))
    german: dict[str, Any] = {"country": "DE", "vat_id": "DE136695976"}
    details = DictDetails(details_of(Role.CLIENT, **german), details_of(Role.PROVIDER, **german))
    sides = Sides()
    from tests.factories import make_channel

    sides.dealings.channel = make_channel(opened_ms=change_ms - 10 * DAY_MS, expires_ms=change_ms + 80 * DAY_MS)
    sides.now_ms = change_ms + DAY_MS
    await sides.begin()

    async def wanted() -> Draft:
        channel = sides.dealings.channel
        return await draft(sides.provider, channel, details, now_ms=sides.now_ms, is_wanted=True, terms=berlin)

    with pytest.raises(NotStated) as nothing:
        await wanted()
    assert nothing.value.code == "nothing-happened"
    await sides.buy()
    made = await wanted()
    assert (made.statement.until_ms, made.statement.last_receipt) == (change_ms, 0)


async def test_at_a_change_of_the_rate_there_are_two_statements() -> None:
    """From the second half of 2020 on, when Germany's rate went from 16 back to 19 %."""
    change_ms = ms("2021-01-01T00:00", "Europe/Berlin")
    berlin = Terms(days=LocalDays(ZoneInfo("Europe/Berlin")))
    seller = details_of(Role.PROVIDER, country="DE", vat_id="DE136695976")
    buyer = details_of(Role.CLIENT, country="DE", vat_id="DE136695976")
    sides = Sides(details=(DictDetails(buyer), DictDetails(seller)))
    from tests.factories import make_channel

    sides.dealings.channel = make_channel(opened_ms=change_ms - 10 * DAY_MS, expires_ms=change_ms + 80 * DAY_MS)
    sides.now_ms = change_ms - 9 * DAY_MS
    await sides.begin()
    await sides.buy()
    sides.now_ms = change_ms + DAY_MS
    await sides.buy()
    await sides.bring_together()
    first = await draft(
        sides.provider,
        sides.dealings.channel,
        sides.details[1],
        now_ms=sides.now_ms,
        is_wanted=True,
        terms=berlin,
    )
    assert (first.statement.until_ms, first.statement.last_receipt) == (change_ms, 1)
    assert (first.statement.vat[0].rate_bp, first.last_day) == (1600, date(2020, 12, 31))
    assert first.statement.due_ms > sides.now_ms + 13 * DAY_MS
    assert datetime.fromtimestamp(first.statement.due_ms / 1000, UTC).date() <= date(2021, 1, 16)
