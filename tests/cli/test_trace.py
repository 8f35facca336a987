"""`p2pgrid trace`: what a name fits, what is printed, what is written; on bundles and on a node's own ledger."""

from __future__ import annotations

import csv
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2pgrid.audit import check
from p2pgrid.cli.main import cli
from p2pgrid.cli.trace import references_of, split
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.messages import Usage
from tests.audit.months import Month, make_month, new_month
from tests.proto.chains import DAY_MS, Dealings

DAY = "2026-05-28"


@pytest.fixture(scope="module")
def month() -> Month:
    """Two statements: the first paid in full, of the second a part; then a receipt that no statement holds."""
    made = new_month(Random(5))
    for reference, part in (("FIRST-REF", 1), ("SECOND-REF", 2)):
        made.sell(30)
        invoice = made.invoice(made.state(rate_bp=2100))
        made.pay(invoice, invoice.message.gross_cents // part, reference=reference)
    made.sell(1)
    return made


@pytest.fixture
def bundles(month: Month, tmp_path: Path) -> list[str]:
    """Both sides' exports as files."""
    return written(month, tmp_path)


def written(month: Month, folder: Path) -> list[str]:
    paths = []
    for bundle in month.bundles():
        paths.append(str(folder / bundle.source))
        Path(paths[-1]).write_bytes(b"\n".join(bundle.lines) + b"\n")
    return paths


def trace(*arguments: str, **options: Any) -> Result:
    result = CliRunner().invoke(cli, ["trace", *arguments], **options)
    if isinstance(result.exception, P2pgridError):
        raise result.exception
    return result


def as_json(*arguments: str) -> Any:
    return json.loads(trace(*arguments, "--json").stdout)


def test_a_transfer_by_each_of_its_names(bundles: list[str], month: Month) -> None:
    payment = month.payments[1]
    cents = payment.message.amount_cents
    amount = f"{cents // 100}.{cents % 100:02}"
    names = (
        ["SECOND-REF"],
        ["second ref"],
        [amount],
        [amount, DAY],
        [f"{amount} EUR {DAY}"],
        [amount.replace(".", ","), DAY],
        [f"{amount}@{DAY}"],
        [payment.id.hex()],
        [payment.id.hex()[:10].upper()],
        [f"payment:{payment.id.hex()[:16]}"],
        [payment.message.entry.hex()],
        ["payment:SECOND-REF"],
    )
    for name in names:
        shown = as_json(*bundles, *name)
        assert shown["kind"] == "transfer", name
        assert shown["transfer"]["payment_ids"] == [payment.id.hex()]
    with pytest.raises(UsageError, match="is named"):
        trace(*bundles, amount, "2026-05-27")


def test_invoices_statements_and_receipts_by_their_names(bundles: list[str], month: Month) -> None:
    invoice, statement, receipt = month.invoices[1], month.statements[1], month.grid.receipts[40]
    channel = statement.message.channel.hex()
    names = {
        "invoice": ["LT-2026-000002", invoice.id.hex(), "invoice:LT-2026-000002"],
        "statement": [statement.id.hex()[:12], f"{channel}:s2", f"{channel[:6]}:S2", "statement:2"],
        "receipt": [receipt.id.hex()[:16], f"{channel}:41", f"receipt:{channel[:4]}:41", "receipt:41"],
    }
    for kind, of_kind in names.items():
        for name in of_kind:
            assert as_json(*bundles, name)["kind"] == kind, name


def test_a_reference_that_nobody_has_used_yet_names_its_statement(tmp_path: Path) -> None:
    month = new_month(Random(5))
    month.sell(3)
    statement = month.state()
    bundles = written(month, tmp_path)
    for reference in references_of(statement.id):
        spaced = " ".join(reference[at : at + 4] for at in range(0, len(reference), 4)).lower()
        for name in (reference, spaced):
            assert as_json(*bundles, name)["statement"]["statement_id"] == statement.id.hex()


def test_a_name_that_fits_several_things_lists_them(tmp_path: Path) -> None:
    """Two clients' invoices with one number, which is a finding besides."""
    first, second = make_month(1, nonce="a"), make_month(2, nonce="b")
    bundles = [*written(first, tmp_path)]
    Path(bundles[0]).write_bytes(b"\n".join(line for m in (first, second) for line in m.bundles()[0].lines) + b"\n")
    with pytest.raises(UsageError) as caught:
        trace(bundles[0], "LT-2026-000001")
    lines = caught.value.message.split("\n")
    assert "names 2 things" in lines[0]
    assert len(lines) == 3
    for line in lines[1:]:
        name = line.split()[0]
        assert trace(bundles[0], name).exit_code == 1, "each line begins with what names it alone"
    result = CliRunner().invoke(cli, ["trace", bundles[0], "LT-2026-000001", "--json"])
    assert result.exit_code == 2
    assert [one["kind"] for one in json.loads(result.stdout)["candidates"]] == ["invoice", "invoice"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LT-2026-999999", "no record at hand is named 'LT-2026-999999'"),
        ("invoice:SECOND-REF", "no invoice at hand"),
        ("receipt:999", "no receipt at hand"),
        ("1.00 2026-99-99", "is no date"),
        ("payment:", "is empty"),
        ("lost.jsonl", "lost.jsonl is no file"),
        ("ffffffff", "no record"),
        ("x" * 5000, "no record"),
        ("\x1b[2J", "no record"),
    ],
)
def test_names_that_fit_nothing(bundles: list[str], name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        trace(*bundles, name)
    assert words in caught.value.message


def test_files_come_first(bundles: list[str]) -> None:
    assert split([*bundles, "12.40", "2026-11-02"]) == ([Path(path) for path in bundles], "12.40 2026-11-02")
    assert split([]) == ([], "")
    assert split(["-", "12.40"]) == ([Path("-")], "12.40")
    for arguments in (["lost.jsonl", bundles[0]], ["12.40", bundles[0]]):
        with pytest.raises(UsageError, match="Name the bundles first"):
            split(arguments)


def test_standard_input(bundles: list[str]) -> None:
    result = trace("-", "SECOND-REF", input=Path(bundles[0]).read_bytes())
    assert result.exit_code == 0
    assert "reference 'SECOND-REF'" in result.stdout


def test_what_is_printed(bundles: list[str], month: Month) -> None:
    cents, gross = month.payments[1].message.amount_cents, month.invoices[1].message.gross_cents
    shown = trace(*bundles, "SECOND-REF").stdout
    assert shown.startswith("Verified: clean. ")
    amount, whole = f"{cents / 100:.2f}", f"{gross / 100:.2f}"
    for words in (
        f"Transfer of {amount} EUR, received on {DAY}, reference 'SECOND-REF'",
        f"of invoice LT-2026-000002 over {whole}, statement 2",
        "An invoice is paid as a whole: no receipt of it is paid before another.",
        "receipts 31 to 60",
        "<- this transfer",
        "30 receipts, exactly",
        "VAT 21.00 % (S)",
    ):
        assert words in shown
    assert "  id" not in shown, "no receipt one by one"
    listed = trace(*bundles, "SECOND-REF", "--receipts").stdout
    for receipt in month.grid.receipts[30:60]:
        assert receipt.id.hex()[:16] in listed
    assert month.grid.receipts[0].id.hex()[:16] not in listed
    assert "Left over: nothing." in trace(*bundles).stdout
    assert "In no statement yet: 1 receipts." in trace(*bundles).stdout


def test_json_of_the_whole(bundles: list[str], month: Month) -> None:
    shown = as_json(*bundles)
    assert shown["audit"]["clean"] is True
    assert shown["kind"] == "all"
    assert shown["all"]["left_over_cents"] == 0
    assert [row["amount_cents"] for row in shown["all"]["transfers"]] == [
        payment.message.amount_cents for payment in month.payments
    ]
    (peers,) = shown["all"]["peers"]
    assert peers["balance_cents"] == peers["open_cents"] == shown["all"]["statements"][1]["open_cents"]
    (channel,) = shown["all"]["channels"]
    assert channel["unstated_receipts"] == 1


def test_a_table_for_spreadsheets(bundles: list[str], month: Month, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    result = trace(*bundles, "SECOND-REF", "--csv", str(path))
    assert f"Wrote 30 receipts to {path}" in result.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert [int(row["receipt_number"]) for row in rows] == list(range(31, 61))
    assert {row["invoice_numbers"] for row in rows} == {"LT-2026-000002"}
    assert [row["receipt_id"] for row in rows] == [receipt.id.hex() for receipt in month.grid.receipts[30:60]]
    trace(*bundles, "--csv", str(path))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert len(rows) == 61
    assert (rows[-1]["statement_number"], rows[-1]["invoice_numbers"]) == ("", "")
    trace(*bundles, "receipt:3", "--csv", str(path))
    assert len(path.read_text().splitlines()) == 2


def test_a_model_s_name_is_no_formula(tmp_path: Path) -> None:
    grid = Dealings()
    order = grid.order(model='=HYPERLINK("http://x")')
    grid.receipt(order, Usage(prompt_tokens=9, output_tokens=9))
    bundle, path = tmp_path / "provider.jsonl", tmp_path / "out.csv"
    bundle.write_bytes(b"\n".join(grid.bundles()[0]) + b"\n")
    trace(str(bundle), "--csv", str(path))
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file, delimiter=";")
    assert row["model"] == '\'=HYPERLINK("http://x")'


def test_findings_are_exit_code_1_and_shown_where_they_touch(month: Month, tmp_path: Path) -> None:
    bundles = written(month, tmp_path)
    lacking = month.grid.receipts[4].id
    lines = [signed.record.to_json_line() for signed in month.grid.provider_has if signed.id != lacking]
    Path(bundles[0]).write_bytes(b"\n".join(lines) + b"\n")
    result = trace(bundles[0], "FIRST-REF")
    assert result.exit_code == 1
    assert result.stdout.startswith("Verified: 1 finding.")
    assert "Findings of the audit that touch this\nreceipt-gap" in result.stdout
    assert "in no bundle: receipts 5" in result.stdout
    result = trace(bundles[0], "SECOND-REF")
    assert result.exit_code == 1
    assert "receipt-gap" not in result.stdout
    assert "1 other finding(s) do not touch this" in result.stdout
    shown = as_json(bundles[0], "FIRST-REF")
    assert [one["code"] for one in shown["touched"]] == ["receipt-gap"]
    assert shown["transfer"]["shares"][0]["statement"]["missing_receipts"] == [[5, 5]]


async def test_the_node_s_own_ledger(month: Month, tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    data.make()
    ledger = SqliteLedger.open(data.ledger_file)
    for signed in month.grid.provider_has:
        await ledger.append(signed)
    await ledger.aclose()
    before = data.ledger_file.read_bytes()
    result = CliRunner().invoke(cli, ["--data", str(data.path), "trace", "LT-2026-000002", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["invoice"]["statement"]["receipts_at_hand"] == 30
    result = CliRunner().invoke(cli, ["--data", str(data.path), "trace"])
    assert "Left over: nothing." in result.output
    assert data.ledger_file.read_bytes() == before


def test_a_node_without_a_ledger(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--data", str(tmp_path), "trace"])
    assert isinstance(result.exception, P2pgridError)
    assert str(tmp_path) in str(result.exception)


@pytest.mark.parametrize("is_signed", [True, False])
def test_a_receipt_that_the_audit_counted_and_did_not_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_signed: bool
) -> None:
    """Of a large bundle whose channel was never settled, one receipt is asked for."""
    monkeypatch.setattr(check, "SMALL_BYTES", 0)
    month = new_month(Random(5))
    month.sell(50)
    if not is_signed:
        month.grid.receipt(month.grid.order(), Usage(prompt_tokens=5, output_tokens=5), countersign=False)
    receipt = month.grid.receipts[-1]
    bundles = written(month, tmp_path)
    channel = receipt.message.channel.hex()
    for name in (receipt.id.hex(), f"{channel[:8]}:{receipt.message.receipt_number}"):
        shown = as_json(bundles[0], name, "--processes", "1")
        assert shown["receipt"]["receipt"]["receipt_id"] == receipt.id.hex()
        assert shown["receipt"]["receipt"]["countersigned"] is is_signed
        assert shown["receipt"]["state"] in ("not_stated", "nothing_owed")
    with pytest.raises(UsageError, match="is named"):
        trace(bundles[0], f"{channel[:8]}:99", "--processes", "1")


def test_large_and_small_bundles_are_followed_alike(bundles: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = [as_json(*bundles, name) for name in ("SECOND-REF", "receipt:5", "")]
    monkeypatch.setattr(check, "SMALL_BYTES", 0)
    large = [as_json(*bundles, name, "--processes", "1") for name in ("SECOND-REF", "receipt:5", "")]
    assert small == large


def test_what_is_overdue_goes_by_the_date(bundles: list[str], month: Month) -> None:
    late_ms = month.statements[1].message.due_ms + 2 * DAY_MS
    from datetime import UTC, datetime

    day = datetime.fromtimestamp(late_ms / 1000, UTC).date().isoformat()
    assert as_json(*bundles)["all"]["peers"][0]["overdue_cents"] == 0
    late = as_json(*bundles, "--at", day)["all"]
    assert late["peers"][0]["overdue_cents"] == late["statements"][1]["open_cents"] > 0
    assert "overdue" in trace(*bundles, "--at", day).stdout


@pytest.mark.process
def test_no_trace_is_left_of_the_ledger_s_copy(month: Month, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    bundles = written(month, tmp_path)
    command = [sys.executable, "-m", "p2pgrid", "trace", "-", "SECOND-REF"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with Path(bundles[0]).open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "tmp").iterdir())
