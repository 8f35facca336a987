"""Which set-offs this operator has refused. Nobody is told: a proposal that nobody signs lapses on its day."""

from __future__ import annotations

import sqlite3
from typing import Final

from p2pgrid.settlement.database import prepare, transaction

_STEPS: Final = (
    "CREATE TABLE refused_set_offs (id BLOB PRIMARY KEY, refused_ms INTEGER NOT NULL, reason TEXT NOT NULL) STRICT",
)


class RefusedSetOffs:
    """In `settlement.db`. Its methods raise LedgerError."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        prepare(connection, "set-off", _STEPS)
        self._connection: Final = connection

    def refuse(self, set_off_id: bytes, *, at_ms: int, reason: str = "") -> None:
        """Remember that it is not wanted."""
        with transaction(self._connection):
            self._connection.execute(
                "INSERT OR IGNORE INTO refused_set_offs VALUES (?, ?, ?)", (set_off_id, at_ms, reason)
            )

    def ids(self) -> frozenset[bytes]:
        """All that were refused."""
        return frozenset(row[0] for row in self._connection.execute("SELECT id FROM refused_set_offs"))

    def forget(self, set_off_id: bytes) -> None:
        """It was agreed to after all."""
        with transaction(self._connection):
            self._connection.execute("DELETE FROM refused_set_offs WHERE id = ?", (set_off_id,))
