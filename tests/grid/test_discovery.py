"""Discovery that tells the truth, between real processes: who is gone, who changed, who moved, who lies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from p2pgrid.client.client import Client
from p2pgrid.demo.grid import CHEAPER, DEARER, NETWORK, Grid
from p2pgrid.net.bootstrap_peers import load_bootstrap_peers
from p2pgrid.net.lookup_keys import PROVIDER, country_key, model_key
from p2pgrid.net.network import Network
from p2pgrid.proto.record import parse_json_line
from tests.factories import secret_key
from tests.grid.conftest import MODEL, FakeEngine, get, offer_count, p2pgrid, until
from tests.ports import reserved_port

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

SECONDS = 10.0
"""What "within seconds" is held to, on a machine that does much else; each test prints what it took."""
MINUTE = 60.0


def peers(grid: Grid) -> str:
    return str(grid.folder / "bootstrap_peers.toml")


@contextlib.asynccontextmanager
async def looking(grid: Grid) -> AsyncIterator[Client]:
    """A client that looks, and has no link with anybody."""
    bootstrap = load_bootstrap_peers(NETWORK, Path(peers(grid)))
    async with Client(grid.folder / "looker", network=NETWORK, bootstrap=bootstrap, keeps_links=False) as client:
        yield client


async def on_sale(grid: Grid) -> list[dict[str, Any]]:
    """The gateway's offers."""
    data = (await get(grid, "/models"))["data"]
    return [offer for model in data for offer in model["p2pgrid"]["offers"]]


async def operators(grid: Grid) -> set[str]:
    """Whose offers the gateway shows as live."""
    return {offer["operator"] for offer in await on_sale(grid) if offer["live"]}


async def listed(grid: Grid, *arguments: str) -> tuple[list[dict[str, Any]], float]:
    """What `p2pgrid offers` prints, and how long it took."""
    began = time.monotonic()
    code, output, errors = await p2pgrid(
        grid.folder / "visitor", "offers", "--network", NETWORK, "--bootstrap-peers", peers(grid), "--json", *arguments
    )
    assert code == 0, errors
    rows: list[dict[str, Any]] = json.loads(output)
    return rows, time.monotonic() - began


async def live_names(client: Client) -> set[str]:
    now_ms = int(time.time() * 1000)
    return {one.offer.message.operator for one in client.offers() if one.presence.is_live(now_ms)}


async def ask(grid: Grid) -> str:
    """The operator that served a request."""
    assert grid.gateway is not None
    base_url = str(grid.gateway.ready["base_url"])
    async with openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as program:
        raw = await program.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=8
        )
        return str(raw.headers["x-p2pgrid-operator"])


def report(what: str, began: float) -> None:
    print(f"\n{what}: {time.monotonic() - began:.1f} s")


async def test_a_provider_that_is_killed_is_shown_by_nobody(grid: Grid) -> None:
    victim = grid.operators[CHEAPER]
    async with looking(grid) as client:
        await until(lambda: live_names(client), {CHEAPER.name, DEARER.name})
        os.killpg(victim.pid, signal.SIGKILL)
        began = time.monotonic()
        await victim.exited()
        rows, took_s = await listed(grid)
        print(f"\n`offers` in {took_s:.1f} s, {time.monotonic() - began:.1f} s after the kill")
        assert [row["operator"] for row in rows] == [DEARER.name]
        assert all(row["live"] and row["confirmed_ms"] for row in rows)
        await until(lambda: operators(grid), {DEARER.name}, deadline_s=SECONDS)
        report("the gateway, which had a link", began)
        await until(lambda: live_names(client), {DEARER.name}, deadline_s=MINUTE)
        report("a client that only looks", began)
    assert await ask(grid) == DEARER.name


async def test_a_provider_that_stops_says_so_to_everybody(grid: Grid) -> None:
    leaving = grid.operators[CHEAPER]
    async with looking(grid) as client:
        await until(lambda: live_names(client), {CHEAPER.name, DEARER.name})
        os.kill(leaving.pid, signal.SIGTERM)
        began = time.monotonic()
        await until(lambda: operators(grid), {DEARER.name}, deadline_s=SECONDS)
        report("the gateway, which had a link", began)
        finder = await client.purchaser.book._finder.joined()  # type: ignore[attr-defined]

        async def found() -> set[str]:
            return {peer.peer_id for peer in await finder.find_providers(model_key(MODEL), timeout_s=5)}

        await until(found, {grid.operators[DEARER].ready["peer_id"]}, deadline_s=SECONDS)
        report("look-ups", began)
        assert await leaving.exited() == 0
        await until(lambda: live_names(client), {DEARER.name}, deadline_s=MINUTE)
        report("a client that only looks", began)
    assert "withdrawn: " in leaving.log.read_text()
    rows, _ = await listed(grid)
    assert [row["operator"] for row in rows] == [DEARER.name]


async def test_a_changed_price_is_known_at_once_over_a_link_and_soon_by_looking(grid: Grid) -> None:
    node = grid.operators[CHEAPER]

    async def price(offers: Any) -> str:
        return next(o["prices"]["output_eur"] for o in await offers if o["operator"] == CHEAPER.name)

    async def looked_up(client: Client) -> int:
        return next(o.tariff.output_upm for o in client.offers() if o.offer.message.operator == CHEAPER.name)

    async with looking(grid) as client:
        await until(lambda: live_names(client), {CHEAPER.name, DEARER.name})
        assert await price(on_sale(grid)) == "0.40"
        config = node.data / "config.toml"
        config.write_text(config.read_text().replace('price-output-eur = "0.40"', 'price-output-eur = "0.45"'))
        code, output, errors = await p2pgrid(node.data, "offers", "reprice", "--json")
        assert code == 0, errors
        assert json.loads(output)["models"] == [MODEL]
        began = time.monotonic()
        await until(lambda: price(on_sale(grid)), "0.45", deadline_s=SECONDS)
        report("the gateway, which has a link", began)
        rows, _ = await listed(grid, "--max-price-output", "0.45")
        assert [(row["operator"], row["prices"]["output_eur"]) for row in rows] == [(CHEAPER.name, "0.45")]
        report("`offers`", began)
        await until(lambda: looked_up(client), 450_000, deadline_s=MINUTE)
        report("a client that only looks", began)
    assert await ask(grid) == CHEAPER.name
    code, output, errors = await p2pgrid(node.data, "offers", "reprice")
    assert (code, "nothing changed" in output) == (0, True), errors


@pytest.fixture
async def lonely_grid(tmp_path: Path, fake_engine: FakeEngine) -> AsyncIterator[Grid]:
    """A grid with one operator."""
    grid = Grid(tmp_path, model=MODEL, engine_url=fake_engine.url)
    try:
        await grid.start_bootstrap()
        await grid.start_operator(CHEAPER)
        await grid.start_gateway("127.0.0.1:0")
        await until(lambda: offer_count(grid), 1)
        yield grid
    finally:
        await grid.stop()


@pytest.mark.parametrize("pause_s", [0, 20])
async def test_a_provider_that_comes_back_at_other_ports_is_bought_from_at_once(
    lonely_grid: Grid, pause_s: float
) -> None:
    grid = lonely_grid
    node = grid.operators[CHEAPER]
    assert await ask(grid) == CHEAPER.name
    before = node.ready
    os.killpg(node.pid, signal.SIGKILL)
    await node.exited()
    if pause_s:
        await until(lambda: operators(grid), set())
        with pytest.raises(openai.APIStatusError):
            await ask(grid)
        await asyncio.sleep(pause_s)  # so long it is away: by then the gateway asks ever less often
    with contextlib.ExitStack() as stack:  # the system gives it other ports, while those are held
        for address in before["addresses"] + before["libp2p_addresses"]:
            stack.enter_context(reserved_port(int(address.split("/")[4])))
        await node.start(timeout_s=60)
    began = time.monotonic()
    assert not set(before["addresses"] + before["libp2p_addresses"]) & set(
        node.ready["addresses"] + node.ready["libp2p_addresses"]
    )

    async def served() -> bool:
        try:
            return await ask(grid) == CHEAPER.name
        except openai.APIStatusError:
            return False

    await until(served, True, deadline_s=SECONDS)
    report(f"bought from again, after {pause_s} s away", began)
    await until(lambda: operators(grid), {CHEAPER.name}, deadline_s=SECONDS)


async def test_records_that_lie_are_refused_and_hide_nobody(lonely_grid: Grid) -> None:
    grid = lonely_grid
    node = grid.operators[CHEAPER]
    bundle = grid.folder / "bundle.jsonl"
    assert (await p2pgrid(node.data, "receipts", "export", str(bundle)))[0] == 0
    records = [parse_json_line(line) for line in bundle.read_bytes().splitlines()]
    offer = next(record for record in records if record.payload_type == "/p2pgrid/offer/1").to_bytes()
    keys = [PROVIDER, country_key("LT"), model_key(MODEL), model_key(MODEL, "LT")]
    options: dict[str, Any] = {
        "listen": ["/ip4/127.0.0.1/tcp/0"],
        "bootstrap": load_bootstrap_peers(NETWORK, Path(peers(grid))),
        "serve_dht": True,
    }
    (address,) = (one.rpartition("/p2p/")[0] for one in node.ready["libp2p_addresses"])
    async with contextlib.AsyncExitStack() as stack:
        liars = [
            Network(secret_key("shows another's offer"), NETWORK, offer=lambda: offer, **options),
            Network(secret_key("shows nonsense"), NETWORK, offer=lambda: b"\xc1", **options),
            Network(secret_key("is said to be elsewhere"), NETWORK, announce=[address], **options),
        ]
        for liar in liars:
            await stack.enter_async_context(liar)
            assert await liar.advertise(keys) >= 1
        rows, _ = await listed(grid, "--timeout", "5")
        assert [row["operator"] for row in rows] == [CHEAPER.name]
        code, output, _ = await p2pgrid(
            *(grid.folder / "visitor", "offers", "--network", NETWORK, "--bootstrap-peers", peers(grid)),
            *("--model", MODEL, "--timeout", "5"),
        )
        assert code == 0 and "1 refused: wrong-key" in output and "1 refused: malformed" in output
        assert "3 did not answer with an offer" in output

        async def refused() -> dict[str, int]:
            health = await get(grid, "/../health")
            return {code: count > 0 for code, count in health["refused"].items()}

        await until(refused, {"wrong-key": True, "malformed": True}, deadline_s=MINUTE)
        assert await operators(grid) == {CHEAPER.name}
        assert await ask(grid) == CHEAPER.name


async def test_offers_can_be_asked_for_what_is_wanted(grid: Grid) -> None:
    for arguments, expected in (
        (("--max-price-output", "0.5"), [CHEAPER.name]),
        (("--max-price-input", "0.12"), [CHEAPER.name]),
        (("--country", "it,de"), [DEARER.name]),
        (("--free", "--sort", "country"), [DEARER.name, CHEAPER.name]),
        (("--min-context", "8000000"), []),
    ):
        rows, _ = await listed(grid, *arguments)
        assert [row["operator"] for row in rows] == expected, arguments
    assert [row["free"] for row in (await listed(grid))[0]] == [8, 8]
    assert {offer["free"] for offer in await on_sale(grid)} == {8}
    visitor = grid.folder / "visitor"
    code, output, _ = await p2pgrid(visitor, "offers", "--network", NETWORK, "--bootstrap-peers", peers(grid))
    assert code == 0 and "8 of 8" in output and " s ago" in output
    code, _, errors = await p2pgrid(visitor, "offers", "--max-price-output", "cheap")
    assert code == 2 and "EUR per million" in errors
