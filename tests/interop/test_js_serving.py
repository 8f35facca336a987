"""A server of the DHT on js-libp2p hears who else begins to serve, over the connection that it has."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from p2pgrid.net.network import Network
from tests.factories import secret_key
from tests.interop.conftest import Program

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


async def test_js_learns_that_a_peer_which_nobody_reached_serves_again(js: Program) -> None:
    async with (
        Network(secret_key("introducer"), "test", listen=[LOOPBACK], serve_dht=True) as introducer,
        Network(
            secret_key("changing"), "test", listen=[LOOPBACK], serve_dht=True, bootstrap=introducer.addresses
        ) as changing,
    ):
        await changing.set_reachable(False)
        async with js.running("serving.mjs", "test", changing.addresses[0]) as process, asyncio.timeout(60):
            output: Any = process.stdout
            assert not json.loads(await output.readline())["knows"]
            # It is told of who serves once both know of one another, and that is when it has answered.
            while changing.health().routing_table_size < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)
            await changing.set_reachable(True)
            assert json.loads(await output.readline())["knows"]
