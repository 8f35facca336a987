"""One bootstrap peer of a list is silent: its machine takes connections and says nothing. Real hosts on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from p2pgrid.net import swarm
from p2pgrid.net.network import Network
from tests.net.test_network import LOOPBACK, MODEL, bootstrap_peer, new_key, until


@pytest.fixture
def silent() -> Iterator[str]:
    """Its multiaddr."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}/p2p/{new_key().public_key.peer_id}"


@pytest.fixture(autouse=True)
def patient_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dial to it takes 8 s to fail, which a busy machine may need for less: here it takes longer than any test."""
    monkeypatch.setattr(swarm, "DIAL_TIMEOUT_S", 600.0)


async def test_who_joins_does_not_wait_for_its_dial_to_fail(silent: str) -> None:
    async with (
        bootstrap_peer() as introducer,
        Network(new_key(), "test", bootstrap=[silent, *introducer.addresses]) as client,
    ):
        await until(lambda: client.health().bootstrap_reached, "it has joined", deadline_s=30)


async def test_no_look_up_waits_for_it(silent: str) -> None:
    async with (
        bootstrap_peer() as introducer,
        Network(new_key(), "test", listen=[LOOPBACK], bootstrap=introducer.addresses, serve_dht=True) as provider,
        Network(new_key(), "test", bootstrap=[silent, *introducer.addresses]) as client,
    ):
        assert await provider.advertise([MODEL]) == 1
        await until(lambda: client.health().bootstrap_reached, "it has joined", deadline_s=30)
        async with asyncio.timeout(30):
            [found] = await client.find_providers(MODEL, timeout_s=600)
        assert found.peer_id == provider.peer_id
