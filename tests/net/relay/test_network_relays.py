"""Relays and a whole network: found in the DHT, told to others, used while nobody can dial us."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from p2pgrid.net.lookup_keys import RELAY
from p2pgrid.net.network import Network
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.use import parse_relay_use
from tests.factories import secret_key

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(15):
            while not await condition():  # noqa: ASYNC110 - a network tells of no such event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not in time: {what}") from None


async def test_who_cannot_be_dialled_is_found_and_asked_through_relays() -> None:
    async with (
        Network(secret_key("introducer"), "test", listen=[LOOPBACK], serve_dht=True) as introducer,
        Network(
            secret_key("relay"),
            "test",
            listen=[LOOPBACK],
            bootstrap=introducer.addresses,
            serve_dht=True,
            relaying=RelayLimits(),
        ) as relay,
        Network(
            secret_key("hidden"),
            "test",
            listen=[LOOPBACK],
            bootstrap=introducer.addresses,
            relay=parse_relay_use(["auto"]),
            offer=lambda: b"an offer",
        ) as hidden,
        Network(secret_key("client"), "test", bootstrap=introducer.addresses) as client,
    ):

        async def is_advertised() -> bool:
            return [peer.peer_id for peer in await client.find_providers(RELAY)] == [relay.peer_id]

        async def is_told_no_more() -> bool:
            return hidden.addresses == own

        async def is_recorded_anew() -> bool:
            return (await client.find_providers("provider"))[0].addresses == own

        await until(is_advertised, "the relay is found")
        assert not hidden.health().relay.wanted
        own = hidden.addresses
        await hidden.set_reachable(False)
        await hidden.wait_reserved(10)
        assert hidden.health().relay.relays == (relay.peer_id,)
        [circuit] = hidden.addresses  # loopback is of no use to who needs a relay
        assert circuit == f"{relay.addresses[0]}/p2p-circuit/p2p/{hidden.peer_id}"

        assert await hidden.advertise(["provider"]) > 0
        [found] = await client.find_providers("provider")
        assert found.addresses == (circuit,)
        assert await client.fetch_offer(found) == b"an offer"
        assert relay.health().relay.reservations == 1

        await hidden.set_reachable(True)
        await until(is_told_no_more, "the circuit is told no more")
        assert not hidden.health().relay.wanted

        await until(is_recorded_anew, "the network knows")


async def test_a_relay_that_nobody_can_dial_advertises_it_no_more() -> None:
    async with (
        Network(secret_key("introducer"), "test", listen=[LOOPBACK], serve_dht=True) as introducer,
        Network(
            secret_key("relay"),
            "test",
            listen=[LOOPBACK],
            bootstrap=introducer.addresses,
            serve_dht=True,
            relaying=RelayLimits(),
        ) as relay,
    ):

        async def is_advertised() -> bool:
            return "relay" in relay._service.parts[0]._held

        async def is_not() -> bool:
            return not await is_advertised()

        await until(is_advertised, "it is advertised")
        await relay.set_reachable(False)
        await until(is_not, "it is advertised no more")
        await relay.set_reachable(True)
        await until(is_advertised, "it is advertised again")
