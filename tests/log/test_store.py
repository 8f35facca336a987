"""The log on disk: growth, restarts, every way to die, and erasing."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from p2pgrid.errors import LedgerError, UsageError
from p2pgrid.log.reader import LogReader
from p2pgrid.log.store import KEPT_CHECKPOINTS, KEPT_COSIGNED, MAX_COSIGNATURES, LogStore
from p2pgrid.proto.checkpoint import SignedCheckpoint, cosign, cosignatures_of
from p2pgrid.proto.inclusion import log_entry, parse_log_proof
from p2pgrid.proto.merkle import leaf_hash, verify_consistency, verify_inclusion
from p2pgrid.proto.tiles import ENTRIES, Tile, parse_bundle
from tests.factories import CLIENT, NOW_MS, PROVIDER, digest, secret_key
from tests.log.rig import new_entries, open_store
from tests.proto.trees import tree_hash


def entries_of(count: int) -> list[bytes]:
    return [log_entry(one.salt, one.record_id) for one in new_entries(0, count)]


def grown(store: LogStore, *sizes: int) -> list[SignedCheckpoint]:
    shown = []
    for size in sizes:
        checkpoint = store.append(new_entries(store.size, size - store.size), NOW_MS)
        assert checkpoint is not None
        shown.append(checkpoint)
    return shown


SIZES = (1, 2, 255, 256, 257, 600)


def test_it_grows_and_proves(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert (store.size, store.checkpoint(), store.append([], NOW_MS)) == (0, None, None)
    shown = grown(store, *SIZES)
    entries = entries_of(600)
    assert [one.root for one in shown] == [tree_hash(entries[:size]) for size in SIZES]
    for old in shown:
        for new in shown:
            if old.size <= new.size:
                verify_consistency(old.size, new.size, store.consistency(old.size, new.size), old.root, new.root)
    for index in (0, 255, 256, 599):
        leaf = store.find(new_entries(index, 1)[0].record_id)
        assert leaf is not None and leaf.index == index
        proof = store.prove(leaf, shown[-1])
        assert parse_log_proof(proof.to_text().encode()).verify(PROVIDER.public_key) == shown[-1]
    store.close()


def test_tiles_and_bundles(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    grown(store, 600)
    hashes = [leaf_hash(entry) for entry in entries_of(600)]
    assert store.read(Tile(0, 1)) == b"".join(hashes[256:512])
    assert store.read(Tile(0, 2, 88)) == b"".join(hashes[512:])
    assert store.read(Tile(0, 1, 3)) == b"".join(hashes[256:259])
    assert store.read(Tile(1, 0, 2)) == tree_hash(entries_of(256)) + tree_hash(entries_of(600)[256:512])
    assert parse_bundle(store.read(Tile(ENTRIES, 2, 88))) == entries_of(600)[512:]
    for beyond in (Tile(0, 2), Tile(0, 3, 1), Tile(1, 0, 3), Tile(2, 0, 1), Tile(ENTRIES, 2, 89)):
        with pytest.raises(KeyError):
            store.read(beyond)
    store.close()


def test_a_record_is_entered_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (first,) = grown(store, 5)
    assert store.append(new_entries(0, 5), NOW_MS) == first
    again = store.append([*new_entries(3, 4), *new_entries(5, 2)], NOW_MS)
    assert again is not None and (again.size, again.root) == (7, tree_hash(entries_of(7)))
    store.close()


@pytest.mark.parametrize("size", [1, 255, 256, 257, 600])
def test_a_restart_goes_on(tmp_path: Path, size: int) -> None:
    with closing(open_store(tmp_path)) as store:
        grown(store, size)
    with closing(open_store(tmp_path)) as store:
        assert store.checkpoint() is not None
        (after,) = grown(store, 700)
        assert after.root == tree_hash(entries_of(700))


def copy_of(folder: Path, target: Path) -> Path:
    """The files as a crash would leave them now."""
    target.mkdir()
    for name in ("log.sqlite", "log.sqlite-wal", "log.checkpoint"):
        if (folder / name).exists():
            shutil.copy(folder / name, target / name)
    return target


def check_keeps_its_word(folder: Path, shown: list[SignedCheckpoint]) -> int:
    """Open what a crash left, grow it, and hold it against every checkpoint that was shown; its size when found."""
    with closing(open_store(folder)) as store:
        found = store.size
        if shown:
            assert found >= shown[-1].size
        after = store.append(new_entries(found, 3, "after"), NOW_MS)
        assert after is not None
        for old in shown:
            verify_consistency(old.size, after.size, store.consistency(old.size, after.size), old.root, after.root)
    return found


def test_a_crash_at_any_moment_forks_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    shown: list[SignedCheckpoint] = []
    for number in range(12):
        shown += grown(store, (number + 1) * 50)
        left = copy_of(tmp_path, tmp_path / f"crash {number}")
        assert check_keeps_its_word(left, shown) == (number + 1) * 50
    store.close()


def test_a_crash_before_the_checkpoint_is_copied(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    shown = grown(store, 10)
    guard = (tmp_path / "log.checkpoint").read_bytes()
    grown(store, 20)
    (tmp_path / "log.checkpoint").write_bytes(guard)
    left = copy_of(tmp_path, tmp_path / "crash")
    assert check_keeps_its_word(left, shown) == 20
    store.close()


def test_a_torn_wal_keeps_the_word_or_refuses(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    shown = grown(store, 30, 60, 90)
    wal = (tmp_path / "log.sqlite-wal").stat().st_size
    outcomes = set()
    for at in range(0, wal, max(wal // 40, 1)):
        left = copy_of(tmp_path, tmp_path / f"torn {at}")
        with (left / "log.sqlite-wal").open("r+b") as file:
            file.truncate(at)
        try:
            outcomes.add(check_keeps_its_word(left, shown))
        except LedgerError as error:
            assert "was set back" in error.message
            outcomes.add(-1)
        # A disk that had not even the checkpoint's copy: what was shown is then less.
        again = copy_of(tmp_path, tmp_path / f"torn too {at}")
        with (again / "log.sqlite-wal").open("r+b") as file:
            file.truncate(at)
        (again / "log.checkpoint").unlink()
        assert check_keeps_its_word(again, []) in (0, 30, 60, 90)
    assert -1 in outcomes
    store.close()


def test_a_log_that_was_lost_or_set_back_is_not_gone_on_with(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    grown(store, 10)
    store.close()
    backup = (tmp_path / "log.sqlite").read_bytes()
    with closing(open_store(tmp_path)) as store:
        grown(store, 20)
    (tmp_path / "log.sqlite").write_bytes(backup)
    with pytest.raises(LedgerError, match=r"set back: it has 10 entries of the 20"):
        open_store(tmp_path)
    (tmp_path / "log.sqlite").unlink()
    with pytest.raises(LedgerError, match=r"set back: it has 0 entries of the 20"):
        open_store(tmp_path)
    (tmp_path / "log.checkpoint").unlink()
    open_store(tmp_path).close()


def test_changed_entries_are_not_signed(tmp_path: Path) -> None:
    with closing(open_store(tmp_path)) as store:
        grown(store, 10)
    with closing(sqlite3.connect(tmp_path / "log.sqlite")) as conn, conn:
        conn.execute("UPDATE entries SET entry = zeroblob(32) WHERE idx = 4")
    with pytest.raises(LedgerError):
        open_store(tmp_path)


def test_whose_log_it_is(tmp_path: Path) -> None:
    with closing(open_store(tmp_path)) as store:
        grown(store, 3)
        with pytest.raises(LedgerError, match="open in another process"):
            open_store(tmp_path)
    with pytest.raises(LedgerError, match="no checkpoint of this node's"):
        open_store(tmp_path, CLIENT)
    (tmp_path / "log.checkpoint").unlink()
    with pytest.raises(LedgerError, match="this node is"):
        open_store(tmp_path, CLIENT)
    (tmp_path / "other").mkdir()
    with closing(sqlite3.connect(tmp_path / "other" / "log.sqlite")) as conn:
        conn.execute("CREATE TABLE strange (x)")
    with pytest.raises(LedgerError, match="is no log"):
        open_store(tmp_path / "other")


def test_a_failed_write_is_made_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    shown = grown(store, 300)
    with closing(sqlite3.connect(tmp_path / "log.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store._connection().execute("PRAGMA busy_timeout=10")
        with pytest.raises(LedgerError, match="locked"):
            grown(store, 600)
        assert (store.size, store.checkpoint()) == (300, shown[0])
        other.execute("ROLLBACK")
    (after,) = grown(store, 600)
    assert after.root == tree_hash(entries_of(600))
    store.close()


def test_a_full_disk_under_the_copy(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    grown(store, 3)
    (tmp_path / "log.checkpoint.part").mkdir()
    with pytest.raises(LedgerError, match="cannot be written"):
        grown(store, 5)
    (tmp_path / "log.checkpoint.part").rmdir()
    again = store.append(new_entries(3, 2), NOW_MS)
    assert again is not None and again.size == 5
    assert b"\n5\n" in (tmp_path / "log.checkpoint").read_bytes()
    store.close()


def test_erasing_a_salt_leaves_tree_and_proofs(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (checkpoint,) = grown(store, 600)
    erased, other = new_entries(7, 1)[0], new_entries(8, 1)[0]
    before = {tile: store.read(tile) for tile in (Tile(0, 0), Tile(1, 0, 2), Tile(ENTRIES, 0))}
    leaf = store.find(erased.record_id)
    assert leaf is not None
    hashes = store.prove(leaf, checkpoint).inclusion.hashes
    assert store.erase(erased.record_id)
    assert not store.erase(digest("never logged"))
    after = store.find(erased.record_id)
    assert after is not None and after.salt is None and store.n_erased == 1
    with pytest.raises(ValueError, match="erased"):
        store.prove(after, checkpoint)
    assert {tile: store.read(tile) for tile in before} == before
    verify_inclusion(leaf_hash(after.entry), 7, 600, hashes, checkpoint.root)
    neighbour = store.find(other.record_id)
    assert neighbour is not None
    store.prove(neighbour, checkpoint).verify()
    (later,) = grown(store, 700)
    assert later.root == tree_hash(entries_of(700))
    # It is gone from the disk, not only from view.
    for path in tmp_path.iterdir():
        assert erased.salt not in path.read_bytes(), path
    store.close()


def test_cosignatures_are_kept_with_their_checkpoint(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first, second = grown(store, 3, 5)
    with_it = store.add_cosignature(3, cosign(first, CLIENT, 7))
    assert with_it is not None
    assert [one.time_s for one in cosignatures_of(with_it)] == [7]
    renewed = store.add_cosignature(3, cosign(first, CLIENT, 8))
    assert renewed is not None and [one.time_s for one in cosignatures_of(renewed)] == [8]
    assert store.cosigned_checkpoint() == renewed == store.best_checkpoint(2)
    assert store.best_checkpoint(3) == store.checkpoint() == second
    assert (
        store.best_checkpoint(5),
        store.cosigned_checkpoint(4),
        store.add_cosignature(4, cosign(first, CLIENT, 7)),
    ) == (
        None,
        None,
        None,
    )
    for number in range(MAX_COSIGNATURES - 1):
        assert store.add_cosignature(3, cosign(first, secret_key(f"w{number}"), 7)) is not None
    assert store.add_cosignature(3, cosign(first, secret_key("one too many"), 7)) is None
    store.close()


def test_old_checkpoints_are_forgotten(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = grown(store, 1)[0]
    store.add_cosignature(1, cosign(first, CLIENT, 7))
    with closing(sqlite3.connect(tmp_path / "log.sqlite")) as conn, conn:
        for size in range(2, KEPT_CHECKPOINTS + 200):
            lines = "x" if size < 100 else ""
            conn.execute("INSERT INTO checkpoints VALUES (?, x'00', ?, 0)", (10_000 + size, lines))
    grown(store, 2)
    with closing(sqlite3.connect(tmp_path / "log.sqlite")) as conn:
        ((plain, cosigned),) = conn.execute(
            "SELECT sum(cosignatures = ''), sum(cosignatures != '') FROM checkpoints"
        ).fetchall()
    assert plain <= KEPT_CHECKPOINTS + 1
    assert cosigned == KEPT_COSIGNED
    store.close()


def test_reading_beside_the_writer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no log"):
        LogReader.open_readonly(tmp_path / "log.sqlite")
    store = open_store(tmp_path)
    with closing(LogReader.open_readonly(tmp_path / "log.sqlite")) as reader:
        (checkpoint,) = grown(store, 300)
        assert (reader.size, reader.checkpoint(), reader.root(300)) == (300, checkpoint, checkpoint.root)
        record = new_entries(4, 1)[0].record_id
        assert [one.index for one in reader.find_prefix(record.hex()[:12])] == [4]
        assert reader.find_prefix("0000000000000000") == []
        for wrong in ("abc", "xyzw", "0" * 65):
            with pytest.raises(UsageError):
                reader.find_prefix(wrong)
    store.close()
    with pytest.raises(LedgerError, match="closed"):
        _ = store.size
    with closing(sqlite3.connect(tmp_path / "no.sqlite")) as conn:
        conn.execute("CREATE TABLE strange (x)")
    with pytest.raises(LedgerError, match="no log"):
        LogReader.open_readonly(tmp_path / "no.sqlite")
