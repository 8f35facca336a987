"""The network that is joined in the background."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.client.late_network import LateNetwork
from p2pgrid.errors import Unreachable, UsageError
from p2pgrid.net.lookup_keys import PROVIDER
from p2pgrid.net.peer_address import PeerAddress
from tests.factories import CLIENT
from tests.factories import PROVIDER as PROVIDER_KEY


async def test_whoever_asks_waits_and_hears_what_the_network_says() -> None:
    async with LateNetwork(CLIENT, "lonely", bootstrap=()) as network:
        assert await network.find_providers(PROVIDER, timeout_s=0.2) == []
        nobody = PeerAddress(PROVIDER_KEY.public_key.peer_id, ())
        for fetch in (network.fetch_offer, network.fetch_cards):
            with pytest.raises(Unreachable):
                await fetch(nobody, timeout_s=0.2)
        assert (await network.joined()).peer_id == CLIENT.public_key.peer_id


async def test_one_that_stops_waiting_stops_nobody_else() -> None:
    async with LateNetwork(CLIENT, "lonely", bootstrap=()) as network:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await network.joined()
        assert await network.joined()


async def test_it_can_be_left_before_it_is_joined() -> None:
    async with LateNetwork(CLIENT, "lonely", bootstrap=()) as network:
        pass
    with pytest.raises(asyncio.CancelledError):
        await network.joined()


@pytest.mark.parametrize(("name", "bootstrap"), [("not a name", ()), ("lonely", ("nonsense",))])
def test_what_is_wrong_is_said_at_once(name: str, bootstrap: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        LateNetwork(CLIENT, name, bootstrap=bootstrap)
