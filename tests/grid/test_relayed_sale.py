"""Sales by a provider that nobody can dial: its libp2p port is bound to loopback, and only a relay leads there."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from p2pgrid.client.better_road import punch
from p2pgrid.config import ClientConfig
from p2pgrid.demo.grid import NETWORK, Grid
from p2pgrid.demo.processes import NodeProcess
from p2pgrid.errors import RemoteError
from p2pgrid.net.network import Network
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.road import Road
from p2pgrid.proto.messages import Status
from tests.factories import secret_key
from tests.grid.conftest import MODEL, FakeEngine, get, p2pgrid, receipts, until
from tests.grid.market import BODY, CHAT, LOOPBACK, Market, folder, open_market


@contextlib.asynccontextmanager
async def relay(name: str, limits: RelayLimits | None = None, **options: Any) -> AsyncIterator[Network]:
    """A bootstrap peer that relays."""
    key = secret_key(name)
    async with Network(
        key, "test", listen=[LOOPBACK], serve_dht=True, relaying=limits or RelayLimits(), **options
    ) as network:
        yield network


@contextlib.asynccontextmanager
async def market(
    tmp_path: Path, introducer: Network, *relays: Network, client_punches: bool = False
) -> AsyncIterator[Market]:
    """A provider that is reached through these relays alone."""
    through = tuple(address for one in relays for address in one.addresses)
    buys = ClientConfig(punch=client_punches)
    async with open_market(tmp_path, introducer, buys=buys, relay_through=through) as found:
        yield found


async def test_a_whole_sale_through_a_relay(tmp_path: Path) -> None:
    async with relay("relay one") as one, relay("relay two", bootstrap=one.addresses) as two:
        async with market(tmp_path, one, one, two) as m:
            assert m.provider.offer is not None
            offered = m.provider.offer.message.addresses
            assert len(offered) == 2 and all("/p2p-circuit/" in address for address in offered)
            for tokens in (1, 60):
                async with await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": tokens}}) as answer:
                    assert b"".join([data async for data in answer]).count(b"\n\n") > tokens
                    assert answer.usage.output_tokens == tokens
            both = await asyncio.gather(*(m.client.purchaser.buy(CHAT, BODY, whole=True) for _ in range(10)))
            assert len(both) == 10
            await m.settled(12)
            assert m.road is Road.RELAYED
            assert m.provider.links_by_road == {"direct": 0, "libp2p": 0, "punched": 0, "relayed": 1}
            [listed] = m.client.purchaser.market.models()
            assert listed.road == "relayed"
            health = [network.health().relay for network in (one, two)]
            assert [h.reservations for h in health] == [1, 1]
            assert sum(h.circuits or 0 for h in health) == 1
        verdict = m.audit()
        assert verdict.clean, verdict.findings


async def test_a_relay_that_dies_in_mid_answer_costs_one_window_and_another_takes_over(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        introducer = await stack.enter_async_context(relay("introducer"))
        ends: dict[str, contextlib.AsyncExitStack] = {}
        relays: dict[str, Network] = {}
        for name in ("one", "two", "three"):
            end = await stack.enter_async_context(contextlib.AsyncExitStack())
            network = await end.enter_async_context(relay(f"relay {name}", bootstrap=introducer.addresses))
            relays[network.peer_id], ends[network.peer_id] = network, end
        m = await stack.enter_async_context(market(tmp_path, introducer, *relays.values()))
        reserved = set(m.provider.network_health.relay.relays)  # type: ignore[union-attr]
        assert len(reserved) == 2
        async with await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": 20}}) as answer:
            async for _ in answer:
                pass
        await m.settled(1)
        [carrying] = [peer_id for peer_id, network in relays.items() if network.health().relay.circuits]

        got, is_alive = 0, True
        with contextlib.suppress(RemoteError):
            async with await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": 60, "pace_ms": 30}}) as answer:
                async for data in answer:
                    got += data.count(b"\n\n")
                    if got >= 20 and is_alive:
                        is_alive = False
                        await ends[carrying].aclose()
        assert 20 <= got < 60

        async with asyncio.timeout(20):
            async with await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": 5}}) as answer:
                async for _ in answer:
                    pass
        await m.settled(3)
        assert m.road is Road.RELAYED
        statuses = sorted(row.receipt.status for row in m.client.purchaser.ledger.receipts())
        assert statuses == [Status.COMPLETED, Status.COMPLETED, Status.INTERRUPTED]
        # The provider is soon reached through the third, and says so to whoever asks.
        (third,) = set(relays) - reserved

        async def offered() -> bool:
            offer = m.provider.offer
            return offer is not None and any(third in address for address in offer.message.addresses)

        await until(offered, True)
        assert set(m.provider.network_health.relay.relays) == set(relays) - {carrying}  # type: ignore[union-attr]
    verdict = m.audit()
    assert verdict.clean, verdict.findings


async def test_running_orders_go_on_through_a_hole(tmp_path: Path) -> None:
    """And the relay may die then: what is sold no longer goes through it."""
    async with contextlib.AsyncExitStack() as stack:
        introducer = await stack.enter_async_context(relay("introducer"))
        end = await stack.enter_async_context(contextlib.AsyncExitStack())
        one = await end.enter_async_context(relay("relay one", bootstrap=introducer.addresses))
        m = await stack.enter_async_context(market(tmp_path, introducer, one))
        session = m.client.purchaser.sessions[m.provider.peer_id]
        got: Counter[str] = Counter()

        async def buy(name: str, tokens: int, pace_ms: int = 10) -> None:
            body = BODY | {"max_tokens": 1000, "fake": {"tokens": tokens, "pace_ms": pace_ms}}
            async with await m.client.purchaser.buy(CHAT, body) as answer:
                async for data in answer:
                    got[name] += data.count(b"\n\n")
                assert answer.usage.output_tokens == tokens

        async def least() -> bool:
            return min(got[name] for name in "abc") > 20

        honest = 24  # sales that cover what is open at once below
        for _ in range(honest):
            await buy("honest", 60, pace_ms=0)
        buying = [asyncio.create_task(buy(name, 800)) for name in "abc"]
        await until(least, True)
        link = session.link
        assert link is not None
        assert link.road.value == "relayed"
        agree = m.client.purchaser.book._finder.agree_on_hole  # type: ignore[attr-defined]
        key = m.client.purchaser.sessions._key
        assert await punch(agree, session.provider, key, link) is link
        assert max(got[name] for name in "abc") < 800
        assert link.road.value == "punched"

        async def carried() -> int | None:
            return one.health().relay.circuits

        await until(carried, 0)  # nothing is left of the circuit
        await end.aclose()
        await asyncio.gather(*buying, buy("d", 20))
        await m.settled(honest + 4)
        assert session.link is link
        assert m.provider.links_by_road == {"direct": 0, "libp2p": 0, "punched": 1, "relayed": 0}
        assert {row.receipt.status for row in m.client.purchaser.ledger.receipts()} == {Status.COMPLETED}
    verdict = m.audit()
    assert verdict.clean, verdict.findings


async def test_a_lost_hole_is_replaced_by_the_relay_and_that_by_another_hole(tmp_path: Path) -> None:
    async with relay("relay one") as one, market(tmp_path, one, one, client_punches=True) as m:

        async def road() -> Road | None:
            return m.road

        await until(road, Road.PUNCHED)
        session = m.client.purchaser.sessions[m.provider.peer_id]
        for n in (1, 2):
            link = session.link
            assert link is not None and link.transport is not None
            link.transport.abort()
            await link.closed
            async with await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": 5}}) as answer:
                async for _ in answer:
                    pass
            await m.settled(n)
            assert session.link is not link
            await until(road, Road.PUNCHED)
        assert {row.receipt.status for row in m.client.purchaser.ledger.receipts()} == {Status.COMPLETED}
    verdict = m.audit()
    assert verdict.clean, verdict.findings


@pytest.mark.process
async def test_processes_trade_through_a_relay(tmp_path: Path, fake_engine: FakeEngine) -> None:
    """`bootstrap`, which relays, `serve --no-direct --relay-through` and `gateway`: what is sold, on which road."""
    grid = Grid(tmp_path, model=MODEL, engine_url=fake_engine.url)
    peers = ("--network", NETWORK, "--bootstrap-peers", str(tmp_path / "bootstrap_peers.toml"))
    nodes: list[NodeProcess] = []
    try:
        await grid.start_bootstrap()
        assert grid.bootstrap is not None and grid.bootstrap.ready["relays"] is True
        node = NodeProcess(
            *("The operator", folder(tmp_path / "operator").path, "serve", *peers, "--no-direct"),
            *("--libp2p-listen", LOOPBACK, "--relay-through", grid.bootstrap.ready["addresses"][0]),
            *("--model", MODEL, "--engine-url", fake_engine.url, "--price-input", "0.20", "--price-output", "0.80"),
        )
        nodes.append(node)
        ready = await node.start(timeout_s=60)
        assert ["/p2p-circuit/" in address for address in ready["libp2p_addresses"]] == [True]
        await grid.start_gateway("127.0.0.1:0")

        async def links() -> list[str | None]:
            models = (await get(grid, "/models"))["data"]
            return [offer["link"] for model in models for offer in model["p2pgrid"]["offers"]]

        await until(links, lambda roads: roads in (["relayed"], ["punched"]))  # a hole may be punched at once
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
        assert '"roads": [\n      "relayed"\n    ]' in output
    finally:
        await asyncio.gather(grid.stop(), *(node.stop() for node in nodes))
