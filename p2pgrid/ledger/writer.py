"""The one thread that writes to the SQLite file.

It gets batches. A batch settles what was acknowledged from the journal, then applies calls, and is committed as a
whole, synced. Calls that share a commit share its failure; otherwise each has its own outcome. What could not be
settled is kept here and comes first in the next batch.

The WAL is folded into the file when nobody waits: in the first pause after `CHECKPOINT_ROWS`, or, where none comes,
by SQLite itself at the latest after `MAX_WAL_PAGES` (`schema`).

What a crash leaves behind: SQLite's WAL ends with the last whole commit, the journal with the last whole frame, and a
record is acknowledged after one of the two was synced. An acknowledged record is there; of one that was not, all or
nothing of its call may be. The same holds for a call that *failed* because the disk would not sync: readers do not see
its records, the next commit that succeeds overwrites them, but if the process ends before that, the next one may find
them. Their future raised, so nobody acted on them; whoever opens the ledger goes by what it then holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.journal import Journal, Mark, note_settled
from p2pgrid.ledger.lock import WriterLock
from p2pgrid.ledger.operations import (
    NEVER_REFUSED,
    EraseRequestKeys,
    Journaled,
    Operation,
    StoreRecord,
    integrity_failure,
    settle,
    store_together,
)
from p2pgrid.ledger.schema import connect_writer, ledger_error
from p2pgrid.proto.record import Message, Signed

CHECKPOINT_ROWS: Final = 500
CHECKPOINT_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Call:
    """Operations that are durable together or not at all, and who waits for them."""

    operations: Sequence[Operation]
    signed: Sequence[Signed[Message]]
    """The records among them."""
    future: asyncio.Future[None]


@dataclass(slots=True)
class Batch:
    """What is committed together, and how it went."""

    acknowledged: Sequence[Journaled]
    """To be settled: what the journal has up to the mark."""
    mark: Mark
    calls: Sequence[Call]
    on_done: Callable[[Batch], None]
    """Called in the writer's thread."""
    failure: LedgerError | None = None
    """Why nothing of it was committed."""
    outcomes: list[LedgerError | None] = field(default_factory=list)
    """Of each call."""
    done: threading.Event = field(default_factory=threading.Event)


class Writer:
    """Owns the writing connection, the journal and the lock from construction until `stop`."""

    def __init__(self, path: Path, conn: sqlite3.Connection, journal: Journal, lock: WriterLock) -> None:
        self._path = path
        self._lock = lock
        self._conn: sqlite3.Connection | None = conn
        self._journal = journal
        self._unsettled: list[Journaled] = []
        self._noted: Mark | None = None
        """The mark that the file has."""
        self.has_erased = False
        """True while the WAL may hold what was erased: every commit empties it as far as it can."""
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._rows_in_wal = 0
        self._thread = threading.Thread(target=self._run, name=f"ledger {path.name}", daemon=True)
        self._thread.start()

    @property
    def is_behind(self) -> bool:
        """True while something that was to be settled could not be."""
        return bool(self._unsettled)

    def put(self, batch: Batch) -> None:
        """Queue a batch. Returns at once."""
        self._queue.put(batch)

    def stop(self) -> None:
        """Finish what is queued, close all, release the lock. Blocks until that is done."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._commit(batch)
                batch.done.set()
                batch.on_done(batch)
        finally:
            if self._conn is not None:
                self._conn.close()
            self._journal.close()
            if not self._unsettled:
                self._journal.remove()
            self._lock.release()

    def _next(self) -> Batch | None:
        """Wait for a batch. A pause is used to fold the WAL into the file."""
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

    def _commit(self, batch: Batch) -> None:
        """Settle, apply and commit."""
        self._unsettled += batch.acknowledged
        if not self._unsettled and not batch.calls:
            return
        try:
            conn = self._connection()
            conn.execute("BEGIN IMMEDIATE")
            if self._unsettled:
                settle(conn, self._unsettled)
            if batch.mark != self._noted:
                note_settled(conn, batch.mark)
            self._apply_all(conn, batch)
            conn.execute("COMMIT")
        except (sqlite3.Error, LedgerError) as error:
            self._roll_back()
            batch.failure = self._shared_failure(error)
            known = [*batch.outcomes, *[None] * (len(batch.calls) - len(batch.outcomes))]
            batch.outcomes = [own or self._shared_failure(error) for own in known]
            return
        self._rows_in_wal += len(self._unsettled) + sum(len(call.operations) for call in batch.calls)
        self._unsettled.clear()
        self._noted = batch.mark
        is_erasing = any(isinstance(one, EraseRequestKeys) for call in batch.calls for one in call.operations)
        if is_erasing:
            # Nothing is written to the journal while a call is on its way past it.
            self._journal.wipe()
        if self.has_erased or is_erasing:
            self.has_erased = not _empty_wal(conn)

    def _apply_all(self, conn: sqlite3.Connection, batch: Batch) -> None:
        outcomes = batch.outcomes
        for plain, calls in itertools.groupby(batch.calls, _is_plain):
            some = list(calls)
            if plain and store_together(conn, [one for call in some for one in call.operations]):
                outcomes += [None] * len(some)
            else:
                for call in some:
                    outcomes.append(_apply(conn, call))

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


def _empty_wal(conn: sqlite3.Connection) -> bool:
    """What was erased still stands in the WAL until that is folded into the file and cut. False if it could not be:
    what was committed stays so, and it is tried again after the next commit, and on closing."""
    try:
        (is_busy, _, _) = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error:
        return False
    return not is_busy


def _apply(conn: sqlite3.Connection, call: Call) -> LedgerError | None:
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
        failure = integrity_failure(error)
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


def _is_plain(call: Call) -> bool:
    """True for a call of one record, and what is never refused: nothing to undo where the record is refused."""
    if not call.operations:
        return False
    first, *more = call.operations
    return type(first) is StoreRecord and all(type(one) in NEVER_REFUSED for one in more)


def resolve(results: Sequence[tuple[asyncio.Future[None], LedgerError | None]]) -> None:
    """Settle futures in order; those that somebody cancelled are left alone."""
    for future, error in results:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
