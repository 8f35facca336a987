"""The ledger as the doctor sees it: sound, damaged in every way that has a fix, and untouched."""

# ruff: noqa: ASYNC240 - a test may block its loop

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from p2pgrid.doctor import disk
from p2pgrid.doctor.check import Check, State
from p2pgrid.doctor.disk import check_disk, check_ledger, existing
from p2pgrid.ledger.journal import journal_paths
from p2pgrid.ledger.sqlite import SqliteLedger
from tests.factories import Dealings
from tests.ledger.test_journal import crashed


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All files, with their modes."""
    return {path.name: (path.read_bytes(), path.stat().st_mode) for path in folder.iterdir()}


def look(path: Path, *, is_running: bool = False) -> Check:
    """What is found; nothing of it changed."""
    before = contents(path.parent)
    [found] = check_ledger(path, is_running=is_running)
    after = contents(path.parent)
    if is_running:  # readers and the writer share this file's memory
        before.pop(f"{path.name}-shm", None), after.pop(f"{path.name}-shm", None)
    assert after == before
    return found


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A ledger with a channel, closed in order."""
    folder = tmp_path / "data"
    folder.mkdir()
    ledger = SqliteLedger.open(folder / "ledger.sqlite")
    d = Dealings()
    await ledger.append(d.channel, *d.completed())
    await ledger.aclose()
    return folder / "ledger.sqlite"


def test_a_sound_ledger(path: Path) -> None:
    found = look(path)
    assert (found.state, found.text) == (State.OK, f"{path}: sound.")


def test_none_yet(tmp_path: Path) -> None:
    [found] = check_ledger(tmp_path / "ledger.sqlite", is_running=False)
    assert found.state is State.SKIPPED
    assert not any(tmp_path.iterdir())


async def test_beside_a_running_node(path: Path) -> None:
    ledger = SqliteLedger.open(path)
    try:
        found = look(path, is_running=True)
        assert found.state is State.OK, found
    finally:
        await ledger.aclose()


async def test_what_a_killed_node_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that were acknowledged lie in the journal alone. The next start has them; nothing is touched before."""
    ledger = SqliteLedger.open(path)
    try:
        d = Dealings()
        order = d.order(order_number=2)
        await ledger.append(order)
        left = crashed(path)
    finally:
        await ledger.aclose()
    left.chmod(0o600)
    found = look(left)
    assert found.state is State.OK
    assert "sound; 1 writes wait in its journal" in found.text
    monkeypatch.setattr(disk, "MAX_COPY_BYTES", 10)
    assert look(left).state is State.SKIPPED
    reopened = SqliteLedger.open(left)
    assert [one.order.id for one in reopened.open_orders(d.id)] == [order.id]
    await reopened.aclose()


def _not_sqlite(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE t (x)")


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version=99")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _damaged(path: Path) -> None:
    """An index says another thing than its table, as after a bad block."""
    data = bytearray(path.read_bytes())
    page = int.from_bytes(data[16:18])
    for start in range(page, len(data), page):
        data[start + page // 2 : start + page] = bytes(page - page // 2)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "fix"),
    [
        (_not_sqlite, "restore it from a backup"),
        (_empty, "rm "),
        (_other, "--data"),
        (_newer, "Upgrade p2pgrid"),
        (_damaged, "restore it from a backup"),
    ],
)
def test_what_is_wrong(path: Path, spoil: object, fix: str) -> None:
    spoil(path)  # type: ignore[operator]
    found = look(path)
    assert found.state is State.FAULT, found
    assert fix in found.fix


async def test_a_ledger_older_than_its_journal(path: Path) -> None:
    """Restored from a backup, beside the journal of a later life."""
    backup = path.read_bytes()
    d = Dealings()
    for number in (2, 3):
        ledger = SqliteLedger.open(path)
        await ledger.append(d.order(order_number=number))
        kept = [(one, one.read_bytes()) for one in journal_paths(path)]
        await ledger.aclose()
    path.write_bytes(backup)
    for one, data in kept:
        one.write_bytes(data)
    found = look(path)
    assert found.state is State.FAULT, found
    assert "journal1" in found.fix


def test_an_older_ledger_is_no_fault(path: Path) -> None:
    script = Path(__file__).parents[1] / "ledger" / "version_1.sql"
    path.unlink()
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript(script.read_text())
    path.chmod(0o600)
    found = look(path)
    assert found.state is State.OK
    assert "next start" in found.text


def test_a_ledger_that_others_can_read(path: Path) -> None:
    path.chmod(0o644)
    before = contents(path.parent)
    sound, warned = check_ledger(path, is_running=False)
    assert (sound.state, warned.state, warned.fix) == (State.OK, State.WARNING, f"chmod 600 {path}")
    assert contents(path.parent) == before


def test_a_ledger_too_large_to_be_looked_at_as_a_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE big (x)")
        conn.executemany("INSERT INTO big VALUES (?)", ((os.urandom(2000),) for _ in range(5000)))
        conn.commit()
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    monkeypatch.setattr(disk, "QUICK_CHECK_S", -1.0)
    found = look(path)
    assert found.state is State.OK
    assert "too large" in found.text


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == tmp_path
    checks = check_disk(tmp_path / "a" / "b")
    assert [one.name for one in checks] == ["disk", "file system"]
    assert not any(tmp_path.iterdir())


def test_the_temporary_copy_is_gone(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = tmp_path / "temporary"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    shutil.copy(path, path.with_name(path.name + "-wal"))  # no WAL that SQLite takes, but there
    check_ledger(path, is_running=False)
    assert list(copies.iterdir()) == []
