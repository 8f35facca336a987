"""Between `append` and the disk: the journal for what is sure to fit, SQLite for the rest, both in groups.

It writes at once when it is idle, and everything that came in meanwhile in one go when it was busy. So a lone append
pays one sync of the disk and no delay, and many at once share one.

A *fast* call holds orders, ticks and receipts that are sure to fit (`slots`): it is written to the journal, and
acknowledged when that is synced. SQLite gets it within `SETTLE_S`, many at a time, in the writer's thread. Any other
call is *slow*: it goes to SQLite, behind all that was acknowledged before it, and whatever comes after it waits for it.
Where the journal cannot be written, everything is slow, and the error is SQLite's.

Where a commit fails, so does all that was put before anybody was told: a record must not outlive one that it stands
on, a tick the tick before it, a receipt the one that it names.

Whoever reads the ledger in this process settles it first, and so sees all that was acknowledged (`settle`).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.journal import Journal
from p2pgrid.ledger.operations import Journaled, StoreOutcome, StoreRequestKey
from p2pgrid.ledger.slots import Slots, channels_of
from p2pgrid.ledger.sync import Syncer, make_syncer
from p2pgrid.ledger.writer import Batch, Call, Writer, resolve

SETTLE_S: Final = 0.1
"""How long a record may be acknowledged before the SQLite file has it."""
SETTLE_OPERATIONS: Final = 1024
"""How many records may be, whichever comes first."""
MAX_CALLS: Final = 512
"""In one group."""


class GroupCommit:
    """For the coroutines of one loop; `settle` from any thread."""

    def __init__(self, writer: Writer, journal: Journal, slots: Slots) -> None:
        self._writer = writer
        self._journal = journal
        self._slots = slots
        self._loop: asyncio.AbstractEventLoop | None = None
        self._syncer: Syncer | None = None
        self._waiting: deque[Call] = deque()
        self._in_frame: Sequence[Call] = ()
        """Calls whose frame is being synced."""
        self._frame_bytes = 0
        self._is_scheduled = False
        self._slow_batches = 0
        """On their way to SQLite."""
        self._must_be_slow = False
        """True where the journal is not to be used: the last batch failed, or what was erased is not gone yet."""
        self._to_forget: set[bytes] = set()
        self._untold: LedgerError | None = None
        """A commit has failed, and those who wait for it are told next."""
        self._next_is_slow = False
        """True if the first call that waits does not fit: it is not asked twice."""
        self._timer: asyncio.TimerHandle | None = None
        self._handing_over = threading.Lock()
        """Held for what follows, and to move the journal's mark."""
        self._acknowledged: list[Journaled] = []
        """Not yet handed to the writer."""
        self._over: list[tuple[bytes, int]] = []
        """Orders that are over with it."""
        self._unfinished: set[int] = set()
        """Batches that the writer has (by `id`)."""

    def put(self, call: Call) -> None:
        """Write a call, or let it wait for its turn. Returns at once."""
        loop = call.future.get_loop()
        if loop is not self._loop:
            self._adopt(loop)
        if self._untold is not None:
            resolve([(call.future, self._untold)])
            return
        self._waiting.append(call)
        if not self._is_scheduled and not self._in_frame and not self._slow_batches:
            self._is_scheduled = True
            loop.call_soon(self._scheduled)

    def settle(self) -> None:
        """Block until the SQLite file has all that was acknowledged. Raises LedgerError where the disk refuses."""
        with self._handing_over:
            if not self._acknowledged and not self._unfinished and not self._writer.is_behind:
                return
            batch = self._hand_over(())
        batch.done.wait()
        if batch.failure is not None:
            raise batch.failure

    def detach(self) -> None:
        """Leave the loop: in its thread, or once it is closed. What waits goes to SQLite."""
        if self._syncer is not None:
            self._syncer.close()
            self._syncer = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._in_frame:
            self._abandon_frame()
        calls = list(self._waiting)
        self._waiting.clear()
        self._go_slow(calls)
        # Nobody else hands over what was acknowledged since the last time, and the journal goes when all seems settled.
        with self._handing_over:
            if self._acknowledged:
                self._hand_over(())

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve another loop from now on; the former one is over."""
        if self._loop is not None:
            if self._loop.is_running():
                raise RuntimeError("a ledger is written to from one event loop")
            self.detach()
            self._slow_batches = 0
            self._is_scheduled = False
            self._must_be_slow = True  # until a batch of this loop says that all is well
        self._loop = loop
        self._syncer = make_syncer(loop)

    def _scheduled(self) -> None:
        self._is_scheduled = False
        self._advance()

    def _advance(self) -> None:
        """Write what waits, if nothing is being written."""
        if not self._waiting or self._in_frame or self._slow_batches:
            return
        calls = self._take_fitting()
        if not calls:
            slow = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_CALLS))]
            self._go_slow(slow)
            return
        operations = [one for call in calls for one in call.operations]
        assert self._syncer is not None
        self._in_frame, self._frame_bytes = calls, 0
        try:
            self._frame_bytes = self._journal.write(operations)  # type: ignore[arg-type]  # `_fits` has looked
            self._syncer.sync(self._journal.descriptor, self._synced)
        except OSError:
            self._abandon_frame()

    def _take_fitting(self) -> list[Call]:
        calls: list[Call] = []
        if self._must_be_slow or self._journal.is_full:
            return calls
        while self._waiting and len(calls) < MAX_CALLS and not self._next_is_slow:
            if self._fits(self._waiting[0]):
                calls.append(self._waiting.popleft())
            else:
                self._next_is_slow = True
        return calls

    def _fits(self, call: Call) -> bool:
        """True if the journal may have it: its slots are taken now."""
        operations, signed = call.operations, call.signed
        if not operations:
            return False  # nothing to write: done when all that was put before it is in SQLite
        if isinstance(operations[-1], StoreOutcome):
            return self._slots.close(signed[0])
        if len(signed) + (1 if isinstance(operations[-1], StoreRequestKey) else 0) != len(operations):
            return False
        return all(self._slots.take(one) for one in signed)

    def _abandon_frame(self) -> None:
        """SQLite gets its calls instead. The next commit says that nobody is to read it."""
        calls, self._in_frame = self._in_frame, ()
        with self._handing_over:
            self._journal.keep(self._frame_bytes)
        self._go_slow(calls)

    def _synced(self, error: OSError | None) -> None:
        if error is not None:
            self._abandon_frame()
            return
        calls, self._in_frame = self._in_frame, ()
        with self._handing_over:
            self._journal.keep(self._frame_bytes)
            for call in calls:
                self._acknowledged += call.operations  # type: ignore[arg-type]
            self._over += self._slots.over()
            is_much = len(self._acknowledged) >= SETTLE_OPERATIONS
        for call in calls:
            if not call.future.done():
                call.future.set_result(None)
        if is_much:
            self._settle_now()
        elif self._timer is None:
            assert self._loop is not None
            self._timer = self._loop.call_later(SETTLE_S, self._settle_now)
        self._advance()

    def _settle_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._handing_over:
            if self._acknowledged:
                self._hand_over(())

    def _go_slow(self, calls: Sequence[Call]) -> None:
        self._next_is_slow = False
        if calls:
            self._to_forget |= channels_of([one for call in calls for one in call.signed])
            self._slow_batches += 1
            with self._handing_over:
                self._hand_over(calls)

    def _hand_over(self, calls: Sequence[Call]) -> Batch:
        """Give the writer all that was acknowledged, and calls. The lock is held."""
        acknowledged, self._acknowledged = self._acknowledged, []
        over, self._over = self._over, []
        loop = self._loop

        def done(batch: Batch) -> None:
            with self._handing_over:
                self._unfinished.discard(id(batch))
            try:
                assert loop is not None
                loop.call_soon_threadsafe(self._batch_done, loop, batch, over)
            except RuntimeError:
                pass  # The loop is closed: nobody waits any more. What was committed stays.

        batch = Batch(acknowledged, self._journal.mark, calls, done)
        self._unfinished.add(id(batch))
        self._writer.put(batch)
        return batch

    def _fail_what_waits(self, loop: asyncio.AbstractEventLoop, failure: LedgerError) -> None:
        self._untold = failure
        loop.call_soon(self._tell)  # before those who wait for the calls of the batch: they may write again
        waiting, self._next_is_slow = list(self._waiting), False
        self._waiting.clear()
        self._to_forget |= channels_of([one for call in waiting for one in call.signed])
        resolve([(call.future, failure) for call in waiting])

    def _tell(self) -> None:
        self._untold = None

    def _batch_done(self, loop: asyncio.AbstractEventLoop, batch: Batch, over: Sequence[tuple[bytes, int]]) -> None:
        if loop is self._loop:
            if batch.failure is None:
                self._journal.settled(batch.mark)
                self._slots.settled(over)
            if batch.calls:
                self._slow_batches -= 1
            if batch.failure is not None or batch.calls:
                self._must_be_slow = batch.failure is not None or self._writer.has_erased
            if batch.failure is None and batch.calls and not self._slow_batches:
                self._slots.forget(self._to_forget)
                self._to_forget.clear()
            if batch.failure is not None and batch.calls:
                self._fail_what_waits(loop, batch.failure)
        resolve([(call.future, outcome) for call, outcome in zip(batch.calls, batch.outcomes, strict=True)])
        if loop is self._loop:
            self._advance()
