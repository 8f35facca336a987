"""Every payment that was ever ordered, in settlement.db: written down before its file leaves, so that none is ordered
twice.

    order    26 characters, `PaymentOrder.key`: its InstrId in the bank's file
    batch    the file's message id, with the bytes of the file

An order is never deleted. A person who knows that a bank refused its file withdraws it; then it may be ordered again,
under another key.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

from p2pgrid.errors import LedgerError, UsageError
from p2pgrid.settlement.bank.stored import StoredBooking
from p2pgrid.settlement.database import prepare, transaction
from p2pgrid.settlement.payments.rail_files import RailFile

ROOM: Final = "paying"
STEPS: Final = (
    """CREATE TABLE payment_batches (
        message_id TEXT PRIMARY KEY, rail TEXT NOT NULL, execution_date TEXT NOT NULL, payer_iban TEXT NOT NULL,
        ordered_ms INTEGER NOT NULL, written_ms INTEGER, folder TEXT NOT NULL) STRICT""",
    """CREATE TABLE payment_files (
        message_id TEXT NOT NULL REFERENCES payment_batches (message_id), name TEXT NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (message_id, name)) STRICT""",
    """CREATE TABLE payment_orders (
        key TEXT PRIMARY KEY, message_id TEXT NOT NULL REFERENCES payment_batches (message_id),
        purpose TEXT NOT NULL, peer TEXT NOT NULL, payee TEXT NOT NULL, iban TEXT NOT NULL,
        amount_cents INTEGER NOT NULL, end_to_end_id TEXT NOT NULL, attempt INTEGER NOT NULL, shares BLOB NOT NULL,
        arrived_before_cents INTEGER NOT NULL, ordered_ms INTEGER NOT NULL, withdrawn_ms INTEGER) STRICT""",
    """CREATE TABLE payee_accounts (
        peer TEXT NOT NULL, iban TEXT NOT NULL, since_ms INTEGER NOT NULL, PRIMARY KEY (peer, since_ms)) STRICT""",
)
_SHORTEST: Final = 4


class Purpose(StrEnum):
    """What a payment is for."""

    INVOICES = "invoices"
    """Of one statement."""
    AHEAD = "ahead"
    REFUND = "refund"
    """Money that goes back to a client."""


class Ordered(msgspec.Struct, frozen=True, kw_only=True):
    """One payment that was ordered."""

    key: str
    message_id: str
    purpose: Purpose
    peer: str
    """The payee's peer id."""
    payee: str
    iban: str
    amount_cents: int
    end_to_end_id: str
    attempt: int
    shares: tuple[StoredBooking, ...]
    """What it is for, above zero; together they are its amount."""
    arrived_before_cents: int = 0
    """What had arrived for the same statement, or ahead, when it was ordered."""
    ordered_ms: int
    withdrawn_ms: int | None = None

    @property
    def channel(self) -> bytes:
        """All that an order pays is of one channel."""
        return self.shares[0].target.channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One file, or the files of one rail."""

    message_id: str
    rail: str
    execution_date: str
    payer_iban: str
    ordered_ms: int
    written_ms: int | None
    """None where nobody knows whether its files came to disk."""
    folder: str


class OrdersBook:
    """The tables of this room."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Raises LedgerError."""
        self._connection: Final = connection
        prepare(connection, ROOM, STEPS)

    def orders(self) -> list[Ordered]:
        """Every one, the oldest first. Raises LedgerError."""
        rows = self._read(
            "SELECT key, message_id, purpose, peer, payee, iban, amount_cents, end_to_end_id, attempt, shares, "
            "arrived_before_cents, ordered_ms, withdrawn_ms FROM payment_orders ORDER BY ordered_ms, key"
        )
        return [_ordered(row) for row in rows]

    def batches(self) -> list[Batch]:
        """Every one, the oldest first. Raises LedgerError."""
        rows = self._read(
            "SELECT message_id, rail, execution_date, payer_iban, ordered_ms, written_ms, folder FROM payment_batches "
            "ORDER BY ordered_ms, message_id"
        )
        names = ("message_id", "rail", "execution_date", "payer_iban", "ordered_ms", "written_ms", "folder")
        return [Batch(**dict(zip(names, row, strict=True))) for row in rows]

    def files(self, message_id: str) -> list[RailFile]:
        """The files of a batch, as they were first written. Raises LedgerError."""
        rows = self._read("SELECT name, data FROM payment_files WHERE message_id = ? ORDER BY name", message_id)
        return [RailFile(name, data) for name, data in rows]

    def account_of(self, peer: str) -> str | None:
        """The IBAN to which this peer was paid last, or to which a person agreed since. Raises LedgerError."""
        sql = "SELECT iban FROM payee_accounts WHERE peer = ? ORDER BY since_ms DESC LIMIT 1"
        rows = self._read(sql, peer)
        return str(rows[0][0]) if rows else None

    def order(
        self, batch: Batch, files: Iterable[RailFile], orders: Sequence[Ordered], *, taken_back: Collection[str] = ()
    ) -> None:
        """Write a batch down, all of it durable when this returns; before any of its files leaves. `taken_back`: keys
        of orders that are withdrawn together with it.

        Raises UsageError if one of its orders was ordered before, LedgerError.
        """
        with transaction(self._connection):
            run = self._connection.execute
            keys = {row[0] for row in run("SELECT key FROM payment_orders")}
            if known := next((order for order in orders if order.key in keys), None):
                raise UsageError(
                    f"the payment {known.key} to {known.payee} was ordered before.",
                    hint="`p2pgrid pay --list` shows it.",
                )
            run(
                "INSERT INTO payment_batches VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    batch.message_id, batch.rail, batch.execution_date, batch.payer_iban, batch.ordered_ms,
                    batch.written_ms, batch.folder,
                ),
            )  # fmt: skip
            for file in files:
                run("INSERT INTO payment_files VALUES (?, ?, ?)", (batch.message_id, file.name, file.data))
            for one in orders:
                run(
                    "INSERT INTO payment_orders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                    (
                        one.key, one.message_id, one.purpose.value, one.peer, one.payee, one.iban, one.amount_cents,
                        one.end_to_end_id, one.attempt, msgspec.json.encode(one.shares), one.arrived_before_cents,
                        one.ordered_ms,
                    ),
                )  # fmt: skip
                self._agree(one.peer, one.iban, one.ordered_ms)
            self._withdraw(taken_back, batch.ordered_ms)

    def written(self, message_id: str, folder: str, now_ms: int) -> None:
        """The files of a batch are on disk. Raises LedgerError."""
        with transaction(self._connection):
            self._connection.execute(
                "UPDATE payment_batches SET written_ms = ?, folder = ? WHERE message_id = ?",
                (now_ms, folder, message_id),
            )

    def withdraw(self, keys: Collection[str], now_ms: int) -> None:
        """These orders were not carried out, and never will be: a person says so. Raises LedgerError."""
        with transaction(self._connection):
            self._withdraw(keys, now_ms)

    def find(self, prefix: str) -> list[Ordered]:
        """The order whose key begins so, or all of the batch whose message id does. Raises UsageError."""
        wanted = prefix.strip().upper()
        orders = self.orders()
        if len(wanted) >= _SHORTEST:
            batches = sorted({one.message_id for one in orders if one.message_id.startswith(wanted)})
            keys = [one for one in orders if one.key.startswith(wanted)]
            if len(batches) + len(keys) == 1:
                return keys or [one for one in orders if one.message_id == batches[0]]
            if batches or keys:
                raise UsageError(f"more than one payment's key begins with {prefix!r}.", hint="Give more of it.")
        raise UsageError(
            f"{prefix[:40]!r} is the key of no payment that was ordered here.",
            hint="`p2pgrid pay --list` shows keys; at least four characters are needed.",
        )

    def _withdraw(self, keys: Collection[str], now_ms: int) -> None:
        for key in keys:
            self._connection.execute(
                "UPDATE payment_orders SET withdrawn_ms = ? WHERE key = ? AND withdrawn_ms IS NULL", (now_ms, key)
            )

    def _agree(self, peer: str, iban: str, now_ms: int) -> None:
        last = self._connection.execute(
            "SELECT iban FROM payee_accounts WHERE peer = ? ORDER BY since_ms DESC LIMIT 1", (peer,)
        ).fetchone()
        if last is None or last[0] != iban:
            self._connection.execute("INSERT OR REPLACE INTO payee_accounts VALUES (?, ?, ?)", (peer, iban, now_ms))

    def _read(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"settlement.db cannot be read: {error}.") from error


def _ordered(row: tuple[Any, ...]) -> Ordered:
    values = dict(zip(Ordered.__struct_fields__, row, strict=True))
    values["purpose"] = Purpose(values["purpose"])
    values["shares"] = msgspec.json.decode(values["shares"], type=tuple[StoredBooking, ...])
    return Ordered(**values)
