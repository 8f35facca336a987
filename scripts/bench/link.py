#!/usr/bin/env python3
"""What a link costs: frames a second, and CPU a chunk on either side, over loopback TLS.

    python scripts/bench/link.py [--seconds 4] [--loop uvloop|asyncio]

A provider and a client in two processes. Chunks of 250 bytes, a frame each, in four shapes: as many as credit lets
through on one stream and on 64; and a chunk every 20 ms on each of 64 streams, staggered or in step (as an engine's
batch makes them). CPU is user and system time of each process by itself. Take the ratios; wall-clock figures of a
shared machine are noise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

import uvloop

from p2pgrid.errors import P2pgridError
from p2pgrid.net.direct import dial, listen
from p2pgrid.net.listening import ListenLimits
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.proto.keys import SecretKey

PROVIDER, CLIENT = SecretKey(b"p" * 32), SecretKey(b"c" * 32)
ORDER_KIND, CHUNK_KIND = 16, 128
CHUNK = b"x" * 250
PERIOD_S = 0.02
ORDER = struct.Struct(">BdB")
"""Seconds after which the first chunk leaves, seconds to go on, 1 for as fast as can be."""


@dataclass(frozen=True)
class Shape:
    name: str
    streams: int
    paced: bool
    staggered: bool


SHAPES = [
    Shape("as fast as can be, 1 stream", 1, False, False),
    Shape("as fast as can be, 64 streams", 64, False, False),
    Shape("paced, 1 stream", 1, True, False),
    Shape("paced, 64 streams staggered", 64, True, True),
    Shape("paced, 64 streams in step", 64, True, False),
    Shape("paced, 256 streams in step", 256, True, False),
]


class Seller(StreamHandler):
    """Sends chunks as the order says, until the time is up."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self.stop_s = 0.0
        self.unpaced = False

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        loop = asyncio.get_running_loop()
        slot, seconds, self.unpaced = ORDER.unpack(payload)
        self.stop_s = loop.time() + seconds
        if self.unpaced:
            self.writable(stream)
        else:
            self.pulse.add(slot, stream, self)

    def writable(self, stream: Stream) -> None:
        if not self.unpaced:
            return
        while stream.writable_bytes >= len(CHUNK):
            if self.over():
                stream.end()
                return
            stream.send(CHUNK_KIND, CHUNK)

    def over(self) -> bool:
        return asyncio.get_running_loop().time() >= self.stop_s

    def ended(self, stream: Stream) -> None:
        pass

    def reset(self, stream: Stream, code: int, message: str) -> None:
        raise RuntimeError(message)

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self.stop_s = 0.0


class Pulse:
    """One timer for all the streams of a slot, so that what is measured is the link and not the timers."""

    def __init__(self) -> None:
        self.slots: dict[int, list[tuple[Stream, Seller]]] = {}

    def add(self, slot: int, stream: Stream, seller: Seller) -> None:
        if slot not in self.slots:
            self.slots[slot] = []
            loop = asyncio.get_running_loop()
            loop.call_later(slot * PERIOD_S / 64, self.beat, slot, loop.time() + slot * PERIOD_S / 64)
        self.slots[slot].append((stream, seller))

    def beat(self, slot: int, due_s: float) -> None:
        live = []
        for stream, seller in self.slots[slot]:
            if seller.over():
                stream.end()
            else:
                stream.send(CHUNK_KIND, CHUNK)
                live.append((stream, seller))
        if not live:
            del self.slots[slot]
            return
        self.slots[slot] = live
        loop = asyncio.get_running_loop()
        loop.call_at(due_s + PERIOD_S, self.beat, slot, due_s + PERIOD_S)


class Buyer(StreamHandler):
    """Counts chunks and gives their credit back."""

    def __init__(self) -> None:
        self.chunks = 0
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        self.chunks += 1
        stream.consume(len(payload))

    def writable(self, stream: Stream) -> None:
        pass

    def ended(self, stream: Stream) -> None:
        stream.end()
        self.done.set_result(self.chunks)

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self.done.set_exception(RuntimeError(message))

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self.done.set_exception(error)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


NewLoop = Callable[[], asyncio.AbstractEventLoop]


def provide(pipe: Connection, new_loop: NewLoop) -> None:
    """The provider's process: says its port, then its CPU seconds whenever it is asked."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        pulse = Pulse()
        listener = await listen("127.0.0.1", 0, PROVIDER, on_stream=lambda _: Seller(pulse), limits=ListenLimits())
        pipe.send(listener.addresses[0][1])
        stopped = loop.create_future()

        def asked() -> None:
            if pipe.recv() == "cpu":
                pipe.send(cpu_s())
            else:
                stopped.set_result(None)

        loop.add_reader(pipe.fileno(), asked)
        await stopped
        loop.remove_reader(pipe.fileno())
        await listener.aclose(drain_s=0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


async def measure(shape: Shape, seconds: float, port: int, pipe: Connection) -> dict[str, object]:
    connection = await dial("127.0.0.1", port, PROVIDER.public_key, CLIENT)
    pipe.send("cpu")
    theirs_before, ours_before = pipe.recv(), cpu_s()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    buyers = []
    for n in range(shape.streams):
        buyer = Buyer()
        slot = n % 64 if shape.staggered else 0
        connection.open_stream(buyer).send(ORDER_KIND, ORDER.pack(slot, seconds, not shape.paced))
        buyers.append(buyer)
    chunks = sum([await buyer.done for buyer in buyers])
    took_s = loop.time() - began_s
    ours = cpu_s() - ours_before
    pipe.send("cpu")
    theirs = pipe.recv() - theirs_before
    await connection.aclose()
    return {
        **asdict(shape),
        "chunks": chunks,
        "frames_per_s": round(chunks / took_s),
        "provider_us_per_chunk": round(theirs / chunks * 1e6, 1),
        "client_us_per_chunk": round(ours / chunks * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    new_loop = uvloop.new_event_loop if args.loop == "uvloop" else asyncio.new_event_loop
    spawn = multiprocessing.get_context("spawn")
    pipe, far_end = spawn.Pipe()
    provider = spawn.Process(target=provide, args=(far_end, new_loop))
    provider.start()
    try:
        port = pipe.recv()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            if not args.json:
                print(f"{'shape':32} {'frames/s':>9} {'provider us/chunk':>18} {'client us/chunk':>16}")
            for shape in SHAPES:
                row = runner.run(measure(shape, args.seconds, port, pipe))
                if args.json:
                    print(json.dumps(row), flush=True)
                else:
                    print(
                        f"{row['name']:32} {row['frames_per_s']:>9} {row['provider_us_per_chunk']:>18}"
                        f" {row['client_us_per_chunk']:>16}",
                        flush=True,
                    )
    finally:
        pipe.send("stop")
        provider.join(5)


if __name__ == "__main__":
    main()
