"""Durable before visible: nothing leaves before the record that it stands behind."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.outbox import Outbox
from p2pgrid.proto.record import Message, Signed
from tests.proto.simulation import make_offer

OFFER = make_offer()


class SlowLedger(MemoryLedger):
    """Records are durable when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: list[asyncio.Future[None]] = []

    def append(self, *signed: Signed[Message]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        return future


class Shell:
    """What a session's shell is to an outbox."""

    def __init__(self) -> None:
        self.ledger = SlowLedger()
        self.sent: list[Any] = []
        self.failures: list[LedgerError] = []
        self.outbox = Outbox(cast(Ledger, self.ledger), self.failures.append)

    def send(self, what: Any) -> None:
        self.outbox.run(lambda: self.sent.append(what))

    async def durable(self, at: int) -> None:
        self.ledger.futures[at].set_result(None)
        await asyncio.sleep(0)


async def test_with_nothing_pending_an_effect_is_at_once() -> None:
    shell = Shell()
    shell.send(1)
    assert shell.sent == [1] and shell.outbox.is_idle


async def test_effects_wait_for_the_records_before_them_in_order() -> None:
    shell = Shell()
    shell.outbox.persist(OFFER)
    shell.send("a")
    shell.outbox.persist(OFFER)
    shell.send("b")
    shell.send("c")
    assert shell.sent == []
    await shell.durable(0)
    assert shell.sent == ["a"] and not shell.outbox.is_idle
    shell.send("d")
    await shell.durable(1)
    assert shell.sent == ["a", "b", "c", "d"] and shell.outbox.is_idle


async def test_a_later_record_durable_first_lets_nothing_pass() -> None:
    shell = Shell()
    shell.outbox.persist(OFFER)
    shell.send("a")
    shell.outbox.persist(OFFER)
    shell.send("b")
    await shell.durable(1)
    assert shell.sent == []
    await shell.durable(0)
    assert shell.sent == ["a", "b"]


@pytest.mark.parametrize("error", [LedgerError("disk full"), OSError("gone"), None])
async def test_after_a_failure_nothing_is_sent_ever(error: Exception | None) -> None:
    shell = Shell()
    unseen: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(context))
    for what in ("a", "b"):
        shell.outbox.persist(OFFER)
        shell.send(what)
    first, second = shell.ledger.futures
    if error is None:
        first.cancel()
    else:
        first.set_exception(error)
    second.set_exception(LedgerError("disk still full"))
    await asyncio.sleep(0)
    shell.send("c")
    shell.outbox.persist(OFFER)
    assert shell.sent == [] and len(shell.failures) == 1 and len(shell.ledger.futures) == 2
    assert isinstance(shell.failures[0], LedgerError)
    del first, second
    shell.ledger.futures.clear()
    assert not unseen


async def test_an_effect_may_put_in_more() -> None:
    shell = Shell()

    def effect() -> None:
        shell.sent.append("a")
        shell.outbox.persist(OFFER)
        shell.send("c")

    shell.outbox.persist(OFFER)
    shell.outbox.run(effect)
    shell.send("b")
    await shell.durable(0)
    assert shell.sent == ["a", "b"]
    await shell.durable(1)
    assert shell.sent == ["a", "b", "c"]


async def test_an_effect_that_raises_holds_up_nothing() -> None:
    shell = Shell()
    seen: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context["exception"]))

    def effect() -> None:
        raise RuntimeError("the link is closed")

    shell.outbox.persist(OFFER)
    shell.outbox.run(effect)
    shell.send("b")
    await shell.durable(0)
    await asyncio.sleep(0)
    assert shell.sent == ["b"] and shell.outbox.is_idle
    assert [str(e) for e in seen] == ["the link is closed"]


async def test_with_a_real_ledger() -> None:
    ledger = MemoryLedger()
    sent: list[int] = []
    done = asyncio.Event()
    outbox = Outbox(ledger, lambda error: None)
    outbox.persist(OFFER)
    outbox.run(lambda: sent.append(1))
    outbox.run(done.set)
    await asyncio.wait_for(done.wait(), 5)
    assert sent == [1]
    assert ledger.offer(OFFER.id) is not None
    await ledger.aclose()
