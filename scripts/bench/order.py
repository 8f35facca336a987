"""What an order and a chunk cost, provider and client together, over a link in memory.

    python scripts/bench/order.py [--seconds 4] [--json] [--only NAME] [--profile NAME] [--folder DIR]

One process holds both sides: the provider's exchange with its engine client, the client's order, a ledger each (SQLite
with synchronous=FULL, or none). The road between them is a pair of transports that hand bytes over, so TLS and
the kernel's part of it are not in the figures; the engine is `paced_engine.py`, a process of its own. CPU is this
process's, all threads. Take the ratios to the bare costs, which are measured in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import gc
import json
import pstats
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from paced_engine import sse_events

from p2pgrid.client.batch import BatchStream, SharedRequest
from p2pgrid.client.batcher import Batcher
from p2pgrid.client.order import OrderStream
from p2pgrid.desk.evidence import EvidenceKeeper
from p2pgrid.engine.base import AnswerReader, Engine
from p2pgrid.engine.http import HttpEngine
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.batch_buyer import Need
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import LinkLimits
from p2pgrid.proto.messages import BatchTerms, DataTerms, ModelOffer, Offer, Order, Tariff, Terms
from p2pgrid.proto.placement import place_batch, place_order
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.request import RequestFields, metered_body, parse_request
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.provider.admission import Admission, ServedModel
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.dispute_book import DisputeBook
from p2pgrid.provider.exchange import Shop
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.links import ClientLinks
from p2pgrid.provider.offers import OfferBook, OfferTerms
from p2pgrid.provider.session import serve_streams
from p2pgrid.provider.tally import Tally
from tests.factories import CLIENT, PROVIDER, make_channel

CHAT = "/v1/chat/completions"
ENGINE = Path(__file__).with_name("paced_engine.py")
PERIOD_MS = 20
SHORT_TOKENS = 4
BATCH = BatchTerms(batch_requests=16, batch_ms=100)
ROUNDS = 16


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryRoad(asyncio.Transport):
    """One end of a road in memory: what is written here arrives there, in the next turn of the loop."""

    def __init__(self, far_end: LinkConnection) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._far_end = far_end

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._loop.call_soon(self._far_end.data_received, bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        self._loop.call_soon(self._far_end.connection_lost, None)

    close = abort


class FreeLedger(MemoryLedger):
    """Keeps what it is given until `is_free`, and then nothing, for next to no CPU."""

    is_free = False

    def append(self, *signed: Signed[Any]) -> asyncio.Future[None]:
        if not self.is_free:
            return super().append(*signed)
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    def keep_request_key(self, order: Signed[Order], key: bytes) -> None:
        pass


class InstantEngine:
    """Answers in the same process, for next to no CPU: what is left is our own code."""

    def ask(self, endpoint: str, body: bytes, request_id: str, reader: AnswerReader) -> InstantAnswer:
        answer, loop = InstantAnswer(reader), asyncio.get_running_loop()
        data = "".join(sse_events(request_id, SHORT_TOKENS)).encode()
        loop.call_soon(answer.tell, data)
        return answer

    async def aclose(self) -> None:
        pass


class InstantAnswer:
    """An answer that is there already."""

    def __init__(self, reader: AnswerReader) -> None:
        self.reader = reader

    def tell(self, data: bytes) -> None:
        self.reader.answer_began(200, "text/event-stream")
        self.reader.answer_received(data)
        self.reader.answer_ended()

    def pause(self) -> None:
        pass

    resume = abort = pause


class Owner:
    """What an order tells its session; turns go to the order they are for."""

    def __init__(self) -> None:
        self.live: dict[int, OrderStream] = {}

    def order_turn(self, order: OrderStream, number: int) -> None:
        self.live[number].proceed()

    def order_ended(self, order: OrderStream) -> None:
        del self.live[order.buyer.order.message.order_number]

    def receipt_signed(self, order: OrderStream) -> None:
        pass

    def order_breached(self, order: OrderStream, breach: object) -> None:
        raise AssertionError(breach)

    def order_disputed(self, order: OrderStream, dispute: object) -> None:
        raise AssertionError(dispute)

    def order_cut(self, order: OrderStream) -> None:
        raise AssertionError(order)

    def keep_evidence(self, record: Record, reason: str) -> None:
        raise AssertionError(reason)

    def ledger_failed(self, error: Exception) -> None:
        raise error


def body_of(**bench: int) -> bytes:
    """A request that tells the paced engine how to answer."""
    return metered_body(
        {"model": "bench", "messages": [{"role": "user", "content": "x" * 400}], "max_tokens": bench["tokens"]}
        | {"bench": bench}
    )


@dataclass
class Market:
    """A provider and a client with a channel between them."""

    link: LinkConnection
    books: ChannelBooks
    offer: Signed[Offer]
    ledger: Ledger
    owner: Owner
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.place_batch)

    def place_batch(
        self, offer: Signed[Offer], fields: RequestFields, endpoint: str, need: Need, close_s: float
    ) -> BatchStream:
        key = secrets.token_bytes(32)
        buyer, actions = place_batch(
            self.books,
            offer,
            fields,
            endpoint,
            need,
            key=CLIENT,
            commitment_key=key,
            now_ms=unix_ms(),
            first_token_timeout_ms=60_000,
        )
        batch = BatchStream(buyer, self.ledger, self.owner, unix_ms, (), close_s)
        self.owner.live[buyer.order.message.order_number] = batch
        stream = self.link.open_stream(batch)
        self.ledger.keep_request_key(buyer.order, key)
        batch.start(stream, actions)
        return batch

    def shared(self, **bench: int) -> OrderStream | SharedRequest:
        """A short request as the gateway orders it: with others, if others are under way."""
        body = body_of(**bench)
        fields, entry = parse_request(CHAT, body), self.offer.message.models[0]
        need = self.batcher.need_of(entry, fields, body, len(body))
        assert need is not None
        shared = self.batcher.ask(self.offer, fields, CHAT, body, need, max_amount_pico=None, now_ms=unix_ms())
        if shared is not None:
            return shared
        order = self.order(**bench)
        self.batcher.note_alone(order)
        return order

    def order(self, **bench: int) -> OrderStream:
        body = body_of(**bench)
        key = secrets.token_bytes(32)
        buyer, actions = place_order(
            self.books,
            self.offer,
            parse_request(CHAT, body),
            CHAT,
            body,
            key=CLIENT,
            commitment_key=key,
            now_ms=unix_ms(),
            first_token_timeout_ms=60_000,
        )
        order = OrderStream(buyer, self.ledger, self.owner, unix_ms, ())
        self.owner.live[buyer.order.message.order_number] = order
        stream = self.link.open_stream(order)
        self.ledger.keep_request_key(buyer.order, key)
        order.start(stream, actions)
        return order


@contextlib.asynccontextmanager
async def market(engine: Engine, sold: Ledger, bought: Ledger) -> AsyncIterator[Market]:
    """Everything between a program's body and the engine's socket, but the OpenAI endpoint and TLS."""
    tally = Tally()
    limits = ProviderLimits()
    channels = Channels(sold, PROVIDER, limits, unix_ms)
    terms = Terms(credit_limit_pico=2**62, max_open_orders=1024)
    offers = OfferBook(
        sold,
        PROVIDER,
        OfferTerms(
            operator="B", data_terms=DataTerms(country="LT"), terms=terms, gpus=(), validity_ms=10**8, batch=BATCH
        ),
        unix_ms,
    )
    tariff = Tariff(input_upm=200_000, cached_input_upm=100_000, output_upm=800_000)
    entry = ModelOffer(model="bench", tariff=tariff, context_tokens=100_000, concurrency=100_000, endpoints=(CHAT,))
    offer = await offers.publish([entry], ["/ip4/127.0.0.1/tcp/1/tls"])
    served = ServedModel(name="bench", engine=engine, concurrency=100_000, is_up=True)
    shop = Shop(
        key=PROVIDER,
        ledger=sold,
        offers=offers,
        channels=channels,
        admission=Admission({"bench": served}, channels, limits),
        links=ClientLinks(limits, tally),
        tally=tally,
        evidence=EvidenceKeeper(sold, unix_ms),
        disputes=DisputeBook(sold, channels, unix_ms),
        limits=limits,
        now_ms=unix_ms,
    )
    now_ms = unix_ms()
    signed = make_channel(
        name=secrets.token_hex(8),
        credit_limit_pico=2**62,
        max_open_orders=1024,
        opened_ms=now_ms,
        expires_ms=now_ms + 10**9,
    )
    await sold.append(signed)
    await bought.append(offer, signed)
    loop_ms = int(asyncio.get_running_loop().time() * 1000)
    far = Link.listener(PROVIDER.public_key, secrets.token_bytes(32), limits=LinkLimits(), now_ms=loop_ms)
    near = Link.dialler(CLIENT, PROVIDER.public_key, limits=LinkLimits(), now_ms=loop_ms)
    seller, buyer = LinkConnection(far, name="far", on_stream=serve_streams(shop)), LinkConnection(near, name="near")
    seller.connection_made(MemoryRoad(buyer))
    buyer.connection_made(MemoryRoad(seller))
    await buyer.ready
    books = ChannelBooks(signed, ChannelHead(0, 0, signed.id, 0, 0))
    books.countersigned_pico = 2**61
    channel = channels.open(signed, seller)
    channel.books.countersigned_pico = 2**61
    try:
        yield Market(buyer, books, offer, bought, Owner())
    finally:
        await engine.aclose()
        buyer.abort()
        await channels.aclose()


async def read_to_end(order: OrderStream | SharedRequest) -> None:
    while await order.wait():
        order.take()
    await order.ended_future
    assert order.receipt is not None or isinstance(order, SharedRequest), order.error


async def all_begun(orders: list[OrderStream]) -> None:
    async with asyncio.timeout(60):
        while not all(one.buyer.counter.output_tokens for one in orders):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


def cpu_s() -> float:
    return time.process_time()


# -- what is measured -------------------------------------------------------------------------------------------------


async def short_orders(here: Market, concurrency: int, seconds: float, *, batched: bool = False) -> dict[str, float]:
    """One order after another, each of `SHORT_TOKENS` tokens that come at once, `concurrency` at a time.

    `batched`: requests share orders and receipts, as far as the offer allows; all receipts are signed at a round's end.

    The least of several rounds: whatever else the machine does only adds to it.
    """
    rounds = []
    for _ in range(ROUNDS):
        done, until_s = 0, time.perf_counter() + seconds / ROUNDS

        async def one(until_s: float) -> None:
            nonlocal done
            while time.perf_counter() < until_s:
                await read_to_end((here.shared if batched else here.order)(tokens=SHORT_TOKENS))
                done += 1

        began_s, began_cpu = time.perf_counter(), cpu_s()
        await asyncio.gather(*(one(until_s) for _ in range(concurrency)))
        await asyncio.gather(*(one.ended_future for one in here.owner.live.values()))
        took_s, spent = time.perf_counter() - began_s, cpu_s() - began_cpu
        rounds.append({"us": spent / done * 1e6, "per_s": done / took_s, "ms": took_s * concurrency / done * 1e3})
    return min(rounds, key=lambda one: one["us"])


async def streams(here: Market, count: int, seconds: float, *, staggered: bool) -> dict[str, float]:
    """`count` streams, a token every 20 ms each."""
    tokens = int(seconds * 1000 / PERIOD_MS)
    orders = [here.order(tokens=tokens, period_ms=PERIOD_MS, slot=n % 64 if staggered else 0) for n in range(count)]
    reading = [asyncio.ensure_future(read_to_end(one)) for one in orders]
    await all_begun(orders)
    await asyncio.sleep(0.2)
    rounds = []
    while all(one.buyer.counter.output_tokens < tokens - 40 for one in orders):
        before, began_cpu = sum(one.buyer.counter.output_tokens for one in orders), cpu_s()
        await asyncio.sleep(0.5)
        rounds.append((cpu_s() - began_cpu) / (sum(one.buyer.counter.output_tokens for one in orders) - before))
    await asyncio.gather(*reading)
    return {"us": statistics.median(rounds) * 1e6}


async def memory(here: Market, count: int, *, trace: bool) -> dict[str, float]:
    """`count` streams open at once, a token every second, nothing waiting."""
    process = psutil.Process()
    await read_to_end(here.order(tokens=SHORT_TOKENS))
    gc.collect()
    if trace:
        tracemalloc.start(1)
    before = process.memory_info().rss
    orders = []
    for n in range(count):
        orders.append(here.order(tokens=300, period_ms=1000, slot=n % 64))
        if n % 50 == 49:
            await asyncio.sleep(0.05)
    reading = [asyncio.ensure_future(read_to_end(one)) for one in orders]
    await all_begun(orders)
    gc.collect()
    spent = process.memory_info().rss - before
    if trace:
        for line in tracemalloc.take_snapshot().statistics("lineno")[:40]:
            print(f"{line.size / count:10.0f} B {line.count / count:6.1f} x {line.traceback[0]}")
    for one in orders:
        one.cancel()
    await asyncio.gather(*reading)
    return {"kb": spent / count / 1e3}


def bare() -> dict[str, float]:
    """What no order can do without: its three signatures and three verifications; an event's decode on both sides."""
    message, rounds = b"x" * 300, 2000
    began = cpu_s()
    for _ in range(rounds):
        signature = PROVIDER.sign(message)
    sign_us = (cpu_s() - began) / rounds * 1e6
    began = cpu_s()
    for _ in range(rounds):
        assert PROVIDER.public_key.verify(message, signature)
    verify_us = (cpu_s() - began) / rounds * 1e6
    event = (
        b'data: {"id":"chatcmpl-' + b"a" * 64 + b'","object":"chat.completion.chunk","created":1,"model":"bench",'
        b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,"token_ids":[1234]}],'
        b'"usage":{"prompt_tokens":3,"total_tokens":8,"completion_tokens":%d}}\n\n'
    )
    events = [event % n for n in range(1, 20_001)]
    began = cpu_s()
    for one in events:
        msgspec.json.decode(one[6:-2])
    decode_us = (cpu_s() - began) / len(events) * 1e6
    splitter, counter = EventSplitter(), TokenCounter()
    began = cpu_s()
    for one in events:
        for whole in splitter.feed(one):
            counter.feed(whole)
    count_us = (cpu_s() - began) / len(events) * 1e6
    return {
        "sign_us": sign_us,
        "verify_us": verify_us,
        "signatures_us": 3 * sign_us + 3 * verify_us,
        "decode_us": decode_us,
        "count_us": count_us,
    }


Measure = Callable[[Market], Awaitable[dict[str, float]]]


@dataclass(frozen=True)
class Shape:
    """What to run, and on what."""

    measure: Measure
    has_ledger: bool = True
    has_engine: bool = True


def shapes(seconds: float, *, trace: bool) -> dict[str, Shape]:
    return {
        "our code alone: 16 short orders at once": Shape(lambda m: short_orders(m, 16, seconds), False, False),
        "and an engine: 16 short orders at once": Shape(lambda m: short_orders(m, 16, seconds), False),
        "short orders, 1 at once": Shape(lambda m: short_orders(m, 1, seconds)),
        "short orders, 16 at once": Shape(lambda m: short_orders(m, 16, seconds)),
        "short orders, 64 at once": Shape(lambda m: short_orders(m, 64, seconds)),
        "our code alone: 16 batched at once": Shape(lambda m: short_orders(m, 16, seconds, batched=True), False, False),
        "batched, 1 at once": Shape(lambda m: short_orders(m, 1, seconds, batched=True)),
        "batched, 16 at once": Shape(lambda m: short_orders(m, 16, seconds, batched=True)),
        "batched, 64 at once": Shape(lambda m: short_orders(m, 64, seconds, batched=True)),
        "chunks, 64 streams staggered": Shape(lambda m: streams(m, 64, seconds + 2, staggered=True)),
        "chunks, 64 streams in step": Shape(lambda m: streams(m, 64, seconds + 2, staggered=False)),
        "memory, 1000 streams": Shape(lambda m: memory(m, 1000, trace=trace)),
    }


async def run(folder: Path, uds: Path, shape: Shape) -> dict[str, float]:
    sold = SqliteLedger.open(folder / "sold.sqlite") if shape.has_ledger else FreeLedger()
    bought = SqliteLedger.open(folder / "bought.sqlite") if shape.has_ledger else FreeLedger()
    engine = HttpEngine(f"unix:{uds}") if shape.has_engine else cast(Engine, InstantEngine())
    async with market(engine, sold, bought) as here:
        if isinstance(sold, FreeLedger) and isinstance(bought, FreeLedger):
            sold.is_free = bought.is_free = True
        result = await shape.measure(here)
    await sold.aclose()
    await bought.aclose()
    return result


@contextlib.contextmanager
def paced_engine(folder: Path) -> Iterator[Path]:
    uds = folder / "e.sock"
    with subprocess.Popen([sys.executable, str(ENGINE), "--uds", str(uds)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        try:
            yield uds
        finally:
            process.terminate()


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="", help="measures whose name holds this")
    parser.add_argument("--profile", action="store_true", help="with cProfile; the figures are then no measure")
    parser.add_argument("--sort", default="tottime", help="what --profile sorts by: tottime, ncalls, cumtime")
    parser.add_argument("--trace", action="store_true", help="where memory goes")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    costs, results = bare(), {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name, paced_engine(Path(name)) as uds:
        for number, (title, shape) in enumerate(shapes(options.seconds, trace=options.trace).items()):
            if options.only not in title:
                continue
            folder = Path(name) / str(number)
            folder.mkdir()
            profile = cProfile.Profile()
            with profile if options.profile else contextlib.nullcontext():
                results[title] = uvloop.run(run(folder, uds, shape))
            if options.profile:
                pstats.Stats(profile).sort_stats(options.sort).print_stats(70)
    if options.json:
        print(json.dumps({"bare": costs, "measured": results}))
        return
    print("bare, us:  " + "  ".join(f"{key.removesuffix('_us')} {value:.2f}" for key, value in costs.items()))
    for title, result in results.items():
        told = "  ".join(f"{key} {value:.1f}" for key, value in result.items())
        per = 2 * costs["count_us"] if title.startswith("chunks") else costs["signatures_us"]
        ratio = f"  ({result['us'] / per:.2f} x bare)" if "us" in result else ""
        print(f"{title:44} {told}{ratio}")


if __name__ == "__main__":
    main()
