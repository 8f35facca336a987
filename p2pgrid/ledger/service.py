"""The main process's side of `p2pgrid.ledger.remote`: workers' calls go into the one ledger that is open for writing.

A worker is trusted as this process is, both being the node: that the signatures in its calls were checked is believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeGuard

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import Ledger, SlotTaken
from p2pgrid.ledger.remote import SETTLED, AppendCall, CallsDone, EraseKeysCall, EvidenceCall, Failure, OutcomeCall
from p2pgrid.ledger.tables import TABLES
from p2pgrid.processes.bus import Bus
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Order
from p2pgrid.proto.record import Message, Record, Signed, parse_message

OnAppend = Callable[[Sequence[Signed[Message]]], None]


class SettlingLedger(Ledger, Protocol):
    """A ledger whose file is read by other processes."""

    def settle(self) -> None:
        """Return once all that was acknowledged is in the file. Blocks; may be called on any thread."""


class LedgerService:
    """Serves the ledger to one worker until its bus is closed."""

    def __init__(
        self,
        ledger: SettlingLedger,
        bus: Bus,
        settling: socket.socket,
        *,
        on_append: OnAppend = lambda _: None,
    ) -> None:
        """`on_append` is called with what a worker wants stored, before it is: for whoever keeps count of channels."""
        self._ledger: Final = ledger
        self._bus: Final = bus
        self._on_append = on_append
        self._calls: deque[asyncio.Future[None]] = deque()
        self._is_answer_due = False
        self._failed: LedgerError | None = None
        self._n_failed = 0
        """Calls that the disk refused."""
        bus.on(AppendCall, self._append)
        bus.on(EvidenceCall, lambda call: self._answer_later(ledger.append_evidence(call.record, call.reason)))
        bus.on(OutcomeCall, self._note_outcome)
        bus.on(EraseKeysCall, lambda call: self._answer_later(ledger.erase_request_keys(call.orders)))
        self._settling = settling.dup()
        self._settling.setblocking(True)
        thread = threading.Thread(target=self._settle, name=f"settle for {bus.name}", daemon=True)
        thread.start()
        bus.closed.add_done_callback(self._closed)

    def _append(self, call: AppendCall) -> None:
        signed = [signed_of(record) for record in call.records]
        self._on_append(signed)
        if call.told < self._n_failed and self._failed is not None:
            # It may build on one of those.
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(self._failed)
            self._answer_later(refused)
            return
        orders = {(one.message.channel, one.message.order_number): one for one in signed if is_order(one)}
        for channel, number, key in call.request_keys:
            if (order := orders.get((channel, number))) is not None:
                self._ledger.keep_request_key(order, key)
        self._answer_later(self._ledger.append(*signed))

    def _note_outcome(self, call: OutcomeCall) -> None:
        order = signed_of(call.order)
        assert is_order(order)
        self._answer_later(self._ledger.note_outcome(order, call.outcome))

    def _answer_later(self, future: asyncio.Future[None]) -> None:
        self._calls.append(future)
        future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, LedgerError) and not isinstance(error, SlotTaken):
            self._failed, self._n_failed = error, self._n_failed + 1
        # The ledger resolves all of a commit in one turn of the loop: they are told of in one message.
        if not self._is_answer_due:
            self._is_answer_due = True
            asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        self._is_answer_due = False
        calls, n, failures = self._calls, 0, []
        while calls and calls[0].done():
            future = calls.popleft()
            error = None if future.cancelled() else future.exception()
            if future.cancelled() or error is not None:
                failures.append(_failure(n, error))
            n += 1
        if n:
            self._bus.send(CallsDone(n, tuple(failures)))

    def _settle(self) -> None:
        """A thread: answers a worker's reads, one after the other, until its socket is closed."""
        with self._settling as settling, contextlib.suppress(OSError):
            while settling.recv(1):
                try:
                    self._ledger.settle()
                except LedgerError:
                    settling.sendall(b"!")
                else:
                    settling.sendall(SETTLED)

    def _closed(self, _: object) -> None:
        with contextlib.suppress(OSError):
            self._settling.shutdown(socket.SHUT_RDWR)


def signed_of(record: Record) -> Signed[Message]:
    """A record whose signatures another process of this node has checked."""
    table = TABLES[record.payload_type]
    signers = {one.role: parse_public_key(one.key) for one in record.signatures}
    return Signed(parse_message(record, table.message_type), record, record.id, signers)


def is_order(signed: Signed[Message]) -> TypeGuard[Signed[Order]]:
    """True for an order's record."""
    return isinstance(signed.message, Order)


def _failure(index: int, error: BaseException | None) -> Failure:
    if isinstance(error, LedgerError):
        return Failure(index, isinstance(error, SlotTaken), error.message, error.hint)
    return Failure(index, False, f"the ledger stopped before a record was durable: {error!r}.", "")
