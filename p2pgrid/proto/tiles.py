"""The tree as static files: tiles of 256 hashes, bundles of entries, and their paths (c2sp.org/tlog-tiles).

Tile `index` of level `l` holds the hashes of the complete subtrees of `256**l` leaves from number `256 * index` on; a
full one has 256, one at the right edge fewer. Every other node of the tree is computed from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.merkle import HASH_BYTES, MAX_SIZE, CompactRange, HashAt, Node, leaf_hash, node_hash

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 256
ENTRIES: Final = -1
"""The `level` of a bundle of entries."""
MAX_TILE_LEVEL: Final = 6
"""256**7 is more than a log may have."""
MAX_ENTRY_BYTES: Final = 32
MAX_BUNDLE_BYTES: Final = TILE_WIDTH * (2 + MAX_ENTRY_BYTES)

_PATH: Final = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """One resource: a tile of hashes, or a bundle of entries (level `ENTRIES`)."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """`tile/<level>/<index>[.p/<width>]`, below the log's prefix."""
        digits = f"{self.index:03d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        parts = [*(f"x{group}" for group in groups[:-1]), groups[-1]]
        level = "entries" if self.level == ENTRIES else str(self.level)
        suffix = f".p/{self.width}" if self.width < TILE_WIDTH else ""
        return f"tile/{level}/{'/'.join(parts)}{suffix}"

    @property
    def n_bytes(self) -> int:
        """Size of a tile of hashes."""
        return self.width * HASH_BYTES


Read = Callable[[Tile], bytes]
"""The bytes of a tile of hashes."""


def parse_tile_path(path: str) -> Tile:
    """The tile that a path names. Raises InvalidRecord (`malformed`) for any other text."""
    found = _PATH.fullmatch(path)
    if found is not None:
        level = ENTRIES if found["level"] == "entries" else int(found["level"])
        index = int(found["index"].replace("x", "").replace("/", ""))
        tile = Tile(level, index, int(found["width"] or TILE_WIDTH))
        if level <= MAX_TILE_LEVEL and index <= MAX_SIZE and tile.path == path:
            return tile
    raise InvalidRecord("malformed", f"{path[:80]!r} is no path of a tile.")


def width_at(level: int, index: int, size: int) -> int:
    """How many hashes (or entries) tile `index` of `level` has in the tree of `size`: 0 to 256."""
    return min(max((size >> (TILE_HEIGHT * max(level, 0))) - index * TILE_WIDTH, 0), TILE_WIDTH)


def tile_of(node: Node, size: int) -> Tile:
    """The tile, as wide as the tree of `size` has it, from which a node is computed."""
    level, index = _tile_index(node)
    return Tile(level, index, width_at(level, index, size))


def tiles_for(nodes: Iterable[Node], size: int) -> list[Tile]:
    """The tiles of the tree of `size` that these nodes are computed from, each once."""
    return sorted({tile_of(node, size) for node in nodes})


def nodes_of(proof: Callable[[HashAt], object]) -> list[Node]:
    """The nodes that a computation asks for: `nodes_of(lambda at: inclusion_proof(at, index, size))`."""
    asked: list[Node] = []

    def note(level: int, index: int) -> bytes:
        asked.append((level, index))
        return bytes(HASH_BYTES)

    proof(note)
    return asked


def hash_at_of(read: Read, size: int) -> HashAt:
    """The nodes of the tree of `size` out of its tiles. Raises InvalidRecord (`bad-tile`) for one of a wrong length."""

    def hash_at(level: int, index: int) -> bytes:
        tile = tile_of((level, index), size)
        hashes = read(tile)
        if len(hashes) != tile.n_bytes:
            raise InvalidRecord("bad-tile", f"{tile.path} has {len(hashes)} bytes, not {tile.n_bytes}.")
        below = level % TILE_HEIGHT
        first = (index << below) % TILE_WIDTH
        return root_of_hashes(hashes[first * HASH_BYTES : (first + (1 << below)) * HASH_BYTES])

    return hash_at


def root_of_hashes(hashes: bytes) -> bytes:
    """The root over 1, 2, 4, ... 256 joined hashes."""
    row = [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
    while len(row) > 1:
        row = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=True)]
    return row[0]


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """A bundle: each entry after its length (2 bytes, big endian)."""
    return b"".join(len(entry).to_bytes(2) + entry for entry in entries)


def parse_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises InvalidRecord (`bad-tile`)."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise InvalidRecord("bad-tile", f"a bundle of entries has at most {MAX_BUNDLE_BYTES} bytes.")
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2])
        entry = data[at + 2 : at + 2 + length]
        if at + 2 + length > len(data):
            raise InvalidRecord("bad-tile", "the last entry of a bundle is cut off.")
        entries.append(entry)
        at += 2 + length
    return entries


@dataclass(frozen=True, slots=True)
class FullTile:
    """A tile that has just become full, to be stored. Its root is a hash of the level above."""

    level: int
    index: int
    hashes: bytes
    root: bytes


class TileBuilder:
    """Grows a tree and gives out its tiles as they become full. It holds the right edge alone: 8 KB a level."""

    def __init__(self, size: int = 0, edges: Sequence[bytes] = ()) -> None:
        """`edges` are the joined hashes of the partial tile of each level, from level 0 on, as a tree of `size` has."""
        self._edges = [bytearray(edge) for edge in edges]
        self._range = CompactRange.of(hash_at_of(self._read_edge, size), size)

    @property
    def size(self) -> int:
        """Leaves so far."""
        return self._range.size

    @property
    def root(self) -> bytes:
        """The root so far."""
        return self._range.root

    def append(self, entry: bytes) -> list[FullTile]:
        """Add an entry; the tiles that it fills, lowest level first."""
        full: list[FullTile] = []
        for level, index, node in self._range.append(leaf_hash(entry)):
            if level % TILE_HEIGHT:
                continue
            tile_level = level // TILE_HEIGHT
            if tile_level:
                below = self._edges[tile_level - 1]
                full.append(FullTile(tile_level - 1, index, bytes(below), node))
                below.clear()
            if tile_level == len(self._edges):
                self._edges.append(bytearray())
            self._edges[tile_level] += node
        return full

    def _read_edge(self, tile: Tile) -> bytes:
        return bytes(self._edges[tile.level])


def _tile_index(node: Node) -> tuple[int, int]:
    level, index = node
    tile_level, below = divmod(level, TILE_HEIGHT)
    return tile_level, (index << below) // TILE_WIDTH
