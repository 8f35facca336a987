"""Sales between real processes: what is billed when a program leaves, a peer is killed, a wish cannot be met."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from typing import Any

import aiohttp
import openai
import pytest

from p2pgrid.demo.grid import CHEAPER, DEARER, Grid
from tests.grid.conftest import MODEL, FakeEngine, audit_everything, offer_count, p2pgrid, receipts, until

pytestmark = pytest.mark.process

SLOW = {"fake": {"pace_ms": 20, "tokens": 2000}}


def program(grid: Grid) -> openai.AsyncOpenAI:
    assert grid.gateway is not None
    return openai.AsyncOpenAI(base_url=str(grid.gateway.ready["base_url"]), api_key="any", max_retries=0)


async def ask(grid: Grid, **more: Any) -> Any:
    async with program(grid) as client:
        return await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=8, **more
        )


async def running(engine: FakeEngine) -> int:
    return int((await engine.state())["running"])


async def newest(grid: Grid, node: Any) -> dict[str, Any]:
    """The newest receipt of a node, once both have signed it."""
    rows: list[dict[str, Any]] = await until(
        lambda: receipts(node.data), lambda rows: bool(rows) and all(row["countersigned"] for row in rows)
    )
    return rows[0]


async def read_some(grid: Grid, chunks: int, *, then: Any = None, pace_ms: int = 20) -> int:
    """Read chunks of a long answer, do `then`, and leave. The tokens that were seen."""
    tokens = 0
    async with program(grid) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=2000,
            stream=True,
            extra_body={"fake": {"pace_ms": pace_ms, "tokens": 2000}},
        )
        async for chunk in stream:
            tokens += 1 if chunk.choices and chunk.choices[0].delta.content else 0
            if tokens == chunks:
                if then is not None:
                    await then()
                break
        await stream.close()
    return tokens


async def read_until_cut(grid: Grid, chunks: int, cut: Any) -> int:
    """Read a long answer, `cut` it off after so many chunks, and read what has come up to there. Its tokens."""
    tokens, is_cut = 0, False
    async with program(grid) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=2000,
            stream=True,
            extra_body=SLOW,
        )
        with pytest.raises(openai.APIError):
            async for chunk in stream:
                tokens += 1 if chunk.choices and chunk.choices[0].delta.content else 0
                if tokens >= chunks and not is_cut:
                    is_cut = True
                    await cut()
    return tokens


async def test_a_program_that_leaves_stops_the_engine_and_pays_for_what_it_got(
    grid: Grid, fake_engine: FakeEngine
) -> None:
    # So slow that a program which is late by seconds still leaves within the window of 64.
    seen = await read_some(grid, 10, pace_ms=200)
    await until(lambda: running(fake_engine), 0)
    receipt = await newest(grid, grid.operators[CHEAPER])
    assert receipt["status"] == "cancelled"
    assert seen <= receipt["output_tokens"] <= seen + 64
    assert receipt == await newest(grid, grid.gateway)
    assert (await audit_everything(grid))["clean"]


async def test_a_provider_killed_in_mid_answer_is_paid_what_was_acknowledged(grid: Grid) -> None:
    victim = grid.operators[CHEAPER]

    async def kill() -> None:
        os.killpg(victim.pid, signal.SIGKILL)

    seen = await read_until_cut(grid, 100, kill)
    await victim.exited()
    # The grid goes on with the other operator at once.
    assert (await ask(grid)).choices[0].message.content
    # The killed one comes back, proposes what was acknowledged, and the gateway signs it when it calls again.
    keep_address(victim)
    await victim.start(timeout_s=60)
    await until(lambda: _has_interrupted(victim), lambda row: row is not None and row["countersigned"])
    row = await _has_interrupted(victim)
    assert row is not None
    assert row["output_tokens"] % 32 == 0  # a tick every half window of 64
    assert seen - 64 <= row["output_tokens"] <= seen
    verdict = await audit_everything(grid)
    assert verdict["clean"], verdict["findings"]


def keep_address(node: Any) -> None:
    """Let a restarted node listen where it did before, as a node with a port of its own does."""
    port = node.ready["addresses"][0].split("/tcp/")[1].split("/")[0]
    config = node.data / "config.toml"
    config.write_text(config.read_text().replace('listen = "127.0.0.1:0"', f'listen = "127.0.0.1:{port}"', 1))


async def _has_interrupted(node: Any) -> dict[str, Any] | None:
    return next((row for row in await receipts(node.data) if row["status"] == "interrupted"), None)


async def test_a_gateway_killed_in_mid_answer_loses_no_record(grid: Grid) -> None:
    assert grid.gateway is not None
    gateway = grid.gateway

    async def kill() -> None:
        os.killpg(gateway.pid, signal.SIGKILL)

    with pytest.raises((openai.APIError, aiohttp.ClientError, Exception)):
        await read_some(grid, 100, then=kill)
        raise openai.OpenAIError("left")
    await gateway.exited()
    await gateway.start(timeout_s=60)
    await until(lambda: offer_count(grid), lambda count: count == 2)
    assert (await ask(grid)).choices[0].message.content
    row = await until(
        lambda: _has_interrupted(grid.operators[CHEAPER]), lambda row: row is not None and row["countersigned"]
    )
    assert row["output_tokens"] >= 32
    verdict = await audit_everything(grid)
    assert verdict["clean"], verdict["findings"]


async def test_many_at_once_are_numbered_without_a_gap(grid: Grid) -> None:
    await asyncio.gather(*(ask(grid) for _ in range(24)))

    async def sold() -> list[list[dict[str, Any]]]:
        return [await receipts(grid.operators[operator].data) for operator in (CHEAPER, DEARER)]

    def requests(rows: list[dict[str, Any]]) -> int:
        """That stand on receipts which both have signed."""
        return sum(max(row["requests"], 1) for row in rows if row["countersigned"])

    # The receipt of requests that share an order comes a moment after the last answer.
    both = await until(sold, lambda both: sum(map(requests, both)) >= 24)
    for rows in both:
        assert [row["receipt_number"] for row in rows] == list(range(len(rows), 0, -1))
        assert all(row["countersigned"] for row in rows)
    # The cheaper operator serves eight at once; what it has no room for goes to the other.
    assert sum(map(requests, both)) == 24
    assert requests(both[0]) >= 8
    assert (await audit_everything(grid))["clean"]


async def test_wishes_that_cannot_be_met_say_so(grid: Grid) -> None:
    async with program(grid) as client:
        with pytest.raises(openai.NotFoundError, match=MODEL):
            await client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.APIStatusError, match="FI") as nobody:
            await client.with_options(default_headers={"X-P2pgrid-Country": "FI"}).chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "x"}]
            )
        assert nobody.value.status_code in (404, 503)
        with pytest.raises(openai.APIStatusError) as dear:
            await client.with_options(
                default_headers={"X-P2pgrid-Max-Cost-EUR": "0.000000001"}
            ).chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
        assert dear.value.status_code == 402
        answer = await client.with_options(
            default_headers={"X-P2pgrid-Country": "IT"}
        ).chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=4
        )
        assert answer.headers["x-p2pgrid-operator"] == DEARER.name


async def test_offers_are_found_and_filtered(grid: Grid) -> None:
    peers = str(grid.folder / "bootstrap_peers.toml")
    code, output, errors = await p2pgrid(
        grid.folder / "visitor", "offers", "--network", "demo", "--bootstrap-peers", peers, "--json"
    )
    assert code == 0, errors
    assert {row["country"] for row in _rows(output)} == {"LT", "IT"}
    code, output, _ = await p2pgrid(
        *(grid.folder / "visitor", "offers", "--network", "demo", "--bootstrap-peers", peers),
        *("--country", "IT", "--model", MODEL, "--json"),
    )
    assert [row["operator"] for row in _rows(output)] == [DEARER.name]


def _rows(output: str) -> list[dict[str, Any]]:
    import json

    parsed = json.loads(output)
    rows: list[dict[str, Any]] = parsed["offers"] if isinstance(parsed, dict) else parsed
    return rows


async def test_ports_keys_and_configurations_that_are_wrong_say_what_to_do(grid: Grid) -> None:
    assert grid.gateway is not None
    taken = str(grid.gateway.ready["base_url"]).split("//")[1].split("/")[0]
    code, _, errors = await p2pgrid(
        grid.folder / "second",
        "gateway",
        "--listen",
        taken,
        "--network",
        "demo",
        "--bootstrap-peers",
        str(grid.folder / "bootstrap_peers.toml"),
    )
    assert code == 3
    assert taken.split(":")[1] in errors
    code, _, errors = await p2pgrid(grid.folder / "nobody", "serve")
    assert code == 2
    assert "p2pgrid init" in errors
    key = grid.gateway.data / "key"
    key.chmod(0o644)
    code, _, errors = await p2pgrid(grid.gateway.data, "gateway", "--listen", "127.0.0.1:0")
    assert code == 2
    assert "chmod 600" in errors
    key.chmod(0o600)


async def test_requests_asked_at_once_share_a_receipt(grid: Grid) -> None:
    async with program(grid) as client:
        create = client.chat.completions.with_raw_response.create
        message = {"role": "user", "content": "hello"}
        for _ in range(3):  # they are paid for, and that covers an order of many requests
            long = {"fake": {"tokens": 2000}}
            await create(model=MODEL, messages=[message], max_tokens=2000, extra_body=long)  # type: ignore[list-item]
        # Each takes two seconds, so that all are on their way at once however slowly they are sent.
        overlapping = {"fake": {"pace_ms": 250, "tokens": 8}}
        answers = await asyncio.gather(
            *(
                create(model=MODEL, messages=[message], max_tokens=8, extra_body=overlapping)  # type: ignore[list-item]
                for _ in range(8)
            )
        )
    assert all(answer.parse().choices[0].message.content for answer in answers)
    # Which order, and which of its requests: no two are the same.
    names = {answer.headers["x-p2pgrid-order"] for answer in answers}
    shared = [re.fullmatch(r"[0-9a-f]{64}:([0-9]+)/([0-9]|1[0-5])", name) for name in names]
    assert len(names) == 8 and any(shared)
    gateway = grid.gateway
    assert gateway is not None
    rows = await until(lambda: receipts(gateway.data), lambda rows: sum(max(row["requests"], 1) for row in rows) == 11)
    assert any(row["requests"] > 1 for row in rows)
    billed = {int(row["order_number"]): row for row in rows}
    assert all(billed[int(name[1])]["requests"] > int(name[2]) for name in shared if name is not None)
    told_pico = sum(int(answer.headers["x-p2pgrid-cost-pico"]) for answer in answers)
    assert told_pico == sum(int(row["amount_pico"]) for row in rows[: len(rows) - 3])
    verdict = await audit_everything(grid)
    assert verdict["clean"], verdict["findings"]
