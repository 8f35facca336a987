"""One real vLLM with the tiny random model, shared by every test of a run that is marked `vllm`; logging that no test
leaves changed; marks that `scripts/test` finds."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from p2pgrid.engine.environment import EngineEnvironment, engine_environment
from p2pgrid.engine.process import ManagedVllm
from p2pgrid.engine.serve_command import VllmSettings
from p2pgrid.errors import EngineError

START_TIMEOUT_S = 300.0

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`scripts/test` looks for tests of processes and of vLLM where a file has the mark's name in it."""
    marked = {(item.path, name) for item in items for name in ("process", "vllm") if item.get_closest_marker(name)}
    for path, name in sorted(marked):
        if f"mark.{name}" not in path.read_text():
            raise pytest.UsageError(f"{path} has a test marked {name!r} and no 'mark.{name}': scripts/test misses it.")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that runs in this process sets up the logging of a process of its own (`processes.logs`)."""
    root = logging.getLogger()
    of_root = root.level, root.handlers[:]
    of_module = {
        name: getattr(logging, name) for name in ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile")
    }
    yield
    root.setLevel(of_root[0])
    root.handlers[:] = of_root[1]
    for name, value in of_module.items():
        setattr(logging, name, value)


@pytest.fixture(scope="session")
def vllm_environment() -> EngineEnvironment:
    """The engine's environment with the tiny model in it; without one the test is skipped, or fails if told so."""
    environment = engine_environment()
    try:
        environment.require()
        environment.require_model("tiny")
    except EngineError as error:
        if os.environ.get("P2PGRID_REQUIRE_VLLM") == "1":
            raise
        pytest.skip(f"{error} (P2PGRID_REQUIRE_VLLM=1 makes this a failure)")
    return environment


def tiny_settings(environment: EngineEnvironment, **more: object) -> VllmSettings:
    fields: dict[str, object] = {"tool_call_parser": "hermes", "cpu_threads": 1, "max_running": 8, "max_waiting": 4}
    model = environment.require_model("tiny")
    return VllmSettings(model=model, served_name="tiny", **(fields | more))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def vllm_url(vllm_environment: EngineEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the shared server. Its loop stands still between start and stop; the server does not mind."""
    log_path = tmp_path_factory.mktemp("vllm") / "engine.log"
    with asyncio.Runner() as runner:
        engine = ManagedVllm(tiny_settings(vllm_environment), vllm_environment, log_path=log_path)
        try:
            runner.run(engine.ready(START_TIMEOUT_S))
            assert engine.url is not None
            yield engine.url
        finally:
            runner.run(engine.aclose())
