"""The disk under the data folder, and the ledger on it. Files are read, and nothing is written: not even a lock."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from p2pgrid.doctor.check import Check, fault, of_error, ok, skipped, warning
from p2pgrid.errors import LedgerError
from p2pgrid.ledger.journal import settled_mark, unsettled
from p2pgrid.ledger.schema import SCHEMA_VERSION, check_version, storage_errors

LITTLE_BYTES: Final = 2**30
TOO_LITTLE_BYTES: Final = 64 * 2**20
QUICK_CHECK_S: Final = 2.0
MAX_COPY_BYTES: Final = 256 * 2**20
_GONE_AT_REBOOT: Final = {"tmpfs", "ramfs", "devtmpfs"}
_REMOTE: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "afs", "ceph"}
"""Where locks, shared memory or syncs of SQLite are not what they are on a local disk."""
_BACKUP: Final = "Stop the node, keep a copy of the file, and restore it from a backup."


def check_disk(folder: Path) -> list[Check]:
    """Room, and the file system."""
    there = existing(folder)
    free = shutil.disk_usage(there).free
    return [judge_space(free, folder), judge_file_system(file_system_of(there), folder)]


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return path if path.exists() or path == path.parent else existing(path.parent)


def judge_space(free_bytes: int, folder: Path) -> Check:
    """Is there room for the ledger to grow?"""
    text = f"{free_bytes / 2**30:.1f} GiB are free under {folder}."
    if free_bytes < TOO_LITTLE_BYTES:
        return fault("disk", text, "Free some space: df -h. Nothing is sold or bought once the ledger cannot grow.")
    if free_bytes < LITTLE_BYTES:
        return warning("disk", text, "Free some space, at least 1 GiB: df -h")
    return ok("disk", text)


def judge_file_system(kind: str | None, folder: Path) -> Check:
    """Does it keep what it says that it has synced?"""
    name, elsewhere = "file system", "Keep the data folder on a local disk: --data, or P2PGRID_DATA."
    if kind is None:
        return skipped(name, "this system does not tell which file system the data folder is on.")
    if kind in _GONE_AT_REBOOT:
        return warning(name, f"{folder} is in memory ({kind}): key and ledger are gone after a restart.", elsewhere)
    if kind in _REMOTE:
        return fault(name, f"{folder} is on {kind}, on which the ledger's syncs and locks are not sure.", elsewhere)
    return ok(name, f"{kind}.")


def file_system_of(path: Path, mounts: str | None = None) -> str | None:
    """The type of the file system that `path` is on; None where the system does not say.

    mounts: the text of /proc/self/mountinfo (proc(5)), if it is not to be read.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
    resolved, best, kind = path.resolve(), -1, None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 5 or not rest[0]:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))  # a space stands there as \040
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), rest[0]
    return kind


def check_ledger(path: Path, *, is_running: bool) -> list[Check]:
    """Does it open, is it sound, and is its journal?  `is_running`: a node has it open."""
    name = "ledger"
    if not path.exists():
        return [skipped(name, "there is none yet; it is made at the first start.")]
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with storage_errors(path), _reading(path, is_running) as conn:
            if conn is None:
                return [
                    skipped(name, "it was left open by a node that ended, and is too large to look into beside it.")
                ]
            found = _look_into(path, conn, is_running)
    except LedgerError as error:
        return [of_error(name, error, _BACKUP)]
    except OSError as error:
        return [fault(name, f"{path} cannot be read: {error.strerror}.", "Check its owner and mode.")]
    if mode & 0o077:
        found.append(warning(name, f"{path} can be read by others (mode {mode:04o}).", f"chmod 600 {path}"))
    return found


def _look_into(path: Path, conn: sqlite3.Connection, is_running: bool) -> list[Check]:
    name, version = "ledger", check_version(path, conn)
    if version == 0:
        return [fault(name, f"{path} is empty.", f"If nothing was in it: rm {path}. Else restore it from a backup.")]
    if version < SCHEMA_VERSION:
        return [ok(name, f"{path}, of an older p2pgrid: the next start brings it up to date.")]
    waiting = len(unsettled(path, settled_mark(conn)))
    damage = _quick_check(conn)
    if damage:
        return [fault(name, f"{path} is damaged: {damage}.", _BACKUP)]
    text = "sound" if damage is not None else "opens; too large to be looked at as a whole here"
    if waiting and not is_running:
        text += f"; {waiting} writes wait in its journal, which the next start settles"
    return [ok(name, f"{path}: {text}.")]


def _quick_check(conn: sqlite3.Connection) -> str | None:
    """What SQLite finds wrong; empty if nothing, None if that takes too long."""
    until_s = time.monotonic() + QUICK_CHECK_S
    conn.set_progress_handler(lambda: int(time.monotonic() > until_s), 10_000)
    try:
        (said,) = conn.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return None
        raise
    finally:
        conn.set_progress_handler(None, 0)
    return "" if said == "ok" else str(said).replace("\n", "; ")[:200]


@contextmanager
def _reading(path: Path, is_running: bool) -> Iterator[sqlite3.Connection | None]:
    """A connection that writes nothing. What a dead node has left is read in a copy: SQLite would mend it in place."""
    wal = path.with_name(path.name + "-wal")
    if is_running:
        with closing(_connect(path, "ro")) as conn:
            yield conn
    elif not wal.exists():
        with closing(_connect(path, "ro&immutable=1")) as conn:
            yield conn
    elif path.stat().st_size + wal.stat().st_size > MAX_COPY_BYTES:
        yield None
    else:
        with tempfile.TemporaryDirectory(prefix="p2pgrid-doctor-") as folder:
            for one in (path, wal):
                shutil.copy(one, folder)
            with closing(_connect(Path(folder, path.name), "rw")) as conn:
                yield conn


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    conn = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=2.0)
    conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return conn
