"""The keeper dials again, with pauses, and knows when not to."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from p2pgrid.errors import ProtocolViolation, Unreachable
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import dial, listen
from p2pgrid.net.keeper import Backoff, KeeperState, LinkKeeper
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.proto.keys import SecretKey

PROVIDER = SecretKey(b"p" * 32)
CLIENT = SecretKey(b"c" * 32)
QUICK = Backoff(first_s=0.01, most_s=0.05)


async def test_the_keeper_dials_again_when_the_link_is_lost() -> None:
    listener = await listen("127.0.0.1", 0, PROVIDER, on_stream=lambda stream: StreamReader())
    host, port = listener.addresses[0]
    keeper = LinkKeeper(
        lambda: dial(host, port, PROVIDER.public_key, CLIENT), rng=random.Random(1), backoff=QUICK, name="p"
    )
    first = await keeper.link(5)
    assert await keeper.link(5) is first
    await listener.aclose()
    await first.retired
    with pytest.raises(Unreachable, match=r"no link to p within 0\.1 s: .*cannot be reached"):
        await keeper.link(0.1)
    assert keeper.dials > 2
    listener = await listen(host, port, PROVIDER, on_stream=lambda stream: StreamReader())
    second = await keeper.link(5)
    assert second is not first
    assert keeper.state is KeeperState.LIVE
    await keeper.aclose()
    assert (keeper.state, second.closed.done()) == (KeeperState.CLOSED, True)
    with pytest.raises(Unreachable, match="no longer kept"):
        await keeper.link(1)
    await listener.aclose()


async def test_the_keeper_bars_a_peer_that_breaks_the_rules() -> None:
    async def dial_a_liar() -> LinkConnection:
        raise ProtocolViolation("it lied.")

    keeper = LinkKeeper(dial_a_liar, rng=random.Random(1), backoff=QUICK)
    with pytest.raises(ProtocolViolation, match="it lied"):
        await keeper.link(5)
    assert (keeper.state, keeper.dials) == (KeeperState.BARRED, 1)
    await keeper.aclose()


async def test_a_keeper_that_is_closed_while_it_dials_stops() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        keeper = LinkKeeper(lambda: dial(host, port, PROVIDER.public_key, CLIENT), rng=random.Random(1))
        await asyncio.sleep(0)
        await keeper.aclose()
        assert keeper.state is KeeperState.CLOSED


def test_pauses_double_up_to_a_cap_and_are_cut_by_chance() -> None:
    backoff, rng = Backoff(first_s=1, most_s=10), random.Random(1)
    for failures, longest in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (10_000, 10)]:
        pauses = [backoff.pause_s(failures, rng) for _ in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(set(pauses)) > 40


async def test_a_hint_ends_the_pause_also_one_that_comes_during_the_dial() -> None:
    outcomes: list[asyncio.Future[LinkConnection]] = []

    async def dial_when_told() -> LinkConnection:
        outcomes.append(asyncio.get_running_loop().create_future())
        return await outcomes[-1]

    async def dials(n: int) -> None:
        async with asyncio.timeout(20):
            while len(outcomes) < n:  # noqa: ASYNC110 (the keeper tells nobody when it dials)
                await asyncio.sleep(0.001)

    backoff = Backoff(first_s=0.01, most_s=3600)
    keeper = LinkKeeper(dial_when_told, rng=random.Random(1), backoff=backoff)
    away = Unreachable("away.")
    for n in range(1, 20):
        await dials(n)
        if n >= 10:
            keeper.dial_now()
        outcomes[-1].set_exception(away)
        if n < 10:
            while keeper.state is not KeeperState.WAITING:  # noqa: ASYNC110
                await asyncio.sleep(0)
            keeper.dial_now()
    await keeper.aclose()
