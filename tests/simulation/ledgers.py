"""A ledger whose writes become durable when the history says so, or fail, or are lost.

`SlowLedger` stands before a real ledger (`MemoryLedger`, `SqliteLedger`) behind the same interface. Writes wait in a
queue; `commit` hands them to the real one and lets those who wait know. A `Disk` is what outlives a process.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.messages import Order
from p2pgrid.proto.record import Message, Record, Role, Signed

Cut = Callable[[str, bytes], bytes]
"""By what a file's name ends with (one of `SYNCED`), and its bytes: what is left of them."""
SYNCED = ("-wal", ".journal1", ".journal2")
"""The files beside the main one, each with the newest of what is durable."""
RealLedger = MemoryLedger | SqliteLedger
Stored = Callable[[tuple[Signed[Message], ...]], None]


class Disk(Protocol):
    """Where one side's ledger is, whether a process runs or not."""

    def open(self) -> RealLedger:
        """The ledger, as a process that starts now finds it."""

    def crash(self, cut: Cut | None = None) -> None:
        """The process that had it open is gone without a word. `cut`: what the power cut left of its files."""

    def close(self) -> None:
        """Nobody will open it again."""

    def copy(self) -> Disk:
        """Another disk with what is durable here now: a backup."""

    def wipe(self) -> None:
        """Forget everything. No process has it open."""


class MemoryDisk:
    """A `MemoryLedger` that outlives its process."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()

    def open(self) -> RealLedger:
        return self.ledger

    def crash(self, cut: Cut | None = None) -> None:
        assert cut is None, "there is no file in memory"
        self.ledger = self.ledger.crashed()

    def copy(self) -> MemoryDisk:
        """Another disk with what is durable here now: a backup."""
        other = MemoryDisk()
        other.ledger = self.ledger.crashed()
        return other

    def wipe(self) -> None:
        self.ledger = MemoryLedger()

    def close(self) -> None:
        pass


class SqliteDisk:
    """A folder with a SQLite file. A crash is a copy of its files, taken while the process still has them open."""

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self._folder = folder
        self._generation = 0
        self._copies = 0
        self._opened: SqliteLedger | None = None
        self.path.parent.mkdir(parents=True)
        if template is not None:
            shutil.copyfile(template, self.path)

    @property
    def path(self) -> Path:
        """The ledger's file in its present copy."""
        return self._folder / str(self._generation) / "ledger.sqlite"

    def synced(self) -> dict[str, bytes]:
        """What stands in the files of `SYNCED` that are there."""
        files = {suffix: self.path.with_name(self.path.name + suffix) for suffix in SYNCED}
        return {suffix: file.read_bytes() for suffix, file in files.items() if file.exists()}

    def open(self) -> RealLedger:
        self._opened = SqliteLedger.open(self.path)
        return self._opened

    def settle(self) -> None:
        """Bring what is acknowledged from the journal to SQLite."""
        assert self._opened is not None
        self._opened.settle()

    def crash(self, cut: Cut | None = None) -> None:
        before, opened = self.path, self._opened
        self._generation += 1
        _copy_files(before, self.path)
        if cut is not None:
            for suffix, content in self.synced().items():
                self.path.with_name(self.path.name + suffix).write_bytes(cut(suffix, content))
        self._opened = None
        if opened is not None:
            opened.close()  # Whatever it does now, it does to files that nobody looks at again.
        shutil.rmtree(before.parent)

    def copy(self) -> SqliteDisk:
        """Another disk with the files as they are now: a backup, or what a power cut leaves."""
        self._copies += 1
        other = SqliteDisk(self._folder.with_name(f"{self._folder.name}-{self._copies}"))
        _copy_files(self.path, other.path)
        return other

    def wipe(self) -> None:
        self.crash()
        for suffix in ("", *SYNCED):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def make_template(path: Path) -> Path:
    """An empty ledger's file: copying it is quicker than making its schema."""
    SqliteLedger.open(path).close()
    return path


def _copy_files(before: Path, after: Path) -> None:
    after.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *SYNCED):
        source = before.with_name(before.name + suffix)
        if source.exists():
            shutil.copyfile(source, after.with_name(after.name + suffix))


@dataclass(slots=True)
class _Write:
    call: Callable[[], asyncio.Future[None]]
    future: asyncio.Future[None]
    signed: tuple[Signed[Message], ...]


class SlowLedger:
    """The interface of `p2pgrid.ledger.base.Ledger`, before a real ledger. What is read is what is durable."""

    def __init__(self, real: RealLedger) -> None:
        self.real = real
        self.writes = 0
        """Writes that were committed or failed."""
        self.durable: dict[bytes, set[Role]] = {}
        """Whose signatures the ledger has, by record id."""
        self._queue: deque[_Write] = deque()
        self._limbo: list[_Write] = []
        for record in real.records():
            self._note(record)

    # The history's hand.

    @property
    def waiting(self) -> int:
        """Writes that are not durable yet."""
        return len(self._queue)

    async def commit(self, count: int, *, stored: Stored, told: bool = True) -> None:
        """Make the oldest writes durable. If not `told`, the process does not live to hear of it.

        `stored` hears what each write held before anybody acts on it.
        """
        for _ in range(count):
            write = self._queue.popleft()
            self.writes += 1
            self._limbo = []
            failure = await _outcome(write)
            if failure is None:
                for one in write.signed:
                    self._note(one.record)
                stored(write.signed)
            if told:
                _tell(write, failure)
        await _run_callbacks()

    async def fail(self, *, persisted: bool = False) -> None:
        """Let the oldest write fail, and with it all that wait: they share its commit.

        With `persisted` they reached the disk all the same. As with SQLite's WAL no reader sees them, the next write
        that succeeds removes them, and a process that starts before that finds them.
        """
        writes = list(self._queue)
        self._queue.clear()
        self.writes += 1
        self._limbo = writes if persisted else []
        for write in writes:
            _tell(write, LedgerError("the disk is full (a fault of the simulation's).", hint="None: it is a test."))
        await _run_callbacks()

    async def die(self, durable: int, stored: Stored) -> None:
        """The process ends; the oldest `durable` writes reach the disk, and what failed and yet was persisted."""
        limbo, self._limbo = self._limbo, []
        if durable:
            await self.commit(durable, stored=stored, told=False)
        else:
            for write in limbo:
                if await _outcome(write) is None:
                    stored(write.signed)
        self._queue.clear()

    def _note(self, record: Record) -> None:
        self.durable.setdefault(record.id, set()).update(s.role for s in record.signatures)

    def _put(
        self, call: Callable[[], asyncio.Future[None]], signed: tuple[Signed[Message], ...] = ()
    ) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(_Write(call, future, signed))
        return future

    # The interface: writes wait, reads pass.

    def append(self, *signed: Signed[Message]) -> asyncio.Future[None]:
        return self._put(lambda: self.real.append(*signed), signed)

    def append_evidence(self, record: Record, reason: str) -> asyncio.Future[None]:
        return self._put(lambda: self.real.append_evidence(record, reason))

    def note_outcome(self, order: Signed[Order], outcome: str) -> asyncio.Future[None]:
        return self._put(lambda: self.real.note_outcome(order, outcome), (order,))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


async def _outcome(write: _Write) -> LedgerError | None:
    try:
        await write.call()
    except LedgerError as error:
        return error
    return None


def _tell(write: _Write, failure: LedgerError | None) -> None:
    if write.future.cancelled():
        return
    if failure is None:
        write.future.set_result(None)
    else:
        write.future.set_exception(failure)
        write.future.exception()  # Seen: not everybody asks.


async def _run_callbacks() -> None:
    """Let those who waited for a write go on."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
