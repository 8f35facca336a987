"""Where the lines of bundles stand, sorted by the orders that they are about.

Bundles can be larger than memory, and their lines in any order. So they are read twice: here, in pieces, to see what
each line is about; then part by part (`parts`), each with all the lines about its orders, wherever they stand. Of a
line only its place is kept, in a file: 16 bytes.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO, FileIO
from itertools import chain, repeat
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from p2pgrid.errors import InvalidRecord, LocalError
from p2pgrid.ledger.bundle import MAX_LINE_BYTES, MAX_SKIPPED_BYTES, parse_line, too_long
from p2pgrid.proto.evidence import Alike
from p2pgrid.proto.findings import MOST_ALIKE
from p2pgrid.proto.inclusion import INCLUSION_PROOF_TYPE
from p2pgrid.proto.record import Record
from p2pgrid.proto.route import partition_of, read_route

_GAP_BYTES: Final = 16 * 1024
"""Lines that stand no further apart are read in one go."""
_RUN_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 256 * 1024
_ENTRY: Final = Struct("<QII")
"""Offset in the file, length without the line feed, number within the chunk."""
_LINE_FEED: Final = 10
PROOF: Final = "proof"
"""Instead of a fault: it is a proof of inclusion, of which there may be one for each receipt."""
PROOFS_A_RECORD: Final = 5
"""So many times more proofs are looked at than other records about no order: 250,000 of a bundle."""
_PROOF_START: Final = Record(INCLUSION_PROOF_TYPE, b"", ()).to_json_line().partition(b'","payload')[0]
_NOT_READ_ON: Final = MAX_LINE_BYTES + 2
"""The length that stands for a line so long that the reader gives up there."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a bundle that begins and ends with a line."""

    bundle: int
    path: Path
    start: int
    end: int


class LoosePlace(NamedTuple):
    """Where a line about no order stands."""

    offset: int
    length: int
    """With its line feed."""
    number: int
    fault: str = ""
    """Why it cannot be read; empty if it can, or `PROOF`."""


@dataclass(slots=True)
class ScannedChunk:
    """What a piece holds."""

    chunk: Chunk
    entries: bytes
    """Entries of all lines about orders, partition by partition."""
    starts: array[int]
    """For each partition the number of its first entry, and the number of all."""
    lines: int
    """Line feeds, so that lines of later pieces can be numbered."""
    shown: int
    """Lines that are not blank."""
    loose: list[LoosePlace]
    """Lines about no order; of those that cannot be read the first `MOST_ALIKE` with each fault, of others the first
    `most_loose`."""
    alike: dict[str, Alike]
    """By their fault, the other lines that cannot be read."""
    left_out: int
    """How many others are about no order."""
    channels: set[bytes]
    """Those that lines about orders name."""
    gave_up: bool
    """The rest of the bundle is not read."""


@dataclass(slots=True)
class IndexedChunk:
    """A piece whose entries are in the index file."""

    bundle: int
    path: Path
    position: int
    """Of its first entry, in the index file."""
    starts: array[int]
    first_line: int
    """The number of its first line."""


@dataclass(slots=True)
class Index:
    """Every line about an order."""

    path: Path
    partitions: int
    orders_a_block: int
    chunks: list[IndexedChunk] = field(default_factory=list)


def plan_chunks(bundle: int, path: Path, chunk_bytes: int) -> list[Chunk]:
    """Cut a bundle at the ends of lines. Raises LocalError if it cannot be read on."""
    chunks = []
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            start = 0
            while start < size:
                end = _line_end(file, start + chunk_bytes, size)
                chunks.append(Chunk(bundle, path, start, end))
                # Without an end in sight there is a line that the reader gives up at.
                start = end if end - start <= chunk_bytes + MAX_SKIPPED_BYTES + 2 * MAX_LINE_BYTES else size
    except OSError as error:
        raise _unreadable(path, error) from None
    return chunks


def scan_chunk(chunk: Chunk, partitions: int, orders_a_block: int, most_loose: int) -> ScannedChunk:
    """See what each line of a piece is about."""
    sections: dict[int, bytearray] = {}
    of_block: dict[tuple[bytes, int], bytearray] = {}
    sorter = LooseLines(most_loose)
    channels: set[bytes] = set()
    pack = _ENTRY.pack
    offset, number, shown, gave_up = chunk.start, 0, 0, False
    for number, line in enumerate(_lines_from(chunk), start=1):
        length = len(line)
        if length > MAX_LINE_BYTES:
            shown += 1
            gave_up = length - MAX_LINE_BYTES - 1 > MAX_SKIPPED_BYTES
            sorter.add(LoosePlace(offset, _NOT_READ_ON if gave_up else MAX_LINE_BYTES + 1, number, "oversize"))
            if gave_up:
                break
        else:
            key = read_route(line)
            if type(key) is tuple:
                shown += 1
                channel, order = key
                section = of_block.get((channel, order // orders_a_block))
                if section is None:
                    channels.add(channel)
                    partition = partition_of(key, partitions, orders_a_block)
                    section = sections.setdefault(partition, bytearray())
                    of_block[channel, order // orders_a_block] = section
                section += pack(offset, length - (line[-1] == _LINE_FEED), number)
            elif not line.isspace():
                shown += 1
                fault = key.code if isinstance(key, InvalidRecord) else PROOF if line.startswith(_PROOF_START) else ""
                sorter.add(LoosePlace(offset, length, number, fault))
        offset += length
    starts, count = array("I", [0]), 0
    for partition in range(partitions):
        count += len(sections.get(partition, b"")) // _ENTRY.size
        starts.append(count)
    entries = b"".join(bytes(sections[p]) for p in sorted(sections))
    found = sorter.places, dict(sorter.alike), sorter.left_out
    return ScannedChunk(chunk, entries, starts, number, shown, *found, channels, gave_up)


class LooseLines:
    """Lines about no order, as many as are to be read; of the others only the numbers."""

    def __init__(self, most_loose: int) -> None:
        self._most: Final = {"": most_loose, PROOF: most_loose * PROOFS_A_RECORD}
        self._kept: Final[Counter[str]] = Counter()
        self.places: Final[list[LoosePlace]] = []
        self.alike: Final[dict[str, Alike]] = defaultdict(Alike)
        self.left_out = 0

    def add(self, place: LoosePlace, before: int = 0) -> None:
        """Add a line, with so many before those that its number counts."""
        number, fault = before + place.number, place.fault
        if self._kept[fault] < self._most.get(fault, MOST_ALIKE):
            self._kept[fault] += 1
            self.places.append(place._replace(number=number))
        elif fault not in self._most:
            self.alike[fault].add(1, number, number)
        else:
            self.left_out += 1

    def add_all(self, chunk: ScannedChunk, before: int) -> None:
        """Add what a piece holds that stands after so many lines."""
        for place in chunk.loose:
            self.add(place, before)
        for fault, alike in chunk.alike.items():
            self.alike[fault].add(alike.count, before + alike.first, before + alike.last)
        self.left_out += chunk.left_out


def lines_of(index: Index, partition: int, *, ends: bool = False) -> Iterator[tuple[int, int, bytes]]:
    """Every line of a partition: bundle, number, and the line; in the order of both. `ends`: with its line feed."""
    return chain.from_iterable(_runs_of(index, partition, ends=ends))


def read_loose(path: Path, places: Iterable[LoosePlace]) -> Iterator[tuple[int, Record | InvalidRecord]]:
    """The lines at these places, with their numbers."""
    try:
        with path.open("rb", buffering=0) as file:
            for offset, length, number, _ in places:
                if length > MAX_LINE_BYTES:
                    yield number, too_long(is_read_on=length != _NOT_READ_ON)
                    continue
                line = _read_at(file, length, offset)
                if len(line) != length:
                    raise _shrunk(path)
                yield number, parse_line(line)
    except OSError as error:
        raise _unreadable(path, error) from None


def _runs_of(index: Index, partition: int, *, ends: bool) -> Iterator[Iterable[tuple[int, int, bytes]]]:
    """Lines that stand near one another, together: they are read in one go."""
    with index.path.open("rb", buffering=0) as file:
        for chunk in index.chunks:
            first, after = chunk.starts[partition], chunk.starts[partition + 1]
            if first == after:
                continue
            section = _read_at(file, (after - first) * _ENTRY.size, chunk.position + first * _ENTRY.size)
            yield from _read_entries(chunk, list(_ENTRY.iter_unpack(section)), ends=ends)


def _read_entries(
    chunk: IndexedChunk, entries: list[tuple[int, int, int]], *, ends: bool
) -> Iterator[Iterable[tuple[int, int, bytes]]]:
    before, at, count = chunk.first_line - 1, 0, len(entries)
    try:
        with chunk.path.open("rb", buffering=0) as file:
            while at < count:
                start, length, _ = entries[at]
                end, after = start + length, at + 1
                while after < count and entries[after][0] - end <= _GAP_BYTES and end - start < _RUN_BYTES:
                    end = entries[after][0] + entries[after][1]
                    after += 1
                data = _read_at(file, end - start + ends, start)
                if len(data) < end - start:
                    raise _shrunk(chunk.path)
                run = entries[at:after]
                lines = [data[offset - start : offset - start + length + ends] for offset, length, _ in run]
                yield zip(repeat(chunk.bundle), [before + number for _, _, number in run], lines, strict=False)
                at = after
    except OSError as error:
        raise _unreadable(chunk.path, error) from None


def _read_at(file: FileIO, count: int, offset: int) -> bytes:
    file.seek(offset)
    return file.read(count) or b""


def _line_end(file: FileIO, offset: int, size: int) -> int:
    """Where the line ends that goes on at `offset`; as far as a reader looks if it does not."""
    looked = 0
    while offset < size and looked <= MAX_SKIPPED_BYTES + 2 * MAX_LINE_BYTES:
        part = _read_at(file, 1024 * 1024, offset)
        found = part.find(b"\n")
        if found >= 0:
            return offset + found + 1
        looked += len(part)
        offset += len(part)
        if not part:
            break
    return min(offset, size)


def _lines_from(chunk: Chunk) -> Iterator[bytes]:
    """The lines of a piece, with their line feeds."""
    unended: list[bytes] = []
    try:
        with chunk.path.open("rb", buffering=0) as file:
            at = chunk.start
            while at < chunk.end:
                data = _read_at(file, min(chunk.end - at, _READ_BYTES), at)
                if not data:
                    raise _shrunk(chunk.path)
                at += len(data)
                end = data.rfind(b"\n") + 1
                if end:
                    yield from BytesIO(b"".join([*unended, data[:end]]))
                    unended.clear()
                unended.append(data[end:])
    except OSError as error:
        raise _unreadable(chunk.path, error) from None
    if any(unended):
        yield b"".join(unended)


def _unreadable(path: Path, error: OSError) -> LocalError:
    return LocalError(f"the bundle {path} cannot be read on: {error.strerror}.", hint="Check its disk.")


def _shrunk(path: Path) -> LocalError:
    return LocalError(
        f"the bundle {path} became shorter while it was read.", hint="Audit a copy that nobody writes to."
    )
