"""The journal before SQLite: what is sure to fit goes there, nothing acknowledged is lost, nothing else comes back."""

# ruff: noqa: ASYNC110 - what is waited for is in files, or in callbacks

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from p2pgrid.errors import LedgerError
from p2pgrid.ledger import group_commit, journal, sync
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.ledger.journal import Mark, encode_frame, journal_paths, read_frames
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.operations import StoreOutcome, StoreRecord, StoreRequestKey, from_journal
from p2pgrid.ledger.reader import SqliteReader
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.ledger.sync import OnSynced
from p2pgrid.ledger.tables import table_of
from p2pgrid.proto.messages import Status
from p2pgrid.proto.record import Role, Signed
from tests.factories import CLIENT, Dealings, make_dispute, resigned, secret_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[SqliteLedger]:
    opened = SqliteLedger.open(path)
    yield opened
    await opened.aclose()


def crashed(path: Path, name: str = "after") -> Path:
    """The files as they are now, which is what `kill -9` leaves: a copy of the ledger."""
    after = path.parent / name / path.name
    after.parent.mkdir()
    for file in path.parent.glob(path.name + "*"):
        if not file.name.endswith((".lock", "-shm")):
            shutil.copyfile(file, after.parent / file.name)
    return after


def written(path: Path) -> set[bytes]:
    """Ids of the records that SQLite has, whatever the journal has."""
    with closing(sqlite3.connect(path)) as conn:
        names = ("offers", "channels", "orders", "meters", "vouchers", "receipts", "disputes", "answers")
        return {bytes.fromhex(row[0]) for name in names for row in conn.execute(f"SELECT id FROM {name}")}


def found(ledger: SqliteReader | MemoryLedger) -> list[tuple[bytes, int]]:
    """What is on record: ids, and how many signatures."""
    return [(record.id, len(record.signatures)) for record in ledger.records()]


# -- frames -----------------------------------------------------------------------------------------------------------

KEYS = [StoreRequestKey("ab" * 32, n, bytes([n]) * 32) for n in range(1, 9)]


@given(st.lists(st.integers(0, 5), max_size=5), st.data())
def test_of_a_turn_the_whole_frames_before_the_first_torn_one_are_read(sizes: list[int], data: st.DataObject) -> None:
    frames = [encode_frame(7, KEYS[:size]) for size in sizes]
    content = b"".join(frames)
    ends = [sum(map(len, frames[: n + 1])) for n in range(len(frames))]
    cut = data.draw(st.integers(0, len(content)))
    torn = content[:cut] + data.draw(st.sampled_from([b"", bytes(40), b"\xa5\x5a" * 20]))
    assert [mark.offset_bytes for mark, _ in read_frames(torn)] == [end for end in ends if end <= cut]
    if content:
        flipped = bytearray(content)
        at = data.draw(st.integers(0, len(content) - 1))
        flipped[at] ^= 1 << data.draw(st.integers(0, 7))
        assert [mark.offset_bytes for mark, _ in read_frames(bytes(flipped))] == [end for end in ends if end <= at]


def test_what_stands_behind_a_turn_is_of_an_earlier_one() -> None:
    old, new = encode_frame(3, KEYS[:2]), encode_frame(5, KEYS[2:4])
    assert len(old) == len(new)
    assert [mark for mark, _ in read_frames(new + old)] == [Mark(5, len(new))]


def test_operations_come_back_as_they_were() -> None:
    d = Dealings()
    orders = [StoreRecord.of(table_of(one), 3, one) for one in d.completed()]
    operations = [*orders, KEYS[0], StoreOutcome("refused:busy", "ab" * 32, 4)]
    ((_, payload),) = read_frames(encode_frame(1, operations))
    back = [from_journal(kept) for kept in journal._decode(payload)]
    assert [(type(one), list(one.row)) for one in back] == [(type(one), list(one.row)) for one in operations]


@pytest.mark.parametrize(
    "kept",
    [None, 1, [], ["record"], ["record", "nothing", []], ["record", "orders", [1]], ["outcome"], ["else", 1]],
    ids=repr,
)
def test_what_is_no_operation_is_damage(kept: object) -> None:
    with pytest.raises(LedgerError, match=r"damaged.*backup"):
        from_journal(kept)


# -- fast and slow ----------------------------------------------------------------------------------------------------


@pytest.fixture
def not_settled_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged stays in the journal, however long a test takes."""
    monkeypatch.setattr(group_commit, "SETTLE_S", 3600)


@pytest.mark.usefixtures("not_settled_by_itself")
async def test_an_order_is_acknowledged_by_the_journal(ledger: SqliteLedger, path: Path) -> None:
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    records = d.completed()
    order, meter, voucher, receipt = records
    ledger.keep_request_key(order, b"k" * 32)
    await ledger.append(order)
    await ledger.append(meter, voucher)
    await ledger.append(receipt)
    assert not written(path) & {one.id for one in records}, "SQLite has none of it yet"
    after = crashed(path)
    again = SqliteLedger.open(after)
    assert found(again) == found(ledger)
    assert again.request_key(d.id, 1) == b"k" * 32
    again.close()


async def test_what_was_acknowledged_is_settled_soon(ledger: SqliteLedger, path: Path) -> None:
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    records = d.completed()
    for one in records:
        await ledger.append(one)
    async with asyncio.timeout(10):
        while not written(path) >= {one.id for one in records}:
            await asyncio.sleep(0.01)


async def test_what_the_process_reads_is_what_was_acknowledged(ledger: SqliteLedger) -> None:
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    order = d.order()
    await ledger.append(order)
    assert [one.order.id for one in ledger.open_orders(d.id)] == [order.id]
    proposal = d.proposal(order)
    await ledger.append(proposal)
    assert [one.id for one in await asyncio.to_thread(ledger.proposals, d.id)] == [proposal.id]
    await ledger.append(d.countersign(proposal))
    assert found(ledger)[-1] == (proposal.id, 2)
    other = d.order()
    await ledger.note_outcome(other, "refused:busy")
    assert ledger.open_orders(d.id) == []


async def test_another_process_sees_what_was_acknowledged_before_it_looked(ledger: SqliteLedger, path: Path) -> None:
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    order = d.order()
    await ledger.append(order)
    assert order.id not in written(path)

    def look() -> list[bytes]:
        with SqliteLedger.open_readonly(path) as reader:
            return [one.order.id for one in reader.open_orders(d.id)]

    assert await asyncio.to_thread(look) == [order.id]


async def test_a_reader_settles_for_a_writer_that_is_gone(ledger: SqliteLedger, path: Path) -> None:
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    records = d.completed()
    await ledger.append(*records)
    after = crashed(path)
    assert not written(after) & {one.id for one in records}
    with SqliteLedger.open_readonly(after) as reader:
        assert [record.id for record in reader.records()] == [d.offer.id, d.channel.id, *(one.id for one in records)]


def _plan(data: st.DataObject) -> list[list[Any]]:
    """Calls, some of which fit and some of which do not, in any order."""
    one, two = Dealings(), Dealings(name="second", client=secret_key("second client"))
    calls: list[list[Any]] = [[one.offer, one.channel], [two.offer, two.channel]]
    for d in (one, two):
        of_channel: list[list[Any]] = []
        for _ in range(data.draw(st.integers(1, 4))):
            order = d.order()
            meters = [d.meter(order, tick, output_tokens=10 * tick) for tick in range(1, data.draw(st.integers(1, 3)))]
            proposal = d.proposal(order, status=data.draw(st.sampled_from([Status.COMPLETED, Status.FAILED])))
            both = proposal.countersigned(Role.CLIENT, d.client)
            own = [[order], *([meter, d.voucher(meter)] for meter in meters), [proposal], [both]]
            own += data.draw(
                st.lists(
                    st.sampled_from(
                        [
                            [resigned(order, d.client, Role.CLIENT, max_output_tokens=1)],
                            [order],
                            ["outcome", order],
                            [proposal],
                            [both],
                            [proposal, make_dispute(proposal)],
                            [resigned(proposal, d.provider, Role.PROVIDER, total_ms=401)],
                            *([[meters[0]]] if meters else []),
                        ]
                    ),
                    max_size=3,
                )
            )
            of_channel += own
        calls += data.draw(st.permutations(of_channel)) if data.draw(st.booleans()) else of_channel
    return calls


def _told(calls: list[list[Any]]) -> str:
    """A plan for people."""

    def one(record: Any) -> str:
        if isinstance(record, str):
            return record
        message = record.message
        number = getattr(message, "order_number", "")
        return (
            f"{type(message).__name__} {number} {record.id.hex()[:4]} {'+'.join(role.value for role in record.signers)}"
        )

    return "\n".join(", ".join(map(one, call)) for call in calls)


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_it_takes_and_refuses_what_a_ledger_without_a_journal_does(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    calls = _plan(data)
    stops = data.draw(st.lists(st.integers(1, len(calls)), max_size=4))
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    last = Dealings(name="last").chain(1)

    async def put(ledger: SqliteLedger | MemoryLedger, call: Sequence[Any]) -> asyncio.Future[None]:
        if call[0] == "outcome":
            return ledger.note_outcome(call[1], "never-arrived")
        return ledger.append(*call)

    async def run() -> None:
        nonlocal path
        memory, disk = MemoryLedger(), SqliteLedger.open(path)
        outcomes: list[list[Any]] = [[], []]
        for n, call in enumerate(calls, 1):
            for ledger, told in zip((memory, disk), outcomes, strict=True):
                told.append(await put(ledger, call))
            if n not in stops:
                continue
            results = [await asyncio.gather(*told, return_exceptions=True) for told in outcomes]
            assert [type(one) for one in results[0]] == [type(one) for one in results[1]], _told(calls)
            match n % 3:
                case 0:  # The process dies, and another one finds what there is.
                    path, old = crashed(path, f"after {n}"), disk
                    disk = SqliteLedger.open(path)
                    await old.aclose()
                case 1:
                    disk.settle()
                case _:
                    pass
            assert found(disk) == found(memory), _told(calls)
            outcomes = [[], []]
        results = [await asyncio.gather(*told, return_exceptions=True) for told in outcomes]
        assert [type(one) for one in results[0]] == [type(one) for one in results[1]], _told(calls)
        assert found(disk) == found(memory), _told(calls)
        for signed in memory.channels():
            channel = signed.message.channel
            assert disk.head(channel) == memory.head(channel)
            ids = [[one.order.id for one in ledger.open_orders(channel)] for ledger in (memory, disk)]
            assert ids[0] == ids[1]
        if data.draw(st.booleans()):
            for ledger in (memory, disk):
                await ledger.append(*last)
        await disk.aclose()
        with SqliteLedger.open_readonly(path) as reader:
            assert found(reader) == found(memory), _told(calls)

    asyncio.run(run())


# -- turns ------------------------------------------------------------------------------------------------------------


async def test_the_files_are_written_in_turn_and_do_not_grow(
    ledger: SqliteLedger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_TURN_BYTES", 4096)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    orders = [d.order() for _ in range(120)]
    for order in orders:
        await ledger.append(order)
    sizes = [one.stat().st_size for one in journal_paths(path)]
    assert all(0 < size < 3 * 4096 for size in sizes), sizes
    after = crashed(path)
    again = SqliteLedger.open(after)
    assert [one.order.id for one in again.open_orders(d.id)] == [one.id for one in orders]
    again.close()
    assert not [one for one in journal_paths(after) if one.exists()]


@pytest.mark.usefixtures("not_settled_by_itself")
async def test_a_full_journal_waits_for_sqlite(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_TURN_BYTES", 2000)
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    orders = [d.order() for _ in range(50)]
    await asyncio.gather(*[ledger.append(order) for order in orders[:10]])
    for order in orders[10:]:
        await ledger.append(order)
    assert [one.order.id for one in ledger.open_orders(d.id)] == [one.id for one in orders]
    await ledger.aclose()


async def test_a_ledger_that_is_older_than_its_journal_says_so(
    ledger: SqliteLedger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_TURN_BYTES", 500)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    backup = crashed(path, "backup")
    for _ in range(8):
        await ledger.append(d.order())
    after = crashed(path)
    for name in (path.name, path.name + "-wal"):
        shutil.copyfile(backup.parent / name, after.parent / name)
    for look in (SqliteLedger.open, SqliteLedger.open_readonly):
        with pytest.raises(LedgerError, match=r"older than its journal.*restored from a backup"):
            look(after)
    for one in journal_paths(after):
        one.rename(one.with_suffix(".away"))
    SqliteLedger.open(after).close()


async def test_another_ledgers_journal_is_not_taken(ledger: SqliteLedger, path: Path) -> None:
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    await ledger.append(d.order())
    after = crashed(path)
    after.unlink()
    after.with_name(path.name + "-wal").unlink()
    try:
        new = SqliteLedger.open(after)
    except LedgerError as error:
        assert "older than its journal" in str(error)  # either is right: turns begin anywhere
    else:
        assert list(new.records()) == []
        new.close()


# -- faults -----------------------------------------------------------------------------------------------------------


class FaultySyncer:
    """A disk whose sync the test decides."""

    def __init__(self) -> None:
        self.waiting: list[OnSynced] = []
        self.fails_at_once = False

    def sync(self, descriptor: int, on_synced: OnSynced) -> None:
        if self.fails_at_once:
            raise OSError("the disk is gone")
        os.fdatasync(descriptor)
        self.waiting.append(on_synced)

    def close(self) -> None:
        self.waiting.clear()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultySyncer:
    syncer = FaultySyncer()
    monkeypatch.setattr(group_commit, "make_syncer", lambda loop: syncer)
    return syncer


async def turn_of_the_loop(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_nothing_is_acknowledged_before_it_is_synced(path: Path, disk: FaultySyncer) -> None:
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    first, second, third = ledger.append(d.order()), ledger.append(d.order()), None
    await turn_of_the_loop(lambda: disk.waiting)
    third = ledger.append(d.order())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not first.done() and not second.done() and len(disk.waiting) == 1
    disk.waiting.pop()(None)
    assert first.done() and second.done() and not third.done()
    await turn_of_the_loop(lambda: disk.waiting)
    disk.waiting.pop()(None)
    await third
    await ledger.aclose()


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_the_journal_cannot_take_goes_to_sqlite(path: Path, disk: FaultySyncer, at_once: bool) -> None:
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    orders = [d.order() for _ in range(3)]
    disk.fails_at_once = at_once
    futures = [ledger.append(order) for order in orders[:2]]
    if not at_once:
        await turn_of_the_loop(lambda: disk.waiting)
        disk.waiting.pop()(OSError(5, "Input/output error"))
    await asyncio.gather(*futures)
    assert written(path) >= {orders[0].id, orders[1].id}
    disk.fails_at_once = False
    last = ledger.append(orders[2])
    await turn_of_the_loop(lambda: disk.waiting)
    disk.waiting.pop()(None)
    await last
    assert orders[2].id not in written(path), "the journal is in use again"
    assert [one.order.id for one in ledger.open_orders(d.id)] == [one.id for one in orders]
    await ledger.aclose()


async def test_a_frame_that_failed_does_not_come_back(path: Path, disk: FaultySyncer) -> None:
    """Its bytes reached the disk all the same; another record has its number now."""
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    failed = d.order()
    rival = resigned(failed, CLIENT, Role.CLIENT, max_output_tokens=1)
    future = ledger.append(failed)
    await turn_of_the_loop(lambda: disk.waiting)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    real, ledger._writer._conn = ledger._writer._conn, sqlite3.connect(":memory:")
    disk.waiting.pop()(OSError(5, "Input/output error"))
    with pytest.raises(LedgerError):
        await future
    ledger._writer._conn = real
    await ledger.append(rival)
    after = crashed(path)
    await ledger.aclose()
    again = SqliteLedger.open(after)
    assert [one.order.id for one in again.open_orders(d.id)] == [rival.id]
    again.close()


@pytest.mark.usefixtures("not_settled_by_itself")
async def test_sqlite_that_takes_no_more_stops_the_journal(path: Path) -> None:
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    kept = d.order()
    await ledger.append(kept)
    real, ledger._writer._conn = ledger._writer._conn, sqlite3.connect(":memory:")
    with pytest.raises(LedgerError):
        ledger.open_orders(d.id)
    failed = d.order()
    with pytest.raises(LedgerError):
        await ledger.append(failed)
    after = crashed(path)
    ledger._writer._conn = real
    await ledger.append(failed)
    assert [one.order.id for one in ledger.open_orders(d.id)] == [kept.id, failed.id]
    await ledger.aclose()
    again = SqliteLedger.open(after)
    assert [one.order.id for one in again.open_orders(d.id)] == [kept.id]
    again.close()


async def test_closing_makes_durable_what_is_being_synced(path: Path, disk: FaultySyncer) -> None:
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    orders = [d.order(), d.order()]
    futures = [ledger.append(orders[0])]
    await turn_of_the_loop(lambda: disk.waiting)
    futures.append(ledger.append(orders[1]))
    await ledger.aclose()
    await asyncio.gather(*futures)
    with pytest.raises(LedgerError, match="closed"):
        await ledger.append(d.order())
    again = SqliteLedger.open(path)
    assert [one.order.id for one in again.open_orders(d.id)] == [one.id for one in orders]
    again.close()


def test_one_event_loop_after_another(path: Path) -> None:
    ledger = SqliteLedger.open(path)
    d = Dealings()
    asyncio.run(_store(ledger, d.offer, d.channel))
    orders = [d.order() for _ in range(4)]
    for order in orders:
        asyncio.run(_store(ledger, order))
    with pytest.raises(SlotTaken):
        asyncio.run(_store(ledger, resigned(orders[0], CLIENT, Role.CLIENT, max_output_tokens=1)))
    assert [one.order.id for one in ledger.open_orders(d.id)] == [one.id for one in orders]
    ledger.close()


async def _store(ledger: SqliteLedger, *signed: Signed) -> None:
    await ledger.append(*signed)


# -- who syncs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sync.KernelSyncer, sync.ThreadSyncer], ids=["kernel", "thread"])
async def test_a_syncer_tells_when_it_is_done_and_what_went_wrong(make: Any, tmp_path: Path) -> None:
    if make is sync.KernelSyncer and sync.linux_aio is None:
        pytest.skip("no asynchronous I/O in this kernel")
    loop = asyncio.get_running_loop()
    syncer = make(loop)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        for _ in range(3):
            os.write(descriptor, b"x")
            told: asyncio.Future[OSError | None] = loop.create_future()
            syncer.sync(descriptor, told.set_result)
            assert not told.done()
            assert await told is None
        reading, writing = os.pipe()
        told = loop.create_future()
        syncer.sync(writing, told.set_result)
        assert isinstance(await told, OSError), "a pipe cannot be synced"
        os.close(reading)
        os.close(writing)
    finally:
        os.close(descriptor)
        syncer.close()


@pytest.mark.usefixtures("not_settled_by_itself")
async def test_without_the_kernels_help_a_thread_syncs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "linux_aio", None)
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    orders = [d.order() for _ in range(20)]
    await asyncio.gather(*[ledger.append(order) for order in orders])
    assert not written(path) & {one.id for one in orders}
    assert [one.order.id for one in ledger.open_orders(d.id)] == [one.id for one in orders]
    await ledger.aclose()


async def test_closing_keeps_what_was_acknowledged_and_not_settled(path: Path) -> None:
    """A clean end within `SETTLE_S` of the last records, which nobody has read since."""
    ledger = SqliteLedger.open(path)
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    order = d.order()
    await ledger.append(order)
    receipt = d.countersign(d.proposal(order))
    await ledger.append(receipt)
    await ledger.aclose()
    assert {order.id, receipt.id} <= written(path)
