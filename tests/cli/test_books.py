"""`p2pgrid books`: what a person at the keyboard gets, beside a running node and without one."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2pgrid.cli.main import cli
from p2pgrid.commands.address import socket_path
from p2pgrid.commands.server import serve_commands
from p2pgrid.commands.wire import About
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Role
from p2pgrid.provider.desk import PROVIDER_ASKS, ProviderDesk
from p2pgrid.settlement.books.accounts import AccountRole, account_name, chart_of
from p2pgrid.settlement.books.personal import PersonalAccounts
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from tests.factories import CLIENT, NOW_MS, PROVIDER, make_billing_details, secret_key
from tests.settlement.books.folder import Year, make_folder, make_year, store
from tests.settlement.books.makers import Settling

DOCS = Path(__file__).parents[2] / "docs" / "settlement" / "books.md"


def run(year: Year, *words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["--data", str(year.data.path), "books", *map(str, words)])


def shown(year: Year, *words: str | Path) -> Any:
    result = run(year, *words, "--json")
    if isinstance(result.exception, P2pgridError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def year(tmp_path: Path) -> Year:
    return make_year(tmp_path / "data", keys=True)


def test_an_export_is_written_and_its_totals_told(year: Year, tmp_path: Path) -> None:
    gross = year.invoice.message.gross_cents
    told = shown(year, "export", "--format", "csv", "--year", "2026", "-o", tmp_path / "b.csv")
    assert told["totals"] == {"EUR": {"debit_cents": 2 * gross, "credit_cents": 2 * gross}}
    assert (told["bookings"], told["lines"], told["side"], told["chart"]) == (2, 5, "both", "plain")
    first = (tmp_path / "b.csv").read_bytes()
    assert shown(year, "export", "--format", "csv", "--year", "2026", "-o", tmp_path / "b.csv") == told
    assert (tmp_path / "b.csv").read_bytes() == first
    text = run(year, "export", "--format", "csv", "--year", "2026", "-o", tmp_path / "b.csv").output
    assert f"{2 * gross / 100:.2f} EUR" in text


def test_datev_by_chart_or_by_a_mapping(year: Year, tmp_path: Path) -> None:
    out = tmp_path / "EXTF.csv"
    told = shown(year, "export", "--format", "datev", "--chart", "skr04", "--year", "2026", "-o", out)
    assert told["chart"] == "skr04"
    assert ";10000;4400;" in out.read_text("cp1252")
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('chart = "skr03"\ndatev-consultant = 29098\n[numbers]\nrevenue-S = "8401"\n')
    shown(year, "export", "--format", "datev", "--mapping", mapping, "--year", "2026", "-o", out)
    text = out.read_text("cp1252")
    assert ";10000;8401;" in text and ";29098;1;20260101;" in text


def test_config_toml_chooses_the_accounts(year: Year, tmp_path: Path) -> None:
    year.data.config_file.write_text('[billing.accounts]\nchart = "skr04"\nnumbers = { bank = "1810" }\n')
    told = shown(year, "balance", "--year", "2026")
    assert {"1810", "4400", "10000"} <= {row["account"] for row in told["accounts"]}


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('chart = "skr05"', "no chart of accounts 'skr05'"),
        ('[numbers]\ncash = "1"', "'cash' is no role"),
        ('[numbers]\nbank = "12a"', "no account number"),
        ('[numbers]\nbank = "123456"', "no account number"),
        ('[tax-keys]\nexpense-S = "99999"', "no tax key"),
        ("chart = 1", "is wrong"),
        ("nonsense", "is wrong"),
        ('fiscal-year-begins = "13-01"', "is wrong"),
        ("what = 1", "is wrong"),
    ],
)
def test_a_wrong_mapping_is_refused(year: Year, tmp_path: Path, toml: str, words: str) -> None:
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(toml)
    with pytest.raises(UsageError, match=words):
        shown(year, "balance", "--year", "2026", "--mapping", mapping)
    with pytest.raises(UsageError, match="cannot be read"):
        shown(year, "balance", "--year", "2026", "--mapping", tmp_path / "none")


@pytest.mark.parametrize(
    "period", [(), ("--year", "2026", "--from", "2026-01-01"), ("--from", "2026-02-01", "--to", "2026-01-01")]
)
def test_a_period_has_to_be_one(year: Year, tmp_path: Path, period: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        shown(year, "export", "--format", "csv", *period, "-o", tmp_path / "b.csv")
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31", "1999-12-31", "20260101", "2026-W01-1", "01.01.2026"])
def test_a_day_is_written_in_one_way_and_of_our_time(year: Year, tmp_path: Path, day: str) -> None:
    for period in (("--from", day, "--to", "2026-12-31"), ("--from", "2026-01-01", "--to", day)):
        result = run(year, "balance", *period)
        assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception
        assert "Write it like 2026-12-31" in result.output


def test_a_folder_that_is_not_there(year: Year, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        shown(year, "export", "--format", "csv", "--year", "2026", "-o", tmp_path / "no" / "b.csv")


def test_the_balance_of_books_and_of_statements(year: Year) -> None:
    told = shown(year, "balance", "--year", "2026")
    assert sum(row["closing_cents"] for row in told["accounts"]) == 0
    (channel,) = told["channels"]
    assert (channel["books_cents"], channel["difference_cents"]) == (0, 0)
    assert channel["closing_cents"] == year.statement.message.closing_cents
    assert channel["payments_not_stated_cents"] == year.payment.message.amount_cents
    assert "paid and in no statement yet" in run(year, "balance", "--year", "2026").output
    assert "Nothing was booked" in run(year, "balance", "--year", "2020").output


def test_records_that_contradict_one_another_are_told(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data")
    s = Settling("contradiction", now_ms=1_790_000_000_000)
    s.state(1000)
    s.state(0, opening_cents=5_000, closing_cents=5_000)
    store(data, s.channel, *s.statements)
    result = CliRunner().invoke(cli, ["--data", str(data.path), "books", "balance", "--year", "2026"])
    assert result.exit_code == 1
    assert "DIFFERENCE" in result.output


def test_purchases_under_reverse_charge_need_a_country(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", CLIENT, "client")
    s = Settling("abroad", now_ms=1_790_000_000_000, rate_bp=0)
    s.state(10_000)
    s.invoice()
    store(data, s.channel, *s.statements, *s.invoices)
    words = ["--data", str(data.path), "books", "balance", "--year", "2026", "--json"]
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, UsageError) and "--country" in result.exception.hint
    told = json.loads(CliRunner().invoke(cli, [*words, "--country", "fi"]).stdout)
    owed = {row["name"]: row["closing_cents"] for row in told["accounts"]}
    assert owed["VAT owed, reverse charge"] == -2550


@pytest.mark.parametrize("form", ["csv", "datev"])
def test_what_an_accountant_has_to_add_is_told(tmp_path: Path, form: str) -> None:
    """A sale abroad without the client's VAT id; money ahead, on which VAT may be due."""
    data = make_folder(tmp_path / "data")
    s = Settling("abroad", now_ms=1_790_000_000_000, rate_bp=0)
    s.pay_ahead(5_000)
    s.state(10_000)
    s.invoice()
    store(data, s.channel, *s.statements, *s.invoices, *s.payments)
    words = [
        "--data",
        str(data.path),
        "books",
        "export",
        "--year",
        "2026",
        "--chart",
        "skr03",
        "-o",
        str(tmp_path / "b"),
    ]
    told = json.loads(CliRunner().invoke(cli, [*words, "--format", form, "--json"]).stdout)
    assert told["without_vat_id"] == ["LT-2027-000001"]
    assert told["paid_ahead"] == 1
    output = CliRunner().invoke(cli, [*words, "--format", form]).output
    assert "VAT id is not known" in output and "1 payment(s) came for no invoice" in output


def test_an_invoice_without_its_statement_is_told(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data")
    s = Settling("unclear", now_ms=1_790_000_000_000)
    s.state(1000)
    s.invoice()
    store(data, s.channel, *s.invoices)
    words = ["--data", str(data.path), "books", "export", "--format", "csv", "--year", "2026"]
    result = CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "b.csv")])
    assert "nobody can say its case of VAT" in result.output and "1990" in result.output


@pytest.mark.parametrize(("ours", "is_foreign"), [("DE", True), ("LT", False)])
def test_vat_that_was_charged_abroad_is_told(tmp_path: Path, ours: str, is_foreign: bool) -> None:
    year = make_year(tmp_path / "data", side="client")
    with closing(open_database(year.data.path / FILE_NAME)) as database:
        DetailsBook(database, lambda: NOW_MS).keep(make_billing_details(Role.PROVIDER, country="LT"))
    words = ["export", "--format", "csv", "--year", "2026", "--country", ours, "-o", tmp_path / "b.csv"]
    number = year.invoice.message.invoice_number
    assert shown(year, *words)["foreign_vat"] == ([number] if is_foreign else [])
    assert ("its VAT is another country's" in run(year, *words).output) is is_foreign
    text = (tmp_path / "b.csv").read_text()
    assert ("Purchased inference, with VAT of another country" in text) is is_foreign
    assert ("Input VAT" in text) is not is_foreign


def test_a_name_is_shown_as_it_is(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data")
    s = Settling("names", now_ms=1_790_000_000_000)
    s.state(1000)
    s.invoice(invoice_number="[red]9[/red]\x1b[31m")
    store(data, s.channel, *s.invoices)
    words = ["--data", str(data.path), "books", "export", "--format", "csv", "--year", "2026"]
    output = CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "b.csv")]).output
    assert "Invoice [red]9[/red]?[31m: nobody" in output


# -- accounts of clients and providers --------------------------------------------------------------------------------


def test_accounts_are_given_once_and_kept(year: Year, tmp_path: Path) -> None:
    assert shown(year, "accounts") == {"accounts": []}
    mine = CLIENT.public_key.peer_id
    assert shown(year, "accounts", "--give", f"{mine}=10042")["accounts"] == [
        {"side": "provider", "peer": mine, "account": 10042}
    ]
    shown(year, "export", "--format", "csv", "--year", "2026", "-o", tmp_path / "b.csv")
    assert ";10042;" in (tmp_path / "b.csv").read_text()
    for other in (f"{mine}=10043", f"{secret_key('other').public_key.peer_id}=10042"):
        with pytest.raises(UsageError, match="never changed"):
            shown(year, "accounts", "--give", other)
    assert len(shown(year, "accounts", "--give", f"{mine}=10042")["accounts"]) == 1


def test_longer_account_numbers_are_given_and_shown_as_exports_have_them(year: Year, tmp_path: Path) -> None:
    year.data.config_file.write_text("[billing.accounts]\naccount-length = 5\n")
    mine, other = CLIENT.public_key.peer_id, secret_key("other").public_key.peer_id
    with pytest.raises(UsageError, match="100000 to 699999"):
        shown(year, "accounts", "--give", f"{mine}=10042")
    shown(year, "accounts", "--give", f"{mine}=100042")
    shown(year, "accounts", "--give", f"{other}=100010")
    assert [one["account"] for one in shown(year, "accounts")["accounts"]] == [100010, 100042]
    with pytest.raises(UsageError, match="never changed"):
        shown(year, "accounts", "--give", f"{mine}=100010")
    shown(year, "export", "--format", "datev", "--chart", "skr04", "--year", "2026", "-o", tmp_path / "b.csv")
    assert ";100042;44000;" in (tmp_path / "b.csv").read_text("cp1252")


def test_the_next_number_does_not_follow_an_accountants_longer_one(tmp_path: Path) -> None:
    keys = [secret_key(f"peer {n}").public_key for n in range(2)]
    with closing(open_database(tmp_path / "settlement.db")) as database:
        accounts = PersonalAccounts(database)
        accounts.give(Role.PROVIDER, keys[0].peer_id, 100042, account_length=5)
        assert accounts.of([(Role.PROVIDER, keys[1].raw)]) == {(Role.PROVIDER, keys[1].raw): 10_000}


@pytest.mark.parametrize("text", ["x", "x=", "=10000", "{0}=9999", "{0}=100000", "{0}=1e4"])
def test_what_is_no_account_is_refused(year: Year, text: str) -> None:
    with pytest.raises(UsageError):
        shown(year, "accounts", "--give", text.format(CLIENT.public_key.peer_id))


def test_numbers_go_on_where_they_ended_whoever_gives_them(tmp_path: Path) -> None:
    keys = [secret_key(f"peer {n}").public_key for n in range(4)]
    path = tmp_path / "settlement.db"
    with closing(open_database(path)) as one, closing(open_database(path)) as two:
        first, second = PersonalAccounts(one), PersonalAccounts(two)
        assert first.of([(Role.PROVIDER, keys[0].raw)]) == {(Role.PROVIDER, keys[0].raw): 10_000}
        given = second.of([(Role.PROVIDER, key.raw) for key in keys[:2]] + [(Role.CLIENT, keys[0].raw)])
        assert list(given.values()) == [10_000, 10_001, 70_000]
        first.give(Role.PROVIDER, keys[2].peer_id, 69_999)
        assert first.of([(Role.PROVIDER, keys[3].raw)]) == {(Role.PROVIDER, keys[3].raw): 10_002}


# -- beside a running node --------------------------------------------------------------------------------------------


async def test_all_of_it_works_beside_a_node_that_holds_the_ledger(year: Year, tmp_path: Path) -> None:
    """And what destroys is done by the node."""
    ledger = SqliteLedger.open(year.data.ledger_file)
    salts: list[Any] = []

    async def erase_salts(ids: Any) -> int:
        salts.extend(ids)
        return len(ids)

    at_ms = year.grid.receipts[0].message.issued_ms + 60 * 86_400_000
    records = RecordsDesk(ledger, [PROVIDER], lambda: at_ms, erase_salts=erase_salts)
    desk = ProviderDesk(ledger, PROVIDER.public_key, lambda _: False, records)
    about = About(version="0", peer_id=PROVIDER.public_key.peer_id, role="provider", pid=1)
    try:
        async with serve_commands(socket_path(year.data.path), about, PROVIDER_ASKS, desk.perform):
            for words in (
                ("export", "--format", "csv", "--year", "2026", "-o", tmp_path / "b.csv"),
                ("balance", "--year", "2026"),
                ("archive", "2026", "-o", tmp_path / "a", "--country", "DE"),
                ("retention",),
            ):
                await asyncio.to_thread(shown, year, *words)
            told = await asyncio.to_thread(shown, year, "retention", "--apply", "--salts")
        assert told["applied"] == {"request_keys": 3, "log_salts": 3, "documents": 0}
        assert set(salts) == {one.id for one in year.grid.receipts}
        assert list(ledger.kept_keys(2**53)) == []
    finally:
        await ledger.aclose()


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_the_charts() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| (.+?) \| (\d{4}) \| (\d{4}) \| (\d{4}) \|$", DOCS.read_text(), flags=re.MULTILINE
    )
    charts = [chart_of(name) for name in ("plain", "skr03", "skr04")]
    assert rows == [
        (role.value, account_name(role), *(chart.number(role) for chart in charts))
        for role, *_ in [(AccountRole(row[0]),) for row in rows]
    ]
    assert {row[0] for row in rows} == {role.value for role in AccountRole}
