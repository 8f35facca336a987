"""The demo's child processes: started, awaited, watched, stopped with everything they started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from p2pgrid.errors import LocalError

_LOG_TAIL_LINES: Final = 12
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class NodeProcess:
    """One `p2pgrid` command in a process of its own, with its own data folder and log file.

    The command is expected to print one JSON object on standard output when it is ready (`--json`).
    """

    module = "p2pgrid"
    """What Python runs."""

    def __init__(
        self,
        name: str,
        data: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix`: a command that runs another, put in front of this one (`nsenter ...`); it must keep the process."""
        self.name: Final = name
        self.data: Final = data
        self.log: Final = data / "logs" / f"{arguments[0]}.log"
        self.ready: dict[str, Any] = {}
        self._arguments = arguments
        self._prefix = tuple(prefix)
        self._environment = environment or {}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process's id; 0 before it is started."""
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        """True between start and exit."""
        return self._process is not None and self._process.returncode is None

    async def start(self, timeout_s: float) -> dict[str, Any]:
        """Start, and wait until it says that it is ready. Raises LocalError with the end of its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._prefix,
                sys.executable,
                "-m",
                self.module,
                "--data",
                str(self.data),
                *self._arguments,
                "--json",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.stop()
            raise self._failure(f"was not ready after {timeout_s:.0f} s") from None
        try:
            self.ready = json.loads(line)
        except ValueError:
            code = await self._process.wait() if not line else None
            await self.stop()
            raise self._failure(f"ended with exit code {code}" if code is not None else "printed no JSON") from None
        return self.ready

    async def stop(self, *, grace_s: float = 25.0) -> None:
        """SIGTERM, a bounded wait, then SIGKILL for its whole process group. Safe to call twice."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_s):
                    await process.wait()
            except TimeoutError:
                self._kill_group(process.pid)
                await process.wait()
        self._kill_group(process.pid)

    async def exited(self) -> int:
        """Wait until it ends; its exit code."""
        assert self._process is not None
        return await self._process.wait()

    def failure(self, what: str) -> LocalError:
        """An error that names this process, its log, and shows the log's end."""
        return self._failure(what)

    def _failure(self, what: str) -> LocalError:
        try:
            tail = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        except OSError:
            tail = []
        shown = "".join(f"\n    {line}" for line in tail)
        return LocalError(f"{self.name} {what}.", hint=f"Its log: {self.log}{shown}")

    @staticmethod
    def _kill_group(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _die_with_parent() -> None:
    """In the child: be told to stop if the demo is killed, so that nothing is left running even then."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
