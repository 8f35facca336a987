"""Tiles: paths, widths, and that proofs come out of tiles as out of the tree."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)
from p2pgrid.proto.tiles import (
    ENTRIES,
    MAX_BUNDLE_BYTES,
    Tile,
    TileBuilder,
    encode_bundle,
    hash_at_of,
    nodes_of,
    parse_bundle,
    parse_tile_path,
    root_of_hashes,
    tiles_for,
    width_at,
)
from tests.proto.trees import entries_of, hash_at_of_entries, tree_hash

PATHS = {
    "tile/0/000": Tile(0, 0),
    "tile/0/x001/x234/067": Tile(0, 1234067),
    "tile/1/x001/000.p/1": Tile(1, 1000, 1),
    "tile/entries/x273/112.p/255": Tile(ENTRIES, 273112, 255),
    "tile/6/031": Tile(6, 31),
}


@pytest.mark.parametrize("path", PATHS)
def test_paths(path: str) -> None:
    assert (parse_tile_path(path), PATHS[path].path) == (PATHS[path], path)


@pytest.mark.parametrize(
    "path",
    [
        "", "tile/0/0", "tile/0/0000", "tile/00/000", "tile/7/000", "tile/64/000", "tile/-1/000", "tile/0/001/000",
        "tile/0/x000/001", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000/", "/tile/0/000",
        "tile/0/..", "tile/0/\u0661\u0661\u0661", "tile/0/000\n", "tile/entries/x999/x999/x999/x999/x999/999",
    ],
)  # fmt: skip
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(InvalidRecord):
        parse_tile_path(path)


@given(st.integers(-1, 6), st.integers(0, 2**40), st.integers(1, 256))
def test_paths_read_back(level: int, index: int, width: int) -> None:
    assert parse_tile_path(Tile(level, index, width).path) == Tile(level, index, width)


def test_the_specifications_example() -> None:
    size = 70_000
    assert [width_at(0, index, size) for index in (0, 272, 273, 274)] == [256, 256, 112, 0]
    assert [width_at(1, index, size) for index in (0, 1, 2)] == [256, 17, 0]
    assert [width_at(2, index, size) for index in (0, 1)] == [1, 0]
    assert (width_at(0, 0, 256), width_at(1, 0, 256), width_at(ENTRIES, 0, 3)) == (256, 1, 3)


class Stored:
    """A tree of so many entries, kept as its full tiles and the builder's edge."""

    def __init__(self, count: int) -> None:
        self.entries = entries_of(count)
        self.tiles: dict[tuple[int, int], bytes] = {}
        self.builder = TileBuilder()
        for entry in self.entries:
            for full in self.builder.append(entry):
                self.tiles[full.level, full.index] = full.hashes
                assert root_of_hashes(full.hashes) == full.root

    def read(self, tile: Tile) -> bytes:
        full = self.tiles.get((tile.level, tile.index))
        if full is not None:
            return full[: tile.n_bytes]
        nodes = range(tile.index * 256, tile.index * 256 + tile.width)
        if tile.level == 0:
            return b"".join(leaf_hash(self.entries[number]) for number in nodes)
        return b"".join(tree_hash(self.entries[n << 8 * tile.level : (n + 1) << 8 * tile.level]) for n in nodes)


STORED = Stored(1300)


@settings(deadline=None)
@given(st.integers(1, 1300), st.integers(0, 1299), st.integers(0, 1300))
def test_proofs_out_of_tiles(size: int, index: int, old: int) -> None:
    index, old = index % size, old % (size + 1)
    hash_at = hash_at_of(STORED.read, size)
    root = root_at(hash_at, size)
    verify_inclusion(leaf_hash(STORED.entries[index]), index, size, inclusion_proof(hash_at, index, size), root)
    old_root = root_at(hash_at_of(STORED.read, old), old)
    verify_consistency(old, size, consistency_proof(hash_at, old, size), old_root, root)
    # All that is needed is known beforehand.
    tiles = tiles_for(nodes_of(lambda at: consistency_proof(at, old, size)), size)
    fetched = {tile: STORED.read(tile) for tile in tiles}
    assert consistency_proof(hash_at_of(fetched.__getitem__, size), old, size) == consistency_proof(hash_at, old, size)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1024, 1300])
def test_roots_and_restarts(size: int) -> None:
    entries = STORED.entries[:size]
    edges = []
    for level in range(2):
        width = (size >> 8 * level) % 256
        edges.append(STORED.read(Tile(level, (size >> 8 * level) // 256, width)) if width else b"")
    builder = TileBuilder(size, edges)
    assert (builder.size, builder.root) == (size, tree_hash(entries))
    fresh = TileBuilder()
    made = [full for entry in STORED.entries[:size] for full in fresh.append(entry)]
    assert all(STORED.tiles[full.level, full.index] == full.hashes for full in made)
    for entry in STORED.entries[size:]:
        builder.append(entry)
    assert builder.root == STORED.builder.root == tree_hash(STORED.entries)


def test_tiles_of_a_wrong_length() -> None:
    for wrong in (b"", bytes(31), bytes(32 * 257)):
        with pytest.raises(InvalidRecord, match="bytes, not"):
            root_at(hash_at_of(lambda _, data=wrong: data, 20), 20)


@given(st.lists(st.binary(max_size=32), max_size=256))
def test_bundles_read_back(entries: list[bytes]) -> None:
    assert parse_bundle(encode_bundle(entries)) == entries


@given(st.binary(max_size=100))
def test_hostile_bundles(data: bytes) -> None:
    try:
        assert encode_bundle(parse_bundle(data)) == data
    except InvalidRecord as error:
        assert error.code == "bad-tile"


def test_a_bundle_has_an_end() -> None:
    with pytest.raises(InvalidRecord):
        parse_bundle(bytes(MAX_BUNDLE_BYTES + 1))


def test_the_reference_definition_agrees() -> None:
    assert hash_at_of_entries(STORED.entries)(8, 1) == hash_at_of(STORED.read, 1300)(8, 1)
