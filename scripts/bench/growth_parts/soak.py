"""The command `scripts/bench/soak`: half load for half an hour, and whether memory or latency grew meanwhile.

A part of the load are paced streams, kept up by the path's load generator in windows; the other part are unstreamed
requests that come at a steady rate, whatever becomes of those before. All the time both nodes are asked for a page, ten
times a second: whoever does not answer within a second has a stalled event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from path_parts import toolbox
from path_parts.bench import Bench
from path_parts.cells import Cell, paced, unstreamed
from path_parts.load import KEY
from path_parts.process import BenchError, free_port, say
from path_parts.systems import P2pgrid

from .soak_report import judge, render, write_docs

SAVED: Final = toolbox.BUILD / "soak.json"
PAGE: Final = toolbox.ROOT / "docs" / "performance.md"
SHARE: Final = 0.25
"""Of the core, for the streams; as much again for unstreamed requests: half load together."""
WINDOW_S: Final = 50.0
STREAM_TOKENS: Final = 250
MEMORY_S: Final = 2.0
PROBE_S: Final = 0.1
STALL_S: Final = 1.0
_TIMEOUT_S: Final = 60.0
_REUSED_S: Final = 30.0
"""How long a connection may have been idle to be used again; the gateway closes it after 75."""
_CALIBRATION_S: Final = 3.0


@dataclass(slots=True)
class Found:
    """What the run has measured."""

    about: dict[str, Any] = field(default_factory=dict)
    memory: list[dict[str, Any]] = field(default_factory=list)
    """Every two seconds: seconds since the start, and by node bytes: resident (`rss`), proportional (`pss`: what is
    shared is divided by who shares it, and changes with what else runs) and of no file (`anonymous`)."""
    windows: list[dict[str, Any]] = field(default_factory=list)
    """Each window: streams' delays, unstreamed answers' times, CPU."""
    slow: list[dict[str, Any]] = field(default_factory=list)
    """Everything that took longer than a second: when, what, how long."""
    probes: dict[str, list[float]] = field(default_factory=dict)
    """By node: how many pages were asked for, and the slowest in seconds."""
    errors: list[str] = field(default_factory=list)
    receipts: dict[str, int] = field(default_factory=dict)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/soak",
        description="Half load for a long time on a gateway and a provider: memory and latency have to stay flat.",
        epilog="The figures are kept in build/bench/soak.json.",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="(30)")
    parser.add_argument("--from", dest="read", type=Path, help="take the figures of an earlier run from this file")
    parser.add_argument("--json", action="store_true", help="print all figures as one JSON object")
    parser.add_argument("--plot", type=Path, metavar="STEM", help="draw STEM.svg and STEM.png")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/performance.md")
    return parser.parse_args(arguments)


class Soaked(P2pgrid):
    """Both nodes, the provider with its pages."""

    name, label = "soak", "p2pgrid"

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.pages_port: Final = free_port()
        self.serve_flags = ("--pages", f"127.0.0.1:{self.pages_port}")  # type: ignore[misc]


class Steady(threading.Thread):
    """Unstreamed requests at a steady rate, and the probes, on an event loop of its own."""

    def __init__(self, ports: dict[str, int], rate: float, found: Found, began_s: float) -> None:
        super().__init__(daemon=True, name="steady load")
        self.times_s: list[float] = []
        """Of each answer since it was last taken."""
        self.sent = 0
        self._ports = ports
        self._rate = rate
        self._found = found
        self._began_s = began_s
        self._ending = threading.Event()

    def run(self) -> None:
        asyncio.run(self._run())

    def take(self) -> list[float]:
        """The times of the answers since the last call, sorted."""
        taken, self.times_s = self.times_s, []
        return sorted(taken)

    def stop(self) -> None:
        """Let what was begun end."""
        self._ending.set()
        self.join()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for node in self._ports:
                group.create_task(self._probe(node))
            idle: list[_Connection] = []
            due_s = time.monotonic()
            while not self._ending.is_set():
                due_s += 1 / self._rate
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                group.create_task(self._ask(idle.pop() if idle else _Connection(self._ports["gateway"]), idle, due_s))

    async def _ask(self, connection: _Connection, idle: list[_Connection], due_s: float) -> None:
        self.sent += 1
        if await self._timed("unstreamed", connection.ask(_REQUEST), due_s) is not None:
            self.times_s.append(time.monotonic() - due_s)
            idle.append(connection)

    async def _probe(self, node: str) -> None:
        count, slowest_s, connection = 0, 0.0, _Connection(self._ports[node])
        while not self._ending.is_set():
            began_s = time.monotonic()
            if await self._timed(f"{node}'s /health", connection.ask(_HEALTH), began_s) is None:
                connection = _Connection(self._ports[node])
            count, slowest_s = count + 1, max(slowest_s, time.monotonic() - began_s)
            self._found.probes[node] = [count, slowest_s]
            await asyncio.sleep(max(0.0, began_s + PROBE_S - time.monotonic()))

    async def _timed(self, what: str, asking: Any, began_s: float) -> bytes | None:
        """The answer, or None for a failure, which is noted as a slow answer is."""
        answer = None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await asking
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self._found.errors.append(f"{what}: {type(error).__name__}: {error}")
        took_s = time.monotonic() - began_s
        if took_s > STALL_S:
            self._found.slow.append({"at_s": began_s - self._began_s, "what": what, "took_s": took_s})
        return answer


class _Connection:
    """One connection that is kept; answers have a Content-Length."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used_s = 0.0

    async def ask(self, request: bytes) -> bytes:
        """The answer's body. Raises ValueError for another status than 200."""
        began_s = time.monotonic()
        if self._streams is not None and began_s > self._used_s + _REUSED_S:
            self._streams[1].close()  # the server may be closing it just now
            self._streams = None
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        self._used_s = began_s
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        body = await reader.readexactly(int(fields[b"content-length"]))
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"{head[9:12].decode()}: {body[:200].decode(errors='replace')}")
        return body


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """A request as it is sent."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


_REQUEST: Final = request(
    "POST",
    "/v1/chat/completions",
    b'{"model":"bench","messages":[{"role":"user","content":"pace=none"}],"max_tokens":16}',
)
_HEALTH: Final = request("GET", "/health")


def half_load(bench: Bench, system: P2pgrid) -> tuple[int, float]:
    """How many streams take a quarter of the core, and how many unstreamed requests a second another quarter."""
    per_chunk_us = bench.visit(paced("staggered", 16, window_s=_CALIBRATION_S), system)["cpu_per_chunk_us"]
    per_request_us = bench.visit(unstreamed(4, _CALIBRATION_S), system)["cpu_per_request_us"]
    chunks_per_s = SHARE * 1e6 / per_chunk_us
    return max(1, round(chunks_per_s / 50)), SHARE * 1e6 / per_request_us


def memory_of(pids: Sequence[int]) -> dict[str, int]:
    """Memory of a node's processes, in bytes."""
    found = {"rss": 0, "pss": 0, "anonymous": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.lower() in found:
                found[name.lower()] += int(rest.split()[0]) * 1024
    return found


def soak(minutes: float) -> Found:
    """The whole run."""
    found = Found()
    with Bench([Soaked], most_streams=64, folder=toolbox.BUILD / "run-soak") as bench:
        [system] = bench.systems
        assert isinstance(system, Soaked)
        streams, rate = half_load(bench, system)
        cell = window(streams, minutes)
        found.about = {**bench.about(), "minutes": minutes, "streams": streams, "requests_per_s": rate}
        say(f"  .. {minutes:g} minutes of {streams} streams and {rate:.0f} unstreamed requests a second")
        began_s = time.monotonic()
        steady = Steady({"gateway": system.port, "provider": system.pages_port}, rate, found, began_s)
        answered = bench.load.answers[system.name]
        before = system.receipts()
        steady.start()
        try:
            while time.monotonic() - began_s < minutes * 60:
                found.windows.append(_one_window(bench, system, cell, steady, found, began_s))
        finally:
            steady.stop()
        sold = bench.load.answers[system.name] - answered + steady.sent - len(found.errors)
        found.receipts = {
            "answers": sold,
            **{n: c - before[n] for n, c in bench.receipts(system).items() if n in before},
        }
    return found


def window(streams: int, minutes: float) -> Cell:
    """One of the windows, of a minute where there is time for it: at its edges streams are fewer."""
    length_s = max(WINDOW_S / 10, min(WINDOW_S, minutes * 6 - STREAM_TOKENS / 25))
    return paced("staggered", streams, tokens=STREAM_TOKENS, window_s=length_s)


def _one_window(
    bench: Bench, system: P2pgrid, cell: Cell, steady: Steady, found: Found, began_s: float
) -> dict[str, Any]:
    at_s = time.monotonic() - began_s
    loading = bench.load.begin(system, cell.arguments())
    while loading.poll() is None:
        by_node = {node: memory_of(pids) for node, pids in system.pids().items()}
        found.memory.append({"at_s": time.monotonic() - began_s, **by_node})
        time.sleep(MEMORY_S)
    result = bench.load.end(system, loading)
    if result["errors"]:
        found.errors.append(f"streams: {result['errors']} failed: {result['error'][:200]}")
    most_s = result["delay"].get("most_us", 0.0) / 1e6
    if most_s > STALL_S:
        found.slow.append({"at_s": at_s, "what": "a chunk", "took_s": most_s})
    figures = {"at_s": at_s, **cell.metrics(result), "delay_most_ms": most_s * 1e3}
    times_s = steady.take()
    if times_s:
        figures |= {"whole": len(times_s), "whole_p50_ms": times_s[len(times_s) // 2] * 1e3}
        figures |= {"whole_p99_ms": times_s[int(len(times_s) * 0.99)] * 1e3, "whole_most_ms": times_s[-1] * 1e3}
    say(
        f"  .. {at_s / 60:5.1f} min: chunk p50 {figures.get('delay_p50_ms', 0):.1f} ms, unstreamed p50 "
        f"{figures.get('whole_p50_ms', 0):.1f} ms, "
        + ", ".join(f"{node} {one['rss'] / 1e6:.1f} MB" for node, one in found.memory[-1].items() if node != "at_s")
    )
    return figures


def main() -> int:
    """Run the command; its exit code: 1 where something was not flat."""
    options = parse(sys.argv[1:])
    try:
        found = json.loads(options.read.read_text()) if options.read else asdict(soak(options.minutes))
    except BenchError as error:
        say(f"error: {error}")
        return 3
    except KeyboardInterrupt:
        say("Interrupted; everything was stopped.")
        return 130
    if not options.read:
        SAVED.write_text(json.dumps(found, indent=1))
    print(json.dumps(found) if options.json else render(found), flush=True)
    if options.docs:
        write_docs(PAGE, found)
    if options.plot:
        script = toolbox.ROOT / "scripts" / "bench" / "growth_parts" / "plot.py"
        source = options.read or SAVED
        subprocess.run([str(toolbox.plot_python()), str(script), str(source), str(options.plot)], check=True)
    return 0 if all(row.is_met for row in judge(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
