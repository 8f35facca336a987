"""Engines: only what can be counted is offered; what goes down is withdrawn, and comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pgrid.config import ModelConfig
from p2pgrid.data_folder import DataFolder
from p2pgrid.engine.base import CHAT_COMPLETIONS, COMPLETIONS
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.engine.http import HttpEngine
from p2pgrid.errors import EngineError, UsageError
from p2pgrid.provider.engine_plan import plan_engines
from p2pgrid.provider.engines import EnginePlan, EngineSet
from p2pgrid.provider.metering import metered_endpoints
from tests.provider.rig import until


def model(name: str, **fields: object) -> ModelConfig:
    return ModelConfig(**{"name": name, "price_input_eur": "0.2", "price_output_eur": "0.8", **fields})  # type: ignore[arg-type]


async def test_a_metered_engine_is_offered_with_its_own_context() -> None:
    async with serve_fake(FakeVllm(context_tokens=1234)) as url:
        engines = EngineSet([EnginePlan(model("fake", concurrency=3), HttpEngine(url))])
        assert not engines.entries
        await engines.start(5)
        (entry,) = engines.entries
        assert (entry.model, entry.context_tokens, entry.concurrency) == ("fake", 1234, 3)
        assert entry.endpoints == (CHAT_COMPLETIONS, COMPLETIONS)
        await engines.aclose()
        assert not engines.entries


@pytest.mark.parametrize("fault", ["no-ids", "no-usage", "wrong-usage", "wrong-prompt", "error", "garbage", "busy"])
async def test_an_engine_that_cannot_be_counted_is_an_error_that_says_so(fault: str) -> None:
    async with serve_fake(FakeVllm()) as url:
        engine = HttpEngine(url)
        with pytest.raises(EngineError, match=r"cannot be counted|HTTP 503"):
            await metered_endpoints(engine, f"fake+{fault}")
        await engine.aclose()


async def test_a_model_that_the_engine_does_not_serve_is_named_with_those_it_does() -> None:
    async with serve_fake(FakeVllm(models=("a", "b"))) as url:
        engines = EngineSet([EnginePlan(model("c"), HttpEngine(url))])
        with pytest.raises(EngineError, match="does not serve 'c'; it serves 'a', 'b'"):
            await engines.start(5)
        await engines.aclose()


async def test_one_model_that_fails_does_not_keep_the_other_from_being_sold() -> None:
    async with serve_fake(FakeVllm(models=("a",))) as url:
        engine = HttpEngine(url)
        engines = EngineSet([EnginePlan(model("a"), engine), EnginePlan(model("c"), engine)])
        await engines.start(5)
        assert [entry.model for entry in engines.entries] == ["a"]
        await engines.aclose()


async def test_an_engine_that_dies_is_withdrawn_and_offered_again_when_it_is_back(tmp_path: Path) -> None:
    socket, changes = tmp_path / "e.sock", asyncio.Queue[int]()

    async def changed() -> None:
        changes.put_nowait(len(engines.entries))

    engines = EngineSet([EnginePlan(model("fake"), HttpEngine(f"unix:{socket}"))], health_interval_s=0.01)
    async with serve_fake(FakeVllm(), uds=socket):
        await engines.start(5)
        watching = asyncio.create_task(engines.watch(changed))
        await until(lambda: engines.health["fake"].running == 0)
    assert await asyncio.wait_for(changes.get(), 5) == 0
    assert not engines.models["fake"].is_up
    async with serve_fake(FakeVllm(), uds=socket):
        assert await asyncio.wait_for(changes.get(), 5) == 1
        watching.cancel()
        await engines.aclose()


def test_a_plan_needs_an_engine_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PGRID_ENGINE_HOME", str(tmp_path / "engine"))
    data = DataFolder(tmp_path)
    with pytest.raises(UsageError, match="has no engine") as caught:
        plan_engines([model("m")], data)
    assert "model-path" in caught.value.hint
    with pytest.raises(EngineError, match="no engine is installed") as missing:
        plan_engines([model("m", model_path="smollm2")], data)
    assert "p2pgrid engine install" in missing.value.hint
    with pytest.raises(UsageError, match="no engine's URL"):
        plan_engines([model("m", engine_url="ftp://nowhere")], data)
    one, two = plan_engines([model("a", engine_url="http://h:1"), model("b", engine_url="http://h:1")], data)
    assert one.engine is two.engine
