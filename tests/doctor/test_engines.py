"""Engines: attached ones that answer or do not, and vLLM of the node's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pgrid.config import ModelConfig
from p2pgrid.data_folder import DataFolder
from p2pgrid.doctor import engines
from p2pgrid.doctor.check import State
from p2pgrid.doctor.engines import check_engines
from p2pgrid.engine.environment import HOME_VARIABLE
from p2pgrid.engine.fake import FakeVllm, serve_fake


def model(**changes: Any) -> ModelConfig:
    return ModelConfig(name="a", price_input_eur="0.1", price_output_eur="0.2", **changes)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "engine"))
    monkeypatch.setattr(engines, "ENGINE_TIMEOUT_S", 30)  # however slow the machine is
    return DataFolder(tmp_path / "data")


async def test_an_engine_that_answers(data: DataFolder) -> None:
    async with serve_fake(FakeVllm(models=("a", "b"))) as url:
        [found] = await check_engines([model(engine_url=url)], data, None)
        assert (found.state, found.text) == (State.OK, f"a answers at {url}.")


async def test_an_engine_that_serves_another_model(data: DataFolder) -> None:
    async with serve_fake(FakeVllm(models=("b",))) as url:
        [found] = await check_engines([model(engine_url=url)], data, None)
        assert found.state is State.FAULT
        assert "it serves 'b'" in found.text
        assert "--served-model-name" in found.fix


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"engine_url": "http://127.0.0.1:1"}, "Start it"),
        ({"engine_url": "ftp://x"}, "http://host:port"),
        ({"model_path": "smollm2"}, "p2pgrid engine install"),
        ({}, "model-path"),
    ],
)
async def test_what_is_wrong(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], fix: str
) -> None:
    monkeypatch.setattr(engines, "ENGINE_TIMEOUT_S", 0.3)  # nobody is there who could answer
    [found] = await check_engines([model(**changes)], data, None)
    assert found.state is State.FAULT
    assert fix in found.fix
    assert not data.path.exists()


async def test_no_model(data: DataFolder) -> None:
    assert [one.state for one in await check_engines([], data, None)] == [State.SKIPPED]


async def test_what_a_running_node_says(data: DataFolder) -> None:
    running = {
        "a": {"is_up": True, "running": 2, "concurrency": 8, "detail": ""},
        "b": {"is_up": False, "running": 0, "concurrency": 8, "detail": "it did not answer /health."},
    }
    up, down = await check_engines([model(engine_url="http://127.0.0.1:1")], data, running)
    assert (up.state, up.text) == (State.OK, "a is up: 2 of 8 requests.")
    assert (down.state, down.text) == (State.FAULT, "b is down, and not offered: it did not answer /health.")
    assert str(data.logs) in down.fix
