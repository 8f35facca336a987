"""This machine is given another address while it runs. Real hosts on loopback; what the system says is made up."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.net import addresses, service
from p2pgrid.net.network import Network
from tests.net.test_network import MODEL, bootstrap_peer, new_key, until

EVERYWHERE = "/ip4/0.0.0.0/tcp/0"


async def test_the_network_hears_of_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "ADDRESS_INTERVAL_S", 0.05)
    async with bootstrap_peer() as introducer:
        seeds = introducer.addresses
        async with (
            Network(new_key(), "test", listen=[EVERYWHERE], bootstrap=seeds, serve_dht=True) as provider,
            Network(new_key(), "test", bootstrap=seeds) as client,
        ):
            assert await provider.advertise([MODEL]) == 1
            port = provider.addresses[0].split("/")[4]
            monkeypatch.setattr(addresses, "_own_hosts", lambda family: ["127.0.0.2"])
            expected = (f"/ip4/127.0.0.2/tcp/{port}/p2p/{provider.peer_id}",)
            await until(lambda: provider.addresses == expected, "it says so itself")

            async with asyncio.timeout(15):
                while True:
                    [found] = await client.find_providers(MODEL)
                    if found.addresses == expected:
                        break
