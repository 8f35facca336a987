"""CSV and DATEV: golden files, and what is read back from them by a small reader of the test's own."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.cells import harmless
from p2pgrid.errors import UsageError
from p2pgrid.proto.invoice_sums import vat_of
from p2pgrid.proto.record import Role
from p2pgrid.proto.statement import VatLine
from p2pgrid.settlement.books.accounts import AccountRole, chart_of, with_own
from p2pgrid.settlement.books.book_set import BookSet
from p2pgrid.settlement.books.booking import Rules
from p2pgrid.settlement.books.csv_export import COLUMNS, csv_of
from p2pgrid.settlement.books.datev import _tax_in, datev_of, document_field, file_name, text_field
from p2pgrid.settlement.books.days import Span
from p2pgrid.settlement.books.records import Days
from p2pgrid.settlement.clock import days_of_zone
from p2pgrid.units import MAX_UNIX_MS
from tests.factories import CLIENT
from tests.settlement.books.makers import DAY_MS, RULES, Settling, books_of, month

GOLDEN = Path(__file__).parent / "golden"
YEAR = Span(date(2027, 1, 1), date(2027, 12, 31))
R = AccountRole
CLIENT_NAME = {(Role.PROVIDER, CLIENT.public_key.raw): 'Žalgirio „Ąžuolas" UAB'}
CLIENT_VAT_ID = {(Role.PROVIDER, CLIENT.public_key.raw): "LT100001738313"}


def datev_rules(day: date) -> int:
    """What a German client owes."""
    return 1900


GERMAN = Rules(reverse_charge_rate=datev_rules)


def month_books(chart: str, side: Role = Role.PROVIDER) -> BookSet:
    made = books_of(month().records(side), chart=chart, span=YEAR, rules=GERMAN)
    return replace(made, names=CLIENT_NAME, vat_ids=CLIENT_VAT_ID)


def golden(name: str, made: bytes) -> None:
    """The file as it is kept. To make it anew, delete it and run the test twice."""
    path = GOLDEN / name
    if not path.exists():
        path.write_bytes(made)
        pytest.fail(f"{name} was not there: look at what was written")
    assert made == path.read_bytes()


@pytest.mark.parametrize("side", [Role.PROVIDER, Role.CLIENT])
def test_csv_is_as_it_was(side: Role) -> None:
    golden(f"bookings.{side.value}.csv", csv_of(month_books("plain", side)))


@pytest.mark.parametrize("side", [Role.PROVIDER, Role.CLIENT])
@pytest.mark.parametrize("chart", ["skr03", "skr04"])
def test_datev_is_as_it_was(chart: str, side: Role) -> None:
    golden(f"EXTF_{chart}.{side.value}.csv", datev_of(month_books(chart, side)))


def test_the_same_export_twice_is_the_same() -> None:
    assert csv_of(month_books("plain")) == csv_of(month_books("plain"))
    assert datev_of(month_books("skr03")) == datev_of(month_books("skr03"))


def test_csv_read_back_is_the_books() -> None:
    books = month_books("plain")
    rows = list(csv.DictReader(io.StringIO(csv_of(books).decode()), delimiter=";"))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == sum(len(one.lines) for one in books.bookings)
    debit = sum(round(float(row["debit"] or 0) * 100) for row in rows)
    credit = sum(round(float(row["credit"] or 0) * 100) for row in rows)
    assert debit == credit == sum(one.total_cents for one in books.bookings)
    assert {row["record"] for row in rows} == {one.record.hex() for one in books.bookings}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM", "=cmd|' /C calc'!A0"])
def test_no_name_is_a_formula(text: str) -> None:
    assert harmless(text) == f"'{text}"
    books = replace(month_books("plain"), names={next(iter(CLIENT_NAME)): text + "\r\n;x"})
    rows = list(csv.DictReader(io.StringIO(csv_of(books).decode(), newline=""), delimiter=";"))
    assert {row["counterparty"] for row in rows} == {f"'{text}  ;x"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Alice,=1+1", "Alice,'=1+1"),
        ('Alice, "@SUM', "Alice,' \"@SUM"),
        ("a;-1;+1", "a;'-1;'+1"),
        ("\t=1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        ("x-ray + @home, a=b", "x-ray + @home, a=b"),
        ("", ""),
    ],
)
def test_a_formula_behind_a_comma_is_none_either(text: str, shown: str) -> None:
    """Where tables are split at commas, a line of ours begins a cell behind one."""
    assert harmless(text) == shown


@given(st.text(alphabet="=+-@,;|\t\n\"' a", max_size=12))
def test_no_cell_begins_a_formula_whatever_splits_it(text: str) -> None:
    for cell in re.split("[,;|]", harmless(text)):
        assert not cell.strip(' "').startswith(("=", "+", "-", "@"))


def test_a_provider_s_number_is_no_formula_for_who_opens_datevs_file_in_a_spreadsheet() -> None:
    s = Settling()
    s.state(1000)
    s.invoice(invoice_number="=cmd|' /C calc'!A0")
    for field in check_form(datev_of(books_of(s.records(Role.CLIENT), chart="skr03", span=YEAR, rules=GERMAN)))[0]:
        assert not field.strip('"').startswith(("=", "+", "-", "@")) or field[0] != '"'


# -- DATEV, by a reader of its own ----------------------------------------------------------------------------------

EXPRESSIONS = {
    1: r"(?!0{1,10},00)\d{1,10},\d{2}",
    2: r'"[SH]"',
    3: r'"[A-Z]{3}"',
    7: r"(?!0+$)\d{1,9}",
    8: r"(?!0+$)\d{1,9}",
    9: r'"(\d{4})?"',
    10: r"\d{4}",
    11: r'"[A-Za-z0-9_$&%*+\-/]{0,36}"',
    14: r'".{0,62}"',
    21: r'".{0,20}"',
    22: r'".{0,210}"',
    40: r'".{0,15}"',
    114: r"[01]",
    115: r"((0[1-9]|[12]\d|3[01])(0[1-9]|1[0-2])20\d{2})?",
    117: r"((0[1-9]|[12]\d|3[01])(0[1-9]|1[0-2])20\d{2})?",
}
"""What DATEV's description of the format has for the columns that are filled, by number; quotes inside are doubled."""
HEADER = [
    r'"EXTF"', "700", "21", '"Buchungsstapel"', "13",
    r"20\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(2[0-3]|[01]\d)[0-5]\d[0-5]\d{4}",
    "", r'"\w{0,2}"', r'"\w{0,25}"', r'"\w{0,25}"', r"\d{4,7}", r"\d{1,5}", r"20\d{6}", "[4-8]", r"20\d{6}",
    r"20\d{6}", r'"[\w.\-/ ]{0,30}"', r'"([A-Z]{2}){0,2}"', "[12]", "(0|30|40|50|64)", "[01]", '"[A-Z]{3}"',
    "", '""', "", "", r'"(\d{2}){0,2}"', r"\d{0,4}", "", '""', '".{0,16}"',
]  # fmt: skip
TEXT = {2, 3, 6, 9, 11, 12, 14, 16, *range(20, 39), 40, 42, *range(48, 88), 91, 95, 96, 98, 102, 103, 105, 107, 109,
        110, 112, 118, 120, 121, 123}  # fmt: skip


def fields_of(row: str) -> list[str]:
    """Fields with their quotes: split at semicolons outside of quotes."""
    return re.findall(r'(?:^|(?<=;))("(?:[^"]|"")*"|[^;"]*)(?=;|$)', row)


def read_datev(data: bytes) -> tuple[list[str], list[str], list[list[str]]]:
    text = data.decode("cp1252")
    assert text.endswith("\r\n")
    header, columns, *rows = text[:-2].split("\r\n")
    assert not any("\n" in row or "\r" in row for row in rows)
    return fields_of(header), columns.split(";"), [fields_of(row) for row in rows]


def check_form(data: bytes) -> list[list[str]]:
    header, columns, rows = read_datev(data)
    assert len(header) == 31 and len(columns) == len(set(columns)) == 125
    for field, expression in zip(header, HEADER, strict=True):
        assert re.fullmatch(expression, field), (field, expression)
    for row in rows:
        assert len(row) == 125
        for number, field in enumerate(row, 1):
            assert (field.startswith('"') and field.endswith('"')) is (number in TEXT), (number, field)
            expression = EXPRESSIONS.get(number, '""' if number in TEXT else "")
            if number not in (22, 23, 24):
                assert re.fullmatch(expression, field), (number, field)
    return rows


def cents(umsatz: str) -> int:
    return int(umsatz.replace(",", ""))


def imported(data: bytes, rates: dict[str, int]) -> Counter[str]:
    """What DATEV makes of the rows: balances, with VAT taken out of the gross where account or key says a rate."""
    balances: Counter[str] = Counter()
    for row in check_form(data):
        signed = cents(row[0]) * (1 if row[1] == '"S"' else -1)
        account, contra, key = row[6], row[7], row[8].strip('"')
        balances[account] += signed
        rate = rates.get(key) or rates.get(contra, 0)
        gross = -signed
        tax = (abs(gross) * rate * 2 + 10_000 + rate) // (2 * (10_000 + rate)) * (1 if gross > 0 else -1)
        balances[contra] += gross - tax
        balances[f"tax of {contra}{key}"] += tax
    return Counter({k: v for k, v in balances.items() if v})


def on_accounts(books: BookSet) -> Counter[str]:
    balances: Counter[str] = Counter()
    for booking in books.bookings:
        for one in booking.lines:
            balances[books.account(booking, one).number] += one.signed_cents
    return Counter({k: v for k, v in balances.items() if v})


@pytest.mark.parametrize(
    ("chart", "revenue", "vat", "abroad"), [("skr03", "8400", "1776", "8336"), ("skr04", "4400", "3806", "4336")]
)
def test_what_datev_books_is_what_we_booked(chart: str, revenue: str, vat: str, abroad: str) -> None:
    books = month_books(chart)
    datev = imported(datev_of(books), {revenue: 1900})
    datev[vat] = datev.pop(f"tax of {revenue}")
    assert datev == on_accounts(books)
    assert abroad in datev


@pytest.mark.parametrize(("chart", "expense", "vat"), [("skr03", "3100", "1576"), ("skr04", "5900", "1406")])
def test_what_datev_books_of_purchases(chart: str, expense: str, vat: str) -> None:
    books = month_books(chart, Role.CLIENT)
    datev = imported(datev_of(books), {"0009": 1900})
    datev[vat] = datev.pop(f"tax of {expense}0009")
    ours = on_accounts(books)
    owed = [books.chart.number(one) for one in (R.VAT_INPUT_REVERSE, R.VAT_OUTPUT_REVERSE)]
    assert ours.pop(owed[0]) == -ours.pop(owed[1])  # DATEV books these on its automatic account by itself
    assert datev == ours


@given(st.integers(0, 10**9), st.sampled_from([1900, 1600, 2100, 2200, 2400, 2550, 700]))
def test_vat_taken_out_of_a_gross_amount_is_the_invoices(net: int, rate_bp: int) -> None:
    vat = vat_of(net, rate_bp)
    assert _tax_in(net + vat, rate_bp) == vat


def test_the_days_of_supply_stand_beside_the_invoices_day() -> None:
    """An invoice of January over December: its VAT is December's."""
    s = Settling(now_ms=1_798_700_000_000)  # 31 December 2026, 06:53 UTC
    s.state(1000)
    s.later(DAY_MS)
    s.pay(s.invoice(), 1190)
    books = replace(books_of(s.records(), chart="skr03", span=YEAR), vat_ids=CLIENT_VAT_ID)
    invoice, *_, payment = csv.DictReader(io.StringIO(csv_of(books).decode()), delimiter=";")
    assert (invoice["date"], invoice["supply_from"], invoice["supply_to"]) == ("2027-01-01", *2 * ["2026-12-31"])
    assert (payment["supply_from"], payment["supply_to"]) == ("", "")
    assert invoice["vat_id"] == CLIENT_VAT_ID[Role.PROVIDER, CLIENT.public_key.raw]
    assert [row[114] for row in check_form(datev_of(books))] == ["31122026", ""]


@pytest.mark.parametrize("days", [None, days_of_zone("Europe/Vilnius")])
def test_a_due_day_at_the_end_of_all_calendars_stops_no_export(days: Days | None) -> None:
    s = Settling()
    s.state(1000, due_ms=MAX_UNIX_MS)
    s.invoice()
    books = books_of(replace(s.records(), offsets=(720,), days=days), chart="skr03", span=YEAR)
    (row, *_) = csv.DictReader(io.StringIO(csv_of(books).decode()), delimiter=";")
    assert row["due"] == "9999-12-31"
    assert check_form(datev_of(books))[0][116] == ""


def one_invoice(rate_bp: int, **changes: object) -> Settling:
    s = Settling(rate_bp=rate_bp)
    s.state(1000, **changes)
    s.invoice()
    return s


def test_a_rate_that_datev_would_not_compute_is_refused() -> None:
    books = books_of(one_invoice(2100).records(), chart="skr03", span=YEAR)
    with pytest.raises(UsageError, match=r"VAT of 21\.00 %.*would compute 19\.00 % on account 8400"):
        datev_of(books)
    chart = with_own(
        chart_of("skr03"), numbers={"revenue-S": "8411"}, tax_keys={"revenue-S": "77"}, tax_rates={"revenue-S": 2100}
    )
    (row,) = check_form(datev_of(replace(books, chart=chart)))
    assert (row[0], row[7], row[8]) == ("12,10", "8411", '"0077"')


def test_vat_that_is_not_its_rates_is_refused() -> None:
    vat = VatLine(category="S", rate_bp=1900, exemption="", net_cents=1000, vat_cents=191)
    books = books_of(one_invoice(1900, vat=(vat,)).records(), chart="skr03", span=YEAR)
    with pytest.raises(UsageError, match=r"has VAT of 1\.91, and DATEV would compute 1\.90"):
        datev_of(books)


def test_a_reverse_charge_at_another_rate_than_datevs_is_refused() -> None:
    books = books_of(one_invoice(0).records(Role.CLIENT), chart="skr04", span=YEAR, rules=RULES)
    with pytest.raises(UsageError, match=r"21\.00 %"):
        datev_of(books)


def test_the_plain_chart_has_no_rates_for_datev() -> None:
    with pytest.raises(UsageError, match=r"would compute 0\.00 %"):
        datev_of(books_of(one_invoice(1900).records(), span=YEAR))


def test_who_may_not_deduct() -> None:
    chart = with_own(chart_of("skr03"), input_vat_deducted=False)
    rules = Rules(input_vat_deducted=False, reverse_charge_rate=datev_rules)
    books = books_of(one_invoice(1900).records(Role.CLIENT), chart=chart, span=YEAR, rules=rules)
    (row,) = check_form(datev_of(books))
    assert (row[0], row[1], row[8]) == ("11,90", '"H"', '""')
    abroad = books_of(one_invoice(0).records(Role.CLIENT), chart=chart, span=YEAR, rules=rules)
    with pytest.raises(UsageError, match="without deduction"):
        datev_of(abroad)


def test_datev_computes_nothing_of_another_countrys_vat() -> None:
    rules = Rules(reverse_charge_rate=datev_rules, country="DE", country_of=lambda _: "LT")
    for rate_bp in (1900, 2100):
        books = books_of(one_invoice(rate_bp).records(Role.CLIENT), chart="skr03", span=YEAR, rules=rules)
        (row,) = check_form(datev_of(books))
        assert (row[0], row[1], row[7], row[8]) == (f"{10 + rate_bp / 1000:.2f}".replace(".", ","), '"H"', "3100", '""')


def test_two_fiscal_years_are_refused() -> None:
    books = replace(month_books("skr03"), span=Span(date(2026, 12, 31), date(2027, 1, 1)))
    with pytest.raises(UsageError, match="two fiscal years"):
        datev_of(books)
    summer = with_own(chart_of("skr03"), fiscal_year_begins=(7, 1))
    with pytest.raises(UsageError, match="two fiscal years"):
        datev_of(replace(month_books("skr03"), chart=summer))
    half = replace(month_books("skr03"), chart=summer, span=Span(date(2027, 1, 1), date(2027, 6, 30)))
    assert read_datev(datev_of(half))[0][12] == "20260701"


def test_another_currency_is_refused() -> None:
    s = Settling()
    s.pay_ahead(5)
    records = s.records()
    dollars = msgspec.structs.replace(records.payments[0].message, currency="USD")
    changed = replace(records, payments=(replace(records.payments[0], message=dollars),))
    with pytest.raises(UsageError, match="in USD"):
        datev_of(books_of(changed, chart="skr03", span=YEAR))


def test_more_than_ten_digits_are_refused() -> None:
    s = Settling()
    s.pay_ahead(10**12)
    with pytest.raises(UsageError, match="ten digits"):
        datev_of(books_of(s.records(), chart="skr03", span=YEAR))


def test_an_empty_file_has_its_two_heads() -> None:
    header, columns, rows = read_datev(datev_of(books_of(chart="skr03", span=YEAR)))
    assert header[5] == "20270101000000000"
    assert len(columns) == 125 and rows == []


def test_final_says_so_in_header_and_rows() -> None:
    books = month_books("skr03")
    final = replace(books, chart=replace(books.chart, is_final=True))
    for made, expected in ((books, "0"), (final, "1")):
        header, _, rows = read_datev(datev_of(made))
        assert {header[20], *(row[113] for row in rows)} == {expected}


@pytest.mark.parametrize("chart", ["plain", "skr03", "skr04"])
def test_a_charts_own_numbers_are_as_long_as_the_others(chart: str) -> None:
    """DATEV reads 1200 where accounts have five digits as 01200, which is another account."""
    longer = with_own(chart_of(chart), account_length=5, numbers={"bank": "12345"})
    assert longer.number(R.BANK) == "12345"
    others = {role: number for role, number in longer.numbers.items() if role is not R.BANK}
    assert others == {role: chart_of(chart).number(role) + "0" for role in others}


def test_a_shorter_number_than_datevs_is_refused() -> None:
    chart = with_own(chart_of("skr03"), account_length=5, numbers={"bank": "1200"})
    with pytest.raises(UsageError, match="'1200' has 4 digits, and 5 were expected"):
        datev_of(replace(month_books("skr03"), chart=chart))


def test_an_account_of_several_roles_has_one_name() -> None:
    s = Settling()
    for category in ("E", "O", "Z"):
        s.state(1000, vat=(VatLine(category=category, rate_bp=0, exemption="", net_cents=1000, vat_cents=0),))
        s.invoice()
    for chart, names in (("skr03", {"Purchased inference"}), ("plain", {
        "Purchased inference, of a small business", "Purchased inference, outside of VAT",
        "Purchased inference, other cases of VAT",
    })):  # fmt: skip
        books = books_of(s.records(Role.CLIENT), chart=chart, span=YEAR)
        assert {books.account(b, b.lines[1]).name for b in books.bookings} == names


def test_longer_account_numbers() -> None:
    longer = {role.value: chart_of("skr03").number(role) + "0" for role in AccountRole}
    chart = with_own(chart_of("skr03"), numbers=longer, account_length=5)
    header, _, rows = read_datev(datev_of(replace(month_books("skr03"), chart=chart)))
    assert header[13] == "5"
    assert {row[6] for row in rows} == {"100000", "17100"}


def test_the_files_name() -> None:
    assert file_name(month_books("skr03")) == "EXTF_Buchungsstapel_20270101-20271231.csv"


@given(st.text(max_size=80))
def test_a_documents_number_has_datevs_letters(number: str) -> None:
    field = document_field(number)
    assert re.fullmatch(r"[A-Za-z0-9_$&%*+\-/]{0,36}", field)
    assert not field.startswith(("+", "-"))
    if re.fullmatch(r"([A-Za-z0-9_$&%*/][A-Za-z0-9_$&%*+\-/]{0,35})?", number):
        assert field == number


def test_numbers_that_look_alike_stay_apart() -> None:
    numbers = ["A.1", "A-1", "A 1", "X" * 40, "X" * 41, "X" * 36]
    assert len({document_field(number) for number in numbers}) == len(numbers)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Müller & Söhne", "Müller & Söhne"),
        ("Žąsų ūkis", "Žasu ukis"),
        ("a\r\nb\tc", "a  b c"),
        ("日本", "??"),
        ("x" * 70, "x" * 60),
        ("€", "€"),
        ("a\u202eb", "a b"),
    ],
)
def test_text_is_in_windows_letters(text: str, shown: str) -> None:
    assert text_field(text) == shown


@given(st.text(max_size=100))
def test_any_text_can_be_written(text: str) -> None:
    shown = text_field(text)
    assert len(shown.encode("cp1252")) <= 60
    assert "\n" not in shown and "\r" not in shown
    assert shown.isprintable()


def test_the_clients_vat_id_stands_on_what_it_owes_vat_for_alone() -> None:
    rows = check_form(datev_of(month_books("skr03")))
    assert {(row[7], row[39]) for row in rows if row[39] != '""'} == {("8336", '"LT100001738313"')}
