"""Numbers of invoices without gaps, and what was issued under them: rows of settlement.db.

A number is allotted in one transaction with all that is written under it: the signed Invoice record, the files' bytes
and what the document was made of. So there is no moment at which a number is taken and its document is not there: a
process that is killed before the transaction has taken no number, and one that is killed after it finds the same bytes
again. A document that is refused never gets so far, and takes no number.

Series are a prefix each, and begin with 1 in every calendar year: `INV-2027-000001`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from p2pgrid.errors import LedgerError
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.statement import Invoice
from p2pgrid.settlement.database import prepare, transaction

_NUMBER: Final = re.compile(r"(?P<series>.+)-(?P<year>\d{4})-(?P<sequence>\d{6,12})", re.ASCII)
_COLUMNS: Final = (
    "series, year, sequence, channel, statement, round, purpose, cancels, issued_ms, record, inputs, state, "
    "published_ms, sent_ms"
)
_STEPS: Final = (
    """CREATE TABLE issued (
        series TEXT NOT NULL, year INTEGER NOT NULL, sequence INTEGER NOT NULL, number TEXT NOT NULL UNIQUE,
        channel BLOB NOT NULL, statement BLOB NOT NULL, round INTEGER NOT NULL, purpose TEXT NOT NULL,
        cancels TEXT NOT NULL, issued_ms INTEGER NOT NULL, record BLOB NOT NULL, inputs BLOB NOT NULL,
        state TEXT NOT NULL, published_ms INTEGER, sent_ms INTEGER,
        PRIMARY KEY (series, year, sequence), UNIQUE (statement, round, purpose)) STRICT""",
    """CREATE TABLE issued_files (
        number TEXT NOT NULL REFERENCES issued (number), name TEXT NOT NULL, content BLOB NOT NULL,
        PRIMARY KEY (number, name)) STRICT""",
    """CREATE TABLE not_issued (
        statement BLOB PRIMARY KEY, code TEXT NOT NULL, message TEXT NOT NULL, hint TEXT NOT NULL,
        tried_ms INTEGER NOT NULL, tries INTEGER NOT NULL) STRICT""",
)


class Purpose(StrEnum):
    """Why a document was issued."""

    STATEMENT = "statement"
    """For a statement: the first, or again after a cancellation."""
    CANCELLATION = "cancellation"


class State(StrEnum):
    """How far a document is."""

    ALLOTTED = "allotted"
    """It has its number, its record and its bytes; ledger and folder may not have them yet."""
    PUBLISHED = "published"
    """Record in the ledger, files in the folder."""
    ADOPTED = "adopted"
    """The ledger had its record, and this file had forgotten it: its number is taken, its files are not known."""


class Number(NamedTuple):
    """A document's number."""

    series: str
    year: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.series}-{self.year}-{self.sequence:06}"


def parse_number(text: str) -> Number | None:
    """A number of the form that is made here, or None."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    number = Number(found["series"], int(found["year"]), int(found["sequence"]))
    return number if str(number) == text and number.sequence else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A document that has been made and checked, and wants its number."""

    number: Number
    message: Invoice
    record: Record
    """Signed by the provider already: it is in the same transaction. A self-billed invoice is not, at the client's."""
    round: int
    """0; one more after each cancellation of the statement's invoice."""
    purpose: Purpose = Purpose.STATEMENT
    cancels: str = ""
    inputs: bytes
    """All that the document was made of (`making.Inputs`)."""
    files: tuple[tuple[str, bytes], ...]
    """Name and content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedRow:
    """A document that has its number."""

    number: Number
    channel: bytes
    statement: bytes
    round: int
    purpose: Purpose
    cancels: str
    issued_ms: int
    record: bytes
    """The Invoice record in wire form."""
    inputs: bytes
    """Empty for what was adopted."""
    state: State
    published_ms: int | None
    sent_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotIssued:
    """Why a statement has no invoice yet."""

    statement: bytes
    code: str
    message: str
    hint: str
    tried_ms: int
    tries: int


class NumberTaken(Exception):
    """Another process was quicker: the document has to be made again, with the next number."""


class IssueBook:
    """What was issued, and the numbers that are next. Several processes may use one file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """`connection`: of `database.open_database`. Raises LedgerError."""
        self._connection: Final = connection
        prepare(connection, "issuing", _STEPS)

    def next_number(self, series: str, year: int) -> Number:
        """The number that `allot` would take now."""
        return Number(series, year, self._last_sequence(series, year) + 1)

    def last_issued_ms(self, series: str) -> int:
        """When the last document of the series was issued; 0 if there is none."""
        row = self._connection.execute("SELECT max(issued_ms) FROM issued WHERE series = ?", (series,)).fetchone()
        return int(row[0] or 0)

    def allot(self, drafts: Sequence[Draft]) -> None:
        """Give the documents their numbers, all or none; durable when this returns.

        Raises NumberTaken where a number is not the next one, or the statement has its document already; LedgerError.
        """
        with transaction(self._connection):
            for draft in drafts:
                number, message = draft.number, draft.message
                if (
                    number != self.next_number(number.series, number.year)
                    or message.issued_ms < self.last_issued_ms(number.series)
                    or self._has(message.statement, draft.round, draft.purpose)
                ):
                    raise NumberTaken
                self._insert(draft, State.ALLOTTED)
                self._connection.executemany(
                    "INSERT INTO issued_files VALUES (?, ?, ?)",
                    [(str(number), name, content) for name, content in draft.files],
                )
            for statement in {draft.message.statement for draft in drafts}:
                self._connection.execute("DELETE FROM not_issued WHERE statement = ?", (statement,))

    def adopt(self, invoice: Signed[Invoice]) -> bool:
        """Take note of an Invoice that the ledger has and this file lacks, so that its number is not given again.

        False if it is known, or its number is of another kind and so in nobody's way.
        """
        message = invoice.message
        number = parse_number(message.invoice_number)
        if number is None or self.row(message.invoice_number) is not None:
            return False
        with transaction(self._connection):
            is_cancellation = message.type_code.is_credit_note and any(
                True for _ in self._rows("statement = ?", message.statement)
            )
            purpose = Purpose.CANCELLATION if is_cancellation else Purpose.STATEMENT
            round_ = sum(1 for row in self._rows("statement = ?", message.statement) if row.purpose is purpose)
            self._insert(
                Draft(
                    number=number,
                    message=message,
                    record=invoice.record,
                    round=round_,
                    purpose=purpose,
                    inputs=b"",
                    files=(),
                ),
                State.ADOPTED,
            )
        return True

    # -- afterwards -------------------------------------------------------------------------------------------------

    def row(self, number: str) -> IssuedRow | None:
        """The document of that number."""
        return next(iter(self._rows("number = ?", number)), None)

    def of_statement(self, statement: bytes) -> list[IssuedRow]:
        """The documents of a statement, in the order of their numbers' times."""
        return self._rows("statement = ?", statement)

    def all(self) -> list[IssuedRow]:
        """Every document, oldest first."""
        return self._rows("1")

    def unpublished(self) -> list[IssuedRow]:
        """Documents whose record or files may not be where they belong yet."""
        return self._rows("state = ?", State.ALLOTTED.value)

    def files(self, number: str) -> list[tuple[str, bytes]]:
        """Names and bytes of a document that is not published yet."""
        rows = self._connection.execute(
            "SELECT name, content FROM issued_files WHERE number = ? ORDER BY name", (number,)
        )
        return [(name, bytes(content)) for name, content in rows]

    def published(self, number: str, now_ms: int) -> None:
        """Its files are on disk, synced: their bytes need not be here any more."""
        with transaction(self._connection):
            self._connection.execute(
                "UPDATE issued SET state = ?, published_ms = ? WHERE number = ?",
                (State.PUBLISHED.value, now_ms, number),
            )
            self._connection.execute("DELETE FROM issued_files WHERE number = ?", (number,))

    def sent(self, number: str, now_ms: int) -> None:
        """The other side has been given the file. The first time counts."""
        with transaction(self._connection):
            self._connection.execute(
                "UPDATE issued SET sent_ms = ? WHERE number = ? AND sent_ms IS NULL", (now_ms, number)
            )

    # -- what could not be issued -----------------------------------------------------------------------------------

    def refused(self, statement: bytes, code: str, message: str, hint: str, now_ms: int) -> None:
        """Note why a statement has no invoice yet."""
        with transaction(self._connection):
            self._connection.execute(
                "INSERT INTO not_issued VALUES (?1, ?2, ?3, ?4, ?5, 1) ON CONFLICT (statement) DO UPDATE SET "
                "code = ?2, message = ?3, hint = ?4, tried_ms = ?5, tries = tries + 1",
                (statement, code, message, hint, now_ms),
            )

    def not_issued(self) -> dict[bytes, NotIssued]:
        """Statements that have no invoice yet because it was refused, by id."""
        rows = self._connection.execute("SELECT statement, code, message, hint, tried_ms, tries FROM not_issued")
        return {
            row[0]: NotIssued(statement=row[0], code=row[1], message=row[2], hint=row[3], tried_ms=row[4], tries=row[5])
            for row in rows
        }

    # -- inside -----------------------------------------------------------------------------------------------------

    def _last_sequence(self, series: str, year: int) -> int:
        row = self._connection.execute(
            "SELECT max(sequence) FROM issued WHERE series = ? AND year = ?", (series, year)
        ).fetchone()
        return int(row[0] or 0)

    def _has(self, statement: bytes, round_: int, purpose: Purpose) -> bool:
        rows = self._connection.execute(
            "SELECT 1 FROM issued WHERE statement = ? AND round = ? AND purpose = ?",
            (statement, round_, purpose.value),
        )
        return rows.fetchone() is not None

    def _insert(self, draft: Draft, state: State) -> None:
        number, message = draft.number, draft.message
        self._connection.execute(
            "INSERT INTO issued VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            (
                *number,
                str(number),
                message.channel,
                message.statement,
                draft.round,
                draft.purpose.value,
                draft.cancels,
                message.issued_ms,
                draft.record.to_bytes(),
                draft.inputs,
                state.value,
            ),
        )

    def _rows(self, where: str, *values: str | bytes) -> list[IssuedRow]:
        try:
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM issued WHERE {where} ORDER BY issued_ms, series, year, sequence",  # noqa: S608
                values,
            ).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"settlement.db cannot be read: {error}.") from error
        return [
            IssuedRow(
                number=Number(*row[:3]),
                channel=row[3],
                statement=row[4],
                round=row[5],
                purpose=Purpose(row[6]),
                cancels=row[7],
                issued_ms=row[8],
                record=row[9],
                inputs=row[10],
                state=State(row[11]),
                published_ms=row[12],
                sent_ms=row[13],
            )
            for row in rows
        ]
