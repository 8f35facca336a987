"""One bootstrap peer of a list is silent: its machine takes connections and says nothing. Real hosts on loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from p2pgrid.net.network import Network
from tests.net.test_network import LOOPBACK, MODEL, bootstrap_peer, new_key, until


@pytest.fixture
def silent() -> Iterator[str]:
    """Its multiaddr."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}/p2p/{new_key().public_key.peer_id}"


async def test_who_joins_does_not_wait_for_its_dial_to_fail(silent: str) -> None:
    """That takes 8 s, and what is asked of it besides at most 6 s."""
    async with (
        bootstrap_peer() as introducer,
        Network(new_key(), "test", bootstrap=[silent, *introducer.addresses]) as client,
    ):
        await until(lambda: client.health().bootstrap_reached, "it has joined", deadline_s=10)


async def test_no_look_up_waits_for_it(silent: str) -> None:
    async with (
        bootstrap_peer() as introducer,
        Network(new_key(), "test", listen=[LOOPBACK], bootstrap=introducer.addresses, serve_dht=True) as provider,
        Network(new_key(), "test", bootstrap=[silent, *introducer.addresses]) as client,
    ):
        assert await provider.advertise([MODEL]) == 1
        await until(lambda: client.health().bootstrap_reached, "it has joined", deadline_s=15)
        began = time.monotonic()
        [found] = await client.find_providers(MODEL)
        assert found.peer_id == provider.peer_id
        assert time.monotonic() - began < 4
