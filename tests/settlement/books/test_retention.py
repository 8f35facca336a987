"""Which keys may go and when, to the millisecond; how long the law keeps the rest, to the day."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2pgrid.cli.main import cli
from p2pgrid.desk.asks import EraseExpired
from p2pgrid.desk.erasing import ErasesDaily
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.errors import LedgerError, UsageError
from p2pgrid.ledger.base import KeptKey
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.dispute import Decision
from p2pgrid.settlement.books.days import fiscal_year_of, year_closed_in
from p2pgrid.settlement.books.documents import DocumentFiles
from p2pgrid.settlement.books.legal_years import LOOKED_AT, TERMS, Kept, keep_until, may_go
from p2pgrid.settlement.books.records import records_of_ledger
from p2pgrid.settlement.books.retention import DAY_MS, Stay, judge, plan_keys, plan_salts
from p2pgrid.settlement.books.years import delete, expired_documents, records_by_year
from tests.factories import NOW_MS, PROVIDER, Dealings, digest, make_answer, make_channel, make_dispute
from tests.ledger.test_ledger import AnyLedger, ledger, store
from tests.settlement.books.folder import Year, make_year

__all__ = ["ledger"]

TERM_MS = 14 * DAY_MS + CLOCK_TOLERANCE_MS
"""Of a channel with 14 dispute days, the clocks' tolerance included."""
CHANNEL = make_channel().message


def kept(**changes: Any) -> KeptKey:
    fields: dict[str, Any] = {
        "channel": CHANNEL.channel,
        "order_number": 1,
        "ordered_ms": NOW_MS,
        "outcome": None,
        "receipt": digest("receipt"),
        "receipt_number": 1,
        "issued_ms": NOW_MS + 1000,
        "countersigned": True,
    }
    return KeptKey(**{**fields, **changes})


@pytest.mark.parametrize(
    ("key", "unanswered", "answered_ms", "expected"),
    [
        (kept(), False, 0, (Stay.DISPUTABLE, NOW_MS + 1000 + 2 * TERM_MS)),
        (kept(), True, 0, (Stay.DISPUTED, None)),
        (kept(), False, NOW_MS + 5000, (Stay.DISPUTABLE, NOW_MS + 1000 + 2 * TERM_MS)),
        (
            kept(),
            False,
            NOW_MS + 1001 + TERM_MS,
            (Stay.ANSWERED_LATELY, NOW_MS + 1001 + 2 * TERM_MS),
        ),
        (kept(countersigned=False), False, 0, (Stay.NOT_COUNTERSIGNED, CHANNEL.expires_ms + 2 * TERM_MS)),
        (
            kept(countersigned=False, issued_ms=CHANNEL.expires_ms + 1),
            False,
            0,
            (Stay.NOT_COUNTERSIGNED, CHANNEL.expires_ms + 1 + 2 * TERM_MS),
        ),
        (kept(receipt=b""), False, 0, (Stay.OPEN, CHANNEL.expires_ms + 2 * TERM_MS)),
        (kept(receipt=b"", outcome="refused:busy"), False, 0, (Stay.DISPUTABLE, NOW_MS + 2 * TERM_MS)),
    ],
)
def test_until_when_a_key_is_kept(
    key: KeptKey, unanswered: bool, answered_ms: int, expected: tuple[Stay, int | None]
) -> None:
    assert judge(key, CHANNEL, unanswered, answered_ms) == expected


async def test_a_key_goes_one_millisecond_after_its_term(ledger: AnyLedger) -> None:
    d = Dealings()
    await store(ledger, d.offer, d.channel)
    order = d.order()
    ledger.keep_request_key(order, digest("key"))
    receipt = d.countersign(d.proposal(order))
    await store(ledger, order, receipt)
    last_ms = receipt.message.issued_ms + 2 * TERM_MS
    for now_ms, may in ((last_ms - 1, False), (last_ms, False), (last_ms + 1, True)):
        plan = plan_keys(ledger, now_ms)
        assert plan.orders == (((d.id, 1),) if may else ())
        assert plan.next_ms == (0 if may else last_ms + 1)
        assert plan.staying == ({} if may else {Stay.DISPUTABLE: 1})
        assert plan_salts(ledger, now_ms) == ((receipt.id,) if may else ())


async def test_what_became_of_orders_is_told_with_their_keys(ledger: AnyLedger) -> None:
    d = Dealings()
    await store(ledger, d.offer, d.channel)
    orders = [d.order() for _ in range(5)]
    for order in orders[:4]:
        ledger.keep_request_key(order, digest(f"key {order.message.order_number}"))
        await store(ledger, order)
    await store(ledger, orders[4])
    signed = d.countersign(d.proposal(orders[0]))
    proposed = d.proposal(orders[1])
    await store(ledger, signed, proposed)
    await ledger.note_outcome(orders[2], "refused:busy")
    found = list(ledger.kept_keys(orders[4].message.ordered_ms))
    assert [(one.order_number, one.receipt, one.countersigned, one.outcome) for one in found] == [
        (1, signed.id, True, None),
        (2, proposed.id, False, None),
        (3, b"", False, "refused:busy"),
        (4, b"", False, None),
    ]
    assert [one.receipt_number for one in found] == [1, 2, 0, 0]
    assert found[0].issued_ms == signed.message.issued_ms
    assert len(list(ledger.kept_keys(orders[3].message.ordered_ms))) == 3


async def test_a_dispute_keeps_its_key_and_no_other(ledger: AnyLedger) -> None:
    d = Dealings()
    await store(ledger, d.offer, d.channel)
    receipts = []
    for _ in range(3):
        order = d.order()
        ledger.keep_request_key(order, digest(f"key {order.message.order_number}"))
        receipts.append(d.countersign(d.proposal(order)))
        await store(ledger, order, receipts[-1])
    open_dispute = make_dispute(receipts[0])
    answered = make_dispute(receipts[1])
    answer = make_answer(answered, decision=Decision.REJECTED, answered_ms=NOW_MS + 40 * DAY_MS, owed_pico=1)
    await store(ledger, open_dispute, answered, answer)
    now_ms = NOW_MS + 41 * DAY_MS
    plan = plan_keys(ledger, now_ms)
    assert plan.orders == ((d.id, 3),)
    assert plan.staying == {Stay.ANSWERED_LATELY: 1, Stay.DISPUTED: 1}
    assert plan_salts(ledger, now_ms) == (receipts[2].id,)
    later = plan_keys(ledger, NOW_MS + 1000 * DAY_MS)
    assert later.orders == ((d.id, 2), (d.id, 3))
    assert later.staying == {Stay.DISPUTED: 1} and later.next_ms == 0
    assert set(plan_salts(ledger, NOW_MS + 1000 * DAY_MS)) == {
        receipts[1].id,
        receipts[2].id,
        answered.id,
        answer.id,
    }


# -- the desk, and a node by itself -----------------------------------------------------------------------------------


def keys_left(year: Year) -> list[int]:
    with SqliteLedger.open_readonly(year.data.ledger_file) as reader:
        return [one.order_number for one in reader.kept_keys(2**53)]


async def test_a_node_destroys_expired_keys_by_itself(tmp_path: Path) -> None:
    year = await asyncio.to_thread(make_year, tmp_path / "data", keys=True)
    ledger = SqliteLedger.open(year.data.ledger_file)
    now_ms = [year.grid.receipts[0].message.issued_ms]
    erased: list[Any] = []

    async def no_salts(ids: Any) -> int:
        erased.append(ids)
        return 0

    desk = RecordsDesk(ledger, [PROVIDER], lambda: now_ms[0], erase_salts=no_salts)
    try:
        assert (await desk.perform(EraseExpired())).request_keys == 0  # type: ignore[union-attr]
        now_ms[0] += 29 * DAY_MS
        async with ErasesDaily(desk, is_on=True, first_s=0, every_s=0.001):
            async with asyncio.timeout(10):
                while list(ledger.kept_keys(now_ms[0])):  # noqa: ASYNC110 - what is waited for is in a file
                    await asyncio.sleep(0.001)
        assert erased == []  # salts are destroyed by a person alone
    finally:
        await ledger.aclose()


async def test_a_node_that_was_told_not_to_destroys_nothing() -> None:
    calls: dict[bool, int] = {True: 0, False: 0}

    class Counting:
        def __init__(self, is_on: bool) -> None:
            self.is_on = is_on

        async def perform(self, ask: Any) -> Any:
            calls[self.is_on] += 1

    off = ErasesDaily(Counting(False), is_on=False, first_s=0, every_s=0.001)  # type: ignore[arg-type]
    on = ErasesDaily(Counting(True), is_on=True, first_s=0, every_s=0.001)  # type: ignore[arg-type]
    async with off, on, asyncio.timeout(10):
        while calls[True] < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert calls[False] == 0


async def test_a_ledger_that_fails_is_tried_again_the_next_day(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    class Failing:
        async def perform(self, ask: Any) -> Any:
            calls.append(ask)
            raise LedgerError("the disk is full.")

    async with ErasesDaily(Failing(), is_on=True, first_s=0, every_s=0.001):  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            while len(calls) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert "the disk is full" in caplog.text


# -- the law's years --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("country", TERMS)
@pytest.mark.parametrize("what", Kept)
def test_records_may_go_on_the_first_day_after_their_years(country: str, what: Kept) -> None:
    years = TERMS[country][what].years
    last = date(2026 + years, 12, 31)
    assert keep_until(country, what, 2026) == last
    for day in (date(2026, 1, 1), date(2026, 12, 31)):
        assert not may_go(country, what, day, today=last)
        assert may_go(country, what, day, today=last + timedelta(days=1))
    assert not may_go(country, what, date(2027, 1, 1), today=last + timedelta(days=1))


def test_an_unknown_country_is_refused() -> None:
    for country in ("", "FR"):
        with pytest.raises(UsageError, match="is not known here"):
            keep_until(country, Kept.BOOKS, 2026)


@pytest.mark.parametrize(
    ("day", "begins", "starts", "closed"),
    [
        (date(2026, 1, 1), (1, 1), date(2026, 1, 1), 2026),
        (date(2026, 12, 31), (1, 1), date(2026, 1, 1), 2026),
        (date(2026, 6, 30), (7, 1), date(2025, 7, 1), 2026),
        (date(2026, 7, 1), (7, 1), date(2026, 7, 1), 2027),
        (date(2024, 2, 29), (3, 1), date(2023, 3, 1), 2024),
    ],
)
def test_fiscal_years(day: date, begins: tuple[int, int], starts: date, closed: int) -> None:
    assert fiscal_year_of(day, begins) == starts
    assert year_closed_in(day, begins) == closed


def test_days_at_the_end_of_the_calendar_break_nothing() -> None:
    """The seller dates its invoices, and a wrong one must not stop the report of all others."""
    assert year_closed_in(date.max, (7, 1)) == 9999
    assert keep_until("DE", Kept.BOOKS, 9999) == date.max
    assert not may_go("DE", Kept.BOOKS, date.max, today=date.max)


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "settlement" / "books.md").read_text()
    rows = re.findall(r"^\| (\w\w) \| (\w+) \| (\d+) \| (.+?) \|", page, flags=re.MULTILINE)
    assert {(country, what): (int(years), law) for country, what, years, law in rows} == {
        (country, what.value): (term.years, term.law)
        for country, terms in TERMS.items()
        for what, term in terms.items()
    }
    assert LOOKED_AT.isoformat() in page


# -- documents and the command ----------------------------------------------------------------------------------------


def years_of(year: Year, country: str = "DE") -> Any:
    with SqliteLedger.open_readonly(year.data.ledger_file) as reader:
        channels = records_of_ledger(reader, [PROVIDER.public_key.raw])
    return records_by_year(channels, DocumentFiles([year.data.path / "invoices"]), country=country)


def test_documents_go_after_their_years_and_no_day_before(tmp_path: Path) -> None:
    year = make_year(tmp_path / "data")
    (found,) = years_of(year)
    assert (found.year, found.statements, found.invoices, found.payments) == (2026, 1, 1, 1)
    assert expired_documents([found], date(2034, 12, 31)) == []
    gone = expired_documents([found], date(2035, 1, 1))
    assert {path.name for path in gone} == {"LT-2026-000001.cii.xml", "LT-2026-000001.pdf"}
    assert delete(gone) == 2 and delete(gone) == 0
    assert [path.name for path in (year.data.path / "invoices").rglob("*") if path.is_file()] == ["LT-2025-000009.pdf"]


def test_where_the_law_is_not_known_nothing_may_go(tmp_path: Path) -> None:
    (found,) = years_of(make_year(tmp_path / "data"), country="")
    assert found.keep_until == {}
    assert expired_documents([found], date(2999, 1, 1)) == []


def run(year: Year, *words: str) -> Result:
    return CliRunner().invoke(cli, ["--data", str(year.data.path), "books", "retention", *words])


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_time(ms: int) -> None:
        monkeypatch.setattr("p2pgrid.clock.time.time_ns", lambda: ms * 1_000_000)

    return set_time


def test_the_command_reports_and_destroys_nothing_unasked(tmp_path: Path, at: Any) -> None:
    year = make_year(tmp_path / "data", keys=True)
    issued_ms = year.grid.receipts[0].message.issued_ms
    at(issued_ms + DAY_MS)
    shown = json.loads(run(year, "--json", "--country", "DE").output)
    assert shown["keys"]["may_go"] == 0 and shown["keys"]["staying"] == {"disputable": 3}
    assert shown["years"] == [
        {
            "year": 2026,
            "statements": 1,
            "invoices": 1,
            "payments": 1,
            "documents": 2,
            "keep_until": {"invoices": "2034-12-31", "vouchers": "2034-12-31", "books": "2036-12-31"},
            "may_go": [],
        }
    ]
    at(issued_ms + 60 * DAY_MS)
    text = run(year, "--country", "DE").output
    assert "3 may go, 0 stay" in text and "UStG § 14b(1)" in text
    assert keys_left(year) == [1, 2, 3]


def test_the_command_destroys_keys(tmp_path: Path, at: Any) -> None:
    year = make_year(tmp_path / "data", keys=True)
    at(year.grid.receipts[0].message.issued_ms + 60 * DAY_MS)
    secret = [digest(f"key {number}") for number in (1, 2, 3)]
    assert any(secret[0] in path.read_bytes() for path in year.data.path.iterdir() if path.is_file())
    shown = json.loads(run(year, "--apply", "--json", "--country", "LT").output)
    assert shown["applied"] == {"request_keys": 3, "log_salts": 0, "documents": 0}
    assert keys_left(year) == []
    held = b"".join(path.read_bytes() for path in year.data.path.iterdir() if path.is_file())
    assert not any(one in held for one in secret)
    again = json.loads(run(year, "--apply", "--json", "--country", "LT").output)
    assert again["applied"]["request_keys"] == 0


def test_the_command_deletes_documents_only_when_asked_and_due(tmp_path: Path, at: Any) -> None:
    year = make_year(tmp_path / "data")
    files = year.data.path / "invoices" / "issued"
    at(1_798_000_000_000)
    assert (
        json.loads(run(year, "--apply", "--documents", "--country", "EE", "--json").output)["applied"]["documents"] == 0
    )
    at(2_020_000_000_000)  # 2034, seven years after 2026 are over
    assert json.loads(run(year, "--apply", "--country", "EE", "--json").output)["applied"]["documents"] == 0
    assert len(list(files.iterdir())) == 3
    assert (
        json.loads(run(year, "--apply", "--documents", "--country", "EE", "--json").output)["applied"]["documents"] == 2
    )
    assert [path.name for path in files.iterdir()] == ["LT-2025-000009.pdf"]


def test_another_countrys_shorter_law_deletes_nothing(tmp_path: Path, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip of the hand, or an operator who would like it so: established in Germany, `--country LV`."""
    year = make_year(tmp_path / "data", keys=True)
    monkeypatch.setattr("p2pgrid.settlement.books.office.country_of", lambda config: "DE")
    at(1_970_000_000_000)  # 2032: five years after 2026 are over, eight are not
    result = run(year, "--apply", "--documents", "--country", "LV")
    assert isinstance(result.exception, UsageError) and "config.toml says DE" in str(result.exception)
    assert keys_left(year) == [1, 2, 3]
    assert (
        json.loads(run(year, "--apply", "--documents", "--country", "DE", "--json").output)["applied"]["documents"] == 0
    )
    assert len(list((year.data.path / "invoices" / "issued").iterdir())) == 3


@pytest.mark.parametrize(
    "words", [("--documents",), ("--apply", "--documents", "--country", "FR"), ("--country", "LTU")]
)
def test_what_the_command_refuses(tmp_path: Path, words: tuple[str, ...]) -> None:
    year = make_year(tmp_path / "data")
    assert run(year, *words).exit_code != 0
