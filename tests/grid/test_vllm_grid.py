"""The whole demo on a real vLLM: two operators that share the run's one server, a gateway, receipts, the audit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.xdist_group("vllm"), pytest.mark.timeout(400)]


def test_the_demo_on_real_vllm(tmp_path: Path, vllm_url: str) -> None:
    command = [
        *(sys.executable, "-m", "p2pgrid", "demo", "--json", "--folder", str(tmp_path / "demo")),
        *("--model", "tiny", "--engine-url", vllm_url),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["audit"]["clean"]
    assert report["tampered_audit"]["findings"][0]["party"] == "client"
    chats = report["chats"]
    assert {chat["country"] for chat in chats} == {"LT", "IT"}
    assert all(chat["output_tokens"] > 0 and chat["cost_pico"] > 0 for chat in chats)
    repeated = chats[3]
    assert repeated["cached_tokens"] > 0, "the prefix cache was not metered"
    assert sum(channel["countersigned"] for channel in report["audit"]["channels"]) == len(chats)
