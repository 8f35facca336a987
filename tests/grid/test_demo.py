"""`p2pgrid demo`, as a stranger runs it, over the fake engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from p2pgrid.demo import run
from p2pgrid.demo.grid import CHEAPER, Grid
from p2pgrid.demo.processes import NodeProcess
from tests.grid.conftest import MODEL, FakeEngine

pytestmark = pytest.mark.process


def demo(folder: Path, engine_url: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "p2pgrid", "demo", "--folder", str(folder)),
        *("--model", MODEL, "--engine-url", engine_url, *more),
    ]


def left_running(folder: Path) -> list[list[str]]:
    """Processes whose command line names the folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any(str(folder) in part for part in command):
            found.append(command)
    return found


def test_it_buys_audits_and_leaves_nothing_running(tmp_path: Path, fake_engine: FakeEngine) -> None:
    folder = tmp_path / "demo"
    done = subprocess.run(demo(folder, fake_engine.url, "--json"), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    chats = report["chats"]
    assert [chat["country"] for chat in chats] == ["LT"] * 7 + ["IT"] * 2
    assert any(chat["cached_tokens"] for chat in chats)
    assert {chat["streamed"] for chat in chats} == {True, False}
    for chat in chats:
        prices = {"LT": (100_000, 400_000), "IT": (150_000, 600_000)}[chat["country"]]
        uncached = (chat["prompt_tokens"] - chat["cached_tokens"]) * prices[0]
        cached = chat["cached_tokens"] * {"LT": 20_000, "IT": 50_000}[chat["country"]]
        assert chat["cost_pico"] == uncached + cached + chat["output_tokens"] * prices[1]
    assert report["audit"]["clean"]
    assert sum(c["countersigned"] for c in report["audit"]["channels"]) == len(chats)
    assert sum(c["countersigned_pico"] for c in report["audit"]["channels"]) == sum(c["cost_pico"] for c in chats)
    assert not report["tampered_audit"]["clean"]
    assert {finding["party"] for finding in report["tampered_audit"]["findings"]} == {"client"}
    assert left_running(folder) == []


def test_keep_stays_until_it_is_interrupted_and_cleans_up(tmp_path: Path, fake_engine: FakeEngine) -> None:
    folder = tmp_path / "demo"
    process = subprocess.Popen(
        demo(folder, fake_engine.url, "--keep"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if "Press Ctrl-C" in line:
            break
    assert "curl http://127.0.0.1:" in shown, shown
    assert "ledger.sqlite" in shown
    assert len(left_running(folder)) >= 4  # the demo itself, bootstrap, one operator, gateway
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert left_running(folder) == []


def test_a_failed_step_is_named_with_its_log(tmp_path: Path, fake_engine: FakeEngine) -> None:
    folder = tmp_path / "demo"
    command = [*demo(folder, fake_engine.url), "--model", "unknown"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "Start two operators" in done.stderr
    assert str(folder / "operator-") in done.stderr
    assert "serve.log" in done.stderr
    assert "does not serve 'unknown'" in done.stderr
    assert left_running(folder) == []


def test_a_demo_that_is_killed_takes_its_processes_with_it(tmp_path: Path, fake_engine: FakeEngine) -> None:
    folder = tmp_path / "demo"
    process = subprocess.Popen(
        demo(folder, fake_engine.url, "--keep"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert any("Press Ctrl-C" in line for line in process.stdout)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_a_folder_that_is_not_its_own_is_left_alone(tmp_path: Path, fake_engine: FakeEngine) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run(demo(tmp_path, fake_engine.url), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


async def test_receipts_that_are_still_to_come_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three chats two share an order: its receipt is proposed after the last answer, and signed after that."""

    def row(requests: int, *, countersigned: bool = True) -> dict[str, Any]:
        return {"requests": requests, "countersigned": countersigned}

    listed = [[], [row(0)], [row(2, countersigned=False), row(0)], [row(2), row(0)]]

    async def list_receipts(*_: Any) -> bytes:
        return json.dumps(listed.pop(0)).encode()

    monkeypatch.setattr(run, "_p2pgrid", list_receipts)
    grid = Grid(tmp_path)
    grid.operators[CHEAPER] = NodeProcess("operator", tmp_path, "serve")
    await run._receipts_settled(grid, CHEAPER, 3)
    assert listed == []
