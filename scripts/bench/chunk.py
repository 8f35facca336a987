"""The interpreter's part of a chunk: from the engine's bytes to the program's, with no socket and no second process.

    python scripts/bench/chunk.py [--streams 64] [--turns 400] [--calls] [--profile] [--json]

64 answers are under way between a provider and a client of one process, without ledgers. Each turn feeds one HTTP chunk
to every engine connection, lets the link's frames over, and ends in what a program's transport is given. Reads and
writes of sockets, TLS and wake-ups are not in it. The figure is the best of all turns: other work on the machine
only adds to the others. `--calls` counts calls of functions, to which nothing adds.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import sys
import time
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from order import FreeLedger, market
from paced_engine import sse_events

from p2pgrid.client.openai_api import StreamEditor
from p2pgrid.client.order import OrderStream
from p2pgrid.client.pour import Pour
from p2pgrid.engine.base import AnswerReader
from p2pgrid.engine.http_client import EngineLimits, HttpCall, HttpClient, Road
from p2pgrid.engine.http_connection import HttpConnection
from p2pgrid.http.connection import Connection
from p2pgrid.http.message import Request
from p2pgrid.http.reply import Reply
from p2pgrid.http.server import Server

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Wire(asyncio.Transport):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.n_bytes += len(data)

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        pass

    resume_reading = abort = close = pause_reading


class HandFedEngine:
    """Its answers come when `turn` is called."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._client = HttpClient(Road(host="nowhere"), EngineLimits(), "nowhere")
        self._answers: list[tuple[HttpConnection, Any]] = []

    def ask(self, endpoint: str, body: bytes, request_id: str, reader: AnswerReader) -> HttpCall:
        connection, call = HttpConnection(self._client), HttpCall(self._client, b"", reader)
        connection.connection_made(Wire())
        connection.carry(call)
        self._answers.append((connection, iter(sse_events(request_id, self._tokens))))
        asyncio.get_running_loop().call_soon(connection.data_received, HEAD)
        return call

    def turn(self) -> None:
        """One event on every answer."""
        for connection, events in self._answers:
            data = next(events).encode()
            connection.data_received(b"%x\r\n%b\r\n" % (len(data), data))

    async def aclose(self) -> None:
        pass


def program(order: OrderStream) -> Wire:
    """Somebody who reads the answer over HTTP."""
    application: Any = SimpleNamespace(admit=None)
    connection, wire = Connection(Server(application)), Wire()
    connection._transport = wire
    request = Request(method="POST", target="/", path="/", host="", headers=None, keeps_alive=True)  # type: ignore[arg-type]
    reply, editor = Reply(connection, request), StreamEditor(wants_usage=False)
    connection._reply = reply
    reply.begin(200, {})
    connection.flush()
    pour = Pour(order, lambda data: reply.send(editor.feed(data)), reply)
    order.on_progress = pour.move
    return wire


async def measure(streams: int, turns: int, *, calls: bool, profile: bool) -> dict[str, float]:
    """Nanoseconds or calls, by chunk."""
    engine, found = HandFedEngine(turns + 100), FreeLedger()
    async with market(engine, FreeLedger(), found) as here:  # type: ignore[arg-type]
        orders = [here.order(tokens=turns + 100) for _ in range(streams)]
        wires = [program(one) for one in orders]
        while len(engine._answers) < streams:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)

        async def turn() -> None:
            engine.turn()
            for _ in range(4):
                await asyncio.sleep(0)

        for _ in range(20):
            await turn()
        gc.collect()
        gc.freeze()
        before, count = sum(one.n_bytes for one in wires), 0
        assert before and all(one.buyer.counter.output_tokens for one in orders)

        def counted(_: FrameType, event: str, __: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        profiler, times = cProfile.Profile(), []
        if calls:
            sys.setprofile(counted)
        if profile:
            profiler.enable()
        for _ in range(turns):
            began = time.perf_counter_ns()
            await turn()
            times.append(time.perf_counter_ns() - began)
        sys.setprofile(None)
        profiler.disable()
        if profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
        assert sum(one.n_bytes for one in wires) > before + streams * turns * 100
        times.sort()
        result = {"best_us": times[0] / streams / 1e3, "fifth_us": times[len(times) // 5] / streams / 1e3}
        if calls:
            result["calls"] = count / turns / streams
        for one in orders:
            one.buyer.link_lost()
    return result


def main() -> None:
    """Measure, print."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--turns", type=int, default=400)
    parser.add_argument("--calls", action="store_true", help="count calls; times are then no measure")
    parser.add_argument("--profile", action="store_true", help="with cProfile; the figures are then no measure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = uvloop.run(measure(options.streams, options.turns, calls=options.calls, profile=options.profile))
    print(json.dumps(result) if options.json else "  ".join(f"{name} {value:.2f}" for name, value in result.items()))


if __name__ == "__main__":
    main()
