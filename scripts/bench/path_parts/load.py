"""The load generator, called for one measurement after the other."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from .process import BenchError

KEY: Final = "sk-bench"


class Loaded(Protocol):
    """What a load is put on: a system, or one of its doors."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def port(self) -> int: ...

    def pids(self) -> dict[str, list[int]]:
        """The processes whose CPU time counts, by node."""
        ...

    def check_runs(self) -> None:
        """Raises BenchError where it does not."""
        ...


class Load:
    """Runs load.c against a system, from its own core."""

    def __init__(self, program: Path, *, engine_pid: int, core: int | None) -> None:
        self._program = program
        self._command = ([] if core is None else ["taskset", "-c", str(core)]) + [str(program)]
        self._engine_pid = engine_pid
        self.answers: Final[Counter[str]] = Counter()
        """Whole answers so far, by system."""
        self.cut: Final[Counter[str]] = Counter()
        """Answers that were broken off because they took too long, by system."""

    def requests(
        self, system: Loaded, count: int, *, connections: int, stream: bool = False, tokens: int = 16
    ) -> dict[str, Any]:
        """`count` requests, as fast as they come. Raises BenchError if one of them fails."""
        arguments = ["--requests", str(count), "--window-s", "120", "--tokens", str(tokens)]
        result = self.run(system, [*arguments, "--connections", str(connections), *(["--stream"] if stream else [])])
        if result["errors"] or result["finished"] < count:
            raise BenchError(
                f"{system.label}: {result['errors']} of {result['begun']} requests failed: {result['error'][:300]}"
            )
        return result

    def run(self, system: Loaded, arguments: Sequence[str]) -> dict[str, Any]:
        """One measurement; what load.c prints, with the CPU times summed by node (`node_cpu_ns`)."""
        process = self.begin(system, arguments)
        return self.end(system, process)

    def begin(self, system: Loaded, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """Start a measurement, to be ended with `end`."""
        system.check_runs()
        pids = [pid for node in system.pids().values() for pid in node]
        watched = ",".join(map(str, [self._engine_pid, *pids]))
        command = [*self._command, "--port", str(system.port), "--pids", watched, "--key", KEY, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self, system: Loaded, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for a measurement's end. Raises BenchError."""
        try:
            output, errors = process.communicate(timeout=600)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode:
            raise BenchError(f"the load on {system.label} ended with exit code {process.returncode}: {errors.strip()}")
        result: dict[str, Any] = json.loads(output)
        self.answers[system.name] += result["finished"] - result["errors"]
        self.cut[system.name] += result["cut"]
        cpu = {int(pid): ns for pid, ns in result.pop("cpu_ns").items()}
        result["engine_cpu_ns"] = cpu[self._engine_pid]
        result["node_cpu_ns"] = {
            role: sum(max(0, cpu.get(pid, 0)) for pid in pids) for role, pids in system.pids().items()
        }
        return result

    def calibrate(self, core: int | None) -> dict[str, float]:
        """CPU and wall time of a fixed piece of work on a core, in us."""
        command = ([] if core is None else ["taskset", "-c", str(core)]) + [str(self._program), "--calibrate"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        measured: dict[str, float] = json.loads(done.stdout)
        return measured
