"""Long steps of the installer: a child process, its words in a log file, its progress told while it runs."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

from p2pgrid.errors import EngineError

TICK_S: Final = 1.0
_TAIL_LINES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """What a person may see of a step: it began, it still runs, it is done, or there was nothing to do."""

    kind: Literal["start", "tick", "done", "skip"]
    step: str
    """What the step does, as a person reads it; the same text in all events of a step."""
    elapsed_s: float = 0.0
    detail: str = ""


OnStep = Callable[[StepEvent], None]


class StepRunner:
    """Runs commands one after another for one installation, into one log.

    A KeyboardInterrupt, or any other exception, ends the running command with its whole process group before it
    goes on its way.
    """

    def __init__(self, log_path: Path, on_step: OnStep) -> None:
        self.log_path = log_path
        self.on_step = on_step

    def skip(self, step: str, detail: str) -> None:
        self.on_step(StepEvent(kind="skip", step=step, detail=detail))

    def run(
        self,
        step: str,
        command: Sequence[str | Path],
        *,
        timeout_s: float,
        hint: str = "",
        extra_env: dict[str, str] | None = None,
    ) -> str:
        """Run `command` to its end and return the last lines it wrote.

        Raises EngineError, with those lines, the log's path and `hint`, if it fails or outlasts `timeout_s`.
        """
        started = time.monotonic()
        self.on_step(StepEvent(kind="start", step=step))
        with self.log_path.open("ab") as log:
            log.write(f"\n=== {step}: {' '.join(map(str, command))}\n".encode())
            log.flush()
            try:
                child = subprocess.Popen(  # noqa: S603 - the command is ours, no shell
                    [str(part) for part in command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=clean_environment() | (extra_env or {}),
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineError(f"{step}: {command[0]} does not start: {error}.", hint=hint) from None
            try:
                tail, timed_out = self._follow(step, child, log, started, timeout_s)
            finally:
                _end(child)
        if timed_out or child.returncode != 0:
            what = f"took over {timeout_s:.0f} s" if timed_out else f"failed (exit {child.returncode})"
            raise EngineError(
                f"{step}: {what}. Its last lines:\n  " + "\n  ".join(tail) + f"\nThe whole log: {self.log_path}.",
                hint=hint,
            )
        self.on_step(StepEvent(kind="done", step=step, elapsed_s=time.monotonic() - started))
        return "\n".join(tail)

    def _follow(
        self, step: str, child: subprocess.Popen[bytes], log: IO[bytes], started: float, timeout_s: float
    ) -> tuple[list[str], bool]:
        """Copy the child's words into the log until it closes them; (last lines, True if the time ran out)."""
        assert child.stdout is not None
        output = child.stdout.fileno()
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        partial, next_tick = b"", started + TICK_S
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                if now - started > timeout_s:
                    return list(tail), True
                if now >= next_tick:
                    told = [line for line in tail if not line.startswith(("WARNING", "DEPRECATION"))]
                    detail = told[-1] if told else ""
                    self.on_step(StepEvent(kind="tick", step=step, elapsed_s=now - started, detail=detail))
                    next_tick = now + TICK_S
                if not selector.select(max(0.0, next_tick - now)):
                    continue
                data = os.read(output, 65536)
                if not data:
                    break
                log.write(data)
                log.flush()
                *lines, partial = (partial + data).split(b"\n")
                partial = partial[-4096:]
                # A progress bar redraws its line with CR: the last drawing is what a person would see.
                shown = (line.decode(errors="replace").rstrip("\r").rsplit("\r", 1)[-1].strip() for line in lines)
                tail.extend(text for text in shown if text)
        remaining_s = max(0.1, timeout_s - (time.monotonic() - started))
        try:
            child.wait(remaining_s)
        except subprocess.TimeoutExpired:
            return list(tail), True
        return list(tail), False


def clean_environment() -> dict[str, str]:
    """This process's environment without what would make another Python look into ours."""
    ours = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in ours} | {"PYTHONUNBUFFERED": "1"}


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave nothing of the child behind, whatever happened."""
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    child.wait()
    if child.stdout is not None:
        child.stdout.close()
