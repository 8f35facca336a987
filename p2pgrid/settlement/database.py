"""`settlement.db` in the data folder: what settlement must not forget and no ledger has.

Billing details, numbers of invoices, what was ordered and what a bank's files were taken for. Records that both sides
sign are in the ledger. Several processes may have the file open at once (a node, and a command beside it): whoever
writes does so within `transaction`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from p2pgrid.errors import LedgerError

FILE_NAME: Final = "settlement.db"
BUSY_TIMEOUT_S: Final = 15.0


def open_database(path: Path) -> sqlite3.Connection:
    """The file, made where it is not there, readable by its owner alone. Raises LedgerError."""
    try:
        if not path.exists():
            path.touch(mode=0o600)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("CREATE TABLE IF NOT EXISTS rooms (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT")
    except (sqlite3.Error, OSError) as error:
        raise _unusable(path, error) from error
    return connection


def prepare(connection: sqlite3.Connection, room: str, steps: Sequence[str]) -> None:
    """Bring a room's tables up to date. `steps` are the statements that made each version out of the one before.

    Raises LedgerError: the file is of a newer version, or cannot be written.
    """
    with transaction(connection):
        row = connection.execute("SELECT version FROM rooms WHERE room = ?", (room,)).fetchone()
        version = row[0] if row is not None else 0
        if version > len(steps):
            raise LedgerError(
                f"the tables of {room} in {FILE_NAME} are of version {version}; this p2pgrid knows {len(steps)}.",
                hint="Use the newer p2pgrid that wrote them.",
            )
        for step in steps[version:]:
            connection.execute(step)
        connection.execute("INSERT OR REPLACE INTO rooms VALUES (?, ?)", (room, len(steps)))


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it durable when this is left, or none. Raises LedgerError where the file cannot be written."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise _unusable(Path(FILE_NAME), error) from error


def _unusable(path: Path, error: Exception) -> LedgerError:
    return LedgerError(
        f"{path.name} cannot be used: {error}.", hint="See that the disk has room and that the file is the node's own."
    )
