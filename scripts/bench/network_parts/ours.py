"""Our client under measurement: `python -m network_parts.ours` takes orders on a port of 127.0.0.1 (`worker.py`).

`python -m network_parts.ours once JSON` does one cold look-up and prints how it went, for the time of a whole program.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop

from p2pgrid.client.early_asks import EarlyAsks
from p2pgrid.client.offer_store import verify_offer
from p2pgrid.clock import unix_ms
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import dial
from p2pgrid.net.lookup_keys import model_key
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_peer_id
from p2pgrid.proto.wire.kinds import Kind

CHAT: Final = "/v1/chat/completions"
TIME_S: Final = 60.0


class Clock:
    """Wall and CPU time since it was made."""

    def __init__(self) -> None:
        self._began_s, self._cpu_s = time.perf_counter(), time.process_time()

    def ms(self) -> float:
        return (time.perf_counter() - self._began_s) * 1e3

    def cpu_ms(self) -> float:
        """Of all threads."""
        return (time.process_time() - self._cpu_s) * 1e3


def new_network(network: str, bootstrap: list[str], key: SecretKey | None = None) -> Network:
    """A client that nobody knows yet."""
    return Network(key or SecretKey(secrets.token_bytes(32)), network, bootstrap=bootstrap)


async def offers_of(network: Network, model: str, wanted: int, clock: Clock) -> dict[str, float]:
    """Look a model up, ask everybody named, verify what they show: when the first was held, when `wanted` were."""
    held: list[float] = []
    asked: dict[str, asyncio.Task[None]] = {}

    async def ask(peer: PeerAddress) -> None:
        verify_offer(await network.fetch_offer(peer), peer.peer_id, unix_ms())
        held.append(clock.ms())

    def begin(peer: PeerAddress) -> asyncio.Task[None] | None:
        if peer.peer_id in asked:
            return None
        asked[peer.peer_id] = asyncio.create_task(ask(peer))
        return asked[peer.peer_id]

    early = EarlyAsks(begin)
    found = await network.find_providers(model_key(model), on_found=early.found)
    looked_up_ms = clock.ms()
    early.close()
    for peer in found:
        begin(peer)
    await asyncio.gather(*asked.values())
    if len(held) != wanted:
        raise RuntimeError(f"{len(held)} offers of {model} were had; {wanted} are on sale")
    return {"first_ms": held[0], "all_ms": held[-1], "lookup_ms": looked_up_ms, "cpu_ms": clock.cpu_ms()}


class Trip(StreamHandler):
    """One question on a link, and the beginning of its answer."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if not self.answered.done():
            self.answered.set_result(payload)

    def writable(self, stream: Stream) -> None:
        """Nothing more is to be sent."""

    def ended(self, stream: Stream) -> None:
        self._fail(ConnectionError("the stream ended without an answer"))

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self._fail(ConnectionError(f"the stream was reset: {message}"))

    def link_lost(self, stream: Stream, error: Exception) -> None:
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


async def trip(link: LinkConnection) -> bytes:
    """OFFER_REQUEST on a new stream, until its answer comes."""
    handler = Trip()
    stream = link.open_stream(handler)
    stream.send(Kind.OFFER_REQUEST, b"")
    stream.end()
    return await handler.answered


class Pulled(asyncio.Protocol):
    """Counts what a source sends."""

    def __init__(self, wanted: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = wanted

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left <= 0 and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError(f"the source ended with {self._left} bytes to come"))


class Worker:
    """What can be ordered. Each method answers with its figures."""

    def __init__(self, network: str, bootstrap: list[str]) -> None:
        self._network, self._bootstrap = network, bootstrap
        self._joined: Network | None = None
        self._data: tempfile.TemporaryDirectory[str] | None = None

    async def cold(self, model: str, wanted: int) -> dict[str, float]:
        """A client that knows a bootstrap peer and nothing else, from the making of its host on."""
        clock = Clock()
        async with new_network(self._network, self._bootstrap) as network:
            return await offers_of(network, model, wanted, clock)

    async def warm(self, model: str, wanted: int) -> dict[str, float]:
        """A client that is joined, with the connections that it keeps by itself, and looks up afresh."""
        if self._joined is None:
            self._joined = await new_network(self._network, self._bootstrap).__aenter__()
            await self._joined.find_providers(model_key(model))
        return await offers_of(self._joined, model, wanted, Clock())

    async def link(self, road: str, peer: str, direct: list[str], libp2p: list[str], trips: int) -> dict[str, float]:
        """A link by a host that is not connected to the provider (but to its relay); then round trips on it."""
        key, provider = SecretKey(secrets.token_bytes(32)), parse_peer_id(peer)
        is_relayed = road == "relayed"
        async with new_network(self._network, self._bootstrap if is_relayed else [], key) as network:
            if is_relayed:
                await network.find_providers("nothing")  # all servers are asked, and the relay is one
            known = network.health().connected_peers
            clock = Clock()
            link = await self._dial(network, road, provider, key, direct, libp2p)
            found = {"ms": clock.ms(), "cpu_ms": clock.cpu_ms()}
            if network.health().connected_peers != known + (road != "direct"):
                raise RuntimeError("it was connected before, or to others than the provider")
            times = []
            for _ in range(trips):
                one = Clock()
                await trip(link)
                times.append(one.ms())
            await link.aclose()
        return {**found, "trip_ms": median(times)}

    async def _dial(
        self, network: Network, road: str, provider: PublicKey, key: SecretKey, direct: list[str], libp2p: list[str]
    ) -> LinkConnection:
        if road != "direct":
            return await network.dial_link(provider, libp2p)
        host, port = direct[0].split("/")[2:5:2]
        return await dial(host, int(port), provider, key)

    async def order(
        self, road: str, peer: str, direct: list[str], libp2p: list[str], model: str, orders: int
    ) -> dict[str, float]:
        """Orders, one after another, on a link and a channel that are there: until the first of the answer comes."""
        from p2pgrid.client.client import Client
        from p2pgrid.config import ClientConfig

        self._data = self._data or tempfile.TemporaryDirectory(prefix="p2pgrid-bench-")
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64, "stream": True}
        data, config = Path(self._data.name) / road, ClientConfig(punch=False)
        async with Client(data, network=self._network, bootstrap=self._bootstrap, config=config) as client:
            await client.wait_for_offer(model, TIME_S)
            times, cpu = [], Clock()
            for n in range(orders + 2):
                clock = Clock()
                cpu = clock if n == 2 else cpu
                async with await client.request(CHAT, body) as answer:
                    first_ms = 0.0
                    async for _ in answer:
                        first_ms = first_ms or clock.ms()
                times.append(first_ms)
            session = client.purchaser.sessions.get(peer)
            link = session.link if session is not None else None
            if link is None or link.road.value != road:
                raise RuntimeError(f"{model} was bought over {link.road.value if link else 'no link'}, not {road}")
            return {"ms": median(times[2:]), "cpu_ms": cpu.cpu_ms() / orders}

    async def pull(self, peer: str, address: str, mib: int) -> dict[str, float]:
        """So many MiB from a source, on one stream through a circuit."""
        async with new_network(self._network, []) as network:
            road = await network.dial_http(parse_peer_id(peer), [address])
            size = mib * 2**20
            protocol = Pulled(size)
            road.start(protocol)
            clock = Clock()
            road.write(size.to_bytes(8))
            await protocol.done
            found = {"mib_per_s": mib / clock.ms() * 1e3, "cpu_ms": clock.cpu_ms() / mib}
            road.close()
        return found

    async def aclose(self) -> None:
        """Let go of everything."""
        if self._joined is not None:
            await self._joined.__aexit__(None, None, None)
        if self._data is not None:
            self._data.cleanup()


async def serve(make: Callable[[str, list[str]], Worker]) -> None:
    """One order a line, one answer a line, until the other side goes. The first order says where the network is."""
    gone = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = json.loads(await reader.readline())
        worker = make(start["network"], start["bootstrap"])
        while line := await reader.readline():
            order = json.loads(line)
            writer.write(json.dumps(await _answer(getattr(worker, order.pop("do")), order)).encode() + b"\n")
        await worker.aclose()
        writer.close()
        gone.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await gone.wait()
    server.close()


async def _answer(work: Callable[..., Awaitable[dict[str, float]]], order: dict[str, Any]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(TIME_S):
            return await work(**order)
    except Exception as error:  # noqa: BLE001 (whatever it was, the benchmark says so and stops)
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if sys.argv[1:2] == ["once"]:
            order = json.loads(sys.argv[2])
            worker, began_s = Worker(order.pop("network"), order.pop("bootstrap")), time.time()
            print(json.dumps({"began_s": began_s, **runner.run(_answer(worker.cold, order))}), flush=True)
        else:
            runner.run(serve(Worker))


if __name__ == "__main__":
    main()
