"""The libp2p host of a real node crashes, or hangs, while a sale runs over the direct road."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from p2pgrid.demo.grid import NETWORK, Grid
from p2pgrid.demo.processes import NodeProcess
from tests.grid.conftest import MODEL, FakeEngine, get, p2pgrid, receipts, until
from tests.grid.test_sales import program

pytestmark = pytest.mark.process

TOKENS = 400
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


class FaultyNode(NodeProcess):
    module = "tests.grid.faulty_node"


class FaultyGrid(Grid):
    """One operator and one gateway, whose libp2p hosts can be made to fail."""

    operator: NodeProcess

    @property
    def peers(self) -> tuple[str, ...]:
        return ("--network", NETWORK, "--bootstrap-peers", str(self.folder / "bootstrap_peers.toml"))

    async def start_all(self, engine_url: str) -> None:
        await self.start_bootstrap()
        data = self.folder / "operator"
        code, _, errors = await p2pgrid(data, "init")
        assert code == 0, errors
        self.operator = FaultyNode(
            *("The operator", data, "serve", *self.peers, "--listen", "127.0.0.1:0", "--libp2p-listen", LOOPBACK),
            *("--pages", "127.0.0.1:0", "--model", MODEL, "--engine-url", engine_url),
            *("--price-input", "0.20", "--price-output", "0.80"),
        )
        await self.operator.start(timeout_s=60)
        self.gateway = FaultyNode(
            "The gateway", self.folder / "client", "gateway", "--listen", "127.0.0.1:0", *self.peers
        )
        await self.gateway.start(timeout_s=60)
        await until(self.link, "direct")

    async def stop_all(self) -> None:
        await asyncio.gather(self.stop(), self.operator.stop())

    async def link(self) -> str | None:
        """The road on which the gateway's link to the operator is."""
        models = (await get(self, "/models"))["data"]
        return next((offer["link"] for model in models for offer in model["p2pgrid"]["offers"]), None)

    async def health(self) -> dict[str, Any]:
        """The operator's."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.operator.ready['pages']}/health") as response,
        ):
            health: dict[str, Any] = await response.json()
            return health

    async def gateway_links(self) -> tuple[int, int, bool]:
        """The gateway's links, how often its host was started again, and whether that runs."""
        health = await get(self, "/../health")
        return health["links"], health["libp2p"]["restarts"], health["libp2p"]["running"]

    async def network_health(self, *names: str) -> list[Any]:
        network = (await self.health())["network"]
        return [network[name] for name in names]


@pytest.fixture
async def faulty(tmp_path: Path, fake_engine: FakeEngine) -> AsyncIterator[FaultyGrid]:
    grid = FaultyGrid(tmp_path, model=MODEL)
    try:
        await grid.start_all(fake_engine.url)
        yield grid
    finally:
        await grid.stop_all()


@pytest.mark.parametrize(("fault", "log"), [(signal.SIGUSR1, "a crash on purpose"), (signal.SIGUSR2, "in _hold_up")])
async def test_a_sale_over_the_direct_road_does_not_notice(
    faulty: FaultyGrid, fake_engine: FakeEngine, fault: signal.Signals, log: str
) -> None:
    before = faulty.operator.ready["libp2p_addresses"]
    tokens, seen_at_restart = 0, None
    async with program(faulty) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=TOKENS,
            stream=True,
            extra_body={"fake": {"pace_ms": 20, "tokens": TOKENS}},
        )

        async def watch_restart() -> int:
            await until(lambda: faulty.network_health("restarts", "running"), [1, True])
            return tokens

        watching = None
        async for chunk in stream:
            tokens += 1 if chunk.choices and chunk.choices[0].delta.content else 0
            if tokens == 10 and watching is None:
                os.kill(faulty.operator.pid, fault)
                assert faulty.gateway is not None
                os.kill(faulty.gateway.pid, fault)
                watching = asyncio.create_task(watch_restart())
        assert watching is not None
        seen_at_restart = await watching
    assert tokens == TOKENS
    assert seen_at_restart < TOKENS, "the host was up again while the answer still came"
    [row] = await until(lambda: receipts(faulty.operator.data), lambda rows: bool(rows) and rows[0]["countersigned"])
    assert (row["status"], row["output_tokens"]) == ("completed", TOKENS)
    assert [row] == await receipts(faulty.gateway.data)  # type: ignore[union-attr]
    # The gateway's host, which failed a moment after the operator's, may be up a moment later too.
    await until(faulty.gateway_links, (1, 1, True))
    assert log in faulty.operator.log.read_text()
    assert log in faulty.gateway.log.read_text()  # type: ignore[union-attr]
    assert await faulty.link() == "direct"
    # It is announced anew, where it was before, and strangers find it.
    await until(lambda: faulty.network_health("stalled_s"), [0.0])

    async def found_by_a_stranger() -> bool:
        code, output, _ = await p2pgrid(faulty.folder / "stranger", "offers", *faulty.peers, "--json")
        return code == 0 and faulty.operator.ready["peer_id"] in output

    await until(found_by_a_stranger, True, deadline_s=60)
    code, _, errors = await p2pgrid(faulty.folder / "reader", "log", "check", before[0], *faulty.peers)
    assert code == 0, errors
