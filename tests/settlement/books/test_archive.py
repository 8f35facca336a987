"""The yearly archive: complete, the same every time, verified; and whatever is changed in it is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pgrid.cli.books_archive import audit_bundles
from p2pgrid.cli.main import cli
from p2pgrid.errors import LocalError, P2pgridError, UsageError
from p2pgrid.settlement.books import archive as archive_room
from p2pgrid.settlement.books.archive import write_sums
from p2pgrid.settlement.books.archive_check import CheckedArchive, check_archive
from p2pgrid.settlement.books.archive_place import unpacked
from tests.factories import CLIENT, PROVIDER, digest
from tests.settlement.books.folder import PDF, XML, Year, make_year


def run(year: Year, *words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["--data", str(year.data.path), "books", *map(str, words)])


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Year:
    return make_year(tmp_path_factory.mktemp("year") / "data", keys=True)


@pytest.fixture(scope="module")
def made(year: Year, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("made") / "archive-2026"
    result = run(year, "archive", "2026", "-o", target, "--country", "DE", "--json")
    assert result.exit_code == 0, result.output
    return target


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def check(place: Path) -> CheckedArchive:
    return check_archive(place, audit_bundles)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_archive_has_all_that_an_audit_needs(year: Year, made: Path) -> None:
    channel = year.id.hex()[:16]
    assert sorted(files_of(made)) == [
        "README.md",
        "SHA256SUMS",
        f"bundles/provider-{channel}.jsonl",
        "exports/bookings.csv",
        "exports/trial-balance.csv",
        "index.json",
        "invoices/issued/LT-2026-000001.cii.xml",
        "invoices/issued/LT-2026-000001.pdf",
        "mapping.json",
        f"statements/{channel}-000001.json",
    ]
    index = json.loads((made / "index.json").read_text())
    (invoice,) = index["invoices"]
    assert invoice["id"] == year.invoice.id.hex()
    assert [made.joinpath(name).read_bytes() for name in invoice["files"]] == [XML, PDF]
    assert [one["id"] for one in index["payments"]] == [year.payment.id.hex()]
    assert index["keep_until"] == {"invoices": "2034-12-31", "vouchers": "2034-12-31", "books": "2036-12-31"}
    assert index["own_peers"] == [PROVIDER.public_key.peer_id]
    assert index["channels"][0]["balance"]["difference_cents"] == 0
    found = check(made)
    assert found.is_whole and found.audit is not None and found.audit.receipts == 3


def test_no_secret_is_in_it(year: Year, made: Path) -> None:
    secrets = [digest("provider"), *(digest(f"key {number}") for number in (1, 2, 3))]
    for name, content in files_of(made).items():
        for secret in secrets:
            assert secret not in content and secret.hex().encode() not in content, name


def test_the_same_ledger_gives_the_same_bytes(year: Year, made: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "again", tmp_path / "a.zip", tmp_path / "b.zip"):
        assert run(year, "archive", "2026", "-o", target, "--country", "DE").exit_code == 0
    assert files_of(tmp_path / "again") == files_of(made)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == files_of(made)
    assert check(tmp_path / "a.zip").is_whole


def test_the_readmes_commands_work(made: Path) -> None:
    text = (made / "README.md").read_text()
    assert "sha256sum --check SHA256SUMS" in text and "p2pgrid audit bundles/*" in text
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=made, check=True, capture_output=True)
    bundles = [str(path) for path in (made / "bundles").iterdir()]
    assert CliRunner().invoke(cli, ["audit", *bundles]).exit_code == 0
    assert CliRunner().invoke(cli, ["books", "verify", str(made)]).exit_code == 0


def test_a_clients_archive(tmp_path: Path) -> None:
    year = make_year(tmp_path / "data", side="client")
    result = run(year, "archive", "2026", "-o", tmp_path / "out", "--country", "LT", "--json")
    assert result.exit_code == 0, result.output
    names = files_of(tmp_path / "out")
    assert f"invoices/received/{PROVIDER.public_key.peer_id}/LT-2026-000001.pdf" in names
    assert b"client" in names["exports/bookings.csv"]
    assert json.loads(result.output)["invoices"] == 1


@pytest.mark.parametrize("which", range(9))
def test_every_tampered_file_is_named(copy: Path, which: int) -> None:
    names = sorted(name for name in files_of(copy) if name != "SHA256SUMS")
    assert len(names) == 9
    path = copy / names[which]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = check(copy)
    assert not found.is_whole
    assert any(one.file == names[which] and "was changed" in one.what for one in found.faults)
    result = CliRunner().invoke(cli, ["books", "verify", str(copy), "--json"])
    assert result.exit_code == 1
    assert names[which] in [one["file"] for one in json.loads(result.output)["faults"]]


@pytest.mark.parametrize("which", range(9))
def test_every_missing_file_is_named(copy: Path, which: int) -> None:
    name = sorted(name for name in files_of(copy) if name != "SHA256SUMS")[which]
    (copy / name).unlink()
    assert name in [one.file for one in check(copy).faults]


def write_anew(path: Path) -> None:
    (path / "SHA256SUMS").unlink()
    write_sums(path)


def change(path: Path, name: str, edit: Callable[[Any], None]) -> None:
    value = json.loads((path / name).read_text())
    edit(value)
    (path / name).write_text(json.dumps(value))


def replaced(path: Path, name: str, old: str, new: str) -> None:
    text = (path / name).read_bytes().decode()
    assert old in text
    (path / name).write_bytes(text.replace(old, new, 1).encode())


def one_of(path: Path, folder: str) -> str:
    return min(one.relative_to(path).as_posix() for one in (path / folder).iterdir())


FORGERIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an invoice's amount": (
        lambda p: change(p, "index.json", lambda i: i["invoices"][0].update(gross_cents=1)),
        "says gross_cents '1'",
    ),
    "a payment that nobody signed": (
        lambda p: change(p, "index.json", lambda i: i["payments"][0].update(id="00" * 32)),
        "is in no bundle",
    ),
    "another document": (
        lambda p: (p / "invoices/issued/LT-2026-000001.cii.xml").write_bytes(b"<Invoice>9</Invoice>"),
        "none of its files is the one",
    ),
    "a document less": (
        lambda p: (p / "invoices/issued/LT-2026-000001.pdf").unlink(),
        "is not there",
    ),
    "a payment booked with more": (
        lambda p: (
            replaced(p, "exports/bookings.csv", ";1000;Bank;10000;", ";1000;Bank;10000;9"),
            replaced(p, "exports/bookings.csv", ";payment;10000;", ";payment;10000;9"),
        ),
        "is not booked with",
    ),
    "totals": (
        lambda p: change(p, "index.json", lambda i: i["totals"]["EUR"].update(debit_cents=0)),
        "debit and credit in EUR",
    ),
    "a booking of nothing": (
        lambda p: replaced(p, "exports/bookings.csv", "\r\n", "\r\n2026-06-01;;invoice;1;;1;;;EUR;;;;;;;;;;;;ffff\r\n"),
        "is booked and not in index.json",
    ),
    "a readable statement": (
        lambda p: replaced(p, one_of(p, "statements"), '"net_cents": ', '"net_cents": 9'),
        "says net_cents",
    ),
    "a readable statement that is none": (lambda p: (p / one_of(p, "statements")).write_text("[]"), "cannot be read"),
    "a statement less": (lambda p: (p / one_of(p, "statements")).unlink(), "is not there"),
    "the trial balance": (
        lambda p: replaced(p, "exports/trial-balance.csv", ";0.00;0.11;0.00;0.11", ";0.00;9.11;0.00;9.11"),
        "is not what is booked",
    ),
    "a closing balance": (
        lambda p: replaced(p, "exports/trial-balance.csv", ";0.00;0.11;0.00;0.11", ";0.00;0.11;0.00;0.12"),
        "closing is not opening, debit and credit together",
    ),
    "openings": (
        lambda p: replaced(p, "exports/trial-balance.csv", ";0.00;0.11;0.00;0.11", ";1.00;0.11;0.00;1.11"),
        "opening balances in EUR",
    ),
    "an account left out": (
        lambda p: (p / "exports/trial-balance.csv").write_bytes(
            b"".join((p / "exports/trial-balance.csv").read_bytes().splitlines(keepends=True)[:-1])
        ),
        "is not what is booked",
    ),
    "no trial balance": (lambda p: (p / "exports/trial-balance.csv").write_bytes(b"\xff"), "cannot be read"),
    "a larger invoice": (
        lambda p: [
            replaced(p, "exports/bookings.csv", old, "9" + old)
            for old in (
                "0.11;;EUR",
                "0.09;EUR",
            )
        ],
        "is not booked with",
    ),
    "a set-off that nobody signed": (
        lambda p: change(
            p, "index.json", lambda i: i["set_offs"].append({"id": "ff" * 32, "channel": "", "amount_cents": 1})
        ),
        "Set-off 'ffffffffffffffff' is in no bundle",
    ),
    "no bookings": (lambda p: (p / "exports/bookings.csv").write_text("a;b\r\n1;2\r\n"), "cannot be read"),
    "a format of tomorrow": (lambda p: change(p, "index.json", lambda i: i.update(format="x")), "its format is not"),
    "an index that is none": (lambda p: (p / "index.json").write_text("[1]"), "cannot be read"),
    "an index of another kind": (lambda p: change(p, "index.json", lambda i: i.update(keep_until=5)), "cannot be read"),
    "a year that is none": (lambda p: change(p, "index.json", lambda i: i.update(year=0)), "is no year"),
    "another year": (lambda p: change(p, "index.json", lambda i: i.update(year=2024)), "and not of 2024"),
    "an invoice left out": (lambda p: change(p, "index.json", lambda i: i["invoices"].clear()), "is not in it"),
    "a payment left out": (lambda p: change(p, "index.json", lambda i: i["payments"].clear()), "is not in it"),
    "a statement left out": (lambda p: change(p, "index.json", lambda i: i["statements"].clear()), "is not in it"),
    "a booking left out": (
        lambda p: (p / "exports/bookings.csv").write_bytes(
            b"\r\n".join((p / "exports/bookings.csv").read_bytes().split(b"\r\n")[:4]) + b"\r\n"
        ),
        "is not booked with",
    ),
    "bookings with short rows": (
        lambda p: replaced(p, "exports/bookings.csv", "\r\n", "\r\n2026-01-01;X\r\n"),
        "is booked and not in index.json",
    ),
    "an index without rows": (
        lambda p: (p / "index.json").write_text('{"format":"p2pgrid-archive/1","year":2026}'),
        "cannot be read",
    ),
    "a bundle that nobody names": (
        lambda p: shutil.copy(next((p / "bundles").iterdir()), p / "bundles" / "client-0.jsonl"),
        "does not name it",
    ),
    "no records": (lambda p: shutil.rmtree(p / "bundles"), "no record is there"),
    "a bundle of nothing": (lambda p: next((p / "bundles").iterdir()).write_text("x\n"), "cannot be audited"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forger_who_makes_the_sums_anew_is_found(copy: Path, forgery: str) -> None:
    """Sums prove nothing: records, index, documents and bookings are held against one another."""
    edit, expected = FORGERIES[forgery]
    edit(copy)
    write_anew(copy)
    found = check(copy)
    assert any(expected in one.what for one in found.faults), found.faults


def test_a_record_changed_with_its_sum_is_found_by_the_audit(copy: Path) -> None:
    bundle = next((copy / "bundles").iterdir())
    lines = bundle.read_text().splitlines(keepends=True)
    number = next(n for n, text in enumerate(lines) if "/p2pgrid/receipt/1" in text)
    bundle.write_text("".join(lines[:number] + lines[number + 1 :]))
    write_anew(copy)
    found = check(copy)
    assert not found.faults and not found.is_whole
    assert found.audit is not None and any("receipt" in one for one in found.audit.findings)


def test_what_was_put_there_is_named(copy: Path) -> None:
    (copy / "exports" / "more.csv").write_text("x")
    (copy / "link").symlink_to("/etc/passwd")
    assert {"exports/more.csv", "link"} == {one.file for one in check(copy).faults}


@pytest.mark.parametrize("line", ["../../etc/passwd", "/etc/passwd", "a\\..\\b", "./index.json", "a//b"])
def test_sums_of_files_elsewhere_are_refused(copy: Path, line: str) -> None:
    sums = copy / "SHA256SUMS"
    sums.write_text(sums.read_text() + f"{'0' * 64}  {line}\n")
    (fault,) = check(copy).faults
    assert fault.file == "SHA256SUMS" and "no sum of a file" in fault.what


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK no")
    for place in (tmp_path, tmp_path / "nothing", tmp_path / "x.zip"):
        with pytest.raises(UsageError):
            check(place)
        assert CliRunner().invoke(cli, ["books", "verify", str(place)]).exit_code != 0


def test_a_zip_that_unpacks_to_more_than_it_may_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("SHA256SUMS", b"0" * 30_000_000)
    with pytest.raises(UsageError, match="unpacks to more"):
        check(bomb)


@pytest.mark.parametrize("name", ["../out", "/abs", "a/../../b", "a\\b"])
def test_a_zip_with_clever_names_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("SHA256SUMS", b"")
        packed.writestr(name, b"x")
    with pytest.raises(UsageError, match="the name"):
        check(path)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def packed(year: Year, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("packed") / "archive.zip"
    assert run(year, "archive", "2026", "-o", target).exit_code == 0
    return target


def test_an_archive_is_for_its_owner_alone(made: Path, packed: Path) -> None:
    for path in (packed, made, *made.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_zip_is_refused_or_told(packed: Path, tmp_path: Path, at: int, byte: int) -> None:
    content = bytearray(packed.read_bytes())
    content[at % len(content)] = byte
    (tmp_path / "x.zip").write_bytes(content)
    with suppress(P2pgridError), unpacked(tmp_path / "x.zip") as folder:
        assert list(folder.iterdir())


def test_a_folder_that_was_zipped_by_hand_is_an_archive_too(made: Path, tmp_path: Path) -> None:
    """With entries for folders, and all of it below one."""
    path = Path(shutil.make_archive(str(tmp_path / "mine"), "zip", root_dir=made.parent, base_dir=made.name))
    assert any(name.endswith("/") for name in zipfile.ZipFile(path).namelist())
    assert check(path).is_whole


def test_a_zip_that_is_packed_in_another_way_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as other:
        other.writestr("SHA256SUMS", b"x")
    with pytest.raises(UsageError, match="in a way that"):
        check(tmp_path / "x.zip")


def test_a_zip_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.writestr("SHA256SUMS", b"")
        packed.writestr("SHA256SUMS", b"x")
    with pytest.raises(UsageError, match="the name"):
        check(path)


def test_nothing_is_overwritten(year: Year, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for target in (there, tmp_path / "no" / "folder"):
        result = run(year, "archive", "2026", "-o", target)
        assert isinstance(result.exception, UsageError)
    assert list(tmp_path.iterdir()) == [there] and list(there.iterdir()) == []


def test_a_year_without_anything_is_refused(year: Year, tmp_path: Path) -> None:
    for other in ("2025", "2027"):
        result = run(year, "archive", other, "-o", tmp_path / other)
        assert isinstance(result.exception, UsageError) and "no channel was active" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_what_is_open_when_a_year_begins_is_in_its_archive(tmp_path: Path) -> None:
    year = make_year(tmp_path / "data", is_paid=False)
    result = run(year, "archive", "2027", "-o", tmp_path / "2027", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.output)
    assert (shown["channels"], shown["invoices"], shown["payments"]) == (1, 0, 0)
    balance = (tmp_path / "2027" / "exports" / "trial-balance.csv").read_text()
    owed = f"{year.invoice.message.gross_cents / 100:.2f}"
    assert f"10000;{CLIENT.public_key.peer_id};EUR;{owed};0.00;0.00;{owed}" in balance
    assert "3000;Result of earlier years;EUR;-" in balance


def test_an_invoice_without_its_file_is_told(tmp_path: Path) -> None:
    year = make_year(tmp_path / "data")
    shutil.rmtree(year.data.path / "invoices")
    result = run(year, "archive", "2026", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    (missing,) = json.loads(result.output)["missing"]
    assert "LT-2026-000001" in missing
    assert "LT-2026-000001" in (tmp_path / "out" / "README.md").read_text()
    assert check(tmp_path / "out").missing == (missing,)


def test_a_full_disk_leaves_nothing(year: Year, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    result = run(year, "archive", "2026", "-o", tmp_path / "out")
    assert isinstance(result.exception, LocalError)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_verify_is_not_left(year: Year, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(folder: Path) -> None:
        write_sums(folder)
        (folder / "exports" / "bookings.csv").write_bytes(b"")

    monkeypatch.setattr(archive_room, "write_sums", wrong)
    result = run(year, "archive", "2026", "-o", tmp_path / "out")
    assert isinstance(result.exception, LocalError) and "does not verify" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


ROWS = ("year", "channels", "statements", "invoices", "payments", "totals")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*ROWS, "set_offs", "missing", "keep_until"]), JSON)
def test_an_index_of_anything_is_judged_and_breaks_nothing(made: Path, tmp_path: Path, name: str, value: Any) -> None:
    copy = Path(tempfile.mkdtemp(dir=tmp_path)) / "copy"
    shutil.copytree(made, copy)
    right = json.loads((copy / "index.json").read_text())[name]
    change(copy, "index.json", lambda index: index.update({name: value}))
    write_anew(copy)
    found = check(copy)
    assert found.faults or name not in ROWS or value == right


@given(st.sampled_from(["net_cents", "lines", "id", "channel"]), JSON)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_readable_statement_of_anything_breaks_nothing(made: Path, tmp_path: Path, name: str, value: Any) -> None:
    copy = Path(tempfile.mkdtemp(dir=tmp_path)) / "copy"
    shutil.copytree(made, copy)
    file = one_of(copy, "statements")
    right = json.loads((copy / file).read_text())[name]
    change(copy, file, lambda statement: statement.update({name: value}))
    write_anew(copy)
    assert bool(check(copy).faults) is (value != right or type(value) is not type(right))


def test_an_archive_prints_no_control_characters(copy: Path) -> None:
    change(copy, "index.json", lambda index: index.update(keep_until={"books": "2036\x1b[31m\x9b"}, missing=["\x1b"]))
    write_anew(copy)
    result = CliRunner().invoke(cli, ["books", "verify", str(copy)])
    assert "By law it has to be kept until 2036" in result.output
    assert not set("\x1b\x9b") & set(result.output)


@pytest.mark.process
def test_a_name_that_is_no_text_can_be_told(copy: Path) -> None:
    """A zip from elsewhere may hold any bytes as a name; and not every terminal takes them."""
    os.close(os.open(os.fsencode(copy) + b"/\xff", os.O_CREAT))
    words = [sys.executable, "-m", "p2pgrid", "books", "verify", str(copy), "--json"]
    done = subprocess.run(
        words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, check=False
    )
    assert done.returncode == 1, done.stderr
    assert [one["file"] for one in json.loads(done.stdout)["faults"]] == ["\udcff"]


@given(st.binary(max_size=200))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_bookings_break_nothing(made: Path, tmp_path: Path, content: bytes) -> None:
    copy = Path(tempfile.mkdtemp(dir=tmp_path)) / "copy"
    shutil.copytree(made, copy)
    (copy / "exports" / "bookings.csv").write_bytes(content)
    assert not check(copy).is_whole
