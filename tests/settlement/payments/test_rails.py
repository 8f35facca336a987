"""Rails: the two that come along, plug-ins and their errors, and files that are never overwritten."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import replace
from datetime import UTC, date, datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import BinaryIO

import pytest

from p2pgrid.errors import LocalError, UsageError
from p2pgrid.settlement.payments.manual_rail import ManualRail
from p2pgrid.settlement.payments.orders import PaymentBatch
from p2pgrid.settlement.payments.rail_files import RailFile, write_new
from p2pgrid.settlement.payments.rails import Rail, RailError, find_rail, rail_names
from p2pgrid.settlement.payments.reference import parse_reference
from p2pgrid.settlement.payments.refusals import BankFileError
from p2pgrid.settlement.payments.statements import BankFile
from tests.settlement.payments.bank import Bank, Movement
from tests.settlement.payments.makers import ALICE, OURS, reference
from tests.settlement.payments.test_orders import ORDER, batch

NOW = datetime(2026, 11, 27, 10, 0, tzinfo=UTC)


def test_sepa() -> None:
    rail = find_rail("sepa")
    (file,) = rail.write(batch(), created=NOW)
    assert file.name == f"pain.001-{batch().message_id}.xml"
    assert b"pain.001.001.09" in file.data
    assert rail.read(io.BytesIO(Bank().write([Movement(cents=1)])), "f").entries[0].amount_cents == 1


def test_manual_writes_for_a_person() -> None:
    text, table = find_rail("manual").write(batch(), created=NOW)
    shown = text.data.decode()
    assert "12.40 EUR" in shown
    assert "DE89 3704 0044 0532 0130 00" in shown
    assert "LT-2026-000001" in shown
    (row,) = csv.DictReader(io.StringIO(table.data.decode()), delimiter=";")
    assert row["amount"] == "12.40"
    assert parse_reference(row["end_to_end"]) == reference("1")
    assert row["reference"].startswith("RF")


def test_a_name_is_no_formula() -> None:
    evil = replace(ORDER, payee=replace(ORDER.payee, name="=HYPERLINK(1)"), remittance_text="+1")
    table = ManualRail().write(batch(evil), created=NOW)[1].data.decode()
    (row,) = csv.DictReader(io.StringIO(table), delimiter=";")
    assert (row["name"], row["text"]) == ("'=HYPERLINK(1)", "'+1")


def test_a_payee_adds_no_transfer_to_the_list() -> None:
    evil = "Bob\n\n2. 900.00 EUR\n   to Eve\u202e\u2028X"
    payee = replace(ORDER.payee, name=evil)
    text = ManualRail().write(batch(replace(ORDER, payee=payee, remittance_text=evil)), created=NOW)[0].data.decode()
    honest = ManualRail().write(batch(), created=NOW)[0].data.decode()
    assert len(text.splitlines()) == len(honest.splitlines())
    assert "to         Bob 2. 900.00 EUR to Eve X\n" in text


HEAD = "date;amount;currency;account;name;iban;reference;text\n"
LINE = f"2026-11-02;12.40;EUR;{OURS};Alice GmbH;{ALICE};{reference('1')};Invoice 1\n"


def typed(text: str | bytes) -> BankFile:
    return ManualRail().read(io.BytesIO(text if isinstance(text, bytes) else text.encode()), "list.csv")


def test_manual_reads_what_a_person_typed() -> None:
    found = typed("\ufeff" + HEAD.replace("\n", "\r\n") + LINE + "\n" + LINE.replace("12.40", "-3.00"))
    assert [(one.amount_cents, one.line) for one in found.entries] == [(1_240, 2), (-300, 4)]
    first = found.entries[0]
    assert (first.booking_date, first.end_to_end_id, first.counterparty_iban) == (
        date(2026, 11, 2),
        reference("1"),
        ALICE,
    )
    assert len({one.key for one in typed(HEAD + LINE + LINE).entries}) == 2
    with_own = HEAD.replace("text\n", "text;bank_reference\n") + LINE.replace("1\n", "1;B7\n")
    assert typed(with_own).entries[0].bank_reference == "B7"
    assert typed(HEAD).entries == ()


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        ("", 1, "the first line is ''"),
        (HEAD.replace(";", ","), 1, "semicolons between"),
        (HEAD + LINE.replace("12.40", "12,40"), 2, "has a comma"),
        (HEAD + LINE + LINE.replace("12.40", "0"), 3, "the amount is 0"),
        (HEAD + LINE.replace("2026-11-02", "2.11.2026"), 2, "is no date"),
        (HEAD + LINE.replace("2026-11-02", "2026-W45-1"), 2, "is no date"),
        (HEAD + LINE.replace("EUR", "€"), 2, "no ISO 4217"),
        (HEAD + LINE.replace(ALICE, ALICE[:-1]), 2, "is no IBAN"),
        (HEAD + LINE.replace(OURS, ""), 2, "is no IBAN"),
        (HEAD + LINE.replace(";Invoice 1", ""), 2, "has 7 columns; expected 8"),
        (HEAD + LINE.replace("Invoice 1", '"Invoice 1'), 2, "is no CSV"),
        (HEAD + LINE.replace("Invoice 1", "x" * 1_001), 2, "longer than 1000"),
        ((HEAD + LINE).encode() + b"\xff", 3, "not UTF-8"),
        (b"x" * (10 * 1024 * 1024 + 1), 0, "larger than"),
    ],
)
def test_bad_lines_are_refused(data: str | bytes, line: int, words: str) -> None:
    with pytest.raises(BankFileError, match=words) as refusal:
        typed(data)
    assert refusal.value.line == line


# -- plug-ins ---------------------------------------------------------------------------------------------------------


class Good:
    name = "good"

    def write(self, batch: PaymentBatch, *, created: datetime) -> tuple[RailFile, ...]:
        return (RailFile("a.txt", b"a"),)

    def read(self, file: BinaryIO, name: str) -> BankFile:
        return BankFile(name=name, kind="good", message_id="", statements=())


class Bad(Good):
    name = "bad"

    def write(self, batch: PaymentBatch, *, created: datetime) -> tuple[RailFile, ...]:
        raise KeyError("iban")

    def read(self, file: BinaryIO, name: str) -> BankFile:
        return "entries"  # type: ignore[return-value]


class Empty(Good):
    name = "empty"

    def write(self, batch: PaymentBatch, *, created: datetime) -> tuple[RailFile, ...]:
        return ()

    def read(self, file: BinaryIO, name: str) -> BankFile:
        raise BankFileError(name, 3, "this is not it")


class NotARail:
    name = "none"


def point(name: str, value: str = "") -> EntryPoint:
    return EntryPoint(name, value or f"{__name__}:{name.capitalize()}", "p2pgrid.rails")


POINTS = [
    point("good"),
    point("bad"),
    point("empty"),
    point("none", f"{__name__}:NotARail"),
    point("gone", "no_such:X"),
]


def test_a_plug_in_is_found() -> None:
    rail = find_rail("good", POINTS)
    assert rail.write(batch(), created=NOW) == (RailFile("a.txt", b"a"),)
    assert rail.read(io.BytesIO(), "f").kind == "good"
    assert rail_names(POINTS) == ["bad", "empty", "gone", "good", "manual", "none", "sepa"]
    assert isinstance(Good(), Rail)


def test_what_is_wrong_with_a_plug_in_is_said_under_its_name() -> None:
    with pytest.raises(RailError, match=r"the rail 'bad' \(.*Bad\) failed in writing: KeyError: 'iban'"):
        find_rail("bad", POINTS).write(batch(), created=NOW)
    with pytest.raises(RailError, match=r"'bad' .* read str, not a BankFile"):
        find_rail("bad", POINTS).read(io.BytesIO(), "f")
    with pytest.raises(RailError, match=r"'empty' .* wrote no files"):
        find_rail("empty", POINTS).write(batch(), created=NOW)
    with pytest.raises(BankFileError, match="f, line 3: this is not it"):
        find_rail("empty", POINTS).read(io.BytesIO(), "f")
    with pytest.raises(RailError, match="is no rail named 'none'"):
        find_rail("none", POINTS)
    with pytest.raises(RailError, match=r"'gone' .* cannot be loaded: ModuleNotFoundError"):
        find_rail("gone", POINTS)
    with pytest.raises(RailError, match=r"brought by .* and by"):
        find_rail("good", [*POINTS, point("good", "other:Good")])
    with pytest.raises(UsageError, match="no rail 'x'"):
        find_rail("x", POINTS)


def test_a_plug_in_takes_no_built_in_name() -> None:
    assert type(find_rail("sepa", [point("sepa", f"{__name__}:Good")]).rail).__name__ == "SepaRail"


def test_the_built_in_rails_are_declared_like_any_other() -> None:
    import tomllib

    from p2pgrid.settlement.payments.rails import BUILT_IN

    declared = tomllib.loads(Path("pyproject.toml").read_text())["project"]["entry-points"]["p2pgrid.rails"]
    assert declared == {name: f"{rail.__module__}:{rail.__qualname__}" for name, rail in BUILT_IN.items()}


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_written_once(tmp_path: Path) -> None:
    file = RailFile("pay.xml", b"one")
    path = write_new(tmp_path, file)
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o600
    assert write_new(tmp_path, file) == path
    with pytest.raises(UsageError, match="never overwritten"):
        write_new(tmp_path, RailFile("pay.xml", b"two"))
    assert path.read_bytes() == b"one"
    assert [one.name for one in tmp_path.iterdir()] == ["pay.xml"]


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", ""])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no plain file name"):
        write_new(tmp_path, RailFile(name, b""))


def test_no_folder_and_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        write_new(tmp_path / "none", RailFile("a", b""))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LocalError, match="No space left"):
        write_new(tmp_path, RailFile("a", b""))
    assert not list(tmp_path.iterdir())
