"""vLLM as the node's own child: started, watched, restarted, drained, and gone when the node is.

It listens on a unix socket in a private folder, so no port is taken and nobody else reaches the endpoints that vLLM
leaves open. A `warden` process leads its group. A start that fails before the engine was ever ready is an error for
whoever waits; later crashes are told to `on_progress` and answered with a restart, after 1, 2, 4 ... 60 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, Literal

import msgspec

from p2pgrid.engine import warden
from p2pgrid.engine.answer import read_answer
from p2pgrid.engine.base import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    AnswerReader,
    EngineAnswer,
    EngineHealth,
    EngineModel,
    OpenAnswer,
    check_request,
)
from p2pgrid.engine.environment import EngineEnvironment
from p2pgrid.engine.http import HttpEngine
from p2pgrid.engine.http_client import EngineLimits
from p2pgrid.engine.serve_command import MAX_SOCKET_PATH_BYTES, VllmSettings, serve_arguments, serve_variables
from p2pgrid.engine.step import clean_environment
from p2pgrid.errors import EngineError, LocalError

State = Literal["new", "starting", "ready", "restarting", "failed", "stopped"]

_POLL_S: Final = 0.25
_WARM_UP_TIMEOUT_S: Final = 180.0
_FIRST_BACKOFF_S: Final = 1.0
_MAX_BACKOFF_S: Final = 60.0
_CALM_S: Final = 600.0
"""After this long without a crash the backoff starts over."""
_MAX_CRASHES: Final = 6
_KILL_MARGIN_S: Final = 10.0
_GROUP_END_S: Final = 1.0
"""Longest wait for the killed; where init reaps orphans late, the dead keep their group and this runs out."""
_GROUP_POLL_S: Final = 0.02
_LOG_TAIL_BYTES: Final = 64 * 2**10

_STAGES: Final = (
    (b"Resolved architecture", "vLLM is loaded and reads the model"),
    (b"Initializing a V1 LLM engine", "the engine core starts"),
    (b"Starting to load model", "loading the weights"),
    (b"Loading weights took", "the weights are loaded"),
    (b"KV cache size", "the KV cache is laid out"),
    (b"Application startup complete", "the server listens"),
)
_CAUSE: Final = re.compile(r"\b\w*(?:Error|Exception): (?!Engine core initialization failed).+")


class ManagedVllm:
    """One `vllm serve` (see `base.Engine`). Use it on one event loop, and `aclose` it."""

    def __init__(
        self,
        settings: VllmSettings,
        environment: EngineEnvironment,
        *,
        log_path: Path,
        on_progress: Callable[[str], None] = lambda _: None,
        limits: EngineLimits | None = None,
    ) -> None:
        self.settings: Final = settings
        self.log_path: Final = log_path
        self.state: State = "new"
        self.restarts = 0
        self._environment, self._on_progress, self._limits = environment, on_progress, limits
        self._failure: EngineError | None = None
        self._changed = asyncio.Event()
        self._engine: HttpEngine | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._folder: Path | None = None
        self._log_start = 0
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def process_group(self) -> int | None:
        """The id of the group that holds every process of the engine; None while none runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def url(self) -> str | None:
        """Where it listens, for programs on this machine that watch it; None while it does not."""
        return self._engine.url if self._engine is not None else None

    def models(self) -> tuple[EngineModel, ...]:
        return self._engine.models() if self._engine is not None else ()

    async def ready(self, timeout_s: float) -> None:
        """Start it if it was not, and wait until it is warm.

        Raises EngineError with the engine's last words if it fails, or is not ready in time; it is stopped then.
        """
        if self.state == "stopped":
            raise EngineError("the engine was stopped.", hint="Make a new one.")
        if self._supervisor is None:
            self._environment.require()
            self._supervisor = asyncio.create_task(self._supervise(), name="vllm supervisor")
            self._supervisor.add_done_callback(lambda _: self._changed.set())
            self._set_state("starting")
        try:
            async with asyncio.timeout(timeout_s):
                while self.state != "ready":
                    if self._supervisor.done():
                        await self._supervisor  # a fault of this module's own comes out here
                        raise self._failure or EngineError("the engine was stopped.")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._failure = self._told(f"vLLM was not ready within {timeout_s:.0f} s")
            raise self._failure from None
        finally:
            if self.state == "starting":
                await self._end_supervisor()
                await self._clear()
                self._set_state("failed")

    def ask(self, endpoint: str, body: bytes, request_id: str, reader: AnswerReader) -> OpenAnswer:
        check_request(endpoint, request_id)
        if self._engine is None or self.state != "ready":
            raise EngineError(f"the engine is {self.state}.", hint=f"Its log is {self.log_path}.")
        return self._engine.ask(endpoint, body, request_id, reader)

    async def request(self, endpoint: str, body: bytes, request_id: str) -> EngineAnswer:
        return await read_answer(self, endpoint, body, request_id)

    async def health(self) -> EngineHealth:
        if self._engine is None or self.state != "ready":
            return EngineHealth(is_healthy=False, detail=f"the engine is {self.state}")
        return await self._engine.health()

    async def aclose(self) -> None:
        """Let what runs finish (`drain_timeout_s`), then stop. New requests are refused at once."""
        self._set_state("stopped")
        await self._end_supervisor()
        try:
            if self._process is not None and self._process.returncode is None:
                self._process.send_signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), self.settings.drain_timeout_s + _KILL_MARGIN_S)
        finally:
            await self._clear()

    async def _supervise(self) -> None:
        """Start, watch, restart, until told to stop or the engine will not run."""
        crashes = 0
        while True:
            started = time.monotonic()
            try:
                await self._start()
                self._set_state("ready")
                self._on_progress("the engine is ready")
                status = await self._wait_for_exit()
                failure = self._told(f"vLLM ended by itself ({_meaning(status)})")
            except LocalError as error:
                failure = error if isinstance(error, EngineError) else EngineError(error.message, hint=error.hint)
            crashes = 1 if time.monotonic() - started > _CALM_S else crashes + 1
            await self._clear()
            if self.state == "starting" or crashes >= _MAX_CRASHES:
                self._failure = failure
                self._set_state("failed")
                return
            backoff_s = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (crashes - 1))
            self._set_state("restarting")
            self._on_progress(f"{failure.message} Restarting in {backoff_s:.0f} s.")
            await asyncio.sleep(backoff_s)
            self.restarts += 1

    async def _start(self) -> None:
        """Spawn it and return once it is warm. Raises EngineError if it exits before."""
        installed = self._environment.require()
        self._folder = folder = _make_socket_folder()
        socket_path = folder / "vllm.sock"
        arguments = serve_arguments(self.settings, device=installed.device, socket_path=socket_path)
        variables = serve_variables(self.settings, device=installed.device, folder=folder)
        search_path = f"{self._environment.env / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self._on_progress("starting vLLM")
        with _open_log(self.log_path) as log:
            self._log_start = os.fstat(log.fileno()).st_size
            command = [sys.executable, "-I", "-S", warden.__file__, folder, self._environment.vllm, *arguments]
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *map(str, command),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    env=clean_environment() | {"PATH": search_path} | variables,
                )
            except OSError as error:
                raise LocalError(f"the engine's process does not start: {error}.") from None
        self._engine = HttpEngine(f"unix:{socket_path}", limits=self._limits)
        await self._until_healthy(self._engine)
        self._on_progress("warming up")
        await _warm_up(self._engine, self.settings.served_name)

    async def _until_healthy(self, engine: HttpEngine) -> None:
        """Poll until it answers, telling each stage that its log shows."""
        exited = asyncio.create_task(self._wait_for_exit())
        stages, position = list(_STAGES), self._log_start
        try:
            while True:
                done, _ = await asyncio.wait({exited}, timeout=_POLL_S)
                if done:
                    raise self._told(f"vLLM ended while it started ({_meaning(exited.result())})")
                words, position = _read_from(self.log_path, position)
                while stages and any(mark in words for mark, _ in stages):
                    mark, stage = stages.pop(0)
                    if mark in words:
                        self._on_progress(stage)
                if (await engine.health()).is_healthy:
                    await engine.ready(_POLL_S)
                    return
        finally:
            exited.cancel()

    async def _wait_for_exit(self) -> int:
        """The engine's exit status, as the warden tells it; the warden's own where it could not."""
        process = self._process
        assert process is not None and process.stdout is not None
        told = await process.stdout.read(256)
        warden_status = await process.wait()
        found = re.search(rb"exit (-?\d+)", told)
        return int(found[1]) if found else warden_status

    async def _clear(self) -> None:
        """Leave no process, session or folder of the last start behind."""
        if self._process is not None:
            # The group outlives its leader while any member lives; empty, its number is not given out again so soon.
            deadline = time.monotonic() + _GROUP_END_S
            with contextlib.suppress(ProcessLookupError, PermissionError):
                while time.monotonic() < deadline:  # the dying hold memory, which the next start needs
                    os.killpg(self._process.pid, signal.SIGKILL)
                    await asyncio.sleep(_GROUP_POLL_S)
            await self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self._engine is not None:
            await self._engine.aclose()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._engine = self._folder = None

    async def _end_supervisor(self) -> None:
        if self._supervisor is not None and not self._supervisor.done():
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})

    def _set_state(self, state: State) -> None:
        self.state = state
        self._changed.set()

    def _told(self, what: str) -> EngineError:
        """An error with the cause that the log names, and the last lines."""
        words, _ = _read_from(self.log_path, self._log_start, _LOG_TAIL_BYTES)
        text = words.decode(errors="replace")
        cause = _CAUSE.search(text)
        lines = [line for line in text.splitlines() if line.strip()][-6:]
        message = f"{what}." + (f" Cause: {cause[0][:300]}" if cause else "")
        return EngineError(message + "\nLast lines:\n  " + "\n  ".join(lines), hint=f"\nIts log is {self.log_path}.")


async def _warm_up(engine: HttpEngine, model: str) -> None:
    """One short answer from each endpoint, log-probabilities included: the first of each stalls for seconds."""
    chat = {"messages": [{"role": "user", "content": "Hello"}], "logprobs": True, "top_logprobs": 1}
    plain = {"prompt": "Hello", "logprobs": 1}
    try:
        async with asyncio.timeout(_WARM_UP_TIMEOUT_S):
            for endpoint, body in ((CHAT_COMPLETIONS, chat), (COMPLETIONS, plain)):
                whole = msgspec.json.encode({"model": model, "max_tokens": 2, "stream": True, **body})
                answer = await engine.request(endpoint, whole, "warm-up")
                said = b"".join([data async for data in answer])
                # 400 is a model without a chat template: it is warm all the same, and sells completions alone.
                if answer.status not in (200, 400):
                    raise EngineError(f"the warm-up request got HTTP {answer.status}: {said[:300]!r}.")
    except TimeoutError:
        raise EngineError(f"the warm-up request took over {_WARM_UP_TIMEOUT_S:.0f} s.") from None


def _make_socket_folder() -> Path:
    """A private folder whose path leaves room for a socket's name, vLLM's own included (a slash and 36 characters)."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp is private
        if parent and os.access(parent, os.W_OK) and len(os.fsencode(parent)) + 16 + 37 <= MAX_SOCKET_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix="p2pgrid-", dir=parent))
    raise LocalError(
        "no folder for temporary files has a path short enough for a unix socket.",
        hint="Set TMPDIR to a short one, like /tmp.",
    )


def _open_log(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise LocalError(f"the engine's log {path} cannot be written: {error.strerror}.") from None


def _read_from(path: Path, position: int, last_bytes: int | None = None) -> tuple[bytes, int]:
    """What a log holds from `position` on (its last bytes alone if told so), and where it ends."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(position, end - last_bytes) if last_bytes else position)
            return file.read(), end
    except OSError:
        return b"", position


def _meaning(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed; if nobody did that, the machine ran out of memory: lower kv_cache_gib or the context"
    if status < 0:
        return f"signal {-status}"
    return f"exit {status}"
