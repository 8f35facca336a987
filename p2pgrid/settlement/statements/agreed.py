"""Drafts that the client has agreed to, in settlement.db: what the provider then signs is countersigned when it comes.

Between the client's word and the provider's signature either may end. The provider sends what it signed again; that it
is the very draft is all the client has to know then, though its ledger may have gone on since.
"""

from __future__ import annotations

import sqlite3
from typing import Final, Protocol

from p2pgrid.proto.record import Record
from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.database import prepare, transaction

ROOM: Final = "statements"
STEPS: Final = (
    """CREATE TABLE agreed_drafts (
        channel TEXT NOT NULL, statement_number INTEGER NOT NULL, id TEXT NOT NULL, payload BLOB NOT NULL,
        agreed_ms INTEGER NOT NULL, PRIMARY KEY (channel, statement_number)) STRICT""",
)


class Agreed(Protocol):
    """What is remembered of them. All raise LedgerError."""

    def note(self, draft: Record, statement: Statement, now_ms: int) -> None:
        """The draft is about to be agreed to; durable when this returns. It replaces one of the same number."""

    def knows(self, channel: bytes, number: int, statement_id: bytes) -> bool:
        """True if the last draft of that number that was agreed to is this."""

    def drafts(self) -> list[Record]:
        """The last ones of each number, signed or not since."""


class AgreedDrafts:
    """Kept in the file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Raises LedgerError."""
        self._connection: Final = connection
        prepare(connection, ROOM, STEPS)

    def note(self, draft: Record, statement: Statement, now_ms: int) -> None:
        """See `Agreed`."""
        row = (statement.channel.hex(), statement.statement_number, draft.id.hex(), draft.payload, now_ms)
        with transaction(self._connection):
            self._connection.execute("INSERT OR REPLACE INTO agreed_drafts VALUES (?, ?, ?, ?, ?)", row)

    def knows(self, channel: bytes, number: int, statement_id: bytes) -> bool:
        """See `Agreed`."""
        sql = "SELECT id FROM agreed_drafts WHERE channel = ? AND statement_number = ?"
        with transaction(self._connection):
            row = self._connection.execute(sql, (channel.hex(), number)).fetchone()
        return row is not None and row[0] == statement_id.hex()

    def drafts(self) -> list[Record]:
        """See `Agreed`."""
        with transaction(self._connection):
            rows = self._connection.execute("SELECT payload FROM agreed_drafts ORDER BY agreed_ms").fetchall()
        return [Record(Statement.payload_type, payload, ()) for (payload,) in rows]


class AgreedInMemory:
    """Forgotten with the process: for tests, and for a client without a data folder."""

    def __init__(self) -> None:
        self._drafts: Final[dict[tuple[bytes, int], Record]] = {}

    def note(self, draft: Record, statement: Statement, now_ms: int) -> None:
        """See `Agreed`."""
        self._drafts[(statement.channel, statement.statement_number)] = draft

    def knows(self, channel: bytes, number: int, statement_id: bytes) -> bool:
        """See `Agreed`."""
        draft = self._drafts.get((channel, number))
        return draft is not None and draft.id == statement_id

    def drafts(self) -> list[Record]:
        """See `Agreed`."""
        return list(self._drafts.values())
