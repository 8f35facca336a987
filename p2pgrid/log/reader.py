"""Reading a log on disk: its entries, tiles, checkpoints, and proofs out of them.

The file holds every entry with its salt, every full tile, and the last checkpoints. What is at the right edge is
computed. It is opened beside its writer or without one, from any thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pgrid.errors import InvalidRecord, LedgerError, UsageError
from p2pgrid.ledger.schema import connect_reader, storage_errors
from p2pgrid.proto.checkpoint import SignedCheckpoint, verify_checkpoint
from p2pgrid.proto.inclusion import InclusionProof, LogProof
from p2pgrid.proto.merkle import HashAt, consistency_proof, inclusion_proof, leaf_hash, root_at
from p2pgrid.proto.note import parse_note, parse_signature_lines
from p2pgrid.proto.tiles import ENTRIES, TILE_WIDTH, Tile, encode_bundle, hash_at_of

LOG_VERSION: Final = 1
APPLICATION_ID: Final = 0x70326C67
"""`p2lg`, in the file's header."""
LEVEL_STRIDE: Final = 2**48
"""A tile's key is level * LEVEL_STRIDE + index."""
_CACHED_TILES: Final = 256
MIN_PREFIX_CHARS: Final = 4


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A leaf and what it stands for."""

    index: int
    record_id: bytes
    salt: bytes | None
    """None once it was erased: nobody can show any more what the leaf stands for."""
    entry: bytes
    channel: bytes
    """The channel whose parties may ask for its proof; empty if anyone may."""


class LogReader:
    """A log opened for reading. Its methods block. Raises LedgerError where the file cannot be read or is damaged."""

    def __init__(self, path: Path) -> None:
        """For `open_readonly`, and for the writer."""
        self.path: Final = path
        self._reading = threading.Lock()
        self._tiles: OrderedDict[int, bytes] = OrderedDict()
        with storage_errors(path):
            self._reader = connect_reader(path)

    @classmethod
    def open_readonly(cls, path: Path) -> LogReader:
        """Open beside a running node or without one. Raises UsageError if there is no log."""
        if not path.exists():
            raise UsageError(f"there is no log at {path}.", hint="Name the operator's data folder with --data.")
        reader = cls(path)
        if reader._rows("PRAGMA application_id") != [(APPLICATION_ID,)]:
            reader.close()
            raise LedgerError(f"{path} is a SQLite file, but no log.", hint="Choose another data folder with --data.")
        return reader

    @property
    def size(self) -> int:
        """Entries on disk."""
        rows = self._rows("SELECT max(idx) FROM entries")
        return 0 if rows[0][0] is None else int(rows[0][0]) + 1

    @property
    def n_erased(self) -> int:
        """Entries whose salt was erased. It counts them one by one."""
        return int(self._rows("SELECT count(*) FROM entries WHERE salt IS NULL")[0][0])

    def checkpoint(self, size: int | None = None) -> SignedCheckpoint | None:
        """The checkpoint of that size with the cosignatures gathered; the last one without a size; None if not kept."""
        where = "ORDER BY size DESC LIMIT 1" if size is None else "WHERE size = :size"
        rows = self._rows(f"SELECT note, cosignatures FROM checkpoints {where}", {"size": size})  # noqa: S608
        return _checkpoint(rows[0]) if rows else None

    def cosigned_checkpoint(self, least_size: int = 0) -> SignedCheckpoint | None:
        """The last checkpoint of at least that size that a witness has cosigned, or None."""
        rows = self._rows(
            "SELECT note, cosignatures FROM checkpoints WHERE cosignatures != '' AND size >= ? "
            "ORDER BY size DESC LIMIT 1",
            least_size,
        )
        return _checkpoint(rows[0]) if rows else None

    def checkpoints(self) -> list[SignedCheckpoint]:
        """The last checkpoint, and before it those that a witness has cosigned, largest first."""
        rows = self._rows(
            "SELECT note, cosignatures FROM checkpoints WHERE cosignatures != '' "
            "OR size = (SELECT max(size) FROM checkpoints) ORDER BY size DESC"
        )
        return [_checkpoint(row) for row in rows]

    def find(self, record_id: bytes) -> LogEntry | None:
        """The leaf of a record, or None if it is not in the log."""
        return next(iter(self._entries("record_id = ?", record_id)), None)

    def find_prefix(self, prefix_hex: str) -> list[LogEntry]:
        """Leaves whose record id begins so, at most two. Raises UsageError for less than 4 hex digits."""
        text = prefix_hex.lower()
        if not MIN_PREFIX_CHARS <= len(text) <= 64 or any(char not in "0123456789abcdef" for char in text):
            raise UsageError(f"{prefix_hex!r} is no record id.", hint="Give its first hex digits, at least four.")
        low, high = bytes.fromhex(text.ljust(64, "0")), bytes.fromhex(text.ljust(64, "f"))
        return self._entries("record_id BETWEEN ? AND ? LIMIT 2", low, high)

    def missing(self, record_ids: list[bytes]) -> set[bytes]:
        """Of these records (at most 500) the ones that the log lacks."""
        marks = ", ".join("?" * len(record_ids))
        found = self._rows(f"SELECT record_id FROM entries WHERE record_id IN ({marks})", *record_ids)  # noqa: S608
        return set(record_ids) - {row[0] for row in found}

    def read(self, tile: Tile) -> bytes:
        """A tile of hashes, or a bundle of entries (level ENTRIES). Raises KeyError where the log is not so long."""
        if tile.level == ENTRIES:
            return encode_bundle(self._leaves(tile))
        key = tile.level * LEVEL_STRIDE + tile.index
        hashes = self._full_tile(key)
        if hashes is None and tile.level == 0:
            hashes = b"".join(map(leaf_hash, self._leaves(tile)))
        elif hashes is None:
            first = (tile.level - 1) * LEVEL_STRIDE + tile.index * TILE_WIDTH
            rows = self._rows(
                "SELECT root FROM tiles WHERE id BETWEEN ? AND ? ORDER BY id", first, first + tile.width - 1
            )
            hashes = b"".join(row[0] for row in rows)
        if len(hashes) < tile.n_bytes:
            raise KeyError(tile.path)
        return hashes[: tile.n_bytes]

    def hash_at(self, size: int) -> HashAt:
        """The nodes of the tree of the first `size` entries."""
        return hash_at_of(self.read, size)

    def root(self, size: int) -> bytes:
        """The root of the tree of the first `size` entries."""
        return root_at(self.hash_at(size), size)

    def consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """RFC 6962, section 2.1.2, within this log."""
        return consistency_proof(self.hash_at(new_size), old_size, new_size)

    def prove(self, entry: LogEntry, checkpoint: SignedCheckpoint) -> LogProof:
        """The proof that an entry with its salt is under a checkpoint of this log that reaches it."""
        if entry.salt is None:
            raise ValueError("the entry's salt was erased")
        inclusion = InclusionProof(
            record_id=entry.record_id,
            salt=entry.salt,
            leaf_index=entry.index,
            tree_size=checkpoint.size,
            hashes=inclusion_proof(self.hash_at(checkpoint.size), entry.index, checkpoint.size),
        )
        return LogProof(inclusion, checkpoint.note)

    def best_checkpoint(self, index: int) -> SignedCheckpoint | None:
        """The checkpoint to prove leaf `index` by: the last cosigned one that reaches it, or else the last."""
        last = self.cosigned_checkpoint(index + 1) or self.checkpoint()
        return last if last is not None and last.size > index else None

    def close(self) -> None:
        """Close the file."""
        with self._reading:
            self._reader.close()

    def _entries(self, where: str, *parameters: Any) -> list[LogEntry]:
        rows = self._rows(
            f"SELECT idx, record_id, salt, entry, channel FROM entries WHERE {where}",  # noqa: S608
            *parameters,
        )
        return [LogEntry(*row) for row in rows]

    def _leaves(self, tile: Tile) -> list[bytes]:
        first = tile.index * TILE_WIDTH
        rows = self._rows(
            "SELECT entry FROM entries WHERE idx BETWEEN ? AND ? ORDER BY idx", first, first + tile.width - 1
        )
        if len(rows) < tile.width:
            raise KeyError(tile.path)
        return [row[0] for row in rows]

    def _full_tile(self, key: int) -> bytes | None:
        with self._reading:
            cached = self._tiles.get(key)
            if cached is not None:
                self._tiles.move_to_end(key)
                return cached
        rows = self._rows("SELECT hashes FROM tiles WHERE id = ?", key)
        if not rows:
            return None
        hashes: bytes = rows[0][0]
        with self._reading:
            self._tiles[key] = hashes
            if len(self._tiles) > _CACHED_TILES:
                self._tiles.popitem(last=False)
        return hashes

    def _rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        named = parameters[0] if len(parameters) == 1 and isinstance(parameters[0], dict) else parameters
        with self._reading, storage_errors(self.path):
            try:
                return self._reader.execute(sql, named).fetchall()
            except sqlite3.ProgrammingError:
                raise LedgerError(f"the log {self.path} is closed.", hint="The node is shutting down.") from None


def _checkpoint(row: tuple[Any, ...]) -> SignedCheckpoint:
    note, cosignatures = row
    try:
        checkpoint = verify_checkpoint(parse_note(note))
        return checkpoint.cosigned(*parse_signature_lines(cosignatures)) if cosignatures else checkpoint
    except InvalidRecord as error:
        raise LedgerError(
            f"a checkpoint in the log is damaged: {error.message}", hint="Restore the data folder from a backup."
        ) from None
