"""The one thread that writes to the ledger's file: group commit.

It commits at once when it is idle, and everything that came in meanwhile in one go when it was busy. So a lone append
pays one sync of the disk and no delay, and many at once share one. While several come at a time it also gathers for as
long as the last commit took, a millisecond at most: a commit costs far more than the records in it.

The WAL is folded into the file when nobody waits: in the first pause after `CHECKPOINT_ROWS`, or, where none comes,
by SQLite itself at the latest after `MAX_WAL_PAGES` (`schema`).

What a crash leaves behind: SQLite's WAL ends with the last whole commit, and a record is acknowledged after its
commit was synced. An acknowledged record is there; of one that was not, all or nothing of its call may be. The same
holds for a call that *failed* because the disk would not sync: readers do not see its records, the next commit that
succeeds overwrites them in the WAL, but if the process ends before that, the next one may find them. Their future
raised, so nobody acted on them; whoever opens the ledger goes by what it then holds.
"""

# ruff: noqa: S608 - names in the statements are constants of this package; every value is bound

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.ledger.lock import WriterLock
from p2pgrid.ledger.schema import connect_writer, ledger_error
from p2pgrid.ledger.tables import (
    TABLES,
    Table,
    Value,
    checked_record,
    decode_signatures,
    encode_signatures,
    merged_signatures,
)
from p2pgrid.proto.record import Message, Record, Signed

MAX_BATCH_CALLS: Final = 512
MAX_GATHER_S: Final = 0.001
CHECKPOINT_ROWS: Final = 500
CHECKPOINT_PAUSE_S: Final = 0.05

_S = TypeVar("_S")
Operation = Callable[[sqlite3.Connection], None]
"""One change. It raises SlotTaken or sqlite3.Error, and then has changed nothing.

The last of a call's operations may be one that fails only with the whole transaction: see `_NEVER_REFUSED`.
"""


@dataclass(frozen=True, slots=True)
class Call:
    """Operations that are durable together or not at all, and who waits for them."""

    operations: Sequence[Operation]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


class Writer:
    """Owns the writing connection and the lock from construction until `stop`. Raises sqlite3.Error, LedgerError."""

    def __init__(self, path: Path, lock: WriterLock) -> None:
        self._path = path
        self._lock = lock
        self._conn: sqlite3.Connection | None = connect_writer(path)
        self._has_erased = False
        """True while the WAL may hold what was erased."""
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._gather_s = 0.0
        self._rows_in_wal = 0
        self._thread = threading.Thread(target=self._run, name=f"ledger {path.name}", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        """Queue a call. Returns at once."""
        self._queue.put(call)

    def stop(self) -> None:
        """Finish what is queued, close the connection, release the lock. Blocks until that is done."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        try:
            while going:
                batch, going = self._next_batch()
                if batch:
                    began_s = time.perf_counter()
                    outcomes = self._commit(batch)
                    self._gather_s = min(time.perf_counter() - began_s, MAX_GATHER_S) if len(batch) > 1 else 0.0
                    _report(batch, outcomes)
        finally:
            if self._conn is not None:
                self._conn.close()
            self._lock.release()

    def _next_batch(self) -> tuple[list[Call], bool]:
        """What is queued, at least one; False with it once the queue has ended."""
        batch: list[Call] = []
        call = self._first_call()
        if self._gather_s and call is not None:
            time.sleep(self._gather_s)
        while call is not None:
            batch.append(call)
            if len(batch) == MAX_BATCH_CALLS:
                return batch, True
            try:
                call = self._queue.get_nowait()
            except Empty:
                return batch, True
        return batch, False

    def _first_call(self) -> Call | None:
        """Wait for a call. A pause is used to fold the WAL into the file."""
        if self._rows_in_wal >= CHECKPOINT_ROWS:
            try:
                return self._queue.get(timeout=CHECKPOINT_PAUSE_S)
            except Empty:
                self._fold_wal()
        return self._queue.get()

    def _fold_wal(self) -> None:
        """Not needed for anything to be durable: where it fails, SQLite does it later."""
        self._rows_in_wal = 0
        if self._conn is not None:
            with contextlib.suppress(sqlite3.Error):
                self._conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _commit(self, batch: list[Call]) -> list[LedgerError | None]:
        """Apply and commit. Calls that share a commit share its failure; otherwise each has its own outcome."""
        outcomes: list[LedgerError | None] = []
        try:
            conn = self._connection()
            conn.execute("BEGIN IMMEDIATE")
            for plain, calls in itertools.groupby(batch, _is_plain):
                some = list(calls)
                self._rows_in_wal += sum(len(call.operations) for call in some)
                if plain and _store_together(conn, [one for call in some for one in call.operations]):
                    outcomes += [None] * len(some)
                else:
                    for call in some:
                        outcomes.append(self._apply(conn, call))
            conn.execute("COMMIT")
        except (sqlite3.Error, LedgerError) as error:
            self._roll_back()
            refused = [*outcomes, *[None] * (len(batch) - len(outcomes))]
            return [own or self._shared_failure(error) for own in refused]
        self._has_erased |= any(isinstance(one, EraseRequestKeys) for call in batch for one in call.operations)
        if self._has_erased:
            self._empty_wal(conn)
        return outcomes

    def _empty_wal(self, conn: sqlite3.Connection) -> None:
        """What was erased still stands in the WAL until that is folded into the file and cut."""
        try:
            (is_busy, _, _) = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            return  # what was committed stays so; it is tried again after the next commit, and on closing
        self._has_erased = bool(is_busy)

    def _apply(self, conn: sqlite3.Connection, call: Call) -> LedgerError | None:
        """Apply one call, all or none. Raises sqlite3.Error when the whole transaction is lost."""
        operations = call.operations
        alone = len(operations) == 1 or _is_plain(call)
        if not alone:
            conn.execute("SAVEPOINT call")
        failure: LedgerError | None = None
        try:
            for operation in operations:
                operation(conn)
        except LedgerError as error:
            failure = error
        except sqlite3.IntegrityError as error:
            failure = _integrity_failure(error)
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001 - a fault in one call must neither end the thread nor fail others
            failure = LedgerError(f"the ledger could not store a record: {type(error).__name__}: {error}.")
            failure.__cause__ = error
        if not alone:
            if failure is not None:
                conn.execute("ROLLBACK TO call")
            conn.execute("RELEASE call")
        return failure

    def _connection(self) -> sqlite3.Connection:
        if self._conn is None:
            self._conn = connect_writer(self._path)
        return self._conn

    def _roll_back(self) -> None:
        """Leave the transaction. A connection that cannot even do that is replaced before the next batch."""
        conn = self._conn
        if conn is None or not conn.in_transaction:
            return
        try:
            conn.execute("ROLLBACK")
        except sqlite3.Error:
            conn.close()
            self._conn = None

    def _shared_failure(self, error: sqlite3.Error | LedgerError) -> LedgerError:
        if isinstance(error, LedgerError):
            return LedgerError(error.message, hint=error.hint)
        failure = ledger_error(self._path, error)
        failure.__cause__ = error
        return failure


class StoreRecord:
    """Insert a checked record; if it is there already, add the signatures it brings.

    Done once more it changes nothing, so that what `_store_together` left undone can be done one by one.
    """

    __slots__ = ("_signed", "addition", "row", "table")

    def __init__(self, table: Table, seq: int, signed: Signed[Message]) -> None:
        self.table: Final = table
        self._signed = signed
        self.row: Final = table.row(seq, signed)
        self.addition: tuple[Value, ...] | None = None
        """Values for `_ADD_ONE_SIGNATURE`, where the record may stand there with one signature less."""
        if len(signed.signers) > 1 and table.name in _ADD_ONE_SIGNATURE:
            _, record_id, *columns, roles, _, signatures = self.row
            without_last = encode_signatures(checked_record(signed).signatures[:-1])
            self.addition = (signatures, roles, *columns[: len(table.slots[0])], record_id, without_last)

    def __call__(self, conn: sqlite3.Connection) -> None:
        table = self.table
        if conn.execute(_insert_sql(table.name, 1), self.row).rowcount == 1:
            return
        standing = self._standing(conn)
        if len(standing) != 1 or standing[0][1] != self.row[1]:
            raise SlotTaken(f"another record stands in {table.describe(self._signed.message)}.")
        seq, _, blob = standing[0]
        stored = decode_signatures(blob)
        merged = merged_signatures(stored, checked_record(self._signed).signatures)
        if merged != stored:
            roles = ",".join(sorted({s.role.value for s in merged}))
            conn.execute(_ADD_SIGNATURES[table.name], (encode_signatures(merged), roles, seq))

    def _standing(self, conn: sqlite3.Connection) -> list[tuple[int, str, bytes]]:
        """Rows that hold a slot of this record's: seq, id, signatures."""
        rows: dict[int, tuple[int, str, bytes]] = {}
        for sql, values in zip(_STANDING[self.table.name], self.table.slot_values(self._signed.message), strict=True):
            rows.update((row[0], row) for row in conn.execute(sql, values))
        return list(rows.values())


class StoreOutcome:
    """Note how an order on record ended without a receipt. A later note replaces an earlier one."""

    __slots__ = ("_id", "_outcome", "_slot")

    def __init__(self, order: Signed[Message], outcome: str) -> None:
        table = TABLES[order.record.payload_type]
        self._slot = table.slot_values(order.message)[0]
        self._outcome = outcome

    def __call__(self, conn: sqlite3.Connection) -> None:
        conn.execute(
            "UPDATE orders SET outcome = ? WHERE channel = ? AND order_number = ?", (self._outcome, *self._slot)
        )


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


class StoreRequestKey:
    """Keep an order's commitment key. The first one stays."""

    __slots__ = ("row",)

    def __init__(self, channel: bytes, order_number: int, key: bytes) -> None:
        self.row: Final = (channel.hex(), order_number, bytes(key))

    def __call__(self, conn: sqlite3.Connection) -> None:
        conn.execute(_insert_sql("request_keys", 1), self.row)


class EraseRequestKeys:
    """Destroy commitment keys. The writer empties the WAL after the commit: older pages stand there."""

    __slots__ = ("_orders",)

    def __init__(self, orders: Sequence[tuple[bytes, int]]) -> None:
        self._orders = [(channel.hex(), order_number) for channel, order_number in orders]

    def __call__(self, conn: sqlite3.Connection) -> None:
        conn.executemany("DELETE FROM request_keys WHERE channel = ? AND order_number = ?", self._orders)


_NEVER_REFUSED: Final = frozenset({StoreRequestKey})
"""Operations that fail, if at all, with the disk, and so with the whole transaction."""


def _integrity_failure(error: sqlite3.IntegrityError) -> LedgerError:
    if error.sqlite_errorname == "SQLITE_CONSTRAINT_FOREIGNKEY":
        failure = LedgerError("the record belongs to a channel that is not on record.", hint="Store the channel first.")
    else:
        failure = LedgerError(f"the ledger does not take this record: {error}.")
    failure.__cause__ = error
    return failure


def _report(batch: Sequence[Call], outcomes: Sequence[LedgerError | None]) -> None:
    """Resolve futures in the order of the calls, with one wake-up of each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[None], LedgerError | None]]] = {}
    for call, outcome in zip(batch, outcomes, strict=True):
        by_loop.setdefault(call.loop, []).append((call.future, outcome))
    for loop, results in by_loop.items():
        try:
            loop.call_soon_threadsafe(resolve, results)
        except RuntimeError:
            # The loop is closed: nobody waits any more. What was committed stays.
            continue


def resolve(results: Sequence[tuple[asyncio.Future[None], LedgerError | None]]) -> None:
    """Settle futures in order; those that somebody cancelled are left alone."""
    for future, error in results:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _is_plain(call: Call) -> bool:
    """True for a call of one record, and what is never refused: nothing to undo where the record is refused."""
    first, *more = call.operations
    return type(first) is StoreRecord and all(type(one) in _NEVER_REFUSED for one in more)


def _store_together(conn: sqlite3.Connection, operations: Sequence[Operation]) -> bool:
    """Store records and request keys in few statements: each gives the GIL away and has to wait for it.

    False if some of it is still to be done, one by one: a slot is taken, a signature comes to a record that stands
    there otherwise than expected, or a channel is missing.
    """
    groups: dict[tuple[str, bool], list[StoreRecord | StoreRequestKey]] = {}
    for one in operations:
        if isinstance(one, StoreRecord):
            groups.setdefault((one.table.name, one.addition is not None), []).append(one)
        elif isinstance(one, StoreRequestKey):
            groups.setdefault(("request_keys", False), []).append(one)
    try:
        for (name, may_stand), stores in groups.items():
            for some in _pieces(stores):
                stored = conn.execute(_insert_sql(name, len(some)), [v for one in some for v in one.row]).rowcount
                if stored < len(some) and may_stand:
                    additions = [v for one in some for v in one.addition or ()]  # type: ignore[union-attr]
                    stored += conn.execute(_add_one_signature_sql(name, len(some)), additions).rowcount
                if stored < len(some) and name != "request_keys":
                    return False
    except sqlite3.IntegrityError:
        return False
    return True


def _pieces(stores: Sequence[_S]) -> Iterator[Sequence[_S]]:
    """In pieces of 16, 8, 4, 2, 1, so that there are few statements to prepare."""
    start = 0
    while start < len(stores):
        n = min(1 << (len(stores) - start).bit_length() - 1, 16)
        yield stores[start : start + n]
        start += n


@functools.cache
def _insert_sql(name: str, rows: int) -> str:
    """For so many rows of a table."""
    columns = _COLUMNS[name]
    values = ", ".join([f"({', '.join('?' * len(columns))})"] * rows)
    return f"INSERT INTO {name} ({', '.join(columns)}) VALUES {values} ON CONFLICT DO NOTHING"


@functools.cache
def _add_one_signature_sql(name: str, rows: int) -> str:
    """For so many records: where one stands with the signatures that it had before its last one, add that."""
    known = _ADD_ONE_SIGNATURE[name]
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
_STANDING: Final = {table.name: _standing_sql(table) for table in TABLES.values()}
_ADD_SIGNATURES: Final = {
    table.name: f"UPDATE {table.name} SET signatures = ?, signed_by = ? WHERE seq = ?" for table in TABLES.values()
}
_ADD_ONE_SIGNATURE: Final = {
    table.name: (*table.slots[0], "id", "signatures")
    for table in TABLES.values()
    if tuple(table.columns)[: len(table.slots[0])] == table.slots[0]
}
"""The columns that tell a record with one signature less, by table: by its slot, so that no other index is needed."""
