#!/usr/bin/env python3
"""Both roads beside one another: what a chunk waits and costs, round trips, bulk.

    python scripts/bench/road.py [--seconds 4] [--loop uvloop|asyncio] [--json]

A provider and a client in two processes on loopback, with a link on either road between them; each measurement is made
on one road and then on the other. "64 streams": a chunk of 250 bytes every 20 ms on each, staggered or in step, as an
engine's batch makes them; its delay is from `send` to `message_received`. "echo": one message there and back, one
after another, alone and by 16 at once. "bulk": frames of 32 KiB on one stream, as fast as credit allows. CPU is user
and system time of both processes together. Take the ratios; wall-clock figures of a shared machine are noise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from p2pgrid.errors import P2pgridError
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import dial, listen
from p2pgrid.net.libp2p_road import SessionListener
from p2pgrid.net.network import Network
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.proto.keys import SecretKey

PROVIDER, CLIENT = SecretKey(b"p" * 32), SecretKey(b"c" * 32)
PACED, ECHO, FLOOD, CHUNK, BULK = 16, 17, 18, 128, 129
PERIOD_S, SLOTS, CHUNK_BYTES, BULK_BYTES = 0.02, 64, 250, 32 * 1024
ORDER = struct.Struct(">BdB")
STAMP = struct.Struct(">d")
FILLING = bytes(CHUNK_BYTES - STAMP.size)


class Seller(StreamHandler):
    """Does what the first message says: paced chunks, echoes, or bulk."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self.stop_s = 0.0
        self.floods = False

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if kind == ECHO:
            stream.send(ECHO, payload)
            return
        slot, seconds, _ = ORDER.unpack(payload)
        self.stop_s = time.monotonic() + seconds
        if kind == PACED:
            self.pulse.add(slot, stream, self)
        else:
            self.floods = True
            self.writable(stream)

    def writable(self, stream: Stream) -> None:
        while self.floods and stream.writable_bytes >= BULK_BYTES:
            if self.is_over():
                self.floods = False
                stream.end()
                return
            stream.send(BULK, bytes(BULK_BYTES))

    def is_over(self) -> bool:
        return time.monotonic() >= self.stop_s

    def ended(self, stream: Stream) -> None:
        if stream.is_open:
            stream.end()

    def reset(self, stream: Stream, code: int, message: str) -> None:
        raise RuntimeError(message)

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self.stop_s = 0.0


class Pulse:
    """One timer for all the streams of a slot, so that what is measured is the road and not the timers."""

    def __init__(self) -> None:
        self.slots: dict[int, list[tuple[Stream, Seller]]] = {}

    def add(self, slot: int, stream: Stream, seller: Seller) -> None:
        if slot not in self.slots:
            self.slots[slot] = []
            due_s = asyncio.get_running_loop().time() + slot * PERIOD_S / SLOTS
            asyncio.get_running_loop().call_at(due_s, self.beat, slot, due_s)
        self.slots[slot].append((stream, seller))

    def beat(self, slot: int, due_s: float) -> None:
        chunk = STAMP.pack(time.monotonic()) + FILLING
        live = []
        for stream, seller in self.slots[slot]:
            if seller.is_over():
                stream.end()
            elif stream.writable_bytes >= CHUNK_BYTES:
                stream.send(CHUNK, chunk)
                live.append((stream, seller))
            else:
                live.append((stream, seller))
        self.slots[slot] = live
        if not live:
            del self.slots[slot]
            return
        asyncio.get_running_loop().call_at(due_s + PERIOD_S, self.beat, slot, due_s + PERIOD_S)


class Buyer(StreamHandler):
    """Notes when what came, and gives credit back."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []
        self.bytes = 0
        self.echoed = asyncio.Event()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if kind == ECHO:
            self.echoed.set()
            return
        self.bytes += len(payload)
        if kind == CHUNK:
            self.delays_s.append(time.monotonic() - STAMP.unpack_from(payload)[0])
        stream.consume(len(payload))

    def writable(self, stream: Stream) -> None:
        pass

    def ended(self, stream: Stream) -> None:
        if stream.is_open:
            stream.end()
        self.done.set_result(None)

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self.done.set_exception(RuntimeError(message))

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self.done.set_exception(error)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def provide(pipe: Any, new_loop: Any) -> None:
    """The provider's process: says where it is, then its CPU seconds whenever it is asked."""

    async def run() -> None:
        loop, pulse = asyncio.get_running_loop(), Pulse()
        listener = await listen("127.0.0.1", 0, PROVIDER, on_stream=lambda _: Seller(pulse))
        sessions = SessionListener(PROVIDER, on_stream=lambda _: Seller(pulse))
        async with Network(PROVIDER, "bench", listen=["/ip4/127.0.0.1/tcp/0"], sessions=sessions) as network:
            pipe.send((listener.addresses[0][1], network.addresses))
            stopped = loop.create_future()

            def asked() -> None:
                if pipe.recv() == "cpu":
                    pipe.send(cpu_s())
                else:
                    stopped.set_result(None)

            loop.add_reader(pipe.fileno(), asked)
            await stopped
            loop.remove_reader(pipe.fileno())
            await sessions.aclose(drain_s=0)
        await listener.aclose(drain_s=0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


class Meter:
    """CPU seconds of both processes together."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def read(self) -> float:
        self.pipe.send("cpu")
        return float(self.pipe.recv()) + cpu_s()


async def paced(
    link: LinkConnection, meter: Meter, seconds: float, *, streams: int, staggered: bool
) -> dict[str, float]:
    before = meter.read()
    buyers = []
    for n in range(streams):
        buyer = Buyer()
        link.open_stream(buyer).send(PACED, ORDER.pack(n % SLOTS if staggered else 0, seconds, 0))
        buyers.append(buyer)
    await asyncio.gather(*(buyer.done for buyer in buyers))
    used = meter.read() - before
    delays = sorted(delay for buyer in buyers for delay in buyer.delays_s)
    return {
        "delay_p50_ms": statistics.median(delays) * 1e3,
        "delay_p99_ms": delays[int(len(delays) * 0.99)] * 1e3,
        "cpu_us_per_chunk": used / len(delays) * 1e6,
        "chunks_per_s": len(delays) / seconds,
    }


async def echoes(link: LinkConnection, meter: Meter, seconds: float, *, at_once: int) -> dict[str, float]:
    """Whole exchanges, each on a stream of its own: open, ask, answer, end."""
    trips: list[float] = []
    stop_s = time.monotonic() + seconds

    async def ask() -> None:
        while time.monotonic() < stop_s:
            began = time.monotonic()
            buyer = Buyer()
            stream = link.open_stream(buyer)
            stream.send(ECHO, bytes(1000))
            stream.end()
            await buyer.done
            trips.append(time.monotonic() - began)

    before = meter.read()
    await asyncio.gather(*(ask() for _ in range(at_once)))
    used = meter.read() - before
    return {
        "trips_per_s": len(trips) / seconds,
        "trip_p50_ms": statistics.median(trips) * 1e3,
        "cpu_us_per_trip": used / len(trips) * 1e6,
    }


async def bulk(link: LinkConnection, meter: Meter, seconds: float) -> dict[str, float]:
    before = meter.read()
    buyer = Buyer()
    link.open_stream(buyer).send(FLOOD, ORDER.pack(0, seconds, 0))
    await buyer.done
    used = meter.read() - before
    return {"mb_per_s": buyer.bytes / seconds / 1e6, "cpu_us_per_mb": used / buyer.bytes * 1e12}


async def measure(
    seconds: float, port: int, addresses: tuple[str, ...], meter: Meter, wanted: str
) -> list[dict[str, Any]]:
    shapes: dict[str, Callable[[LinkConnection], Awaitable[dict[str, float]]]] = {
        "64 streams, staggered": lambda link: paced(link, meter, seconds, streams=64, staggered=True),
        "64 streams, in step": lambda link: paced(link, meter, seconds, streams=64, staggered=False),
        "1 stream": lambda link: paced(link, meter, seconds, streams=1, staggered=False),
        "echo, 1 at once": lambda link: echoes(link, meter, seconds, at_once=1),
        "echo, 16 at once": lambda link: echoes(link, meter, seconds, at_once=16),
        "bulk": lambda link: bulk(link, meter, seconds),
    }
    rows = []
    async with Network(CLIENT, "bench") as network:
        roads = {
            "direct": await dial("127.0.0.1", port, PROVIDER.public_key, CLIENT),
            "libp2p": await network.dial_link(PROVIDER.public_key, addresses),
        }
        for name, run in shapes.items():
            for road, link in roads.items():
                if wanted in f"{road} {name}":
                    figures = await run(link)
                    rows.append({"shape": name, "road": road, **{key: round(n, 2) for key, n in figures.items()}})
                    print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        for link in roads.values():
            await link.aclose()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--only", default="", metavar="TEXT", help="Only measurements with this in road and shape.")
    parser.add_argument("--json", action="store_true", help="Print a JSON array at the end.")
    args = parser.parse_args()
    new_loop = uvloop.new_event_loop if args.loop == "uvloop" else asyncio.new_event_loop
    spawn = multiprocessing.get_context("spawn")
    pipe, far_end = spawn.Pipe()
    provider = spawn.Process(target=provide, args=(far_end, new_loop))
    provider.start()
    try:
        port, addresses = pipe.recv()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            rows = runner.run(measure(args.seconds, port, addresses, Meter(pipe), args.only))
        if args.json:
            print(json.dumps(rows))
    finally:
        pipe.send("stop")
        provider.join(5)


if __name__ == "__main__":
    main()
