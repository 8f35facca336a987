"""Sales by a provider that cannot be dialled on the direct road: in one process, and between real ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from p2pgrid.client import roads
from p2pgrid.client.client import Client
from p2pgrid.client.roads import ProviderRoads
from p2pgrid.demo.grid import NETWORK, Grid
from p2pgrid.demo.processes import NodeProcess
from p2pgrid.errors import LocalError, RemoteError, UsageError
from p2pgrid.net.network import Network
from p2pgrid.net.road import Road
from p2pgrid.proto.messages import Status
from p2pgrid.provider.engine_plan import plan_engines
from p2pgrid.provider.node import Provider
from tests.factories import secret_key
from tests.grid.conftest import MODEL, FakeEngine, get, p2pgrid, receipts, until
from tests.grid.market import BODY, CHAT, LOOPBACK, Market, config, folder, open_market


@contextlib.asynccontextmanager
async def market(tmp_path: Path, **fields: Any) -> AsyncIterator[Market]:
    """With a bootstrap peer of its own."""
    async with (
        Network(secret_key("introducer"), "test", listen=[LOOPBACK], serve_dht=True) as introducer,
        open_market(tmp_path, introducer, **fields) as found,
    ):
        yield found


async def test_a_whole_sale_over_libp2p_alone(tmp_path: Path) -> None:
    async with market(tmp_path) as m:
        assert m.provider.addresses == ()
        assert all("/p2p/" in address for address in m.provider.offer.message.addresses)
        for tokens in (1, 60):  # 60 is more than three windows
            async with await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": tokens}}) as answer:
                text = b"".join([data async for data in answer])
                assert text.count(b"\n\n") > tokens
                assert answer.usage.output_tokens == tokens
        both = await asyncio.gather(*(m.client.purchaser.buy(CHAT, BODY, whole=True) for _ in range(10)))
        assert len(both) == 10
        await m.settled(12)
        assert m.road is Road.LIBP2P
        assert m.provider.links_by_road == {"direct": 0, "libp2p": 1, "punched": 0, "relayed": 0}
        [listed] = m.client.purchaser.market.models()
        assert listed.road == "libp2p"
    verdict = m.audit()
    assert verdict.clean, verdict.findings


async def test_where_both_roads_are_offered_the_direct_one_is_taken(tmp_path: Path) -> None:
    async with market(tmp_path, listen="127.0.0.1:0") as m:
        async with await m.client.purchaser.buy(CHAT, BODY, whole=True):
            await m.settled(1)
        assert m.road is Road.DIRECT
        assert m.provider.links_by_road == {"direct": 1, "libp2p": 0, "punched": 0, "relayed": 0}


async def test_a_closed_direct_port_is_no_hindrance(tmp_path: Path) -> None:
    """The offer announces a port that leads nowhere, as behind a NAT that forwards libp2p's alone."""
    async with market(tmp_path, listen="127.0.0.1:0", announce=("127.0.0.1:1",)) as m:
        assert "/ip4/127.0.0.1/tcp/1/tls" in m.provider.offer.message.addresses
        async with await m.client.purchaser.buy(CHAT, BODY, whole=True):
            await m.settled(1)
        assert m.road is Road.LIBP2P


async def test_a_client_for_one_request_does_not_wait_for_a_port_that_was_dead_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        announced = f"127.0.0.1:{dead.getsockname()[1]}"
        async with market(tmp_path, listen="127.0.0.1:0", announce=(announced,)) as m:
            bought, introducers = folder(tmp_path / "short-lived"), m.client.bootstrap

            async def buy_once() -> Road:
                async with Client(bought, network="test", bootstrap=introducers, keeps_links=False) as client:
                    await client.wait_for_offer(MODEL, 20)
                    await client.chat(**BODY)
                    [session] = client.purchaser.sessions.values()
                    assert session.link is not None
                    return session.link.road

            assert await buy_once() is Road.LIBP2P
            # A client waits for a link for ten seconds: from now on only what the first one has written down helps.
            monkeypatch.setitem(ProviderRoads.__init__.__kwdefaults__, "head_start_s", 30.0)
            monkeypatch.setattr(roads, "DIAL_TIMEOUT_S", 30.0)
            assert await buy_once() is Road.LIBP2P


@pytest.mark.parametrize("whose", ["client", "provider"])
async def test_a_crash_of_libp2p_in_mid_answer_costs_one_window_and_is_settled(tmp_path: Path, whose: str) -> None:
    async with market(tmp_path) as m:
        # Honest sales cover what the crash leaves unsigned: the provider is bought from again below.
        honest = 8
        for _ in range(honest):
            async with await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": 60}}, whole=True):
                pass
        answer = await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": 60, "pace_ms": 20}})
        await anext(answer)
        await crash(m.provider._network if whose == "provider" else await m.client.purchaser.book._finder.joined())
        with pytest.raises(RemoteError):
            _ = [data async for data in answer]
        await m.settled(honest + 1)
        row = next(iter(m.client.purchaser.ledger.receipts()))
        assert row.receipt.receipt_number == honest + 1
        assert row.receipt.status is Status.INTERRUPTED
        assert row.receipt.usage.output_tokens < 60
        async with await m.client.purchaser.buy(CHAT, BODY, whole=True):
            await m.settled(honest + 2)
        assert m.road is Road.LIBP2P
    verdict = m.audit()
    assert verdict.clean, verdict.findings


async def crash(network: Network) -> None:
    async def fault() -> None:
        raise RuntimeError("a crash on purpose")

    async def spawn() -> None:
        trio.lowlevel.spawn_system_task(fault)
        await trio.sleep_forever()

    with contextlib.suppress(LocalError):
        await network._thread.call(spawn)


async def test_a_stopping_provider_lets_orders_over_libp2p_finish(tmp_path: Path) -> None:
    async with market(tmp_path, drain_s=10) as m:
        answer = await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": 40, "pace_ms": 10}})
        await anext(answer)
        stopping = asyncio.create_task(m.provider.__aexit__(None, None, None))
        _ = [data async for data in answer]
        assert answer.usage.output_tokens == 40
        await m.settled(1)
        await stopping
        [row] = m.client.purchaser.ledger.receipts()
        assert row.receipt.status is Status.COMPLETED


@pytest.mark.parametrize("fields", [{"libp2p_listen": ()}, {"join": False}])
def test_a_node_that_nobody_could_reach_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    join = fields.pop("join", True)
    with pytest.raises(UsageError, match="nobody could buy") as refused:
        Provider(
            folder(tmp_path / "node"),
            config("http://127.0.0.1:1", **fields),
            make_engines=plan_engines,
            network_name="test",
            join_network=join,
        )
    assert "--libp2p-listen" in refused.value.hint


@pytest.mark.process
async def test_processes_trade_over_libp2p_alone(tmp_path: Path, fake_engine: FakeEngine) -> None:
    """`serve --no-direct` and `gateway`: what is sold, and what the commands say of the road."""
    grid = Grid(tmp_path, model=MODEL, engine_url=fake_engine.url)
    peers = ("--network", NETWORK, "--bootstrap-peers", str(tmp_path / "bootstrap_peers.toml"))
    node = NodeProcess(
        *("The operator", folder(tmp_path / "operator").path, "serve", *peers, "--no-direct"),
        *("--libp2p-listen", LOOPBACK, "--model", MODEL, "--engine-url", fake_engine.url),
        *("--price-input", "0.20", "--price-output", "0.80"),
    )
    try:
        await grid.start_bootstrap()
        ready = await node.start(timeout_s=60)
        assert ready["addresses"] == []
        await grid.start_gateway("127.0.0.1:0")

        async def links() -> list[str | None]:
            models = (await get(grid, "/models"))["data"]
            return [offer["link"] for model in models for offer in model["p2pgrid"]["offers"]]

        await until(links, ["libp2p"])
        assert grid.gateway is not None
        async with openai.AsyncOpenAI(
            base_url=str(grid.gateway.ready["base_url"]), api_key="any", max_retries=0
        ) as program:
            answer = await program.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=8
            )
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0
        [row] = await until(lambda: receipts(node.data), lambda rows: bool(rows) and rows[0]["countersigned"])
        assert row["status"] == "completed"
        code, output, errors = await p2pgrid(tmp_path / "onlooker", "offers", *peers, "--json")
        assert code == 0, errors
        assert '"roads": [\n      "libp2p"\n    ]' in output
    finally:
        await asyncio.gather(grid.stop(), node.stop())
