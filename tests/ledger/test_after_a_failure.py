"""Where a write fails, nothing is kept that was put after it, and before anybody was told: it may build on it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from p2pgrid.errors import LedgerError
from p2pgrid.ledger import group_commit
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.outbox import Outbox
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Record
from tests.factories import Dealings
from tests.ledger.served import served_ledger


class StillSyncer:
    """A disk that takes nothing into the journal: all goes to SQLite."""

    def sync(self, descriptor: int, on_synced: object) -> None:
        raise OSError("no journal here")

    def close(self) -> None:
        pass


def fails_once(real: Callable[[], Any]) -> Callable[[], Any]:
    """A writer's connection that is full at its next use, and never after."""
    due = [sqlite3.OperationalError("database or disk is full")]

    def connection() -> Any:
        if due:
            raise due.pop()
        return real()

    return connection


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)


def kept(ledger: Any, d: Dealings) -> list[Record]:
    return list(ledger.order_records(d.id, 1))


async def test_a_tick_does_not_outlive_the_one_before_it() -> None:
    """Two METERs of an order wait in its outbox, and the first write fails."""
    d, ledger, failures, sent = Dealings(), MemoryLedger(), cast("list[LedgerError]", []), cast("list[int]", [])
    order = d.order()
    await ledger.append(d.offer, d.channel, order)
    outbox = Outbox(cast(Ledger, ledger), failures.append)
    ledger.fail_append()
    for tick in (1, 2):
        outbox.persist(d.meter(order, tick))
        outbox.run(lambda tick=tick: sent.append(tick))  # type: ignore[misc]
    await until(lambda: failures)
    again = d.meter(order, 1)
    await ledger.append(again)
    assert kept(ledger, d) == kept(ledger.crashed(), d) == [order.record, again.record]
    assert len(failures) == 1 and not sent


async def test_what_waits_behind_a_commit_that_fails_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "make_syncer", lambda loop: StillSyncer())
    d, ledger = Dealings(), SqliteLedger.open(tmp_path / "ledger.sqlite")
    order = d.order()
    await ledger.append(d.offer, d.channel, order)
    monkeypatch.setattr(ledger._writer, "_connection", fails_once(ledger._writer._connection))
    first = ledger.append(d.meter(order, 1))
    await until(lambda: ledger._group_commit._slow_batches)
    second, told = ledger.append(d.meter(order, 2)), asyncio.Event()
    again = d.meter(order, 1)
    last: list[asyncio.Future[None]] = []
    first.add_done_callback(lambda _: (last.append(ledger.append(again)), told.set()))
    for future in (first, second):
        with pytest.raises(LedgerError, match="full"):
            await future
    await told.wait()
    await last[0]
    assert kept(ledger, d) == [order.record, again.record]
    await ledger.aclose()


async def test_what_a_worker_sent_before_it_knew_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d = Dealings()
    order = d.order()
    async with served_ledger(tmp_path / "ledger.sqlite") as served:
        await served.remote.append(d.offer, d.channel, order)
        writer = served.main._writer
        monkeypatch.setattr(writer, "_connection", fails_once(writer._connection))
        first = served.remote.append(d.offer)  # slow: no record of an order
        await until(lambda: served.main._group_commit._must_be_slow)
        second = served.remote.append(d.meter(order, 2))
        for future in (first, second):
            with pytest.raises(LedgerError, match="full"):
                await future
        again = d.meter(order, 1)
        await served.remote.append(again)
        assert kept(served.remote, d) == [order.record, again.record]
