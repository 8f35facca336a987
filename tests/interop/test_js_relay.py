"""Circuits with js-libp2p at either end, and in the middle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from p2pgrid.errors import Refused
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.use import parse_relay_use
from tests.factories import secret_key
from tests.interop.conftest import Program

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@asynccontextmanager
async def relay() -> AsyncIterator[Network]:
    async with Network(
        secret_key("relay"), "test", listen=[LOOPBACK], serve_dht=True, relaying=RelayLimits()
    ) as network:
        yield network


@asynccontextmanager
async def hidden(through: str) -> AsyncIterator[Network]:
    """A peer with an offer, whose addresses are told nobody but that through the relay."""
    async with Network(
        secret_key("hidden"), "test", listen=[LOOPBACK], relay=parse_relay_use([through]), offer=lambda: b"an offer"
    ) as network:
        await network.wait_reserved(10)
        assert ["/p2p-circuit/" in address for address in network.addresses] == [True]
        yield network


@asynccontextmanager
async def address_of(js: Program, *arguments: str) -> AsyncIterator[str]:
    """The address that a js peer prints, while it runs."""
    async with js.running("relay.mjs", *arguments) as process, asyncio.timeout(60):
        assert process.stdout is not None
        yield json.loads(await process.stdout.readline())["address"]


async def test_js_dials_through_our_relay(js: Program) -> None:
    async with relay() as ours, hidden(ours.addresses[0]) as peer:
        [address] = peer.addresses
        ended = await js.run("relay.mjs", "dial", address)
        said = ended.json
        assert 0 <= 86_400 - said.pop("seconds") < 60  # what is left of a day by then
        assert said == {"peer": peer.peer_id, "through": address, "pinged": True}


async def test_js_is_reached_through_our_relay(js: Program) -> None:
    async with (
        relay() as ours,
        Network(secret_key("client"), "test") as client,
        address_of(js, "listen", ours.addresses[0]) as address,
    ):
        assert address.startswith(ours.addresses[0])
        assert ours.health().relay.reservations == 1
        peer = PeerAddress(address.rpartition("/p2p/")[2], (address,))
        with pytest.raises(Refused, match="does not speak"):  # it was reached, and sells nothing
            await client.fetch_offer(peer)


async def test_a_js_relay_serves_ours_at_both_ends(js: Program) -> None:
    async with (
        address_of(js, "relay") as address,
        hidden(address) as peer,
        Network(secret_key("client"), "test") as client,
    ):
        assert await client.fetch_offer(PeerAddress(peer.peer_id, peer.addresses)) == b"an offer"
