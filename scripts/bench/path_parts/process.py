"""Child processes of the benchmark: none outlives it, each is pinned to its core."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)
OPEN_FILES: Final = 16_384


class BenchError(Exception):
    """Something that the benchmark needs is not there, or did not do what it should. The text is for people."""


class Process:
    """One process with its log file. It ends with the benchmark, whatever ends that."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        core: int | None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it. `core`: where all its threads run; None leaves that to the kernel."""
        self.name: Final = name
        self.log: Final = log
        self._core = core
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._popen = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=_in_child,
            )
        self.pin()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def pids(self) -> list[int]:
        """The process and all that it has started."""
        return [self.pid, *_descendants(self.pid)]

    def pin(self) -> None:
        """Put all its threads on its core. Threads that they start later stay there too."""
        if self._core is None:
            return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(int(task.name), {self._core})

    def ready_line(self, timeout_s: float) -> dict[str, Any]:
        """The one JSON object that it prints when it is ready. Raises BenchError."""
        assert self._popen.stdout is not None
        ready, _, _ = select.select([self._popen.stdout], [], [], timeout_s)
        line = self._popen.stdout.readline() if ready else b""
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self.failure("did not say that it is ready") from None
        self.pin()
        return said

    def check_runs(self) -> None:
        """Raise BenchError if it has ended."""
        if self._popen.poll() is not None:
            raise self.failure(f"ended with exit code {self._popen.returncode}")

    def wait_for_port(self, port: int, timeout_s: float) -> None:
        """Wait until something listens on `port`. Raises BenchError."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            self.check_runs()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                self.pin()
                return
            time.sleep(0.05)
        raise self.failure(f"did not listen on port {port} within {timeout_s:.0f} s")

    def stop(self, grace_s: float = 15.0) -> None:
        """SIGTERM, a bounded wait, then SIGKILL for all that it started. Safe to call twice."""
        if self._popen.poll() is None:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        if self._popen.stdout is not None:
            self._popen.stdout.close()

    def failure(self, what: str) -> BenchError:
        """An error that shows the end of the log."""
        with contextlib.suppress(OSError):
            tail = self.log.read_text(errors="replace").splitlines()[-8:]
            return BenchError("\n    ".join([f"{self.name} {what}. The end of {self.log}:", *tail]))
        return BenchError(f"{self.name} {what}. Its log: {self.log}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_ns(pids: Sequence[int]) -> int:
    """CPU time of all threads of these processes, by the kernel's per-process clocks."""
    return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids)


def memory_bytes(pid: int) -> int:
    """Resident memory of a process, as if it were alone on its machine: what it shares with others counts too."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def _in_child() -> None:
    """Be told to stop when the benchmark dies, and be allowed 1,000 connections on either side."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def say(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
