#!/usr/bin/env python3
"""What the gateway's HTTP server costs, beside aiohttp's and (for a file) nginx's: CPU a request, a chunk, memory.

    python scripts/bench/front.py [--seconds 2] [--rounds 3] [--nginx /usr/sbin/nginx]

Each server is a process of its own on uvloop and does the same: it reads a chat's body and answers 500 bytes of JSON;
or streams chunks of 250 bytes, one every 20 ms to each of 64 programs staggered, or to 256 in step, as an engine's
batch makes them. The rounds are interleaved, and the median is shown. CPU is the server's own, from the kernel. Take
the ratios; wall-clock figures of a shared machine are noise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import uvloop
from aiohttp import web

from p2pgrid.http.message import Request, Response
from p2pgrid.http.reply import Reply
from p2pgrid.http.server import serve

PERIOD_S = 0.02
SLOTS = 64
CHUNK = b"data: " + b"x" * 242 + b"\n\n"
ANSWER = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"' + b"x" * 440 + b'"}}]}'
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 400 + b'"}],"max_tokens":64}'
HEADERS = (
    "Host: 127.0.0.1\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    "User-Agent: AsyncOpenAI/Python 2.1\r\nX-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\n"
    "X-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Async: async:asyncio\r\n"
    "Authorization: Bearer unused\r\n"
)
CHAT = f"POST /chat HTTP/1.1\r\n{HEADERS}Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
STREAM = f"GET /stream HTTP/1.1\r\n{HEADERS}\r\n".encode()
PLAIN = f"GET /plain HTTP/1.1\r\n{HEADERS}\r\n".encode()


class Pulse:
    """One timer for all streams of a slot, so that what is measured is the server and not the timers."""

    def __init__(self, slots: int) -> None:
        self.slots: list[list[Callable[[bytes], None]]] = [[] for _ in range(slots)]
        self.n = 0
        loop = asyncio.get_running_loop()
        for slot in range(slots):
            due_s = loop.time() + slot * PERIOD_S / slots
            loop.call_at(due_s, self.beat, slot, due_s)

    def add(self, write: Callable[[bytes], None]) -> Callable[[], None]:
        """Write a chunk in every beat; call what is returned to stop."""
        slot = self.slots[self.n % len(self.slots)]
        self.n += 1
        slot.append(write)
        return lambda: slot.remove(write)

    def beat(self, slot: int, due_s: float) -> None:
        for write in list(self.slots[slot]):
            write(CHUNK)
        asyncio.get_running_loop().call_at(due_s + PERIOD_S, self.beat, slot, due_s + PERIOD_S)


class Front:
    """The application on p2pgrid's server."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse

    def admit(self, request: Request) -> Response | None:
        return None

    def handle(self, request: Request, reply: Reply) -> Response | Coroutine[Any, Any, Response | None]:
        if request.path == "/plain":
            return Response(body=ANSWER)
        return self.stream(reply) if request.path == "/stream" else self.chat(request)

    async def chat(self, request: Request) -> Response:
        await asyncio.sleep(0)  # as a handler that waits for something
        assert len(request.body) == len(BODY)
        return Response(body=ANSWER)

    async def stream(self, reply: Reply) -> None:
        reply.begin(200, {"Content-Type": "text/event-stream"})
        stop = self.pulse.add(reply.write)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            stop()

    def failure(self, status: int, message: str) -> Response:
        return Response(status=status, body=message.encode())


async def run_front(pulse: Pulse) -> int:
    return (await serve(Front(pulse), "127.0.0.1", 0)).addresses[0][1]


async def run_aiohttp(pulse: Pulse) -> int:
    async def plain(_: web.Request) -> web.Response:
        return web.Response(body=ANSWER, content_type="application/json")

    async def chat(request: web.Request) -> web.Response:
        body = await request.read()
        await asyncio.sleep(0)
        assert len(body) == len(BODY)
        return web.Response(body=ANSWER, content_type="application/json")

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunks: asyncio.Queue[bytes] = asyncio.Queue()
        stop = pulse.add(chunks.put_nowait)
        try:
            while True:
                await response.write(await chunks.get())
        finally:
            stop()

    app = web.Application()
    app.router.add_get("/plain", plain)
    app.router.add_post("/chat", chat)
    app.router.add_get("/stream", stream)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return int(runner.addresses[0][1])


async def be_server(name: str, slots: int) -> None:
    pulse = Pulse(slots)
    print(await (run_front if name == "front" else run_aiohttp)(pulse), flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def server(name: str, slots: int, nginx: str | None) -> Iterator[tuple[int, int]]:
    """A server's process: its pid and port."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "nginx":
            assert nginx is not None
            port = 18_480
            (Path(folder) / "plain").write_bytes(ANSWER)
            config = Path(folder) / "nginx.conf"
            stores = "".join(
                f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            config.write_text(
                f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log;"
                "events {} http { access_log off; sendfile off; keepalive_requests 1000000000; open_file_cache max=9;"
                f"server {{ listen 127.0.0.1:{port}; root {folder}; }} {stores} }}"
            )
            command = [nginx, "-c", str(config), "-p", folder, "-e", f"{folder}/log"]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True)
            time.sleep(0.5)
        else:
            command = [sys.executable, __file__, "--serve", name, "--slots", str(slots)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert process.stdout is not None
            port = int(process.stdout.readline())
        try:
            yield process.pid, port
        finally:
            process.kill()
            process.wait()


def cpu_us(pid: int) -> float:
    """CPU that the process's main thread has used."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


def memory_kb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


class Program(asyncio.Protocol):
    """Sends one request after another, or reads a stream; counts answers or chunks."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.count = 0
        self.left = 0
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.request is STREAM:
            self.count += data.count(b"data: ")
        elif data.endswith(b"]}"):
            self.count += 1
            if not self.is_over:
                self.transport.write(self.request)


async def drive(port: int, request: bytes, programs: int, seconds: float, pid: int) -> tuple[float, float]:
    """Answers (or chunks) a second, and the server's CPU for each, in microseconds."""
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(lambda: Program(request), "127.0.0.1", port))[1] for _ in range(programs)]
    await asyncio.sleep(0.3)
    count, used_us, began_s = sum(one.count for one in made), cpu_us(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    count, used_us = sum(one.count for one in made) - count, cpu_us(pid) - used_us
    took_s = time.perf_counter() - began_s
    for one in made:
        one.is_over = True
        one.transport.abort()
    await asyncio.sleep(0.05)
    return count / took_s, used_us / max(count, 1)


async def idle_kb(port: int, pid: int, connections: int = 1000) -> float:
    """Memory of each connection that is kept and idle."""
    before = memory_kb(pid)
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(connections):
        one = (await loop.create_connection(lambda: Program(PLAIN), "127.0.0.1", port))[1]
        one.is_over = True
        made.append(one)
    while sum(one.count for one in made) < connections:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    grown = memory_kb(pid) - before
    for one in made:
        one.transport.abort()
    return grown / connections


CASES: dict[str, tuple[bytes, int, int]] = {
    "GET, 1 program": (PLAIN, 1, SLOTS),
    "GET, 16 programs": (PLAIN, 16, SLOTS),
    "POST, 16 programs": (CHAT.encode() + BODY, 16, SLOTS),
    "chunks, 64 staggered": (STREAM, 64, SLOTS),
    "chunks, 256 in step": (STREAM, 256, 1),
}


def measure(seconds: float, rounds: int, nginx: str | None) -> None:
    names = ["front", "aiohttp", *(["nginx"] if nginx else [])]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    memory: dict[str, list[float]] = {}
    for _ in range(rounds):
        for case, (request, programs, slots) in CASES.items():
            for name in names:
                if name == "nginx" and request is not PLAIN:
                    continue
                with server(name, slots, nginx) as (pid, port):
                    result = uvloop.run(drive(port, request, programs, seconds, pid))
                found.setdefault((case, name), []).append(result)
        for name in names:
            with server(name, SLOTS, nginx) as (pid, port):
                memory.setdefault(name, []).append(uvloop.run(idle_kb(port, pid)))
    print(f"{'':24}" + "".join(f"{name:>22}" for name in names) + f"{'aiohttp / front':>18}")
    for case in CASES:
        cells, used = "", {}
        for name in names:
            if (case, name) not in found:
                cells += f"{'':>22}"
                continue
            rate, used[name] = (statistics.median(column) for column in zip(*found[case, name], strict=True))
            cells += f"{rate:>10,.0f}/s {used[name]:>6.1f} us"
        print(f"{case:24}{cells}{used['aiohttp'] / used['front']:>17.1f}x")
    kb = {name: statistics.median(values) for name, values in memory.items()}
    cells = "".join(f"{kb[name]:>19.1f} kB" for name in names)
    print(f"{'an idle connection':24}{cells}{kb['aiohttp'] / kb['front']:>17.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nginx", default=shutil.which("nginx"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--slots", type=int, default=SLOTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(0, {0})
        uvloop.run(be_server(options.serve, options.slots))
    else:
        if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(0, {1})
        measure(options.seconds, options.rounds, options.nginx)


if __name__ == "__main__":
    main()
