"""`p2pgrid billing` and `p2pgrid invoices`, as a person uses them."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2pgrid.cli.config_edit import with_settings
from p2pgrid.cli.main import cli
from p2pgrid.cli.settling import workbench
from p2pgrid.config import parse_config
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import UsageError
from p2pgrid.ledger.card_file import write_cards
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Role
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from tests.factories import CLIENT, PROVIDER, Dealings, make_card, make_invoice, resigned, secret_key
from tests.settlement.issuing.scene import OTHER_IBAN, SELLER, Scene, details


def call(folder: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--data", str(folder), *arguments], standalone_mode=False)
    assert (result.return_value or 0) == code, (result.output, result.exception)
    return result


def fails(folder: Path, *arguments: str) -> UsageError:
    result = CliRunner().invoke(cli, ["--data", str(folder), *arguments], standalone_mode=False)
    assert isinstance(result.exception, UsageError), (result.output, result.exception)
    return result.exception


def test_settings_are_written_where_they_belong_and_nothing_else_changes() -> None:
    text = (
        '# mine\nnetwork = "x"\n\n[provider]\n#iban = "no"\n[billing] # me\n#iban = ""\ncity = "A"  # old\n\n[client]\n'
    )
    changed = with_settings(text, "billing", {"iban": 'L"T', "city": "Ä", "business": False, "payment-days": 3})
    assert changed == (
        '# mine\nnetwork = "x"\n\n[provider]\n#iban = "no"\n[billing] # me\niban = "L\\"T"\ncity = "Ä"  # old\n'
        "business = false\npayment-days = 3\n\n[client]\n"
    )
    assert parse_config(with_settings("", "billing", {"city": "B"}), "t").billing.city == "B"
    assert with_settings('[[networks]]\nname = "m"\n', "billing", {"city": "B"}).endswith('[billing]\ncity = "B"\n')
    with pytest.raises(UsageError, match="payment-days"):
        with_settings("", "billing", {"payment-days": 1000})


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ('[billing]\niban = "LT#1" # of the firm\n', '[billing]\niban = "N" # of the firm\n'),
        ("[billing]\niban = 'LT#1'#\n", '[billing]\niban = "N"#\n'),
        ('[billing]\n#iban = "LT1" # closed\n', '[billing]\n#iban = "LT1" # closed\niban = "N"\n'),
        ("# a\u2028b\r\n[billing]\r\n", '# a\u2028b\r\n[billing]\r\niban = "N"\r\n'),
    ],
)
def test_what_a_person_wrote_stays(text: str, changed: str) -> None:
    assert with_settings(text, "billing", {"iban": "N"}) == changed
    assert with_settings(changed, "billing", {"iban": "N"}) == changed


@pytest.mark.parametrize(
    "text",
    [
        'billing = { iban = "LT1" }\n',
        'billing.iban = "LT1"\n',
        '[billing]\niban = """\nLT1"""\n',
        '[billing]\n"iban" = "LT1"\n',
        '[billing]\ncity = """\niban = "LT1"\n"""\n',
        "[billing\n",
    ],
)
def test_what_cannot_be_changed_by_lines_is_left_to_the_person(text: str) -> None:
    with pytest.raises(UsageError, match="iban cannot be set under") as caught:
        with_settings(text, "billing", {"iban": "N"})
    assert "by hand" in caught.value.hint


def test_a_configuration_that_is_a_link_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "real.toml").write_bytes(b'[billing]\ncity = "A"\r\n')
    DataFolder(tmp_path).config_file.symlink_to("real.toml")
    call(tmp_path, "billing", "set", "--city", "B")
    assert DataFolder(tmp_path).config_file.is_symlink()
    assert (tmp_path / "real.toml").read_bytes() == b'[billing]\r\ncity = "B"\r\n'
    (tmp_path / "real.toml").write_bytes(b'[billing]\ncity = "\xff"\n')
    assert "cannot be read" in fails(tmp_path, "billing", "set", "--city", "B").message


def test_a_setting_that_makes_another_one_wrong_is_refused_and_what_is_wrong_is_shown(tmp_path: Path) -> None:
    call(tmp_path, "billing", "set", "--country", "LT", "--vat-id", "LT100001738313")
    before = DataFolder(tmp_path).config_file.read_bytes()
    assert "vat-id is" in fails(tmp_path, "billing", "set", "--country", "DE").message
    assert "go together" in fails(tmp_path, "billing", "set", "--electronic-scheme", "EM").message
    assert DataFolder(tmp_path).config_file.read_bytes() == before
    DataFolder(tmp_path).config_file.write_text('[billing]\nlegal-name = "A"\ncountry = "LT"\nvat-id = "LT1"\n')
    assert "Wrong: vat-id is 'LT1'" in call(tmp_path, "billing", "show").output
    shown = json.loads(call(tmp_path, "billing", "show", "--json").output)
    assert [fault["field"] for fault in shown["faults"]] == ["vat-id"]


def test_billing_is_shown_where_no_library_checks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(tmp_path, "billing", "set", "--country", "LT", "--vat-id", SELLER["vat-id"])
    monkeypatch.setitem(sys.modules, "stdnum.eu.vat", None)
    output = call(tmp_path, "billing", "show").output
    assert SELLER["vat-id"] in output
    assert "pip install 'p2pgrid[settle]'" in output
    assert json.loads(call(tmp_path, "billing", "show", "--json").output)["faults"] is None


def test_billing_is_set_shown_and_checked(tmp_path: Path) -> None:
    flags = [f"--{key}={value}" for key, value in SELLER.items()]
    shown = json.loads(call(tmp_path, "billing", "set", *flags, "--small-business", "--json").output)
    assert shown["billing"]["legal_name"] == "Žaibas UAB"
    assert shown["billing"]["small_business"] is True
    assert shown["missing"] == {"issue": [], "be_invoiced": [], "pay": []}
    assert "nothing is missing" in call(tmp_path, "billing", "show").output
    assert "Nothing is wrong" in call(tmp_path, "billing", "check").output
    before = DataFolder(tmp_path).config_file.read_bytes()
    error = fails(tmp_path, "billing", "set", "--iban", "LT121000011101001001")
    assert "iban is 'LT121000011101001001'" in error.message
    assert DataFolder(tmp_path).config_file.read_bytes() == before
    fails(tmp_path, "billing", "set")
    call(tmp_path, "billing", "set", "--no-small-business")
    # What a person wrote by hand is found by `check`.
    DataFolder(tmp_path).config_file.write_text(
        '[billing]\nlegal-name = "A"\ncountry = "LT"\nvat-id = "LT1"\nbic = "X"\n'
    )
    found = json.loads(call(tmp_path, "billing", "check", "--json", code=1).output)
    assert [fault["field"] for fault in found["faults"]] == ["vat-id", "bic"]
    assert "missing street" in call(tmp_path, "billing", "show").output


def test_billing_has_to_agree_with_the_card(tmp_path: Path) -> None:
    flags = [f"--{key}={value}" for key, value in SELLER.items()]
    call(tmp_path, "billing", "set", *flags)
    write_cards(DataFolder(tmp_path).card_file, [make_card()])
    found = json.loads(call(tmp_path, "billing", "check", "--json", code=1).output)
    assert [fault["field"] for fault in found["faults"]] == ["legal-name", "vat-id"]
    assert "Vilnius Compute UAB" in found["faults"][0]["expected"]


def test_a_changed_account_is_shown_and_confirmed(tmp_path: Path) -> None:
    assert "No peer" in call(tmp_path, "billing", "peers").output
    book = DetailsBook(open_database(tmp_path / FILE_NAME))
    book.keep(details(SELLER, PROVIDER, Role.PROVIDER, 1, stated_ms=1))
    book.keep(details({**SELLER, "iban": OTHER_IBAN}, PROVIDER, Role.PROVIDER, 2, stated_ms=1))
    peer = PROVIDER.public_key.peer_id
    assert f"p2pgrid billing confirm {peer} {OTHER_IBAN}" in call(tmp_path, "billing", "peers").output
    shown = json.loads(call(tmp_path, "billing", "peers", "--json").output)
    assert [change["iban_now"] for change in shown["account_changes"]] == [OTHER_IBAN]
    fails(tmp_path, "billing", "confirm", peer, SELLER["iban"])
    call(tmp_path, "billing", "confirm", peer, OTHER_IBAN)
    assert json.loads(call(tmp_path, "billing", "peers", "--json").output)["account_changes"] == []


def test_of_several_changes_only_the_account_of_now_is_offered_to_be_confirmed(tmp_path: Path) -> None:
    book = DetailsBook(open_database(tmp_path / FILE_NAME))
    third = "EE382200221020145685"
    for sequence, iban in enumerate((SELLER["iban"], OTHER_IBAN, third), 1):
        book.keep(details({**SELLER, "iban": iban}, PROVIDER, Role.PROVIDER, sequence, stated_ms=1))
    output = call(tmp_path, "billing", "peers").output
    peer = PROVIDER.public_key.peer_id
    assert output.count("ACCOUNT CHANGED") == 2
    assert [line.split()[-1] for line in output.splitlines() if f"billing confirm {peer}" in line] == [third]


def made(folder: Path, **parties: Any) -> Scene:
    async def run() -> Scene:
        ledger = SqliteLedger.open(folder / "ledger.sqlite")
        scene = await Scene(folder, ledger, **parties).opened()
        await scene.stated(5_000_000)
        await ledger.aclose()
        return scene

    return asyncio.run(run())


def test_invoices_are_issued_listed_shown_opened_and_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated_ms = made(tmp_path).statements[-1].message.stated_ms
    monkeypatch.setattr(time, "time_ns", lambda: (stated_ms + 5000) * 1_000_000)
    (waiting,) = json.loads(call(tmp_path, "invoices", "list", "--json").output)["invoices"]
    assert (waiting["status"], waiting["gross_cents"], waiting["statement_number"]) == ("pending", 400, 1)
    done = json.loads(call(tmp_path, "invoices", "issue", "--json").output)
    assert done["pending"] == []
    (number,) = done["issued"]
    shown = json.loads(call(tmp_path, "invoices", "show", number, "--json").output)
    assert (shown["direction"], shown["peer_name"], len(shown["files"])) == ("issued", "Käufer GmbH", 3)
    assert shown["status"] == "issued"
    page = call(tmp_path, "invoices", "open", number, "--print").output.strip()
    assert page.endswith(f"{number}.pdf")
    assert Path(page).read_bytes().startswith(b"%PDF")
    assert "4.00 EUR" in call(tmp_path, "invoices", "show", number).output
    again = json.loads(call(tmp_path, "invoices", "cancel", number, "--reason", "moved", "--json").output)
    assert again["cancelled"] == number
    views = json.loads(call(tmp_path, "invoices", "list", "--json").output)["invoices"]
    assert [view["status"] for view in views] == ["cancelled", "cancellation", "issued"]
    assert json.loads(call(tmp_path, "invoices", "list", "--received", "--json").output) == {"invoices": []}
    assert "No statement waits" in call(tmp_path, "invoices", "issue").output
    assert "there is no invoice" in fails(tmp_path, "invoices", "show", "INV-1").message


def test_two_peers_that_use_one_number_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        ledger = SqliteLedger.open(tmp_path / "ledger.sqlite")
        scene = Scene(tmp_path / "other", ledger)
        await scene.opened()
        invoice = make_invoice(await scene.stated(5_000_000), invoice_number="INV-2027-000001")
        other = Dealings(provider=secret_key("another provider"), name="another")
        await ledger.append(invoice)
        await ledger.append(other.channel)
        await ledger.append(resigned(invoice, other.provider, Role.PROVIDER, channel=other.id))
        await ledger.aclose()

    asyncio.run(run())
    monkeypatch.setattr(DataFolder, "own_public_keys", lambda _: [CLIENT.public_key])
    error = fails(tmp_path, "invoices", "show", "INV-2027-000001")
    assert "--peer" in error.hint
    peer = PROVIDER.public_key.peer_id
    shown = json.loads(call(tmp_path, "invoices", "show", "INV-2027-000001", "--peer", peer, "--json").output)
    assert shown["peer"] == peer
    assert "are not here" in fails(tmp_path, "invoices", "open", "INV-2027-000001", "--peer", peer).message
    nobody = secret_key("nobody").public_key.peer_id
    assert "there is no invoice" in fails(tmp_path, "invoices", "show", "INV-2027-000001", "--peer", nobody).message


def test_what_is_refused_is_said_with_the_reason(tmp_path: Path) -> None:
    made(tmp_path, seller={"iban": ""})
    result = call(tmp_path, "invoices", "issue", code=1)
    assert "waits (billing)" in result.output
    assert "`p2pgrid billing set` writes them." in result.output
    (waiting,) = json.loads(call(tmp_path, "invoices", "issue", "--json", code=1).output)["pending"]
    assert waiting["hint"] == "`p2pgrid billing set` writes them."
    assert "missing: iban" in call(tmp_path, "invoices", "list").output


def test_pay_pays_from_the_account_of_billing(tmp_path: Path) -> None:
    made(tmp_path)
    with workbench(DataFolder(tmp_path)) as bench:
        assert bench.own_account(Role.CLIENT).iban == SELLER["iban"]
    DataFolder(tmp_path).config_file.write_text('[billing]\niban = "LT1"\n')
    with workbench(DataFolder(tmp_path)) as bench, pytest.raises(UsageError, match="iban is 'LT1'"):
        bench.own_account(Role.CLIENT)
