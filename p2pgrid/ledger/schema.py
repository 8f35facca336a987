"""The SQLite file: its tables and views, its version, how it is opened, and what its errors mean to a person.

Schema and views are made through sqlite-utils; the file reads well with `sqlite-utils` and `datasette`.
"""

# ruff: noqa: S608 - names in the statements are constants of this package; every value is bound

from __future__ import annotations

import errno
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from p2pgrid.errors import LedgerError, UsageError
from p2pgrid.ledger.signatures import BOTH_ROLES
from p2pgrid.ledger.table import Table
from p2pgrid.ledger.tables import (
    ANSWERS,
    CHANNELS,
    CYCLES,
    DISPUTES,
    INVOICES,
    LEGS,
    ORDERS,
    PAYMENTS,
    SET_OFFS,
    STATEMENTS,
    TABLES,
    VERDICTS,
)

if TYPE_CHECKING:
    from sqlite_utils import Database

SCHEMA_VERSION: Final = 5
APPLICATION_ID: Final = 0x70327067
"""`p2pg`, in the file's header: a ledger is told from any other SQLite file."""

MAX_WAL_PAGES: Final = 8192
"""SQLite folds the WAL into the file in the middle of a commit once it has this many pages (32 MiB). The writer does it
in a pause long before; SQLite's own figure, 1000, would have every hundredth commit wait for it under load."""

_BUSY_TIMEOUT_S: Final = 5.0


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors inside the block into LedgerError with a hint."""
    try:
        yield
    except sqlite3.Error as error:
        raise ledger_error(path, error) from error


def ledger_error(path: Path, error: sqlite3.Error) -> LedgerError:
    """What a SQLite error means to the person who runs the node."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    what, hint = _MEANINGS.get(code, ("cannot be used", ""))
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return LedgerError(f"the ledger {path} {what} ({name}: {error}).", hint=hint)


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open for writing, durable at every commit. Raises sqlite3.Error, or LedgerError if WAL cannot be had."""
    conn = _connect(path, "rw")
    mode = conn.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        conn.close()
        raise LedgerError(
            f"the ledger {path} is on a file system without shared memory (journal mode {mode!r}; 'wal' was expected).",
            hint="Keep the data folder on a local disk.",
        )
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute("PRAGMA fullfsync=ON")
    conn.execute(f"PRAGMA wal_autocheckpoint={MAX_WAL_PAGES}")
    conn.execute("PRAGMA foreign_keys=ON")
    # What is erased is overwritten: see `erase_request_keys`.
    conn.execute("PRAGMA secure_delete=ON")
    return conn


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open for reading, beside a writer or without one. Raises sqlite3.Error."""
    conn = _connect(path, "ro")
    try:
        conn.execute("PRAGMA query_only=ON")
        conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError:
        # Without a WAL there is no writer and nothing to recover. On a read-only disk SQLite wants to be told so.
        conn.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        conn = _connect(path, "ro&immutable=1")
    return conn


def create_or_check(path: Path) -> None:
    """Make the schema in an empty file, bring an older one up to date. Raises LedgerError or sqlite3.Error.

    A crash in here leaves the file as it was, and the next call does it.
    """
    with closing(_connect(path, "rw")) as conn:
        version = check_version(path, conn)
        if version == SCHEMA_VERSION:
            return
        # Not before it is needed: a node that runs on for months would keep its 15 MB for nothing.
        from sqlite_utils import Database

        database = Database(conn, execute_plugins=False)
        with database.atomic():
            if version == 0:
                _create(database, TABLES.values())
                _create_views(database)
            if version == 1:
                _create(database, (DISPUTES, ANSWERS))
                # No receipt mentioned anything before there were disputes.
                conn.execute("ALTER TABLE receipts ADD COLUMN mentions TEXT NOT NULL DEFAULT ''")
            if version < 2:
                _create_since_2(database)
            if version < 3:
                _create_since_3(database)
            if 0 < version < 4:
                _create(database, (STATEMENTS, INVOICES, PAYMENTS))
            if version:
                _create(database, (SET_OFFS, CYCLES, LEGS, VERDICTS))
            _create_since_5(database)
            conn.execute(f"PRAGMA application_id={APPLICATION_ID}")
            conn.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def check_version(path: Path, conn: sqlite3.Connection) -> int:
    """The schema's version, 0 for an empty file. Raises LedgerError for what is no ledger, or a newer one."""
    (application,) = conn.execute("PRAGMA application_id").fetchone()
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    (objects,) = conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application == 0 and version == 0 and objects == 0:
        return 0
    if application != APPLICATION_ID:
        raise LedgerError(
            f"{path} is a SQLite file, but no p2pgrid ledger.", hint="Choose another data folder with --data."
        )
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"the ledger {path} was written by a newer p2pgrid (schema {version}; this one knows {SCHEMA_VERSION}).",
            hint="Upgrade p2pgrid; the ledger was not touched.",
        )
    return int(version)


def outdated_ledger(path: Path, version: int) -> LedgerError:
    """The error for reading what only a writer can bring up to date."""
    return LedgerError(
        f"the ledger {path} was written by an older p2pgrid (schema {version}; {SCHEMA_VERSION} was expected).",
        hint="Start the node once: that brings it up to date.",
    )


def missing_ledger(path: Path) -> UsageError:
    """The error for reading where there is no ledger."""
    return UsageError(f"there is no ledger at {path}.", hint="Name the node's data folder with --data.")


def storage_failure(path: Path, error: OSError) -> LedgerError:
    """What it means to a person that a file beside the ledger cannot be read or written."""
    what, hint = _MEANINGS[sqlite3.SQLITE_FULL if error.errno in _NO_ROOM else sqlite3.SQLITE_IOERR]
    return LedgerError(f"the ledger {path} {what} ({error.strerror}: {error.filename or 'its journal'}).", hint=hint)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # Autocommit on Python's side: transactions are begun by name. Callers see to it that one thread at a time calls.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_TIMEOUT_S,
        cached_statements=512,
    )


def _create(database: Database, tables: Iterable[Table]) -> None:
    for table in tables:
        columns = {
            "seq": int,
            "id": str,
            **table.columns,
            "signed_by": str,
            "payload": bytes,
            "signatures": bytes,
        }
        not_null = set(columns) - {"seq"}
        if table is ORDERS:
            columns["outcome"] = str
        made = database[table.name].create(
            columns,
            pk="seq",
            not_null=not_null,
            strict=True,
            foreign_keys=[("channel", CHANNELS.name, "channel")] if table.references_channel else [],
        )
        for slot in table.slots:
            made.create_index(slot, unique=True)


def _create_since_2(database: Database) -> None:
    """What came with version 2, beside its tables of records."""
    for name in ("receipts", DISPUTES.name, ANSWERS.name):
        database[name].create_index(["id"], unique=True, if_not_exists=True)
    database[ANSWERS.name].create_index(["channel", "receipt_number"])
    database.execute("CREATE INDEX receipts_mentioning ON receipts (channel, receipt_number) WHERE mentions <> ''")
    database["request_keys"].create(
        {"channel": str, "order_number": int, "key": bytes},
        pk=("channel", "order_number"),
        not_null={"key"},
        strict=True,
    )


def _create_since_3(database: Database) -> None:
    """How far the journal is settled. A ledger begins at a turn of its own, so that it takes no other one's journal."""
    turns = database["journal"].create(
        {"generation": int, "offset_bytes": int}, not_null={"generation", "offset_bytes"}, strict=True
    )
    turns.insert({"generation": secrets.randbits(40), "offset_bytes": 0})


def _create_since_5(database: Database) -> None:
    """A set-off is looked for by either of its channels."""
    database[SET_OFFS.name].create_index(["other_channel"])


def _create_views(database: Database) -> None:
    """Views, indexes and tables of version 1 beside its tables of records."""
    database["offers"].create_index(["id"], unique=True)
    # Few rows at a time: what the client has still to countersign.
    database.execute(
        "CREATE INDEX receipts_proposed ON receipts (channel, receipt_number) WHERE signed_by = 'provider'"
    )
    database["evidence"].create(
        {
            "seq": int,
            "id": str,
            "payload_type": str,
            "reason": str,
            "noted_ms": int,
            "payload": bytes,
            "signatures": bytes,
        },
        pk="seq",
        not_null={"id", "payload_type", "reason", "noted_ms", "payload", "signatures"},
        strict=True,
    ).create_index(["id", "signatures"], unique=True)
    for name, sql in _VIEWS.items():
        database.create_view(name, sql)


def _eur(column: str) -> str:
    return f"printf('%d.%012d', {column} / 1000000000000, {column} % 1000000000000)"


def _utc(column: str) -> str:
    return f"strftime('%Y-%m-%dT%H:%M:%fZ', {column} / 1000.0, 'unixepoch')"


_VIEWS: Final = {
    "receipts_eur": f"""
        SELECT {_utc("receipts.issued_ms")} AS issued, receipts.receipt_number, receipts.model,
               channels.provider, channels.client, receipts.prompt_tokens, receipts.cached_tokens,
               receipts.output_tokens, {_eur("receipts.amount_pico")} AS amount_eur,
               {_eur("receipts.channel_total_pico")} AS channel_total_eur, receipts.status, receipts.signed_by,
               receipts.channel, receipts.order_number, receipts.id
        FROM receipts JOIN channels USING (channel) ORDER BY receipts.seq
    """,
    "orders_state": f"""
        SELECT {_utc("orders.ordered_ms")} AS ordered, orders.order_number, orders.model,
               coalesce(receipts.status, orders.outcome, 'open') AS state, receipts.receipt_number,
               (SELECT max(tick) FROM vouchers WHERE vouchers.channel = orders.channel
                AND vouchers.order_number = orders.order_number) AS last_voucher,
               orders.channel, orders.id
        FROM orders LEFT JOIN receipts USING (channel, order_number) ORDER BY orders.seq
    """,
    "channels_eur": f"""
        SELECT channels.provider, channels.client, {_utc("channels.opened_ms")} AS opened,
               {_utc("channels.expires_ms")} AS expires, count(receipts.seq) AS receipts,
               coalesce(sum(receipts.signed_by = '{BOTH_ROLES}'), 0) AS countersigned,
               {_eur("coalesce(max(receipts.channel_total_pico), 0)")} AS total_eur,
               {_eur("channels.credit_limit_pico")} AS credit_limit_eur, channels.channel
        FROM channels LEFT JOIN receipts USING (channel) GROUP BY channels.seq ORDER BY channels.seq
    """,
}
"""For people: EUR with twelve decimals, times in UTC."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DISK_FULL: Final = ("has no room to grow", "Free some space on its disk; the node goes on by itself.")
_DAMAGED: Final = (
    "is damaged or no ledger",
    "Stop the node, keep a copy of the file, and restore it from a backup.",
)
_NO_ACCESS: Final = ("cannot be opened for writing", "Check owner and mode of the file and of its folder.")
_MEANINGS: Final[dict[int, tuple[str, str]]] = {
    sqlite3.SQLITE_FULL: _DISK_FULL,
    sqlite3.SQLITE_IOERR: (
        "met a disk error",
        "Check that the disk has room (df) and is sound (dmesg); the node goes on when it is.",
    ),
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_READONLY: _NO_ACCESS,
    sqlite3.SQLITE_PERM: _NO_ACCESS,
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "Check that its folder exists and that you may write there."),
    sqlite3.SQLITE_BUSY: ("is locked by another program", "Close the program that writes to it, then try again."),
    sqlite3.SQLITE_LOCKED: ("is locked by another program", "Close the program that writes to it, then try again."),
}
