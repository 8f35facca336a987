"""A node's own log: what the ledger makes durable is entered within a second or two, signed, and shown.

Sales never wait for it. A record that was not entered when the process ended is found at the next start by asking the
ledger for everything that belongs into the log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from p2pgrid.errors import LedgerError, Refused
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.logged import Loggable, loggable
from p2pgrid.log.reader import LogEntry, LogReader
from p2pgrid.log.store import LogStore, NewEntry
from p2pgrid.proto.checkpoint import Cosignature, SignedCheckpoint, parse_checkpoint, verify_cosignature, witness_key
from p2pgrid.proto.inclusion import SALT_BYTES, LogProof
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.note import NoteSignature, parse_note
from p2pgrid.proto.record import Message, Signed

log = logging.getLogger(__name__)

INTEGRATE_S: Final = 1.0
"""Records that came within this time share a checkpoint."""
RETRY_S: Final = 5.0
BATCH: Final = 512
"""Entries in one transaction: some ten milliseconds."""


class TransparencyLog:
    """The log of one operator's node. Use it with `async with`, inside its ledger's life."""

    def __init__(
        self,
        path: Path,
        guard: Path,
        key: SecretKey,
        ledger: Ledger,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        integrate_s: float = INTEGRATE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self.key: Final = key.public_key
        self._open: Final = lambda: LogStore(path, guard, key)
        self._ledger = ledger
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._integrate_s = integrate_s
        self._retry_s = retry_s
        self._pending: list[NewEntry] = []
        self._heard = asyncio.Event()
        self._flush = asyncio.Lock()
        self._store: LogStore | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.frozen = ""
        """Why nothing is signed any more; empty while it is."""
        self.checkpoint: SignedCheckpoint | None = None
        """The last one, with the cosignatures gathered; None while the log is empty."""

    async def __aenter__(self) -> TransparencyLog:
        """Open, enter what the ledger holds and the log lacks, sign. Raises LedgerError (see `LogStore`)."""
        self._store = await asyncio.to_thread(self._open)
        try:
            self._ledger.watch(self._on_durable)
            missing = await asyncio.to_thread(self._find_missing)
            self._add(missing)
            await self.flush()
            self.checkpoint = self.checkpoint or await asyncio.to_thread(self._store.append, (), self._now_ms())
        except BaseException:
            await asyncio.to_thread(self._store.close)
            raise
        if missing:
            log.info("log: %d records entered that the ledger held already", len(missing))
        self._task = asyncio.create_task(self._integrate(), name="transparency log")
        self._task.add_done_callback(_report_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Enter what is still waiting, and close."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self.flush()
        except LedgerError as error:
            log.error("the log could not take its last records; they are entered at the next start: %s", error)
        finally:
            await asyncio.to_thread(self.reader.close)

    @property
    def reader(self) -> LogReader:
        """The log on disk. Its methods block."""
        if self._store is None:
            raise LedgerError("the log is not open.")
        return self._store

    @property
    def waiting(self) -> int:
        """Records that are not entered yet."""
        return len(self._pending)

    async def wait_for_change(self) -> None:
        """Return when a checkpoint was signed or cosigned."""
        await self._changed.wait()

    async def flush(self) -> None:
        """Enter everything heard so far, now. Raises LedgerError."""
        async with self._flush:
            while self._pending and not self.frozen:
                batch = self._pending[:BATCH]
                # Not cancelled half-way: a thread would go on alone.
                writing = asyncio.ensure_future(asyncio.to_thread(self._writer.append, batch, self._now_ms()))
                checkpoint = await asyncio.shield(writing)
                del self._pending[: len(batch)]
                self.checkpoint = checkpoint
                self._tell()

    async def prove(self, record_id: bytes) -> LogProof:
        """The proof for a record: under the last checkpoint that a witness cosigned, if it reaches so far.

        Raises Refused (`not-logged`, `erased`), LedgerError.
        """
        entry = await self.find(record_id)
        return await asyncio.to_thread(prove_entry, self.reader, entry, record_id)

    async def find(self, record_id: bytes) -> LogEntry | None:
        """The leaf of a record, or None."""
        return await asyncio.to_thread(self.reader.find, record_id)

    async def erase(self, record_id: bytes) -> bool:
        """Destroy a record's salt; False if the log has no such record. Raises LedgerError."""
        return await self.erase_all([record_id]) > 0

    async def erase_all(self, record_ids: Sequence[bytes]) -> int:
        """The same for several records at once; how many the log had. Raises LedgerError."""
        await self.flush()
        return await asyncio.to_thread(self._writer.erase_all, record_ids)

    async def add_cosignature(self, note: bytes, line: NoteSignature, witness: PublicKey) -> Cosignature:
        """Take a witness's cosignature of one of our checkpoints. Raises InvalidRecord, LedgerError; Refused
        (`unknown-checkpoint`, `too-many`) where it is not kept."""
        text = parse_note(note).text
        size = parse_checkpoint(text).size
        cosignature = verify_cosignature(text, line, witness_key(witness))
        ours = await asyncio.to_thread(self.reader.checkpoint, size)
        if ours is None or ours.note.text != text:
            raise Refused("unknown-checkpoint", "this is not one of the last checkpoints of this log.")
        with_it = await asyncio.to_thread(self._writer.add_cosignature, size, line)
        if with_it is None:
            raise Refused("too-many", "this checkpoint has all the cosignatures that are kept.")
        if self.checkpoint is not None and self.checkpoint.size == size:
            self.checkpoint = with_it
        self._tell()
        return cosignature

    def freeze(self, reason: str) -> None:
        """Sign nothing more: to go on would be to fork. The operator has to look."""
        if not self.frozen:
            self.frozen = reason
            log.critical("the log signs nothing more: %s", reason)

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _writer(self) -> LogStore:
        assert self._store is not None
        return self._store

    def _on_durable(self, signed: Sequence[Signed[Message]]) -> None:
        self._add([found for one in signed if (found := loggable(one, self.key.raw)) is not None])

    def _add(self, found: Sequence[Loggable]) -> None:
        # Frozen, it takes nothing more: the next start finds them in the ledger.
        if found and not self.frozen:
            self._pending += [NewEntry(one.record_id, self._random_bytes(SALT_BYTES), one.channel) for one in found]
            self._heard.set()

    def _find_missing(self) -> list[Loggable]:
        missing: list[Loggable] = []
        some: list[Loggable] = []

        def look() -> None:
            lacking = self._writer.missing([one.record_id for one in some])
            missing.extend(one for one in some if one.record_id in lacking)
            some.clear()

        for one in self._ledger.loggable(self.key.peer_id):
            some.append(one)
            if len(some) == 500:
                look()
        if some:
            look()
        return missing

    async def _integrate(self) -> None:
        while True:
            await self._heard.wait()
            await asyncio.sleep(self._integrate_s)
            self._heard.clear()
            try:
                await self.flush()
            except LedgerError as error:
                log.error("the log cannot be written; trying again in %g s: %s", self._retry_s, error)
                await asyncio.sleep(self._retry_s)
                self._heard.set()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the log takes nothing more; restart the node", exc_info=error)


def prove_entry(reader: LogReader, entry: LogEntry | None, record_id: bytes) -> LogProof:
    """A leaf's proof by the best checkpoint there is. Raises Refused (`not-logged`, `erased`), LedgerError. Blocks."""
    if entry is None:
        raise Refused("not-logged", f"the record {record_id.hex()[:16]} is not in the log.")
    if entry.salt is None:
        raise Refused("erased", f"the salt of leaf {entry.index} was erased: nobody can show what it stands for.")
    checkpoint = reader.best_checkpoint(entry.index)
    if checkpoint is None:
        raise Refused("not-logged", f"no checkpoint reaches leaf {entry.index} yet.", hint="Ask again in a second.")
    return reader.prove(entry, checkpoint)
