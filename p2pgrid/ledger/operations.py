"""What can be done to the ledger's file, one change at a time or many in few statements.

An operation is built where a record is appended, and applied where SQLite is: at once, or some moments later from the
journal (`journal`). So it holds rows alone: what the journal keeps of it is all that there is.
"""

# ruff: noqa: S608 - names in the statements are constants of this package; every value is bound

from __future__ import annotations

import functools
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.ledger.signatures import BOTH_ROLES, damaged, decode_signatures, encode_signatures, merged_signatures
from p2pgrid.ledger.table import Table, Value
from p2pgrid.ledger.tables import TABLES
from p2pgrid.proto.record import Message, Record, Signed

Operation = Callable[[sqlite3.Connection], None]
"""One change. It raises SlotTaken or sqlite3.Error, and then has changed nothing.

The last of a call's operations may be one that fails only with the whole transaction: see `NEVER_REFUSED`.
"""

_S = TypeVar("_S")
_TABLES_BY_NAME: Final = {table.name: table for table in TABLES.values()}


class StoreRecord:
    """Insert a checked record; if it is there already, add the signatures it brings.

    Done once more it changes nothing, so that what `store_together` left undone can be done one by one.
    """

    __slots__ = ("row", "table")
    KIND: Final = "record"

    def __init__(self, table: Table, row: Sequence[Value]) -> None:
        self.table: Final = table
        self.row: Final = row

    @classmethod
    def of(cls, table: Table, seq: int, signed: Signed[Message]) -> StoreRecord:
        """For a record; `seq` is its place in the order of arrival."""
        return cls(table, table.row(seq, signed))

    @property
    def may_stand(self) -> bool:
        """True where the record may be there with one signature less: both parties have signed it."""
        return self.table.name in ADD_ONE_SIGNATURE and self.row[-3] == BOTH_ROLES

    @property
    def addition(self) -> tuple[Value, ...]:
        """Values for `add_one_signature_sql`."""
        _, record_id, *columns, roles, _, signatures = self.row
        assert isinstance(signatures, bytes)
        without_last = encode_signatures(decode_signatures(signatures)[:-1])
        return (signatures, roles, *columns[: len(self.table.slots[0])], record_id, without_last)

    def __call__(self, conn: sqlite3.Connection) -> None:
        table = self.table
        if conn.execute(insert_sql(table.name, 1), self.row).rowcount == 1:
            return
        standing = self._standing(conn)
        if len(standing) != 1 or standing[0][1] != self.row[1]:
            raise SlotTaken(f"another record stands in {self._describe()}.")
        seq, _, blob = standing[0]
        signatures = self.row[-1]
        assert isinstance(signatures, bytes)
        stored = decode_signatures(blob)
        merged = merged_signatures(stored, decode_signatures(signatures))
        if merged != stored:
            roles = ",".join(sorted({s.role.value for s in merged}))
            conn.execute(ADD_SIGNATURES[table.name], (encode_signatures(merged), roles, seq))

    def _standing(self, conn: sqlite3.Connection) -> list[tuple[int, str, bytes]]:
        """Rows that hold a slot of this record's: seq, id, signatures."""
        rows: dict[int, tuple[int, str, bytes]] = {}
        values = dict(zip(self.table.stored_columns, self.row, strict=True))
        for sql, slot in zip(STANDING[self.table.name], self.table.slots, strict=True):
            found = conn.execute(sql, [values[column] for column in slot])
            rows.update((row[0], row) for row in found)
        return list(rows.values())

    def _describe(self) -> str:
        """The record's place for people: `orders: channel 12ab..., order_number 3`."""
        values = dict(zip(self.table.stored_columns, self.row, strict=True))
        return f"{self.table.name}: " + ", ".join(f"{column} {values[column]!r}" for column in self.table.slots[0])

    def to_journal(self) -> Sequence[Value | Sequence[Value]]:
        """What the journal keeps."""
        return (self.KIND, self.table.name, self.row)


class StoreOutcome:
    """Note how an order on record ended without a receipt. A later note replaces an earlier one."""

    __slots__ = ("row",)
    KIND: Final = "outcome"

    def __init__(self, outcome: str, channel: str, order_number: int) -> None:
        self.row: Final = (outcome, channel, order_number)

    def __call__(self, conn: sqlite3.Connection) -> None:
        conn.execute("UPDATE orders SET outcome = ? WHERE channel = ? AND order_number = ?", self.row)

    def to_journal(self) -> Sequence[Value | Sequence[Value]]:
        """What the journal keeps."""
        return (self.KIND, *self.row)


class StoreRequestKey:
    """Keep an order's commitment key. The first one stays."""

    __slots__ = ("row",)
    KIND: Final = "request_key"

    def __init__(self, channel: str, order_number: int, key: bytes) -> None:
        self.row: Final = (channel, order_number, key)

    def __call__(self, conn: sqlite3.Connection) -> None:
        conn.execute(insert_sql("request_keys", 1), self.row)

    def to_journal(self) -> Sequence[Value | Sequence[Value]]:
        """What the journal keeps."""
        return (self.KIND, *self.row)


class StoreEvidence:
    """Keep a record that is not believed. The same bytes are kept once, with the first reason."""

    __slots__ = ("_row",)

    def __init__(self, seq: int, record: Record, reason: str, noted_ms: int) -> None:
        self._row: tuple[Value, ...] = (
            seq,
            record.id.hex(),
            record.payload_type,
            reason,
            noted_ms,
            record.payload,
            encode_signatures(record.signatures),
        )

    def __call__(self, conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO evidence VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", self._row)


class EraseRequestKeys:
    """Destroy commitment keys. The writer empties WAL and journal after the commit: older copies stand there."""

    __slots__ = ("_orders",)

    def __init__(self, orders: Sequence[tuple[bytes, int]]) -> None:
        self._orders = [(channel.hex(), order_number) for channel, order_number in orders]

    def __call__(self, conn: sqlite3.Connection) -> None:
        conn.executemany("DELETE FROM request_keys WHERE channel = ? AND order_number = ?", self._orders)


Journaled = StoreRecord | StoreRequestKey | StoreOutcome
"""Operations that the journal can keep."""

NEVER_REFUSED: Final = frozenset({StoreRequestKey})
"""Operations that fail, if at all, with the disk, and so with the whole transaction."""


def from_journal(kept: Any) -> Journaled:
    """The operation that `to_journal` was called on. Raises LedgerError for what is none."""
    try:
        kind, *rest = kept
        if kind == StoreRecord.KIND:
            name, row = rest
            table = _TABLES_BY_NAME[name]
            if len(row) != len(table.stored_columns):
                raise damaged(f"the journal has {len(row)} columns for {name}")
            return StoreRecord(table, row)
        if kind == StoreRequestKey.KIND:
            return StoreRequestKey(*rest)
        if kind == StoreOutcome.KIND:
            return StoreOutcome(*rest)
    except (TypeError, ValueError, KeyError) as error:
        raise damaged(f"the journal holds no operation ({error!r})") from None
    raise damaged(f"the journal holds an operation {kind!r}")


def settle(conn: sqlite3.Connection, operations: Iterable[Journaled]) -> None:
    """Apply operations that were acknowledged already, in few statements. Raises sqlite3.Error, or LedgerError where
    one does not fit: then the file is not what this process, the only one that writes to it, has left there."""
    stores: list[StoreRecord | StoreRequestKey] = []
    outcomes: list[StoreOutcome] = []
    for one in operations:
        if isinstance(one, StoreOutcome):
            outcomes.append(one)
        else:
            stores.append(one)
    if not store_together(conn, stores):
        for store in stores:
            store(conn)
    for outcome in outcomes:
        outcome(conn)


def store_together(conn: sqlite3.Connection, operations: Sequence[Operation]) -> bool:
    """Store records and request keys in few statements: each gives the GIL away and has to wait for it.

    False if some of it is still to be done, one by one: a slot is taken, a signature comes to a record that stands
    there otherwise than expected, or a channel is missing.
    """
    records = _each_once([one for one in operations if isinstance(one, StoreRecord)])
    if records is None:
        return False
    by_table: dict[str, list[StoreRecord]] = {}
    for record in records:
        by_table.setdefault(record.table.name, []).append(record)
    # Within a table their order stays: of two for one slot the first has it.
    groups: list[tuple[str, bool, Sequence[StoreRecord | StoreRequestKey]]] = [
        (name, may_stand, list(some))
        for name, stores in by_table.items()
        for may_stand, some in itertools.groupby(stores, lambda one: one.may_stand)
    ]
    groups.append(("request_keys", False, [one for one in operations if isinstance(one, StoreRequestKey)]))
    try:
        for name, may_stand, stores_of_group in groups:
            for some in _pieces(stores_of_group):
                stored = conn.execute(insert_sql(name, len(some)), [v for one in some for v in one.row]).rowcount
                if stored < len(some) and may_stand:
                    additions = [v for one in some if isinstance(one, StoreRecord) for v in one.addition]
                    stored += conn.execute(add_one_signature_sql(name, len(some)), additions).rowcount
                if stored < len(some) and name != "request_keys":
                    return False
    except sqlite3.IntegrityError:
        return False
    return True


def _each_once(operations: Iterable[StoreRecord]) -> Iterable[StoreRecord] | None:
    """A proposal whose countersignature comes with it needs no row of its own. None where signatures contradict."""
    by_id: dict[tuple[str, Value], StoreRecord] = {}
    for one in operations:
        place = (one.table.name, one.row[1])
        earlier = by_id.setdefault(place, one)
        if earlier.row[-1] == one.row[-1]:
            continue
        if not one.may_stand or one.addition[-1] != earlier.row[-1]:
            return None
        by_id[place] = StoreRecord(one.table, (earlier.row[0], *one.row[1:]))
    return by_id.values()


def integrity_failure(error: sqlite3.IntegrityError) -> LedgerError:
    """What it means that SQLite's constraints refuse a record."""
    if error.sqlite_errorname == "SQLITE_CONSTRAINT_FOREIGNKEY":
        failure = LedgerError("the record belongs to a channel that is not on record.", hint="Store the channel first.")
    else:
        failure = LedgerError(f"the ledger does not take this record: {error}.")
    failure.__cause__ = error
    return failure


def _pieces(stores: Sequence[_S]) -> Iterator[Sequence[_S]]:
    """In pieces of 16, 8, 4, 2, 1, so that there are few statements to prepare."""
    start = 0
    while start < len(stores):
        n = min(1 << (len(stores) - start).bit_length() - 1, 16)
        yield stores[start : start + n]
        start += n


@functools.cache
def insert_sql(name: str, rows: int) -> str:
    """For so many rows of a table."""
    columns = _COLUMNS[name]
    values = ", ".join([f"({', '.join('?' * len(columns))})"] * rows)
    return f"INSERT INTO {name} ({', '.join(columns)}) VALUES {values} ON CONFLICT DO NOTHING"


@functools.cache
def add_one_signature_sql(name: str, rows: int) -> str:
    """For so many records: where one stands with the signatures that it had before its last one, add that."""
    known = ADD_ONE_SIGNATURE[name]
    values = ", ".join([f"({', '.join('?' * (len(known) + 2))})"] * rows)
    where = " AND ".join(f"{name}.{column} = new.column{n}" for n, column in enumerate(known, 3))
    change = f"UPDATE {name} SET signatures = new.column1, signed_by = new.column2"
    return f"{change} FROM (VALUES {values}) AS new WHERE {where}"


def _standing_sql(table: Table) -> list[str]:
    return [
        f"SELECT seq, id, signatures FROM {table.name} WHERE " + " AND ".join(f"{c} = ?" for c in slot)
        for slot in table.slots
    ]


_COLUMNS: Final = {
    **{table.name: table.stored_columns for table in TABLES.values()},
    "request_keys": ("channel", "order_number", "key"),
}
STANDING: Final = {table.name: _standing_sql(table) for table in TABLES.values()}
"""By table, a statement a slot: who stands there."""
ADD_SIGNATURES: Final = {
    table.name: f"UPDATE {table.name} SET signatures = ?, signed_by = ? WHERE seq = ?" for table in TABLES.values()
}
ADD_ONE_SIGNATURE: Final = {
    table.name: (*table.slots[0], "id", "signatures")
    for table in TABLES.values()
    if tuple(table.columns)[: len(table.slots[0])] == table.slots[0]
}
"""The columns that tell a record with one signature less, by table: by its slot, so that no other index is needed."""
