"""The log on disk, for its one writer. It never forks itself, whatever instant the process or the machine dies at.

Entries, the tiles that they fill and the checkpoint that signs them are one transaction, synced before it returns; so a
checkpoint exists only with its entries, and what was read as signed stays. Beside the file stands the last checkpoint
once more. It is replaced after each commit and before anybody is shown the checkpoint: a log file that was set back
to an earlier state, or lost, is found out at the next start, and nothing is signed over it.

What a crash leaves: the log as of the last commit. Records that the ledger holds and the log lacks are entered at the
next start. Of a commit that failed, all or nothing may be found; nobody was shown its checkpoint.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pgrid.errors import InvalidRecord, LedgerError
from p2pgrid.ledger.lock import WriterLock
from p2pgrid.ledger.schema import connect_writer, ledger_error, storage_errors
from p2pgrid.log.reader import APPLICATION_ID, LEVEL_STRIDE, LOG_VERSION, LogReader
from p2pgrid.proto.checkpoint import SignedCheckpoint, sign_checkpoint, verify_checkpoint
from p2pgrid.proto.inclusion import log_entry
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.note import NoteSignature
from p2pgrid.proto.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, TileBuilder, width_at

KEPT_CHECKPOINTS: Final = 1024
"""A witness has until so many newer ones are signed to send its cosignature."""
KEPT_COSIGNED: Final = 16
MAX_COSIGNATURES: Final = 16
_CACHE_KIB: Final = 4 * 1024
"""Record ids are random, so their index is written all over. The system keeps the file's pages: with 32 MiB here, which
a node would hold for good, an entry into a log of a million costs the same CPU."""
_WAL_PAGES: Final = 8192
"""The WAL is folded in seldom: the same pages come again."""

_SCHEMA: Final = """
    CREATE TABLE entries (
        idx INTEGER PRIMARY KEY, record_id BLOB NOT NULL UNIQUE, salt BLOB, entry BLOB NOT NULL, channel BLOB NOT NULL
    ) STRICT;
    CREATE TABLE tiles (id INTEGER PRIMARY KEY, root BLOB NOT NULL, hashes BLOB NOT NULL) STRICT;
    CREATE TABLE checkpoints (
        size INTEGER PRIMARY KEY, note BLOB NOT NULL, cosignatures TEXT NOT NULL DEFAULT '', signed_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX cosigned ON checkpoints (size) WHERE cosignatures != '';
"""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """A record on its way into the log. The salt is fresh and stays the same however often the write is tried."""

    record_id: bytes
    salt: bytes
    channel: bytes


class LogStore(LogReader):
    """The log opened for writing; a lock keeps a second writer out. Its methods block and may come from any thread."""

    def __init__(self, path: Path, guard: Path, key: SecretKey) -> None:
        """Open, or make it. `guard` is the file of the last checkpoint.

        Raises LedgerError: open elsewhere, damaged, another key's, or set back to an earlier state.
        """
        self._guard = guard
        self._key = key
        self._writing = threading.Lock()
        self._lock = WriterLock(path)
        self._conn: sqlite3.Connection | None = None
        self._builder: TileBuilder | None = None
        self._guarded_size = 0
        try:
            with storage_errors(path):
                _create_or_check(path)
            super().__init__(path)
            self._check_not_set_back()
            self._builder = self._load_builder()
        except BaseException:
            # Whatever it was goes on to the caller; the lock must not stay behind.
            self._lock.release()
            raise

    def append(self, entries: Sequence[NewEntry], now_ms: int) -> SignedCheckpoint | None:
        """Enter records in this order, and sign the tree; the checkpoint may be shown once this has returned.

        Records that the log holds are passed over. None while the log is empty. The cost does not grow with the log.
        Raises LedgerError: the same call may be made again, and nothing may be shown before it has succeeded.
        """
        with self._writing:
            known = self._known(entries)
            new = [one for one in {one.record_id: one for one in entries}.values() if one.record_id not in known]
            checkpoint = self._commit(new, now_ms) if new else self.checkpoint()
            if checkpoint is not None and checkpoint.size != self._guarded_size:
                self._write_guard(checkpoint)
            return checkpoint

    def erase(self, record_id: bytes) -> bool:
        """Destroy the salt of a record's entry, on disk too; False if the log has no such entry.

        Tree, tiles and the proofs of others stay as they are. Raises LedgerError.
        """
        return self.erase_all([record_id]) > 0

    def erase_all(self, record_ids: Sequence[bytes]) -> int:
        """The same for several records at once; how many entries there were. Raises LedgerError."""
        with self._writing, storage_errors(self.path):
            conn = self._connection()
            changed = conn.executemany(
                "UPDATE entries SET salt = NULL WHERE record_id = ?", [(one,) for one in record_ids]
            ).rowcount
            # What was overwritten in the file is still in the WAL until that is folded in and cut.
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return max(changed, 0)

    def add_cosignature(self, size: int, line: NoteSignature) -> SignedCheckpoint | None:
        """Keep a checked cosignature of the checkpoint of that size; the checkpoint with it. None if it is full or not
        kept any more. Raises LedgerError."""
        with self._writing:
            checkpoint = self.checkpoint(size)
            if checkpoint is None:
                return None
            others = [one for one in checkpoint.note.signatures[1:] if one.name != line.name]
            if len(others) >= MAX_COSIGNATURES:
                return None
            lines = "".join(f"{one.line()}\n" for one in (*others, line))
            with storage_errors(self.path):
                self._connection().execute("UPDATE checkpoints SET cosignatures = ? WHERE size = ?", (lines, size))
            return self.checkpoint(size)

    def close(self) -> None:
        """Close the file and let the next writer in."""
        with self._writing:
            super().close()
            if self._conn is not None:
                self._conn.close()
                self._conn = None
            self._lock.release()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _known(self, entries: Sequence[NewEntry]) -> set[bytes]:
        known: set[bytes] = set()
        for at in range(0, len(entries), 500):
            some = [one.record_id for one in entries[at : at + 500]]
            known |= set(some) - self.missing(some)
        return known

    def _commit(self, new: Sequence[NewEntry], now_ms: int) -> SignedCheckpoint:
        try:
            builder, self._builder = self._builder or self._load_builder(), None
            rows, tiles = [], []
            for one in new:
                entry = log_entry(one.salt, one.record_id)
                rows.append((builder.size, one.record_id, one.salt, entry, one.channel))
                tiles += [(t.level * LEVEL_STRIDE + t.index, t.root, t.hashes) for t in builder.append(entry)]
            checkpoint = sign_checkpoint(builder.size, builder.root, self._key)
            conn = self._connection()
            conn.execute("BEGIN IMMEDIATE")
            conn.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            conn.executemany("INSERT INTO tiles VALUES (?, ?, ?)", tiles)
            conn.execute(
                "INSERT INTO checkpoints (size, note, signed_ms) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (checkpoint.size, checkpoint.note.to_bytes(), now_ms),
            )
            _forget_old(conn)
            conn.execute("COMMIT")
        except (sqlite3.Error, LedgerError) as error:
            # The builder is gone, and the connection with it: both start again from what the file then holds.
            if self._conn is not None:
                self._conn.close()
                self._conn = None
            raise ledger_error(self.path, error) if isinstance(error, sqlite3.Error) else error from error
        self._builder = builder
        return checkpoint

    def _load_builder(self) -> TileBuilder:
        size, edges, level = self.size, [], 0
        while size >> (TILE_HEIGHT * level):
            index = (size >> (TILE_HEIGHT * level)) // TILE_WIDTH
            width = width_at(level, index, size)
            edges.append(self.read(Tile(level, index, width)) if width else b"")
            level += 1
        builder = TileBuilder(size, edges)
        last = self.checkpoint()
        if last is not None and (last.size, last.root) != (builder.size, builder.root):
            raise LedgerError(
                f"the log {self.path} is damaged: its entries do not make the tree that was signed.", hint=_HINT
            )
        return builder

    def _connection(self) -> sqlite3.Connection:
        if self._conn is None:
            self._conn = connect_writer(self.path)
            self._conn.execute("PRAGMA secure_delete=ON")
            self._conn.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            self._conn.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
        return self._conn

    def _check_not_set_back(self) -> None:
        """Hold the file against the checkpoint beside it. Raises LedgerError."""
        last = self.checkpoint()
        try:
            kept = verify_checkpoint(self._guard.read_bytes(), self._key.public_key)
        except FileNotFoundError:
            if last is not None:
                self._check_key(last)
                self._write_guard(last)
            return
        except OSError as error:
            raise LedgerError(f"{self._guard} cannot be read: {error.strerror}.", hint="Check its owner.") from None
        except InvalidRecord as error:
            raise LedgerError(f"{self._guard} is no checkpoint of this node's: {error.message}", hint=_HINT) from None
        if last is None or last.size < kept.size or (kept.size and self.root(kept.size) != kept.root):
            raise LedgerError(
                f"the log {self.path} was set back: it has {last.size if last else 0} entries of the {kept.size} that "
                "this node has signed.",
                hint=_HINT,
            )
        self._check_key(last)
        self._write_guard(last)

    def _check_key(self, last: SignedCheckpoint) -> None:
        if last.log_key != self._key.public_key:
            raise LedgerError(
                f"the log {self.path} is {last.log_key}'s; this node is {self._key.public_key}.",
                hint="Move the log of the old key away; peers who saw it may keep it.",
            )

    def _write_guard(self, checkpoint: SignedCheckpoint) -> None:
        part = self._guard.with_name(self._guard.name + ".part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(checkpoint.bare().note.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._guard)
            self._guarded_size = checkpoint.size
        except OSError as error:
            raise LedgerError(
                f"{self._guard} cannot be written: {error.strerror}.", hint="Check that its disk has room."
            ) from None


_HINT: Final = (
    "Restore the newest backup of the log. If it is lost for good, this key can log no more without forking: "
    "rotate to a new key."
)


def _create_or_check(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(connect_writer(path)) as conn:
        (application,), (version,) = (
            conn.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        (objects,) = conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application == APPLICATION_ID and version <= LOG_VERSION:
            return
        if application or version or objects:
            what = "was written by a newer p2pgrid" if application == APPLICATION_ID else "is no log"
            raise LedgerError(f"{path} {what}.", hint="Upgrade p2pgrid, or choose another data folder with --data.")
        conn.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={LOG_VERSION}; COMMIT;"
        )


def _forget_old(conn: sqlite3.Connection) -> None:
    conn.execute(
        "DELETE FROM checkpoints WHERE cosignatures = '' AND size <= "
        "(SELECT size FROM checkpoints ORDER BY size DESC LIMIT 1 OFFSET ?)",
        (KEPT_CHECKPOINTS,),
    )
    conn.execute(
        "DELETE FROM checkpoints WHERE cosignatures != '' AND size <= "
        "(SELECT size FROM checkpoints WHERE cosignatures != '' ORDER BY size DESC LIMIT 1 OFFSET ?)",
        (KEPT_COSIGNED,),
    )
