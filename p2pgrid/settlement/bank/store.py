"""What bank files said and what was decided, in settlement.db: entries, decisions, and Payments on their way into the
ledger.

Nothing is changed or deleted: of an entry's decisions the last one counts. Decisions and the Payments that follow from
them are written in one transaction, before the ledger is asked to take these: whoever finds an *intent* that is not
settled asks again, and the ledger takes the same record once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pgrid.errors import LedgerError
from p2pgrid.proto.statement import Payment
from p2pgrid.settlement.bank.stored import StoredDecision
from p2pgrid.settlement.database import prepare, transaction
from p2pgrid.settlement.payments.entries import BookedEntry

ROOM: Final = "bank"
STEPS: Final = (
    """CREATE TABLE bank_files (
        sha256 TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, entries INTEGER NOT NULL,
        read_ms INTEGER NOT NULL, PRIMARY KEY (sha256, read_ms)) STRICT""",
    """CREATE TABLE bank_entries (
        number INTEGER PRIMARY KEY, key TEXT NOT NULL, source_kind TEXT NOT NULL, statement_id TEXT NOT NULL,
        telling TEXT NOT NULL, file TEXT NOT NULL, body BLOB NOT NULL,
        UNIQUE (key, source_kind, statement_id, telling)) STRICT""",
    """CREATE TABLE bank_decisions (
        number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL,
        entry INTEGER NOT NULL REFERENCES bank_entries (number), body BLOB NOT NULL) STRICT""",
    "CREATE INDEX bank_decisions_by_key ON bank_decisions (key)",
    """CREATE TABLE bank_intents (
        number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, payments BLOB NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('intended', 'booked', 'refused')),
        note TEXT NOT NULL, at_ms INTEGER NOT NULL) STRICT""",
)

INTENDED, BOOKED, REFUSED = "intended", "booked", "refused"


@dataclass(frozen=True, slots=True)
class Known:
    """An entry, as one file told it, with the decision that counts."""

    entry: BookedEntry
    file: str
    decision: StoredDecision


@dataclass(frozen=True, slots=True)
class Intent:
    """Payments that go into the ledger together: those of one entry, or of one booking that moves no money."""

    number: int
    key: str
    """The entry's; empty where money is booked from one place to another."""
    payments: tuple[Payment, ...]


@dataclass(frozen=True, slots=True)
class FileRead:
    """A file that a run took."""

    sha256: str
    name: str
    kind: str
    entries: int


class BankStore:
    """The tables of this room. One process writes at a time (`locked`)."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Raises LedgerError."""
        self._connection: Final = connection
        prepare(connection, ROOM, STEPS)

    def known(self) -> dict[str, list[Known]]:
        """Every entry by its key, with all that told of it; that on which it was decided is the first. Raises
        LedgerError."""
        rows = self._read(
            "SELECT e.key, e.body, e.file, d.body FROM bank_entries AS e "
            "JOIN (SELECT key, max(number) AS number FROM bank_decisions GROUP BY key) AS l USING (key) "
            "JOIN bank_decisions AS d ON d.number = l.number ORDER BY e.key, e.number <> d.entry, e.number"
        )
        found: dict[str, list[Known]] = {}
        for key, entry, file, decision in rows:
            decoded = msgspec.json.decode(decision, type=StoredDecision)
            found.setdefault(key, []).append(Known(msgspec.json.decode(entry, type=BookedEntry), file, decoded))
        return found

    def tellings(self) -> set[tuple[str, str, str, str]]:
        """Key, kind, statement and telling of every entry that was read. Raises LedgerError."""
        return {
            (key, kind, statement, telling)
            for key, kind, statement, telling in self._read(
                "SELECT key, source_kind, statement_id, telling FROM bank_entries"
            )
        }

    def before(self, key: str) -> StoredDecision | None:
        """The decision about an entry that counted before the one that does. Raises LedgerError."""
        rows = self._read("SELECT body FROM bank_decisions WHERE key = ? ORDER BY number DESC LIMIT 1 OFFSET 1", key)
        return msgspec.json.decode(rows[0][0], type=StoredDecision) if rows else None

    def intents(self) -> list[Intent]:
        """Payments of which nobody knows yet whether the ledger has them, the oldest first. Raises LedgerError."""
        rows = self._read("SELECT number, key, payments FROM bank_intents WHERE state = ? ORDER BY number", INTENDED)
        return [Intent(number, key, msgspec.json.decode(body, type=tuple[Payment, ...])) for number, key, body in rows]

    def write(
        self,
        *,
        files: Iterable[FileRead] = (),
        entries: Iterable[tuple[BookedEntry, str]] = (),
        decisions: Iterable[tuple[BookedEntry, StoredDecision]] = (),
        payments: Iterable[tuple[str, Sequence[Payment]]] = (),
        now_ms: int,
    ) -> None:
        """All of one run, durable together: files, entries with their file's name, decisions, and by entry key (empty:
        none) the Payments that follow. Raises LedgerError."""
        with transaction(self._connection):
            run = self._connection.execute
            for file in files:
                run(
                    "INSERT OR REPLACE INTO bank_files VALUES (?, ?, ?, ?, ?)",
                    (file.sha256, file.name, file.kind, file.entries, now_ms),
                )
            for entry, name in entries:
                run(
                    "INSERT OR IGNORE INTO bank_entries (key, source_kind, statement_id, telling, file, body) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (*_telling(entry), name, msgspec.json.encode(entry)),
                )
            for entry, decision in decisions:
                found = run(
                    "SELECT number FROM bank_entries WHERE (key, source_kind, statement_id, telling) = (?, ?, ?, ?)",
                    _telling(entry),
                ).fetchone()
                run(
                    "INSERT INTO bank_decisions (key, entry, body) VALUES (?, ?, ?)",
                    (entry.key, found[0], msgspec.json.encode(decision)),
                )
            for key, made in payments:
                run(
                    "INSERT INTO bank_intents (key, payments, state, note, at_ms) VALUES (?, ?, ?, '', ?)",
                    (key, msgspec.json.encode(tuple(made)), INTENDED, now_ms),
                )

    def settle(
        self, booked: Iterable[int], refused: Iterable[tuple[int, str, StoredDecision | None]], *, now_ms: int
    ) -> None:
        """What came of intents, by number. One that was refused takes its entry's decision back: another counts from
        now on. Raises LedgerError."""
        with transaction(self._connection):
            run = self._connection.execute
            for number in booked:
                run("UPDATE bank_intents SET state = ?, at_ms = ? WHERE number = ?", (BOOKED, now_ms, number))
            for number, why, decision in refused:
                run(
                    "UPDATE bank_intents SET state = ?, note = ?, at_ms = ? WHERE number = ?",
                    (REFUSED, why, now_ms, number),
                )
                if decision is not None:
                    run(
                        "INSERT INTO bank_decisions (key, entry, body) SELECT d.key, d.entry, ? FROM bank_intents AS i "
                        "JOIN bank_decisions AS d USING (key) WHERE i.number = ? ORDER BY d.number DESC LIMIT 1",
                        (msgspec.json.encode(decision), number),
                    )

    def _read(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"settlement.db cannot be read: {error}.") from error


def _telling(entry: BookedEntry) -> tuple[str, str, str, str]:
    return entry.key, entry.source_kind, entry.statement_id, entry.telling


def lock_path(database: Path) -> Path:
    """What `WriterLock` is held on while a command pays or books."""
    return database.with_name("settlement-commands")
