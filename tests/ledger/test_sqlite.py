"""What only the ledger on disk can do wrong: files, processes, versions, disks."""

# ruff: noqa: ASYNC240 - a test may block its loop

from __future__ import annotations

import asyncio
import os
import select
import signal
import sqlite3
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from p2pgrid.errors import LedgerError, LocalError, UsageError
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.ledger.schema import SCHEMA_VERSION
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Role, parse_record
from tests.factories import CLIENT, Dealings, digest, make_answer, make_dispute, resigned

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[SqliteLedger]:
    opened = SqliteLedger.open(path)
    yield opened
    await opened.aclose()


def script(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Another Python process with this checkout on its path."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


async def test_everything_is_there_after_reopening(path: Path) -> None:
    d = Dealings()
    ledger = SqliteLedger.open(path)
    records = d.chain(3)
    await ledger.append(*records)
    await ledger.append_evidence(d.offer.record, "a test.")
    before = ledger.head(d.id)
    await ledger.aclose()

    again = SqliteLedger.open(path)
    assert list(again.records()) == [r.record for r in records]
    assert again.head(d.id) == before
    more = d.completed()
    await again.append(*more)
    assert list(again.records())[-len(more) :] == [r.record for r in more]
    await again.aclose()
    assert sorted(p.name for p in path.parent.iterdir()) == ["ledger.sqlite", "ledger.sqlite.lock"]


async def test_nothing_appended_is_done_when_all_before_it_is(ledger: SqliteLedger) -> None:
    await asyncio.wait_for(ledger.append(), timeout=20)
    records = Dealings().chain(1)
    first, nothing, last = ledger.append(*records), ledger.append(), ledger.append(records[0])
    await asyncio.wait_for(nothing, timeout=20)
    assert first.done() and list(ledger.records()) == [one.record for one in records]
    await asyncio.wait_for(last, timeout=20)


async def test_only_the_owner_may_read_the_files(ledger: SqliteLedger, path: Path) -> None:
    await ledger.append(Dealings().offer)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert "ledger.sqlite-wal" in modes


async def test_plain_sqlite_tools_read_it(ledger: SqliteLedger, path: Path) -> None:
    d = Dealings()
    await ledger.append(*d.chain(2))
    await ledger.note_outcome(d.order(), "never-arrived")
    ledger.settle()
    database = Database(path)
    assert set(database.table_names()) == {
        "offers",
        "channels",
        "orders",
        "meters",
        "vouchers",
        "set_offs",
        "cycles",
        "legs",
        "verdicts",
        "receipts",
        "disputes",
        "answers",
        "statements",
        "invoices",
        "payments",
        "request_keys",
        "evidence",
        "journal",
    }
    receipt = d.receipts[1].message
    row = list(database["receipts"].rows)[1]
    assert (row["id"], row["channel"]) == (d.receipts[1].id.hex(), d.id.hex())
    assert (row["receipt_number"], row["amount_pico"], row["status"]) == (2, receipt.amount_pico, "completed")
    assert row["payload"] == d.receipts[1].record.payload
    assert row["signed_by"] == "client,provider"
    eur = list(database["receipts_eur"].rows)[1]
    assert eur["amount_eur"] == "0.000242000000"
    assert eur["issued"] == "2027-01-15T08:00:02.400Z"
    assert eur["provider"] == str(d.provider.public_key)
    assert [r["state"] for r in database["orders_state"].rows] == ["completed", "completed", "never-arrived"]
    (total,) = database["channels_eur"].rows
    assert (total["receipts"], total["countersigned"], total["total_eur"]) == (2, 2, "0.000484000000")
    assert database.conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_commits_are_synced(ledger: SqliteLedger) -> None:
    conn = ledger._writer._conn
    assert conn is not None
    assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert conn.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


async def test_calls_that_wait_together_share_a_commit(ledger: SqliteLedger, path: Path) -> None:
    d = Dealings()
    await ledger.append(d.offer)
    orders = [d.channel, *(d.order() for _ in range(300))]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        # While another holds the write lock, the channel waits, and the rest queues up behind it.
        other.execute("BEGIN IMMEDIATE")
        futures = [ledger.append(order) for order in orders]
        frames = path.with_name("ledger.sqlite-wal").stat().st_size
        other.execute("ROLLBACK")
        await asyncio.gather(*futures)
    assert ledger.counts()["/p2pgrid/order/1"] == 300
    grown = path.with_name("ledger.sqlite-wal").stat().st_size - frames
    assert grown < 300 * 2 * 4096 / 2, "one commit an order would write at least two pages each"


OPENING = """
import sys
from pathlib import Path
from p2pgrid.ledger.sqlite import SqliteLedger
SqliteLedger.open(Path(sys.argv[1]))
"""


async def test_a_second_writer_is_told_who_has_it(ledger: SqliteLedger, path: Path) -> None:
    with pytest.raises(LocalError, match=rf"open in another process \(pid {os.getpid()}\).*--data"):
        SqliteLedger.open(path)
    process = script(OPENING, path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"open in another process (pid {os.getpid()})" in errors


async def test_readers_keep_step_with_a_running_writer(ledger: SqliteLedger, path: Path) -> None:
    d = Dealings()
    with SqliteLedger.open_readonly(path) as reader:
        assert reader.channels() == []
        records = d.chain(2)
        await ledger.append(*records)
        assert [r.record_id for r in reader.receipts()] == [d.receipts[1].id, d.receipts[0].id]
        stream = reader.records()
        first = next(stream)
        await ledger.append(*d.completed())
        assert [first, *stream] == [r.record for r in records], "a stream shows one moment"


async def test_reading_needs_no_writer_and_writes_nothing(path: Path) -> None:
    d = Dealings()
    ledger = SqliteLedger.open(path)
    await ledger.append(*d.chain(1))
    await ledger.aclose()
    path.chmod(0o400)
    with SqliteLedger.open_readonly(path) as reader:
        assert len(list(reader.records())) == 6
        assert not hasattr(reader, "append")


def test_reading_where_there_is_no_ledger(path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no ledger at .*--data"):
        SqliteLedger.open_readonly(path)
    path.touch()
    with pytest.raises(UsageError, match="there is no ledger at"):
        SqliteLedger.open_readonly(path)


async def test_a_newer_ledger_is_left_alone(path: Path) -> None:
    await SqliteLedger.open(path).aclose()
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    for opener in (SqliteLedger.open, SqliteLedger.open_readonly):
        with pytest.raises(LedgerError, match=r"newer p2pgrid \(schema \d+; this one knows \d+\).*Upgrade"):
            opener(path)
    assert path.read_bytes() == before


def version_1(path: Path) -> None:
    """A ledger as version 1 of the schema left it."""
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript(Path(__file__).with_name("version_1.sql").read_text(encoding="utf-8"))


async def test_an_older_ledger_is_brought_up_to_date(path: Path) -> None:
    version_1(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"older p2pgrid \(schema 1; \d was expected\).*Start the node once"):
        SqliteLedger.open_readonly(path)
    assert path.read_bytes() == before

    d = Dealings()
    old = d.chain(2)
    ledger = SqliteLedger.open(path)
    assert list(ledger.records())[: len(old)] == [one.record for one in old]
    assert [one.order.message.order_number for one in ledger.open_orders(d.id)] == [4]
    assert ledger.disputes() == [] and ledger.mentioned(d.id, 0) == set()
    dispute = make_dispute(d.receipts[0])
    answer = make_answer(dispute)
    d.last_order_number = 4
    order = d.order()
    ledger.keep_request_key(order, digest("key"))
    await ledger.append(dispute, answer, order, d.proposal(order, mentions=(dispute.id, answer.id)))
    await ledger.aclose()

    again = SqliteLedger.open(path)
    assert again.mentioned(d.id, 0) == {dispute.id, answer.id}
    assert again.request_key(d.id, 5) == digest("key")
    assert again.counts()["evidence"] == 1
    await again.aclose()
    with closing(sqlite3.connect(path)) as conn, closing(sqlite3.connect(path.with_name("new"))) as new:
        await SqliteLedger.open(path.with_name("new")).aclose()
        names = "SELECT type, name FROM sqlite_schema ORDER BY type, name"
        assert conn.execute(names).fetchall() == new.execute(names).fetchall()
        assert conn.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_migration_that_is_cut_short_leaves_the_ledger_as_it_was(path: Path) -> None:
    version_1(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("CREATE TABLE request_keys (in_the_way)")
    with pytest.raises(LedgerError):
        SqliteLedger.open(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (1,)
        assert conn.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'disputes'").fetchone() == (0,)
        conn.execute("DROP TABLE request_keys")
    SqliteLedger.open(path).close()


@pytest.mark.parametrize("is_read", [False, True], ids=["alone", "while it is read"])
async def test_an_erased_key_is_in_no_file(path: Path, is_read: bool) -> None:
    d = Dealings()
    ledger = SqliteLedger.open(path)
    await ledger.append(d.offer, d.channel)
    keys = [digest(f"key {number}") for number in range(1, 201)]
    for key in keys:
        order = d.order()
        ledger.keep_request_key(order, key)
        await ledger.append(order)

    def found() -> list[bytes]:
        files = [one.read_bytes() for one in path.parent.iterdir()]
        return [key for key in keys if any(key in one for one in files)]

    assert found() == keys
    reading = sqlite3.connect(path, isolation_level=None)
    if is_read:
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM orders").fetchone()
    await ledger.erase_request_keys([(d.id, number) for number in range(1, 151)])
    assert ledger.request_key(d.id, 150) is None
    if is_read:
        # Whoever reads holds the older pages; they go with the next write.
        reading.execute("COMMIT")
        await ledger.append(d.order())
    reading.close()
    assert found() == keys[150:]
    await ledger.aclose()
    assert found() == keys[150:]


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    for opener in (SqliteLedger.open, SqliteLedger.open_readonly):
        with pytest.raises(LedgerError, match="no p2pgrid ledger"):
            opener(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"\0" * 5000, b"not a ledger at all\n" * 500, os.urandom(8192)])
def test_a_file_that_is_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for opener in (SqliteLedger.open, SqliteLedger.open_readonly):
        with pytest.raises(LedgerError, match=r"damaged|no ledger"):
            opener(path)
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"No such file or directory.*folder exists"):
        SqliteLedger.open(tmp_path / "nowhere" / "ledger.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(path: Path) -> None:
    path.touch(0o400)
    with pytest.raises(LedgerError, match="Check owner and mode"):
        SqliteLedger.open(path)


async def test_a_damaged_record_is_found_when_it_is_read(path: Path) -> None:
    d = Dealings()
    ledger = SqliteLedger.open(path)
    await ledger.append(*d.chain(1))
    await ledger.append(d.proposal(d.order()), d.order())
    await ledger.aclose()
    with closing(sqlite3.connect(path)) as conn, conn:
        for table in ("channels", "orders", "receipts", "offers"):
            conn.execute(f"UPDATE {table} SET payload = CAST(substr(payload, 1, length(payload) - 1) || x'ff' AS BLOB)")
    damaged = SqliteLedger.open(path)
    for read in (
        damaged.channels,
        lambda: damaged.open_orders(d.id),
        lambda: damaged.proposals(d.id),
        lambda: damaged.offer(d.offer.id),
    ):
        with pytest.raises(LedgerError, match=r"is damaged.*backup"):
            read()
    await damaged.aclose()


async def test_a_batch_with_a_refused_call_keeps_the_others(ledger: SqliteLedger, path: Path) -> None:
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    first, second, third = d.order(), d.order(), d.order()
    stray = Dealings(name="never stored").order()
    rival = resigned(first, CLIENT, Role.CLIENT, max_output_tokens=1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        calls = [ledger.append(first), ledger.append(stray), ledger.append(second, rival), ledger.append(third)]
        other.execute("ROLLBACK")
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(o) for o in outcomes] == [type(None), LedgerError, SlotTaken, type(None)]
    assert [o.order.id for o in ledger.open_orders(d.id)] == [first.id, third.id]


async def test_memory_stays_flat_while_records_stream(ledger: SqliteLedger) -> None:
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    await asyncio.gather(*[ledger.append(d.order()) for _ in range(4000)])
    for channel in (None, d.id):
        tracemalloc.start()
        size = sum(len(record.payload) for record in ledger.records(channel=channel))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size > 600_000
        assert peak < size / 2


async def test_an_abandoned_stream_lets_go_of_the_file(ledger: SqliteLedger, path: Path) -> None:
    await ledger.append(*Dealings().chain(2))
    stream = ledger.records()
    next(stream)
    del stream
    await ledger.aclose()
    assert not path.with_name("ledger.sqlite-wal").exists()


# --- Full disks -----------------------------------------------------------------------------------------------------

FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from p2pgrid.errors import LedgerError
from p2pgrid.ledger.sqlite import SqliteLedger
from tests.factories import Dealings

async def main():
    path = Path(sys.argv[1])
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    orders = [d.order() for _ in range(400)]
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    acknowledged, failed = [], []
    for start in range(0, 400, 20):
        futures = [ledger.append(order) for order in orders[start:start + 20]]
        for order, outcome in zip(orders[start:], await asyncio.gather(*futures, return_exceptions=True)):
            (acknowledged if outcome is None else failed).append(order)
            if outcome is not None:
                assert isinstance(outcome, LedgerError) and outcome.hint and str(path) in str(outcome), outcome
                message = str(outcome)
    assert acknowledged and failed, (len(acknowledged), len(failed))
    try:
        ledger.open_orders(d.id)
    except LedgerError:
        pass  # The journal has them, and SQLite has no room.
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert {o.order.id for o in ledger.open_orders(d.id)} == {o.id for o in acknowledged}
    await ledger.append(failed[0])
    await ledger.aclose()
    ledger = SqliteLedger.open(path)
    assert {o.order.id for o in ledger.open_orders(d.id)} == {o.id for o in [*acknowledged, failed[0]]}
    await ledger.aclose()
    print(message)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_takes_no_more_and_then_does(path: Path) -> None:
    process = script(FULL_DISK, path)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "disk" in output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = sys.platform == "linux" and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until there is no room; the file."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    return ballast


async def test_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "ledger.sqlite"
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    ballast = fill(small_disk)
    acknowledged, failed = [], []
    for order in [d.order() for _ in range(50)]:
        try:
            await ledger.append(order)
            acknowledged.append(order)
        except LedgerError as error:
            assert "space" in error.hint or "room" in error.hint
            failed.append(order)
    assert failed
    assert {o.order.id for o in ledger.open_orders(d.id)} == {o.id for o in acknowledged}

    ballast.unlink()
    for order in failed:
        await ledger.append(order)
    assert len(ledger.open_orders(d.id)) == 50
    await ledger.aclose()


def test_a_full_disk_from_the_start(small_disk: Path) -> None:
    ballast = fill(small_disk)
    with pytest.raises(LedgerError) as caught:
        SqliteLedger.open(small_disk / "ledger.sqlite")
    assert caught.value.hint
    ballast.unlink()
    SqliteLedger.open(small_disk / "ledger.sqlite").close()


async def test_a_disk_that_is_read_only(small_disk: Path) -> None:
    path = small_disk / "ledger.sqlite"
    d = Dealings()
    ledger = SqliteLedger.open(path)
    await ledger.append(*d.chain(1))
    await ledger.aclose()
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    assert (await asyncio.to_thread(subprocess.run, remount, check=False)).returncode == 0
    with pytest.raises(LedgerError, match=r"Read-only file system.*may write there"):
        SqliteLedger.open(path)
    with SqliteLedger.open_readonly(path) as reader:
        assert len(list(reader.records())) == 6


# --- Killed processes -----------------------------------------------------------------------------------------------

APPENDING = """
import asyncio, sys
from pathlib import Path
from p2pgrid.ledger.sqlite import SqliteLedger
from tests.factories import Dealings

async def main():
    ledger = SqliteLedger.open(Path(sys.argv[1]))
    d = Dealings(name=sys.argv[2])
    await ledger.append(d.offer, d.channel)

    def acknowledge(call):
        def done(future):
            future.result()
            sys.stdout.write(" ".join(s.record.to_bytes().hex() for s in call) + "\\n")
            sys.stdout.flush()
        return done

    while True:
        futures = []
        for _ in range(8):
            order, meter, voucher, receipt = d.completed()
            for call in ([order], [meter, voucher], [receipt]):
                future = ledger.append(*call)
                future.add_done_callback(acknowledge(call))
                futures.append(future)
        await asyncio.gather(*futures)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
@pytest.mark.parametrize("acknowledged_before_kill", [1, 100, 1000])
async def test_kill_9_loses_no_acknowledged_record(path: Path, acknowledged_before_kill: int) -> None:
    acknowledged: list[list[str]] = []
    for life in ("first", "second"):
        process = script(APPENDING, path, life)
        assert process.stdout is not None
        for _ in range(acknowledged_before_kill):
            acknowledged.append(process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
        # What the pipe still holds was acknowledged too, but for a line that the kill cut off.
        acknowledged += [line.split() for line in process.stdout if line.endswith("\n")]
        _, errors = process.communicate(timeout=60)
        assert errors == ""

        with SqliteLedger.open_readonly(path) as reader:
            stored = {record.to_bytes().hex() for record in reader.records()}
        for call in acknowledged:
            assert call and stored.issuperset(call), "an acknowledged call is there, whole"

    ledger = SqliteLedger.open(path)
    for channel in ledger.channels():
        _check_whole(ledger, channel.message.channel)
    await ledger.aclose()
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _check_whole(ledger: SqliteLedger, channel: bytes) -> None:
    """No number is missing below the highest, a call's records are together, and every signature is good."""
    head = ledger.head(channel)
    for number in range(1, head.last_order_number + 1):
        order = ledger.order(channel, number)
        assert order is not None
    for number in range(1, head.last_receipt_number + 1):
        receipt = ledger.receipt(channel, number)
        assert receipt is not None and set(receipt.signers) == {Role.PROVIDER, Role.CLIENT}
    kinds = [record.payload_type for record in ledger.records(channel=channel)]
    assert kinds.count("/p2pgrid/meter/1") == kinds.count("/p2pgrid/voucher/1")
    for record in ledger.records(channel=channel):
        assert parse_record(record.to_bytes()) == record


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_a_dead_writer_locks_nobody_out(path: Path) -> None:
    process = script(APPENDING, path, "life")
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready
    with pytest.raises(LedgerError, match=f"pid {process.pid}"):
        SqliteLedger.open(path)
    process.kill()
    process.communicate(timeout=60)
    SqliteLedger.open(path).close()
