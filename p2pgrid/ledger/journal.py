"""The journal before the SQLite file: what was acknowledged, and is not settled there yet.

Why there is one: docs/decisions/a-journal-before-sqlite.md.

Two files beside the ledger, each written from its beginning until it is long enough, then the other: a *turn*. It holds
frames:

    generation  8 bytes, big-endian: the turn's number, one more with every turn
    length      4 bytes, of the payload
    checksum    4 bytes: CRC-32 of generation, length and payload
    payload     MessagePack: an array of operations (`operations.to_journal`)

A frame is there whole or not at all, as the checksum tells; so what was torn by a power cut is not read. What stands
behind the last frame of a turn is of an earlier turn, by its generation. The SQLite file knows up to where it has all
(`Mark`, table `journal`), and is told in the transaction that settles it. Applying a frame once more changes nothing.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.operations import Journaled, from_journal, settle
from p2pgrid.ledger.signatures import damaged

MAX_TURN_BYTES: Final = 512 * 1024
"""Where a file is this long, the next frame goes to the other one: some 400 orders."""
_HEADER_BYTES: Final = 16
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Any])


class Mark(NamedTuple):
    """Up to where the journal is settled: all turns before, and this turn's frames before the offset."""

    generation: int
    offset_bytes: int


def journal_paths(ledger: Path) -> tuple[Path, Path]:
    """The two files of a ledger's journal."""
    first, second = (ledger.with_name(f"{ledger.name}.journal{n}") for n in (1, 2))
    return first, second


def encode_frame(generation: int, operations: Sequence[Journaled]) -> bytes:
    """One frame."""
    payload = _encoder.encode([one.to_journal() for one in operations])
    head = generation.to_bytes(8, "big") + len(payload).to_bytes(4, "big")
    return b"".join((head, zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "big"), payload))


def read_frames(content: bytes) -> Iterator[tuple[Mark, bytes]]:
    """The whole frames of one turn: where each ends, and its payload."""
    offset, turn = 0, None
    while offset + _HEADER_BYTES <= len(content):
        head = content[offset : offset + 12]
        generation, length = int.from_bytes(head[:8], "big"), int.from_bytes(head[8:], "big")
        start = offset + _HEADER_BYTES
        payload = content[start : start + length]
        checksum = int.from_bytes(content[offset + 12 : start], "big")
        if turn not in (None, generation) or len(payload) < length or zlib.crc32(payload, zlib.crc32(head)) != checksum:
            return
        turn, offset = generation, start + length
        yield Mark(generation, offset), payload


def unsettled(ledger: Path, settled: Mark) -> list[tuple[Mark, bytes]]:
    """The frames that the SQLite file does not have, oldest first. Raises OSError, or LedgerError where frames between
    the two are missing."""
    frames = []
    for path in journal_paths(ledger):
        if path.exists():
            frames += [frame for frame in read_frames(path.read_bytes()) if frame[0] > settled]
    frames.sort()
    if frames and frames[0][0].generation > settled.generation + 1:
        raise LedgerError(
            f"the ledger {ledger} is older than its journal (turn {settled.generation}, {frames[0][0].generation}).",
            hint="Was it restored from a backup? Then move its files *.journal1 and *.journal2 away, and start again.",
        )
    return frames


def recover(ledger: Path, conn: sqlite3.Connection) -> Mark:
    """Settle what a process that ended without closing has left in the journal; where it is settled up to.

    Raises LedgerError where a frame does not fit, sqlite3.Error or OSError where the disk fails: nothing has changed
    then, and the next call does it.
    """
    mark = settled_mark(conn)
    frames = unsettled(ledger, mark)
    if frames:
        mark = frames[-1][0]
        conn.execute("BEGIN IMMEDIATE")
        try:
            for _, payload in frames:
                settle(conn, [from_journal(kept) for kept in _decode(payload)])
            note_settled(conn, mark)
            conn.execute("COMMIT")
        except BaseException:
            conn.execute("ROLLBACK")
            raise
    return mark


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def settled_mark(conn: sqlite3.Connection) -> Mark:
    """What the SQLite file says of the journal."""
    return Mark(*conn.execute("SELECT generation, offset_bytes FROM journal").fetchone())


def note_settled(conn: sqlite3.Connection, mark: Mark) -> None:
    """Say so in the SQLite file, inside a transaction."""
    conn.execute("UPDATE journal SET generation = ?, offset_bytes = ?", mark)


def _decode(payload: bytes) -> list[Any]:
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise damaged(f"a frame of the journal cannot be read ({error})") from None


class Journal:
    """The two files, open for writing. `Mark`s go up; a file is written anew once all it holds is settled.

    Every method may raise OSError.
    """

    def __init__(self, ledger: Path, settled: Mark) -> None:
        self._paths = journal_paths(ledger)
        self._descriptors: list[int] = []
        self._turn = settled.generation + 1
        self._end_bytes = 0
        self._settled = self._before = settled
        """Up to where the journal is settled; the end of the turn before this one."""
        try:
            for path in self._paths:
                self._descriptors.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            sync_folder(ledger.parent)
        except BaseException:
            self.close()
            raise

    @property
    def descriptor(self) -> int:
        """The file of this turn."""
        return self._descriptors[self._turn % 2]

    @property
    def mark(self) -> Mark:
        """The end of what is written and kept."""
        return Mark(self._turn, self._end_bytes)

    @property
    def is_full(self) -> bool:
        """True if no frame may follow until the turn before this one is settled."""
        return self._end_bytes >= MAX_TURN_BYTES and self._settled < self._before

    def write(self, operations: Sequence[Journaled]) -> int:
        """Write one frame behind those that are kept; its length. It counts with `keep`, once it is synced.

        Not for a journal that is full.
        """
        assert not self.is_full
        if self._end_bytes >= MAX_TURN_BYTES:
            self._before = self.mark
            self._turn += 1
            self._end_bytes = 0
        frame = encode_frame(self._turn, operations)
        written = 0
        while written < len(frame):
            written += os.pwrite(self.descriptor, frame[written:] if written else frame, self._end_bytes + written)
        return len(frame)

    def keep(self, length: int) -> None:
        """The frame that was written last is durable."""
        self._end_bytes += length

    def settled(self, mark: Mark) -> None:
        """All up to the mark is in the SQLite file, and durable there."""
        self._settled = max(self._settled, mark)

    def wipe(self) -> None:
        """Overwrite what the files hold, all of it settled: something in it was erased. Blocks until that is synced."""
        for descriptor in self._descriptors:
            size = os.fstat(descriptor).st_size
            os.pwrite(descriptor, bytes(size), 0)
            os.fsync(descriptor)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def remove(self) -> None:
        """Remove the files: all is settled."""
        for path in self._paths:
            path.unlink(missing_ok=True)
