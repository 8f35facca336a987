"""The channels of a worker: what it says of them, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from p2pgrid.commands.wire import failure_of
from p2pgrid.errors import Refused
from p2pgrid.net.connection import LinkConnection
from p2pgrid.processes.bus import Bus, BusMessage
from p2pgrid.provider import worker_messages as m
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.open_channel import OpenChannel
from p2pgrid.provider.worker_channels import WorkerChannels, WorkerClaims
from tests.factories import CLIENT, PROVIDER, Dealings
from tests.ledger.served import served_ledger


class Ping(BusMessage, frozen=True):
    """What was sent before it has come when `Pong` is there."""

    NUMBER = 200


class Pong(BusMessage, frozen=True):
    NUMBER = 201


class Link:
    """A client's link, as far as a claim needs one."""

    peer = CLIENT.public_key


LINK = cast(LinkConnection, Link())


@dataclass
class Rig:
    """A worker's channels, and the main process as a bus on which the test answers."""

    channels: WorkerChannels
    claims: WorkerClaims
    main: Bus
    heard: list[BusMessage]
    dealings: Dealings
    answered: asyncio.Event

    def claim(self) -> asyncio.Future[OpenChannel]:
        channel = self.dealings.channel
        return self.claims.claim(channel.record, channel.message, LINK)

    def grant(self, request: int, *, last_order_number: int = 0) -> None:
        self.main.send(m.Granted(request, self.dealings.channel.record, last_order_number, 5))

    async def exchange(self) -> list[Any]:
        """Until all that either side has sent has come; what the main process heard since the last time."""
        self.answered.clear()
        self.main.send(Ping())
        await asyncio.wait_for(self.answered.wait(), 10)
        heard = self.heard[:]
        self.heard.clear()
        return heard


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    dealings = Dealings()
    async with served_ledger(tmp_path / "ledger.sqlite") as served, contextlib.AsyncExitStack() as stack:
        await served.remote.append(dealings.offer, dealings.channel)
        left, right = socket.socketpair()
        main, bus = await Bus.over(left, "worker"), await Bus.over(right, "main process")
        stack.callback(main.abort)
        stack.callback(bus.abort)
        heard: list[BusMessage] = []
        for kind in (m.Claim, m.Released):
            main.on(kind, heard.append)
        channels = WorkerChannels(bus, served.remote, PROVIDER, (), ProviderLimits())
        answered = asyncio.Event()
        bus.on(Ping, lambda _: bus.send(Pong()))
        main.on(Pong, lambda _: answered.set())
        rig = Rig(channels, WorkerClaims(bus, channels), main, heard, dealings, answered)
        main.start()
        bus.start()
        yield rig
        await channels.aclose()


async def test_a_granted_channel_is_held_with_the_numbers_that_were_used(rig: Rig) -> None:
    asked = rig.claim()
    (claim,) = await rig.exchange()
    rig.grant(claim.request, last_order_number=7)
    channel = await asyncio.wait_for(asked, 10)
    assert channel.books.last_order_number == 7 and channel.away_since_ms == 5
    assert rig.channels.find(rig.dealings.id, CLIENT.public_key) is channel


async def test_a_channel_is_unknown_before_it_is_granted_and_after_it_was_given_up(rig: Rig) -> None:
    with pytest.raises(Refused) as before:
        rig.channels.find(rig.dealings.id, CLIENT.public_key)
    asked = rig.claim()
    (claim,) = await rig.exchange()
    rig.grant(claim.request)
    channel = await asyncio.wait_for(asked, 10)
    channel.books.last_order_number = 9
    rig.main.send(m.GiveUp(rig.dealings.id))
    assert await rig.exchange() == [m.Released(rig.dealings.id, 9, 5)]
    assert not channel.is_held
    with pytest.raises(Refused) as after:
        rig.channels.find(rig.dealings.id, CLIENT.public_key)
    assert before.value.code == after.value.code == "not-resumed"


async def test_an_idle_channel_goes_back_but_not_while_it_is_claimed_again(rig: Rig) -> None:
    first = rig.claim()
    (claim,) = await rig.exchange()
    rig.grant(claim.request)
    channel = await asyncio.wait_for(first, 10)
    assert channel.is_idle
    again = rig.claim()
    (claim,) = await rig.exchange()
    rig.channels.give_back_idle()
    assert await rig.exchange() == []  # else the grant that is on its way would be for a channel that was given back
    rig.grant(claim.request)
    assert await asyncio.wait_for(again, 10) is channel
    rig.channels.give_back_idle()
    assert await rig.exchange() == [m.Released(rig.dealings.id, 0, 5)]


async def test_what_is_told_to_be_given_up_before_a_claim_is_answered_is_given_up(rig: Rig) -> None:
    first = rig.claim()
    (claim,) = await rig.exchange()
    rig.grant(claim.request)
    channel = await asyncio.wait_for(first, 10)
    again = rig.claim()
    (claim,) = await rig.exchange()
    rig.main.send(m.GiveUp(rig.dealings.id))
    (released,) = await rig.exchange()
    assert isinstance(released, m.Released) and not channel.is_held
    rig.grant(claim.request)
    other = await asyncio.wait_for(again, 10)
    assert other is not channel and other.is_held


async def test_a_refused_claim_says_why(rig: Rig) -> None:
    asked = rig.claim()
    (claim,) = await rig.exchange()
    rig.main.send(m.ClaimFailed(claim.request, failure_of(Refused("too-many-channels", "four are here."))))
    with pytest.raises(Refused, match="four are here") as refused:
        await asyncio.wait_for(asked, 10)
    assert refused.value.code == "too-many-channels" and not rig.channels.claimed


async def test_all_that_was_recorded_of_a_channel_is_on_the_bus_before_it_is_given_up(tmp_path: Path) -> None:
    """The bus of the ledger and of the claims is one: the order of messages on it is the order of the writes."""
    dealings = Dealings()
    async with served_ledger(tmp_path / "ledger.sqlite") as served:
        bus = served.remote._bus
        order: list[str] = []
        served.bus.on(m.Released, lambda _: order.append("released"))
        channels = WorkerChannels(bus, served.remote, PROVIDER, (), ProviderLimits())
        await served.remote.append(dealings.offer, dealings.channel)
        channel = channels.adopt(dealings.channel.record, last_order_number=0, away_since_ms=0)
        append = served.main.append
        served.main.append = lambda *signed: (order.append("append"), append(*signed))[1]  # type: ignore[method-assign]
        written = served.remote.append(dealings.order())
        channel.link = None
        channels.give_back_idle()
        await asyncio.wait_for(written, 10)
        assert order == ["append", "released"]
        await channels.aclose()
