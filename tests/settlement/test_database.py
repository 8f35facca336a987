"""The file of settlement: several who have it open, steps, files that cannot be used."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from p2pgrid.errors import LedgerError
from p2pgrid.settlement.database import open_database, prepare, transaction

STEPS = ("CREATE TABLE things (name TEXT PRIMARY KEY) STRICT", "ALTER TABLE things ADD COLUMN cents INTEGER")


def test_a_room_is_brought_up_to_date_once_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settlement.db"
    first = open_database(path)
    prepare(first, "things", STEPS[:1])
    first.execute("INSERT INTO things VALUES ('a')")
    second = open_database(path)
    prepare(second, "things", STEPS)
    prepare(second, "things", STEPS)
    assert second.execute("SELECT * FROM things").fetchall() == [("a", None)]
    with pytest.raises(LedgerError, match="version 2; this p2pgrid knows 1"):
        prepare(first, "things", STEPS[:1])
    assert path.stat().st_mode & 0o077 == 0


def test_a_transaction_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "settlement.db"
    one, other = open_database(path), open_database(path)
    prepare(one, "things", STEPS)
    with pytest.raises(ZeroDivisionError), transaction(one):
        one.execute("INSERT INTO things VALUES ('a', 1)")
        assert not other.execute("SELECT * FROM things").fetchall()
        _ = 1 // 0
    with transaction(one):
        one.execute("INSERT INTO things VALUES ('b', 2)")
    assert other.execute("SELECT name FROM things").fetchall() == [("b",)]


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settlement.db"
    path.write_bytes(b"no database at all, and longer than a header" * 100)
    with pytest.raises(LedgerError, match=r"settlement\.db cannot be used"):
        open_database(path)
    one = open_database(tmp_path / "other.db")
    with pytest.raises(LedgerError, match="no such table"), transaction(one):
        one.execute("INSERT INTO nowhere VALUES (1)")
    with pytest.raises(sqlite3.Error):
        one.execute("SELECT * FROM nowhere")
