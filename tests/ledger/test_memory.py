"""The memory ledger's faults are those of a disk."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.record import Record
from tests.factories import Dealings


async def opened(d: Dealings) -> MemoryLedger:
    ledger = MemoryLedger()
    await ledger.append(d.offer, d.channel)
    return ledger


def orders(ledger: MemoryLedger) -> list[Record]:
    return [r for r in ledger.records() if r.payload_type == "/p2pgrid/order/1"]


async def test_the_nth_write_fails_and_only_that() -> None:
    d = Dealings()
    ledger = await opened(d)
    ledger.fail_append(after=1)
    first, second, third = d.order(), d.order(), d.order()
    await ledger.append(first)
    with pytest.raises(LedgerError):
        await ledger.append(second)
    await ledger.append(third)
    assert orders(ledger) == orders(ledger.crashed()) == [first.record, third.record]


async def test_persisted_but_reported_as_failed_shows_after_a_crash() -> None:
    d = Dealings()
    ledger = await opened(d)
    ledger.fail_append(persisted=True)
    order = d.order()
    with pytest.raises(LedgerError):
        await ledger.append(order)
    assert orders(ledger) == []
    assert orders(ledger.crashed()) == [order.record]


async def test_the_next_good_write_settles_a_doubtful_one() -> None:
    d = Dealings()
    ledger = await opened(d)
    ledger.fail_append(persisted=True)
    doubtful, good = d.order(), d.order()
    with pytest.raises(LedgerError):
        await ledger.append(doubtful)
    await ledger.append(good)
    assert orders(ledger) == orders(ledger.crashed()) == [good.record]


async def test_what_is_held_is_not_durable_until_released() -> None:
    d = Dealings()
    ledger = await opened(d)
    ledger.hold()
    first, second = d.order(), d.order()
    futures = [ledger.append(first), ledger.append(second)]
    await asyncio.sleep(0)
    assert not any(f.done() for f in futures)
    assert orders(ledger) == orders(ledger.crashed()) == []
    ledger.release()
    await asyncio.gather(*futures)
    assert orders(ledger) == [first.record, second.record]


async def test_a_crashed_copy_goes_its_own_way() -> None:
    d = Dealings()
    ledger = await opened(d)
    found = ledger.crashed()
    await found.append(d.order())
    assert orders(ledger) == []
