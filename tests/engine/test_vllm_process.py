"""engine.process with a real vLLM: drained at its end, with nothing left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pgrid.engine.base import CHAT_COMPLETIONS
from p2pgrid.engine.environment import EngineEnvironment
from p2pgrid.engine.process import ManagedVllm
from tests.conftest import START_TIMEOUT_S, tiny_settings
from tests.engine.asking import body
from tests.engine.test_process import group, until

pytestmark = [pytest.mark.vllm, pytest.mark.xdist_group("vllm"), pytest.mark.timeout(600)]


async def test_it_crashes_recovers_and_drains(vllm_environment: EngineEnvironment, tmp_path: Path) -> None:
    told: list[str] = []
    engine = ManagedVllm(
        tiny_settings(vllm_environment), vllm_environment, log_path=tmp_path / "log", on_progress=told.append
    )
    try:
        await engine.ready(START_TIMEOUT_S)
        assert engine.models()[0].name == "tiny" and engine.models()[0].context_tokens == 2048
        first_group = engine.process_group
        assert first_group is not None
        next(p for p in group(first_group) if "EngineCore" in p.name() or "EngineCore" in "".join(p.cmdline())).kill()
        await until(lambda: engine.state == "restarting", 60)
        await until(lambda: not group(first_group), 60)
        await until(lambda: engine.state == "ready", START_TIMEOUT_S)

        pgid = engine.process_group
        assert pgid is not None
        request = body(model="tiny", max_tokens=600, ignore_eos=True)
        answers = [await engine.request(CHAT_COMPLETIONS, request, f"drain-{i}") for i in range(2)]
        pieces = [aiter(answer) for answer in answers]
        said = [await anext(one) + await anext(one) for one in pieces]  # a head alone is not yet work that is drained
        closing = asyncio.create_task(engine.aclose())
        said = [first + b"".join([piece async for piece in rest]) for first, rest in zip(said, pieces, strict=True)]
        for one in said:
            assert one.endswith(b"data: [DONE]\n\n") and b'"completion_tokens":600' in one, one[-400:]
        await closing
        assert not group(pgid)
    finally:
        await engine.aclose()
    assert any("Restarting" in text for text in told)
