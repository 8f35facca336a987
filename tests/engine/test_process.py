"""engine.process over a fake `vllm`: start, crash, restart, drain, and never a process left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from p2pgrid.engine.base import CHAT_COMPLETIONS, EngineModel
from p2pgrid.engine.environment import EngineEnvironment
from p2pgrid.engine.process import ManagedVllm
from p2pgrid.engine.serve_command import VllmSettings, serve_arguments, serve_variables
from p2pgrid.errors import EngineError
from tests.engine.asking import ask, body
from tests.engine.fake_environment import make_fake_environment


@pytest.fixture
def environment(tmp_path: Path) -> EngineEnvironment:
    return make_fake_environment(tmp_path / "home")


@asynccontextmanager
async def managed(
    environment: EngineEnvironment, *extra: str, told: list[str] | None = None, drain_timeout_s: int = 5
) -> AsyncIterator[ManagedVllm]:
    settings = VllmSettings(
        model=Path("/models/fake"),
        served_name="fake",
        context_tokens=512,
        extra_arguments=extra,
        drain_timeout_s=drain_timeout_s,
    )
    on_progress = told.append if told is not None else lambda _: None
    engine = ManagedVllm(
        settings, environment, log_path=environment.home / "logs" / "engine.log", on_progress=on_progress
    )
    try:
        yield engine
    finally:
        await engine.aclose()


def group(pgid: int) -> list[psutil.Process]:
    """The living processes of a group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pgid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


async def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - processes tell nobody
            await asyncio.sleep(0.02)


async def test_it_starts_answers_and_leaves_nothing(environment: EngineEnvironment) -> None:
    told: list[str] = []
    async with managed(environment, told=told) as engine:
        with pytest.raises(EngineError, match="the engine is new"):
            await engine.request(CHAT_COMPLETIONS, b"{}", "x")
        await engine.ready(60)
        await engine.ready(60)
        assert engine.models() == (EngineModel(name="fake", context_tokens=512),)
        assert (await ask(engine, body(model="fake"))).counter.is_whole
        assert (await engine.health()).is_healthy
        pgid, url = engine.process_group, engine.url
        assert pgid is not None and url is not None and len(group(pgid)) == 2
        folder = Path(url.removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not group(pgid) and not folder.exists() and engine.state == "stopped"
    assert told[0] == "starting vLLM" and told[-2:] == ["warming up", "the engine is ready"]
    with pytest.raises(EngineError, match="stopped"):
        await engine.ready(1)


async def test_a_start_that_fails_says_why(environment: EngineEnvironment) -> None:
    async with managed(environment, "--fail") as engine:
        with pytest.raises(EngineError, match=r"exit 3.*Cause: ValueError: no such model") as caught:
            await engine.ready(60)
        assert "engine.log" in caught.value.hint and engine.state == "failed" and engine.process_group is None
        assert not (await engine.health()).is_healthy
        with pytest.raises(EngineError, match="no such model"):
            await engine.ready(60)


async def test_a_start_that_takes_too_long_is_ended(environment: EngineEnvironment) -> None:
    async with managed(environment, "--sleep") as engine:
        starting = asyncio.create_task(engine.ready(1.5))
        await until(lambda: engine.process_group)
        pgid = engine.process_group
        with pytest.raises(EngineError, match="not ready within"):
            await starting
        assert pgid is not None and not group(pgid)


async def test_a_start_that_is_cancelled_leaves_nothing(environment: EngineEnvironment) -> None:
    async with managed(environment, "--sleep") as engine:
        starting = asyncio.create_task(engine.ready(60))
        await until(lambda: engine.process_group)
        pgid = engine.process_group
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert pgid is not None and not group(pgid)


async def test_a_crash_is_noticed_told_and_mended(environment: EngineEnvironment) -> None:
    told: list[str] = []
    async with managed(environment, "--stubborn", told=told) as engine:
        await engine.ready(60)
        pgid = engine.process_group
        assert pgid is not None
        (vllm,) = (p for p in group(pgid) if "--uds" in p.cmdline() and "warden" not in " ".join(p.cmdline()))
        answer = await engine.request(CHAT_COMPLETIONS, body(model="fake+endless", fake={"pace_ms": 5}), "x")
        vllm.kill()
        with pytest.raises(EngineError, match="broke off"):
            async for _ in answer:
                pass
        await until(lambda: engine.state == "restarting")
        assert not group(pgid), "the deaf worker of the crashed engine must be gone"
        with pytest.raises(EngineError, match="restarting"):
            await engine.request(CHAT_COMPLETIONS, b"{}", "x")
        await until(lambda: engine.state == "ready")
        assert engine.restarts == 1 and (await ask(engine, body(model="fake"))).counter.is_whole
    assert any("killed" in text and "Restarting in 1 s" in text for text in told)


async def test_what_runs_may_finish_when_it_stops(environment: EngineEnvironment) -> None:
    async with managed(environment) as engine:
        await engine.ready(60)
        answer = await engine.request(
            CHAT_COMPLETIONS, body(model="fake", max_tokens=20, fake={"tokens": 20, "pace_ms": 20}), "x"
        )
        closing = asyncio.create_task(engine.aclose())
        said = b"".join([piece async for piece in answer])
        assert said.endswith(b"data: [DONE]\n\n")
        with pytest.raises(EngineError, match="stopped"):
            await engine.request(CHAT_COMPLETIONS, b"{}", "x")
        await closing


async def test_what_will_not_finish_is_ended(environment: EngineEnvironment) -> None:
    async with managed(environment, "--stubborn", drain_timeout_s=1) as engine:
        await engine.ready(60)
        pgid = engine.process_group
        await engine.request(CHAT_COMPLETIONS, body(model="fake+hang"), "x")
        started = time.monotonic()
        await engine.aclose()
        assert time.monotonic() - started < 20 and pgid is not None
        await until(lambda: not group(pgid))


NODE = """
import asyncio, sys
from pathlib import Path
from p2pgrid.engine.environment import EngineEnvironment
from p2pgrid.engine.process import ManagedVllm
from p2pgrid.engine.serve_command import VllmSettings

async def main():
    settings = VllmSettings(model=Path("/m"), served_name="fake", extra_arguments=("--stubborn",))
    engine = ManagedVllm(settings, EngineEnvironment(Path(sys.argv[1])), log_path=Path(sys.argv[1]) / "log")
    await engine.ready(60)
    print(engine.process_group, engine.url, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def is_dead(process: psutil.Process) -> bool:
    """True once it runs no more, reaped or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("victim", ["node", "warden"])
async def test_it_dies_with_its_parent(environment: EngineEnvironment, victim: str) -> None:
    command = [sys.executable, "-c", NODE, str(environment.home)]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - over in milliseconds
    try:
        assert node.stdout is not None
        pgid, url = (await asyncio.to_thread(node.stdout.readline)).split()
        vllm = next(p for p in group(int(pgid)) if p.pid != int(pgid))
        os.kill(node.pid if victim == "node" else int(pgid), signal.SIGKILL)
        await until(lambda: is_dead(vllm))
        await until(lambda: not group(int(pgid)))
        if victim == "node":
            await until(lambda: not Path(url.removeprefix("unix:")).parent.exists())
    finally:
        node.kill()
        node.wait()


async def test_a_missing_environment_says_how_to_get_one(tmp_path: Path) -> None:
    async with managed(EngineEnvironment(tmp_path)) as engine:
        with pytest.raises(EngineError, match="no engine is installed") as caught:
            await engine.ready(1)
        assert "p2pgrid engine install" in caught.value.hint


def test_the_command_on_a_cpu() -> None:
    settings = VllmSettings(model=Path("/m"), served_name="name", cpu_threads=1, context_tokens=128, max_waiting=4)
    arguments = serve_arguments(settings, device="cpu", socket_path=Path("/run/e.sock"))
    joined = " ".join(arguments)
    assert joined.startswith("serve /m --served-model-name name --uds /run/e.sock --enable-prompt-tokens-details ")
    for part in ("--enforce-eager", "--max-model-len 128", "--max-num-queued-reqs 4", "--shutdown-timeout 30"):
        assert part in joined
    variables = serve_variables(settings, device="cpu", folder=Path("/run/e"))
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind" and variables["OMP_NUM_THREADS"] == "1"
    assert variables["VLLM_NO_USAGE_STATS"] == variables["DO_NOT_TRACK"] == variables["HF_HUB_OFFLINE"] == "1"


def test_the_command_on_a_gpu() -> None:
    settings = VllmSettings(model=Path("/m"), served_name="name", gpu_memory_share=0.5, tensor_parallel=2)
    joined = " ".join(serve_arguments(settings, device="cuda", socket_path=Path("/e")))
    assert "--gpu-memory-utilization 0.5" in joined and "--tensor-parallel-size 2" in joined
    assert "--enforce-eager" not in joined
    assert "VLLM_CPU_KVCACHE_SPACE" not in serve_variables(settings, device="cuda", folder=Path("/e"))
