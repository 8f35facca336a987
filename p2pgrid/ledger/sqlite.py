"""The ledger on disk: one SQLite file in WAL mode, one writer, any number of readers.

Trusted: whoever can write the file owns the node's books.
"""

# ruff: noqa: S608 - names in the statements are constants of this package; every value is bound

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import OnDurable
from p2pgrid.ledger.lock import WriterLock
from p2pgrid.ledger.prefix import Prefixes
from p2pgrid.ledger.reader import SqliteReader
from p2pgrid.ledger.schema import create_or_check, missing_ledger, storage_errors
from p2pgrid.ledger.tables import ORDERS, TABLES, table_of
from p2pgrid.ledger.writer import (
    Call,
    EraseRequestKeys,
    Operation,
    StoreEvidence,
    StoreOutcome,
    StoreRecord,
    StoreRequestKey,
    Writer,
)
from p2pgrid.proto.messages import Order
from p2pgrid.proto.record import Message, Record, Signed


class SqliteLedger(SqliteReader):
    """The ledger of `p2pgrid.ledger.base`, on disk. `append` and its kin are for coroutines: they need a running loop.

    Records, and the signatures on them, that nobody checked are not stored, except as evidence. A record of a channel
    is refused (LedgerError) unless the channel is on record, and an order has one receipt at most.
    """

    @classmethod
    def open(cls, path: Path) -> SqliteLedger:
        """Open for writing; make the file (mode 0600) if there is none.

        Raises LedgerError: open in another process, written by a newer version, no ledger, damaged, no permission.
        """
        lock = WriterLock(path)
        try:
            _create_file(path)
            with storage_errors(path):
                create_or_check(path)
                return cls(path, lock)
        except BaseException:
            # Whatever it was goes on to the caller; the lock must not stay behind.
            lock.release()
            raise

    @staticmethod
    def open_readonly(path: Path) -> SqliteReader:
        """Open for reading, beside a running writer or without one. Raises UsageError if there is no such file."""
        if not path.exists():
            raise missing_ledger(path)
        return SqliteReader(path)

    def __init__(self, path: Path, lock: WriterLock) -> None:
        """For `open`."""
        super().__init__(path)
        try:
            last = self._rows("SELECT max(seq) FROM (" + " UNION ALL ".join(_LAST_SEQS) + ")")[0][0]
            self._writer = Writer(path, lock)
        except BaseException:
            super().close()
            raise
        self._prefixes = self._known = Prefixes()
        self._seq = itertools.count((last or 0) + 1)
        self._closed = False
        self._with_next: list[Operation] = []
        self._on_durable: OnDurable | None = None

    def append(self, *signed: Signed[Message]) -> asyncio.Future[None]:
        """Store checked records, all or none. The future raises LedgerError (disk full, closed) or SlotTaken.

        Raises TypeError for a message type that the ledger does not keep. Cancelling the future does not take the
        records back.
        """
        operations: list[Operation] = [StoreRecord(table_of(one), next(self._seq), one) for one in signed]
        operations += self._with_next
        self._with_next.clear()
        future = self._put(operations)
        future.add_done_callback(functools.partial(self._written, signed))
        return future

    def _written(self, signed: Sequence[Signed[Message]], written: asyncio.Future[None]) -> None:
        self._known.written(signed, written)
        if self._on_durable is not None and not written.cancelled() and written.exception() is None:
            self._on_durable(signed)

    def append_evidence(self, record: Record, reason: str) -> asyncio.Future[None]:
        """Keep an unacceptable record that a peer signed, with a reason in one sentence. Never part of a channel.

        The same bytes are kept once. How many different ones a peer may cause is for the caller to limit.
        """
        return self._put([StoreEvidence(next(self._seq), record, reason, time.time_ns() // 1_000_000)])

    def note_outcome(self, order: Signed[Order], outcome: str) -> asyncio.Future[None]:
        """Close an order that will get no receipt, with a word of ours (`refused:busy`, `never-arrived`).

        Stores the order too if it is not on record. A later note replaces an earlier one.
        """
        return self._put([StoreRecord(ORDERS, next(self._seq), order), StoreOutcome(order, outcome)])

    def keep_request_key(self, order: Signed[Order], key: bytes) -> None:
        """Keep an order's commitment key (32 bytes), so that what was asked and answered can be shown later.

        It is written with the next `append`, that of the order, and is lost where that fails.
        """
        self._with_next.append(StoreRequestKey(order.message.channel, order.message.order_number, key))

    def erase_request_keys(self, orders: Sequence[tuple[bytes, int]]) -> asyncio.Future[None]:
        """Destroy the commitment keys of orders, by channel and number. What is not kept is passed over.

        The pages are overwritten in the file, and the WAL, which holds older ones, is emptied into it: before the
        future is done, or where somebody reads the file just then, after the next write and when the ledger is closed.
        Copies that others made of the file, and blocks that a disk has put aside, are beyond this.
        """
        return self._put([EraseRequestKeys(orders)])

    def watch(self, on_durable: OnDurable) -> None:
        """From now on, call with the records of each `append` once they are durable, in the order of the calls."""
        self._on_durable = on_durable

    def settle(self) -> None:
        """Return once all that was acknowledged can be read in the file, by other processes too. Any thread."""

    async def aclose(self) -> None:
        """Finish what is queued, and close. Later appends raise LedgerError."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """As `aclose`, blocking."""
        if self._closed:
            return
        self._closed = True
        # The reader goes first: the writer's connection, the last one, then folds the WAL into the file.
        super().close()
        self._writer.stop()

    def _put(self, operations: list[Operation]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._closed:
            future.set_exception(LedgerError(f"the ledger {self.path} is closed.", hint="The node is shutting down."))
        else:
            self._writer.put(Call(operations, loop, future))
        return future


def _create_file(path: Path) -> None:
    """An empty file with mode 0600 if there is none; SQLite gives its WAL the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise LedgerError(
            f"the ledger {path} cannot be opened for writing: {error.strerror}.",
            hint="Check owner and mode of the file and of its folder.",
        ) from None


_LAST_SEQS: Final = [f"SELECT max(seq) AS seq FROM {t.name}" for t in TABLES.values()] + [
    "SELECT max(seq) FROM evidence"
]
