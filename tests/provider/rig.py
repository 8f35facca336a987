"""A provider without libp2p, and a client made of the buyer's machine: real links over loopback, a fake vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

from p2pgrid.clock import unix_ms
from p2pgrid.config import ModelConfig
from p2pgrid.desk.evidence import EvidenceKeeper
from p2pgrid.engine.fake import FakeState, FakeVllm, serve_fake
from p2pgrid.engine.http import HttpEngine
from p2pgrid.errors import P2pgridError
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.log.service import LogService
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import dial, listen
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.proto.actions import Actions, Breach, Deliver, EndStream, Send, Turn
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.buyer import BuyerOrder
from p2pgrid.proto.channel import ChannelHead, accept_channel
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.disputing import sign_dispute
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import BatchTerms, Channel, DataTerms, Offer, Receipt, Terms
from p2pgrid.proto.order_states import BuyerState
from p2pgrid.proto.placement import place_order
from p2pgrid.proto.record import Role, Signed, parse_record, verify_record
from p2pgrid.proto.request import metered_body, parse_request
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.channels import ChannelRequest, Held, OpenTick, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.admission import Admission
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.client_credit import ClientCredit, CreditPolicy, Standing
from p2pgrid.provider.dispute_book import DisputeBook
from p2pgrid.provider.engines import EnginePlan, EngineSet
from p2pgrid.provider.exchange import Shop
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.links import ClientLinks
from p2pgrid.provider.offers import ONE_BY_ONE, OfferBook, OfferTerms
from p2pgrid.provider.order import OrderExchange
from p2pgrid.provider.session import serve_streams
from p2pgrid.provider.statement_book import StatementBook
from p2pgrid.provider.tally import Tally
from p2pgrid.settlement.wiring import Selling
from tests.factories import CLIENT, PROVIDER

MODEL = "fake"
WINDOW = 16
CHAT = "/v1/chat/completions"
QUICK = ProviderLimits(
    body_timeout_s=0.3,
    control_timeout_s=2.0,
    linger_s=1.0,
    countersignature_timeout_s=0.5,
    slow_reader_timeout_s=0.5,
    ledger_retry_s=0.05,
)


@dataclass
class Clock:
    """The provider's clock: the machine's, and so much ahead."""

    ahead_ms: int = 0

    def __call__(self) -> int:
        return unix_ms() + self.ahead_ms


@dataclass
class Rig:
    """A running provider."""

    shop: Shop
    engines: EngineSet
    fake: FakeState
    address: tuple[str, int]
    offer: Signed[Offer]
    clock: Clock

    @property
    def tally(self) -> Tally:
        return self.shop.tally

    @property
    def live(self) -> list[OrderExchange]:
        """Accepted orders without a countersigned receipt."""
        return [cast(OrderExchange, order) for order in self.shop.channels.live_orders]

    def pass_time(self, ms: int) -> None:
        """Move the provider's clock, and let every order look at it."""
        self.clock.ahead_ms += ms
        for order in self.live:
            order.tick()


@contextlib.asynccontextmanager
async def provider(
    ledger: Ledger | None = None,
    *,
    window_tokens: int = WINDOW,
    concurrency: int = 8,
    credit_limit_pico: int = 10**12,
    max_open_orders: int = 64,
    validity_ms: int = 3_600_000,
    limits: ProviderLimits = QUICK,
    clock_ahead_ms: int = 0,
    models: tuple[str, ...] = (MODEL,),
    log: LogService | None = None,
    batch: BatchTerms = ONE_BY_ONE,
    selling: Selling | None = None,
    policy: CreditPolicy | None = None,
    standing: Standing | None = None,
    price_output_eur: str = "0.80",
) -> AsyncIterator[Rig]:
    """A provider on a free port of 127.0.0.1 with a fake engine; one `ModelConfig` a name."""
    ledger = ledger if ledger is not None else MemoryLedger()
    fake = FakeVllm(models=models)
    configs = [
        ModelConfig(name=name, price_input_eur="0.20", price_output_eur=price_output_eur, concurrency=concurrency)
        for name in models
    ]
    clock = now_ms = Clock(clock_ahead_ms)
    async with serve_fake(fake) as url:
        engine = HttpEngine(url)
        engines = EngineSet([EnginePlan(config, engine) for config in configs], health_interval_s=0.05)
        await engines.start(5)
        tally = Tally()
        channels = Channels(ledger, PROVIDER, limits, now_ms)
        await channels.restore()
        terms = Terms(window_tokens=window_tokens, credit_limit_pico=credit_limit_pico, max_open_orders=max_open_orders)
        offers = OfferBook(
            ledger,
            PROVIDER,
            OfferTerms(
                operator="Test",
                data_terms=DataTerms(country="LT"),
                terms=terms,
                gpus=(),
                validity_ms=validity_ms,
                batch=batch,
            ),
            now_ms,
        )
        credit = ClientCredit(ledger, channels, policy, now_ms, standing) if policy is not None else None
        if credit is not None:
            credit.start()
        offer = await offers.publish(engines.entries, ["/ip4/127.0.0.1/tcp/1/tls"])
        shop = Shop(
            key=PROVIDER,
            ledger=ledger,
            offers=offers,
            channels=channels,
            admission=Admission(engines.models, channels, limits),
            links=ClientLinks(limits, tally),
            tally=tally,
            evidence=EvidenceKeeper(ledger, now_ms),
            disputes=DisputeBook(ledger, channels, now_ms),
            limits=limits,
            now_ms=now_ms,
            log=log,
            statements=StatementBook(ledger, channels, now_ms, selling=selling),
            credit=credit,
        )
        assert shop.statements is not None
        shop.statements.review()
        listener = await listen("127.0.0.1", 0, PROVIDER, on_stream=serve_streams(shop))
        try:
            # The checks of the start are not what a test counts.
            fake.state.request_ids.clear()
            fake.state.completed = 0
            yield Rig(shop, engines, fake.state, listener.addresses[0], offer, clock)
        finally:
            await listener.aclose(drain_s=0)
            await channels.aclose()
            await engines.aclose()


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return as soon as `condition()` is true; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


TRUST_PICO = 10**12
"""Enough for all that these tests have open at once."""


@dataclass
class Buyer:
    """A client: one link, one channel, no ledger. It keeps its books through a lost link."""

    rig: Rig
    link: LinkConnection
    key: SecretKey = CLIENT
    clock_ahead_ms: int = 0
    provider: PublicKey = PROVIDER.public_key
    placed: list[Placed] = field(default_factory=list)
    books: ChannelBooks = field(init=False)
    channel: Signed[Channel] = field(init=False)

    @classmethod
    async def connect(cls, rig: Rig, key: SecretKey = CLIENT, *, provider: PublicKey = PROVIDER.public_key) -> Self:
        """Dial, and open a channel."""
        link = await dial(*rig.address, provider, key)
        buyer = cls(rig, link, key, provider=provider)
        buyer.channel = await buyer.open_channel()
        buyer.books = new_books(buyer.channel)
        if rig.shop is not None:
            buyer.cover(rig.shop.channels, TRUST_PICO)
        return buyer

    def cover(self, channels: Channels, countersigned_pico: int) -> None:
        """Both books say that the client has countersigned so much: it covers what is at risk on open orders."""
        books = channels.find(self.books.id, self.key.public_key).books
        books.countersigned_pico = self.books.countersigned_pico = countersigned_pico

    async def reconnect(self, rig: Rig | None = None) -> None:
        """A new link, to the same provider or to what it was restarted as."""
        self.rig = rig or self.rig
        self.link = await dial(*self.rig.address, self.provider, self.key)

    def now_ms(self) -> int:
        return unix_ms() + self.clock_ahead_ms

    def stream(self) -> tuple[Stream, StreamReader]:
        reader = StreamReader()
        return self.link.open_stream(reader), reader

    async def ask(self, kind: Kind, payload: bytes) -> tuple[int, bytes]:
        """One message on a new stream, and the first answer."""
        stream, reader = self.stream()
        stream.send(kind, payload)
        answer = await receive(reader)
        stream.end()
        return answer

    async def open_channel(self) -> Signed[Channel]:
        stream, reader = self.stream()
        nonce = secrets.token_bytes(32)
        request = ChannelRequest(client_nonce=nonce, offer=self.rig.offer.id, now_ms=self.now_ms())
        stream.send(Kind.CHANNEL_REQUEST, request.to_bytes())
        kind, payload = await receive(reader)
        if kind == Kind.REFUSAL:
            raise AssertionError(parse_frame(payload, Refusal))
        signed = accept_channel(
            parse_record(payload), self.rig.offer, key=self.key, client_nonce=nonce, now_ms=self.now_ms()
        )
        stream.send(Kind.CHANNEL, signed.record.to_bytes())
        assert await receive(reader) == (Kind.CHANNEL_OPENED, b"")
        stream.end()
        return signed

    async def resume(self, *, sign: bool = True) -> tuple[Resumed, list[Signed[Receipt]]]:
        """Resume the channel; countersign what is proposed. What this side owes is for the test to check.

        It has no records that the provider might lack, and takes none.
        """
        stream, reader = self.stream()
        stream.send(Kind.RESUME, self.resume_frame())
        kind, payload = await receive(reader)
        assert kind == Kind.RESUMED, (kind, payload)
        resumed = parse_frame(payload, Resumed)
        for _ in range(resumed.records):
            assert (await receive(reader))[0] == Kind.RECORD
        stream.send(Kind.RECORDS, Records(records=0, is_all=True).to_bytes())
        kind, payload = await receive(reader)
        assert kind == Kind.PROPOSALS, (kind, payload)
        proposals = parse_frame(payload, Proposals)
        assert proposals.is_all
        receipts = []
        for _ in range(proposals.proposals):
            kind, payload = await receive(reader)
            assert kind == Kind.RECEIPT
            receipt = verify_record(parse_record(payload), Receipt, {Role.PROVIDER: self.provider})
            receipts.append(receipt)
            if sign:
                assert self.books.chain_fault(receipt.message) is None
                self.books.append(receipt)
                self.books.settle(receipt.message)
                signed = receipt.countersigned(Role.CLIENT, self.key)
                stream.send(Kind.COUNTERSIGNATURE, signed.record.to_bytes())
        if sign:
            stream.end()
            assert await reader.receive() is None
            if self.rig.shop is not None:
                self.cover(self.rig.shop.channels, TRUST_PICO)
        return resumed, receipts

    def dispute(self, receipt: Signed[Receipt]) -> Signed[Dispute]:
        """This client's dispute of a receipt: nothing is owed."""
        return sign_dispute(
            receipt,
            self.channel.message,
            reason="not-delivered",
            statement="Nothing came.",
            owed_pico=0,
            key=self.key,
            now_ms=self.now_ms(),
        )

    def resume_frame(self) -> bytes:
        """What a client says that holds its receipts."""
        held = Held(
            last_order_number=self.books.last_order_number,
            last_receipt_number=self.books.last_receipt_number,
            last_receipt=self.books.last_receipt_id,
            open_orders=tuple(
                OpenTick(order_number=number, tick=one.machine._ticks)
                for one in self.placed
                if self.books.is_open(number := one.machine.order.message.order_number)
            ),
        )
        return Resume(channel=self.channel.record.to_bytes(), held=held).to_bytes()

    def order(self, *, rig_offer: Signed[Offer] | None = None, **fields: Any) -> Placed:
        """Sign an order for a chat. `fields` go into the body: `max_tokens`, `fake` (see engine/fake.py)."""
        body = metered_body(
            {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 64, **fields}
        )
        machine, actions = place_order(
            self.books,
            rig_offer or self.rig.offer,
            parse_request(CHAT, body),
            CHAT,
            body,
            key=self.key,
            commitment_key=secrets.token_bytes(32),
            now_ms=self.now_ms(),
            first_token_timeout_ms=10_000,
        )
        self.placed.append(Placed(self, machine, list(actions)))
        return self.placed[-1]

    def forget_orders(self) -> None:
        """Close in the books what will get no receipt, as a client does when it has resumed."""
        for one in self.placed:
            if one.machine.state not in (BuyerState.SETTLED, BuyerState.REFUSED):
                self.books.close_order(one.machine.order.message.order_number)
        self.placed.clear()


@dataclass(eq=False)
class Placed(StreamHandler):
    """An order on its stream. Messages are dealt with as they come, so that receipts are met in their order."""

    buyer: Buyer
    machine: BuyerOrder
    actions: list[Any]
    mute: frozenset[Kind] = frozenset()
    """Kinds that this client keeps to itself."""
    takes_bytes: bool = True
    """False: a client that gives no credit back."""
    answer: bytes = b""
    breach: Breach | None = None
    kinds: list[int] = field(default_factory=list)
    """Of the messages that came."""
    over: str = ""
    """How the stream went away, if it did before its end."""
    ended_by_provider: bool = False
    waiting: deque[bytes] = field(default_factory=deque)
    """Of the body, for want of credit."""
    stream: Stream = field(init=False)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self) -> Self:
        """Open the stream and send order and body."""
        self.stream = self.buyer.link.open_stream(self)
        self._run(self.actions)
        return self

    def muted(self, *kinds: Kind) -> Self:
        self.mute = frozenset(kinds)
        return self

    async def until(self, condition: Callable[[], object]) -> Self:
        """Wait until a message made `condition()` true, or the stream is gone."""
        async with asyncio.timeout(20):
            while not condition() and not self.over and not self.ended_by_provider:
                self.changed.clear()
                await self.changed.wait()
        return self

    async def until_kind(self, kind: Kind) -> Self:
        return await self.until(lambda: kind in self.kinds)

    async def to_end(self) -> Receipt:
        """Wait for the end; the receipt."""
        await self.until(lambda: False)
        assert self.machine.state is BuyerState.SETTLED, (
            self.machine.state,
            self.machine.refusal,
            self.breach,
            self.over,
        )
        assert self.machine.receipt is not None
        return self.machine.receipt.message

    async def refused(self) -> Refusal:
        """Wait for the end; the refusal."""
        await self.until(lambda: False)
        assert self.machine.refusal is not None, (self.machine.state, self.over)
        return self.machine.refusal

    async def cut(self) -> str:
        """Wait until the stream is gone; why."""
        await self.until(lambda: False)
        assert self.over, self.machine.state
        return self.over

    def cancel(self) -> None:
        self._run(self.machine.cancel())

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        self.kinds.append(kind)
        if kind >= 128 and self.takes_bytes:
            stream.consume(len(payload))
        self._run(self.machine.message(kind, payload, self.buyer.now_ms()))
        self.changed.set()

    def writable(self, stream: Stream) -> None:
        while self.waiting and stream.writable_bytes >= len(self.waiting[0]):
            stream.send(Kind.BODY, self.waiting.popleft())

    def ended(self, stream: Stream) -> None:
        self.ended_by_provider = True
        self.changed.set()

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self.machine.link_lost()
        self.over = message
        self.changed.set()

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self.machine.link_lost()
        self.over = error.message
        self.changed.set()

    def _run(self, actions: Actions) -> None:
        for action in actions:
            if isinstance(action, Send):
                if action.kind == Kind.BODY:
                    self.waiting.append(action.payload)
                    self.writable(self.stream)
                elif action.kind not in self.mute:
                    self.stream.send(action.kind, action.payload)
            elif isinstance(action, Deliver):
                self.answer += action.data
            elif isinstance(action, EndStream):
                self.stream.end()
            elif isinstance(action, Breach):
                self.breach = action
            elif isinstance(action, Turn):
                for other in self.buyer.placed:
                    if other.machine.order.message.order_number == action.order_number:
                        other._run(other.machine.proceed(self.buyer.now_ms()))


def new_books(channel: Signed[Channel]) -> ChannelBooks:
    """The books of a channel on which nothing has happened."""
    return ChannelBooks(channel, ChannelHead(0, 0, channel.id, 0, 0))


async def receive(reader: StreamReader) -> tuple[int, bytes]:
    """The next message, within 20 s."""
    async with asyncio.timeout(20):
        received = await reader.receive()
    assert received is not None, "the stream ended"
    return received.kind, received.payload


def limits(**changes: Any) -> ProviderLimits:
    """QUICK with changes."""
    return replace(QUICK, **changes)
