"""The ledger on disk: one SQLite file in WAL mode with a journal before it, one writer, any number of readers.

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

from p2pgrid.clock import unix_ms
from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import OnDurable, both_told
from p2pgrid.ledger.group_commit import GroupCommit
from p2pgrid.ledger.journal import Journal, Mark, recover, sync_folder, unsettled
from p2pgrid.ledger.lock import WriterLock
from p2pgrid.ledger.operations import (
    EraseRequestKeys,
    Operation,
    StoreEvidence,
    StoreOutcome,
    StoreRecord,
    StoreRequestKey,
)
from p2pgrid.ledger.prefix import Prefixes
from p2pgrid.ledger.reader import SqliteReader
from p2pgrid.ledger.schema import connect_writer, create_or_check, missing_ledger, storage_errors, storage_failure
from p2pgrid.ledger.signatures import BOTH_ROLES, decode_signatures
from p2pgrid.ledger.slots import ChannelSlots, OrderSlots, Slots
from p2pgrid.ledger.tables import ORDERS, TABLES, table_of
from p2pgrid.ledger.writer import Call, Writer
from p2pgrid.proto.messages import Order
from p2pgrid.proto.record import Message, Record, Signed


class SqliteLedger(SqliteReader):
    """The ledger of `p2pgrid.ledger.base`, on disk. `append` and its kin are for coroutines: they need a running loop.

    Records, and the signatures on them, that nobody checked are not stored, except as evidence. A record of a channel
    is refused (LedgerError) unless the channel is on record, and an order has one receipt at most.
    """

    @classmethod
    def open(cls, path: Path) -> SqliteLedger:
        """Open for writing; make the file (mode 0600) if there is none, settle what a crash left in the journal.

        Raises LedgerError: open in another process, written by a newer version, no ledger, damaged, no permission.
        """
        lock = WriterLock(path)
        try:
            _create_file(path)
            with storage_errors(path):
                create_or_check(path)
                return cls(path, lock)
        except OSError as error:
            lock.release()
            raise storage_failure(path, error) from None
        except BaseException:
            # Whatever it was goes on to the caller; the lock must not stay behind.
            lock.release()
            raise

    @staticmethod
    def open_readonly(path: Path) -> SqliteReader:
        """Open for reading, beside a running writer or without one. Raises UsageError if there is no such file.

        What was acknowledged before is there: it waits for the writer to settle it, or settles it where a writer has
        ended without closing. Raises LedgerError where that cannot be done.
        """
        if not path.exists():
            raise missing_ledger(path)
        reader = SqliteReader(path)
        try:
            _await_settled(reader)
        except BaseException:
            reader.close()
            raise
        return reader

    def __init__(self, path: Path, lock: WriterLock) -> None:
        """For `open`."""
        conn = connect_writer(path)
        journal = None
        try:
            journal = Journal(path, recover(path, conn))
            super().__init__(path)
            last = self._committed("SELECT max(seq) FROM (" + " UNION ALL ".join(_LAST_SEQS) + ")")[0][0]
        except BaseException:
            if journal is not None:
                journal.close()
            conn.close()
            raise
        self._writer = Writer(path, conn, journal, lock)
        self._group_commit = GroupCommit(self._writer, journal, Slots(self._channel_slots, self._order_slots))
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
        operations: list[Operation] = [StoreRecord.of(table_of(one), next(self._seq), one) for one in signed]
        operations += self._with_next
        self._with_next.clear()
        future = self._put(operations, signed)
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
        return self._put([StoreEvidence(next(self._seq), record, reason, unix_ms())])

    def note_outcome(self, order: Signed[Order], outcome: str) -> asyncio.Future[None]:
        """Close an order that will get no receipt, with a word of ours (`refused:busy`, `never-arrived`).

        Stores the order too if it is not on record. A later note replaces an earlier one.
        """
        message = order.message
        note = StoreOutcome(outcome, message.channel.hex(), message.order_number)
        return self._put([StoreRecord.of(ORDERS, next(self._seq), order), note], (order,))

    def keep_request_key(self, order: Signed[Order], key: bytes) -> None:
        """Keep an order's commitment key (32 bytes), so that what was asked and answered can be shown later.

        It is written with the next `append`, that of the order, and is lost where that fails.
        """
        self._with_next.append(StoreRequestKey(order.message.channel.hex(), order.message.order_number, bytes(key)))

    def erase_request_keys(self, orders: Sequence[tuple[bytes, int]]) -> asyncio.Future[None]:
        """Destroy the commitment keys of orders, by channel and number. What is not kept is passed over.

        The pages are overwritten in the file, and so is the journal; the WAL, which holds older ones, is emptied into
        the file: before the future is done, or where somebody reads the file just then, after the next write and when
        the ledger is closed.
        Copies that others made of the file, and blocks that a disk has put aside, are beyond this.
        """
        return self._put([EraseRequestKeys(orders)])

    def watch(self, on_durable: OnDurable) -> None:
        """From now on, call with the records of each `append` once they are durable, in the order of the calls."""
        self._on_durable = both_told(self._on_durable, on_durable)

    def settle(self) -> None:
        """Block until the SQLite file has all that was acknowledged, for other processes. Raises LedgerError."""
        self._group_commit.settle()

    async def aclose(self) -> None:
        """Finish what is queued, and close. Later appends raise LedgerError."""
        self._leave_loop()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """As `aclose`, blocking: in the loop's thread, or once the loop is closed."""
        self._leave_loop()
        # The reader goes first: the writer's connection, the last one, then folds the WAL into the file.
        super().close()
        self._writer.stop()

    def _leave_loop(self) -> None:
        if not self._closed:
            self._closed = True
            self._group_commit.detach()

    def _put(self, operations: list[Operation], signed: Sequence[Signed[Message]] = ()) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(LedgerError(f"the ledger {self.path} is closed.", hint="The node is shutting down."))
        else:
            self._group_commit.put(Call(operations, signed, future))
        return future

    def _before_reading(self) -> None:
        if not self._closed:
            self._group_commit.settle()

    def _channel_slots(self, channel: bytes) -> ChannelSlots | None:
        rows = self._committed(_CHANNEL_SLOTS, channel.hex())
        return ChannelSlots(*rows[0]) if rows else None

    def _order_slots(self, channel: bytes, order_number: int) -> OrderSlots | None:
        rows = self._committed(_ORDER_SLOTS, {"channel": channel.hex(), "order_number": order_number})
        if not rows:
            return None
        order, outcome, meter_tick, voucher_tick, receipt, signed_by, signatures = rows[0]
        if outcome is not None or signed_by == BOTH_ROLES:
            return None
        known = (bytes.fromhex(receipt), decode_signatures(signatures)) if receipt is not None else (None, ())
        return OrderSlots(bytes.fromhex(order), meter_tick or 0, voucher_tick or 0, *known)


def _create_file(path: Path) -> None:
    """An empty file with mode 0600 if there is none; SQLite gives its WAL the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        sync_folder(path.parent)
    except OSError as error:
        raise LedgerError(
            f"the ledger {path} cannot be opened for writing: {error.strerror}.",
            hint="Check owner and mode of the file and of its folder.",
        ) from None


def _await_settled(reader: SqliteReader) -> None:
    """Wait until the file has what was acknowledged before now."""
    path, until_s = reader.path, time.monotonic() + SETTLED_TIMEOUT_S
    with storage_errors(path):
        try:
            frames = unsettled(path, reader.settled())
            end = frames[-1][0] if frames else Mark(0, 0)
            while reader.settled() < end:
                if time.monotonic() > until_s:
                    raise LedgerError(
                        f"the ledger {path} is behind its journal for {SETTLED_TIMEOUT_S:.0f} s.",
                        hint="Look at the log of the node that writes it: its disk may be full.",
                    )
                if not _settle_for_the_dead(path):
                    time.sleep(0.01)
        except OSError as error:
            raise storage_failure(path, error) from None


def _settle_for_the_dead(path: Path) -> bool:
    """Settle the journal if its writer has ended. False if it lives."""
    try:
        lock = WriterLock(path)
    except LedgerError:
        return False
    lock.release()
    SqliteLedger.open(path).close()
    return True


SETTLED_TIMEOUT_S: Final = 10.0
_CHANNEL_SLOTS: Final = """
    SELECT coalesce((SELECT max(order_number) FROM orders WHERE channel = c.channel), 0),
           coalesce((SELECT max(receipt_number) FROM receipts WHERE channel = c.channel), 0)
    FROM channels AS c WHERE c.channel = ?
"""
_ORDER_SLOTS: Final = """
    SELECT o.id, o.outcome,
           (SELECT max(tick) FROM meters WHERE channel = :channel AND order_number = :order_number),
           (SELECT max(tick) FROM vouchers WHERE channel = :channel AND order_number = :order_number),
           r.id, r.signed_by, r.signatures
    FROM orders AS o LEFT JOIN receipts AS r USING (channel, order_number)
    WHERE o.channel = :channel AND o.order_number = :order_number
"""
_LAST_SEQS: Final = [f"SELECT max(seq) AS seq FROM {t.name}" for t in TABLES.values()] + [
    "SELECT max(seq) FROM evidence"
]
