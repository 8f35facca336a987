"""What is special about a ledger that another process writes: several of them, its end, its failures."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Message, Signed
from tests.factories import Dealings, make_offer
from tests.ledger.served import serve_to_worker, served_ledger


async def test_all_of_a_nodes_processes_see_what_any_of_them_wrote(tmp_path: Path) -> None:
    d = Dealings()
    async with served_ledger(tmp_path / "ledger.sqlite") as one, contextlib.AsyncExitStack() as stack:
        two = await serve_to_worker(one.main, stack)
        heard: list[Signed[Message]] = []
        one.main.watch(heard.extend)
        await one.remote.append(d.offer, d.channel)
        order = d.order()
        await two.remote.append(order)
        proposal = d.proposal(order)
        await one.main.append(proposal)
        receipt = d.countersign(proposal)
        await two.remote.append(receipt)
        for ledger in (one.remote, two.remote, one.main):
            assert ledger.head(d.id).countersigned == 1
            assert ledger.open_orders(d.id) == []
        # The main process's log hears of what workers wrote, with what it has to know.
        assert [signed.id for signed in heard] == [d.offer.id, d.channel.id, order.id, proposal.id, receipt.id]
        assert set(heard[-1].signers) == set(receipt.signers)


async def test_what_a_worker_wrote_changes_what_the_main_process_remembers_of_a_channel(tmp_path: Path) -> None:
    d = Dealings()
    async with served_ledger(tmp_path / "ledger.sqlite") as served:
        await served.remote.append(d.offer, d.channel, *d.completed())
        assert (served.main.head(d.id).countersigned, served.main.open_orders(d.id)) == (1, [])
        order = d.order()
        await served.remote.append(order)
        assert [one.order.id for one in served.main.open_orders(d.id)] == [order.id]


async def test_a_channel_that_is_held_is_read_right_after_others_wrote_it(tmp_path: Path) -> None:
    d = Dealings()
    async with served_ledger(tmp_path / "ledger.sqlite") as one, contextlib.AsyncExitStack() as stack:
        two = await serve_to_worker(one.main, stack)
        await one.remote.append(d.offer, d.channel, *d.completed())
        for n, (holder, other) in enumerate([(one, two), (two, one), (one, two), (two, one)], 2):
            other.remote.let_go(d.id)
            holder.remote.hold(d.id)
            assert holder.remote.open_orders(d.id) == []
            order = d.order()
            await holder.remote.append(order)
            assert [each.order.id for each in holder.remote.open_orders(d.id)] == [order.id]
            await holder.remote.append(d.countersign(d.proposal(order)))
            assert (holder.remote.head(d.id).countersigned, holder.remote.open_orders(d.id)) == (n, [])


async def test_many_appends_are_answered_in_their_order(tmp_path: Path) -> None:
    async with served_ledger(tmp_path / "ledger.sqlite") as served:
        done: list[int] = []
        futures = []
        for number in range(300):
            future = served.remote.append(make_offer(sequence=number + 1))
            future.add_done_callback(lambda _, number=number: done.append(number))
            futures.append(future)
        await asyncio.gather(*futures)
        assert done == list(range(300))
        assert served.main.counts()["/p2pgrid/offer/1"] == 300


async def test_a_taken_slot_fails_its_own_call_alone(tmp_path: Path) -> None:
    async with served_ledger(tmp_path / "ledger.sqlite") as served:
        first, other, third = make_offer(sequence=1), make_offer(sequence=1, operator="other"), make_offer(sequence=2)
        futures = [served.remote.append(one) for one in (first, other, third)]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert outcomes[0] is None and outcomes[2] is None
        assert isinstance(outcomes[1], SlotTaken)
        assert "offers" in outcomes[1].message


async def test_when_the_main_process_is_gone_everything_fails_at_once(tmp_path: Path) -> None:
    async with served_ledger(tmp_path / "ledger.sqlite") as served:
        waiting = served.remote.append(make_offer())
        served.bus.abort()
        with pytest.raises(LedgerError, match="gone"):
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(LedgerError, match="gone"):
            await served.remote.append(make_offer(sequence=2))
        with pytest.raises(LedgerError, match=r"gone|does not answer"):
            served.remote.channels()


async def test_a_full_disk_at_the_writer_is_an_error_of_the_ledger_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_ledger(tmp_path / "ledger.sqlite") as served:

        def fail(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(served.main._writer, "_connection", fail)
        with pytest.raises(LedgerError):
            await served.remote.append(make_offer())
        monkeypatch.undo()
        await served.remote.append(make_offer())


async def test_reads_wait_for_what_is_still_on_its_way_into_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    settle = SqliteLedger.settle
    monkeypatch.setattr(SqliteLedger, "settle", lambda ledger: (asked.append(1), settle(ledger))[1])
    async with served_ledger(tmp_path / "ledger.sqlite") as served:
        for read in (
            served.remote.channels,
            served.remote.counts,
            lambda: list(served.remote.records()),
            lambda: list(served.remote.evidence()),
            lambda: list(served.remote.loggable("12D3KooW")),
        ):
            before = len(asked)
            read()
            assert len(asked) > before
