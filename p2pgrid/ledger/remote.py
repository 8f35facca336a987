"""A ledger that another process writes: appends go to it over the bus, reads are made on its file.

Durable before visible holds as with the ledger itself: a future is done when the main process says that its records
are durable. Should that process end, every future that waits raises LedgerError, and so does every later append.

What was acknowledged may still be on its way from the writer's journal into the file that is read here. So each read
first asks the main process, over a socket of its own, to finish that; a thread there answers, whatever its loop is
busy with. Reads are made when a channel is taken over or settled, and not while tokens flow.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import KeptKey, OnDurable, SlotTaken, both_told, tell_when_durable
from p2pgrid.ledger.logged import Loggable
from p2pgrid.ledger.prefix import Prefix, Prefixes
from p2pgrid.ledger.reader import SqliteReader
from p2pgrid.ledger.signatures import checked_record
from p2pgrid.ledger.tables import table_of
from p2pgrid.ledger.writer import resolve
from p2pgrid.processes.bus import Bus, BusMessage
from p2pgrid.proto.messages import Order
from p2pgrid.proto.record import Message, Record, Signed

SETTLE_TIMEOUT_S: Final = 10.0
SETTLE: Final = b"?"
SETTLED: Final = b"."

RequestKeys = tuple[tuple[bytes, int, bytes], ...]
"""Channel, order's number, key."""


class AppendCall(BusMessage, frozen=True):
    """Store checked records, and the keys that go with them. Calls are answered in their order."""

    NUMBER = 10

    records: tuple[Record, ...]
    request_keys: RequestKeys = ()
    told: int = 0
    """Of how many calls the worker knows that the disk refused them: a call from before that is refused too."""


class EvidenceCall(BusMessage, frozen=True):
    """`Ledger.append_evidence`."""

    NUMBER = 11

    record: Record
    reason: str


class OutcomeCall(BusMessage, frozen=True):
    """`Ledger.note_outcome`."""

    NUMBER = 12

    order: Record
    outcome: str


class EraseKeysCall(BusMessage, frozen=True):
    """`Ledger.erase_request_keys`."""

    NUMBER = 13

    orders: tuple[tuple[bytes, int], ...]


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """Why the n-th call of those that are answered, from 0, failed."""

    index: int
    is_slot_taken: bool
    message: str
    hint: str


class CallsDone(BusMessage, frozen=True):
    """So many of the oldest calls are durable, but for those that failed."""

    NUMBER = 14

    n: int
    failures: tuple[Failure, ...] = ()


class RemoteLedger(SqliteReader):
    """The ledger of `p2pgrid.ledger.base`, in a worker. `append` and its kin need the running loop of the bus."""

    def __init__(self, path: Path, bus: Bus, settling: socket.socket) -> None:
        """Raises LedgerError. The main process has opened the ledger, and serves both: `p2pgrid.ledger.service`."""
        super().__init__(path)
        self._bus = bus
        self._settling = settling
        settling.settimeout(SETTLE_TIMEOUT_S)
        self._asking = threading.Lock()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._request_keys: list[tuple[bytes, int, bytes]] = []
        self._on_durable: OnDurable | None = None
        self._closed = False
        self._told = 0
        """Calls that failed with the disk, as far as is known here."""
        self._all_done = asyncio.Event()
        self._all_done.set()
        self._held: set[bytes] = set()
        self._prefixes = self._known = Prefixes()
        bus.on(CallsDone, self._done)
        bus.closed.add_done_callback(self._lost)

    # -- writing ----------------------------------------------------------------------------------------------------

    def append(self, *signed: Signed[Message]) -> asyncio.Future[None]:
        """Store checked records, all or none. The future raises LedgerError (disk full, closed) or SlotTaken.

        Raises TypeError for a message type that the ledger does not keep.
        """
        for one in signed:
            table_of(one)
        keys, self._request_keys = tuple(self._request_keys), []
        future = self._call(AppendCall(tuple(checked_record(one) for one in signed), keys, self._told))
        future.add_done_callback(lambda written: self._known.written(signed, written))
        return tell_when_durable(future, signed, self._on_durable)

    def append_evidence(self, record: Record, reason: str) -> asyncio.Future[None]:
        """Keep an unacceptable record that a peer signed, with a reason in one sentence. Never part of a channel."""
        return self._call(EvidenceCall(record, reason))

    def note_outcome(self, order: Signed[Order], outcome: str) -> asyncio.Future[None]:
        """Close an order that will get no receipt, with a word of ours (`refused:busy`, `never-arrived`)."""
        return self._call(OutcomeCall(checked_record(order), outcome))

    def keep_request_key(self, order: Signed[Order], key: bytes) -> None:
        """Keep an order's commitment key (32 bytes) with the next `append`, that of the order."""
        self._request_keys.append((order.message.channel, order.message.order_number, bytes(key)))

    def erase_request_keys(self, orders: Sequence[tuple[bytes, int]]) -> asyncio.Future[None]:
        """Destroy the commitment keys of orders, by channel and number. What is not kept is passed over."""
        return self._call(EraseKeysCall(tuple(orders)))

    def watch(self, on_durable: OnDurable) -> None:
        """From now on, call with the records of each `append` of this process once they are durable, in order."""
        self._on_durable = both_told(self._on_durable, on_durable)

    async def aclose(self) -> None:
        """Wait for what is on its way, and close. Later appends raise LedgerError."""
        if self._closed:
            return
        self._closed = True
        await self._all_done.wait()
        super().close()

    # -- reading ----------------------------------------------------------------------------------------------------

    def hold(self, channel: bytes) -> None:
        """This process alone writes orders and receipts of the channel: what is settled need not be read again."""
        self._held.add(channel)

    def let_go(self, channel: bytes) -> None:
        """Another process may write them from now on."""
        self._held.discard(channel)
        self._known.forget(channel)

    def settle(self) -> None:
        """Return once all that was acknowledged, to whichever process, is in the file. Raises LedgerError. Blocks."""
        try:
            with self._asking:
                self._settling.sendall(SETTLE)
                answer = self._settling.recv(1)
        except OSError as error:
            raise LedgerError(f"the ledger's process does not answer: {error}.", hint="Restart the node.") from None
        if answer != SETTLED:
            raise LedgerError("the ledger's process is gone.", hint="Restart the node.")

    def records(self, *, channel: bytes | None = None) -> Iterator[Record]:
        """As `Ledger.records`."""
        self.settle()
        return super().records(channel=channel)

    def evidence(self) -> Iterator[tuple[Record, str]]:
        """As `SqliteReader.evidence`."""
        self.settle()
        return super().evidence()

    def loggable(self, own_peer_id: str) -> Iterator[Loggable]:
        """As `Ledger.loggable`."""
        self.settle()
        return super().loggable(own_peer_id)

    def kept_keys(self, before_ms: int) -> Iterator[KeptKey]:
        """As `Ledger.kept_keys`."""
        self.settle()
        return super().kept_keys(before_ms)

    def _rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        self.settle()
        return super()._rows(sql, *parameters)

    def _prefix(self, channel: bytes) -> Prefix:
        return super()._prefix(channel) if channel in self._held else Prefix(is_certain=False)

    # -- the bus ----------------------------------------------------------------------------------------------------

    def _call(self, call: BusMessage) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(LedgerError(f"the ledger {self.path} is closed.", hint="The node is shutting down."))
        elif self._bus.closed.done():
            future.set_exception(_gone())
        else:
            self._waiting.append(future)
            self._all_done.clear()
            self._bus.send(call)
        return future

    def _done(self, done: CallsDone) -> None:
        failures = {one.index: one for one in done.failures}
        results = [(self._waiting.popleft(), _error_of(failures.get(index))) for index in range(done.n)]
        failed = sum(not one.is_slot_taken for one in done.failures)
        if failed:
            asyncio.get_running_loop().call_soon(self._tell, failed)  # before those who wait: they may write again
        resolve(results)
        if not self._waiting:
            self._all_done.set()

    def _tell(self, failed: int) -> None:
        self._told += failed

    def _lost(self, _: object) -> None:
        waiting = [(future, _gone()) for future in self._waiting]
        self._waiting.clear()
        self._all_done.set()
        resolve(waiting)


def _error_of(failure: Failure | None) -> LedgerError | None:
    if failure is None:
        return None
    kind = SlotTaken if failure.is_slot_taken else LedgerError
    return kind(failure.message, hint=failure.hint)


def _gone() -> LedgerError:
    return LedgerError("the process that writes the ledger is gone.", hint="This worker ends; restart the node.")
