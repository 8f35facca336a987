"""The witness: what it saw last of each log, durably, and its answers (c2sp.org/tlog-witness).

A cosignature leaves only after the checkpoint it is for is on record. Reading, judging and writing are one SQLite
transaction, so a gateway and a command beside it can share the file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from p2pgrid.errors import InvalidRecord, LedgerError
from p2pgrid.ledger.schema import connect_writer, storage_errors
from p2pgrid.proto.checkpoint import SignedCheckpoint, cosign, origin_of, verify_checkpoint
from p2pgrid.proto.fork import ForkProof
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.witness import (
    AddCheckpoint,
    Judgement,
    WitnessAnswer,
    cosigned_answer,
    judge,
    open_request,
    unknown_log,
)

log = logging.getLogger(__name__)

MAX_STRANGERS: Final = 4096
"""Logs that are followed although nobody here deals with their operators."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is remembered of a log."""

    checkpoint: SignedCheckpoint
    seen_ms: int


class WitnessStore:
    """The last checkpoint of each log, in one SQLite file. Its methods block; LedgerError where the disk fails."""

    def __init__(self, path: Path) -> None:
        """Open, or make the file (mode 0600). Raises LedgerError."""
        self.path: Final = path
        self._turn = threading.Lock()
        with storage_errors(path):
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            except OSError as error:
                raise LedgerError(f"{path} cannot be opened: {error.strerror}.", hint="Check its folder.") from None
            self._conn = connect_writer(path)
            self._conn.execute(
                "CREATE TABLE IF NOT EXISTS seen "
                "(origin TEXT PRIMARY KEY, note BLOB NOT NULL, seen_ms INTEGER NOT NULL) STRICT"
            )

    def last(self, key: PublicKey) -> Seen | None:
        """What is on record of a peer's log."""
        with self._turn, storage_errors(self.path):
            return self._last(origin_of(key))

    def all(self) -> list[Seen]:
        """Every log on record."""
        with self._turn, storage_errors(self.path):
            rows = self._conn.execute("SELECT note, seen_ms FROM seen ORDER BY origin").fetchall()
        return [_seen(row) for row in rows]

    def count(self) -> int:
        """How many logs are on record."""
        with self._turn, storage_errors(self.path):
            return int(self._conn.execute("SELECT count(*) FROM seen").fetchone()[0])

    def judge(self, request: AddCheckpoint, checkpoint: SignedCheckpoint, now_ms: int) -> Judgement:
        """`proto.witness.judge` against what is on record; what it advances to is durable when this returns."""
        with self._turn, storage_errors(self.path):
            self._conn.execute("BEGIN IMMEDIATE")
            try:
                seen = self._last(checkpoint.origin)
                judgement = judge(request, checkpoint, seen.checkpoint if seen is not None else None)
                if judgement.advance is not None:
                    self._conn.execute(
                        "INSERT OR REPLACE INTO seen VALUES (?, ?, ?)",
                        (checkpoint.origin, judgement.advance.note.to_bytes(), now_ms),
                    )
                self._conn.execute("COMMIT")
            finally:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
        return judgement

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._conn.close()

    def _last(self, origin: str) -> Seen | None:
        try:
            row = self._conn.execute("SELECT note, seen_ms FROM seen WHERE origin = ?", (origin,)).fetchone()
        except sqlite3.ProgrammingError:
            raise LedgerError(f"{self.path} is closed.", hint="The node is shutting down.") from None
        return _seen(row) if row is not None else None


class Witness:
    """A node as a witness of others' logs."""

    def __init__(
        self,
        store: WitnessStore,
        key: SecretKey,
        *,
        now_ms: Callable[[], int],
        follows: Callable[[PublicKey], bool] = lambda _: False,
        on_fork: Callable[[ForkProof], None] = lambda _: None,
        max_strangers: int = MAX_STRANGERS,
    ) -> None:
        """`follows`: logs that are always taken; of others, so many as there is room for. `on_fork` hears of a fork, in
        the loop."""
        self.store: Final = store
        self.key: Final = key.public_key
        self._key = key
        self._now_ms = now_ms
        self._follows = follows
        self._on_fork = on_fork
        self._max_strangers = max_strangers

    async def add_checkpoint(self, body: bytes) -> WitnessAnswer:
        """Answer a request. The cosignature is made after its checkpoint is on record. Raises LedgerError."""
        opened = open_request(body)
        if isinstance(opened, WitnessAnswer):
            return opened
        request, checkpoint = opened
        if checkpoint.log_key == self.key:
            return WitnessAnswer(HTTPStatus.FORBIDDEN, b"a log is not its own witness.\n")
        if not await asyncio.to_thread(self._takes, checkpoint.log_key):
            return unknown_log(checkpoint.log_key)
        judgement = await self.judge(request, checkpoint)
        return judgement.answer or cosigned_answer(checkpoint, self._key, self._now_ms() // 1000)

    async def judge(self, request: AddCheckpoint, checkpoint: SignedCheckpoint) -> Judgement:
        """Hold a checkpoint against what is on record, and keep it there if it is good. Raises LedgerError."""
        judgement = await asyncio.to_thread(self.store.judge, request, checkpoint, self._now_ms())
        if judgement.fork is not None:
            self.report(judgement.fork)
        return judgement

    def report(self, fork: ForkProof) -> None:
        """A fork was found."""
        log.error("%s", fork.describe())
        self._on_fork(fork)

    async def last_note(self, key: PublicKey) -> bytes | None:
        """The last checkpoint of a peer's log that is on record here, cosigned now; None if there is none."""
        seen = await asyncio.to_thread(self.store.last, key)
        if seen is None:
            return None
        line = cosign(seen.checkpoint, self._key, self._now_ms() // 1000)
        return seen.checkpoint.cosigned(line).note.to_bytes()

    def cosign(self, checkpoint: SignedCheckpoint) -> bytes:
        """The checkpoint's note with our cosignature. Only for what `judge` has put on record."""
        return checkpoint.bare().cosigned(cosign(checkpoint, self._key, self._now_ms() // 1000)).note.to_bytes()

    def _takes(self, key: PublicKey) -> bool:
        return self._follows(key) or self.store.last(key) is not None or self.store.count() < self._max_strangers


def _seen(row: tuple[bytes, int]) -> Seen:
    note, seen_ms = row
    try:
        return Seen(verify_checkpoint(note), seen_ms)
    except InvalidRecord as error:
        raise LedgerError(
            f"what was seen of a log is damaged: {error.message}", hint="Restore witness.sqlite from a backup."
        ) from None
