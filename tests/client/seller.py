"""A provider for tests: real links over loopback, the real seller's machine, answers from a script, and faults.

Its ledger is in memory. `FakeNetwork` finds such providers.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.client.quarantine import Quarantine
from p2pgrid.client.wishes import Wishes
from p2pgrid.clock import unix_ms
from p2pgrid.errors import P2pgridError, Refused, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import DirectListener, dial, listen
from p2pgrid.net.peer_address import OnFound, PeerAddress
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.proto.acceptance import accept_order, verify_order
from p2pgrid.proto.actions import AbortEngine, Actions, AskEngine, Disputed, EndStream, Persist, Send, Settled
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.channel import propose_channel, verify_channel
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.frame import ResetCode
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.messages import ENDPOINTS, Channel, DataTerms, ModelOffer, Offer, Receipt, Tariff, Terms
from p2pgrid.proto.proposal import accept_countersignature, accept_dispute
from p2pgrid.proto.reconcile import check_restored, held_of, interrupt_open_orders, lacking, open_proposals
from p2pgrid.proto.record import Record, Role, Signed, parse_record, sign_message
from p2pgrid.proto.restore import restore_books
from p2pgrid.proto.seller import SellerOrder
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.channels import ChannelRequest, Channels, Held, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.disputes import DisputesCompared, DisputesHeld
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.offers import Capacity
from p2pgrid.proto.wire.orders import OrderOpening
from tests.factories import CLIENT, secret_key

MODEL = "tiny"
WINDOW = 16
CHAT = ENDPOINTS[0]
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
PROMPT_IDS = [1, 2, 3, 4, 5]

Tamper = Callable[[int, bytes], bytes | None]
"""Changes a message on its way out; None drops it."""


def sse(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def chat_events(tokens: int, *, cached: int = 0) -> list[bytes]:
    """A whole streamed chat as vLLM writes it: one token a chunk, usage at its end."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    events = [sse({**head, "choices": [first], "prompt_token_ids": PROMPT_IDS})]
    for step in range(tokens):
        reason = "stop" if step == tokens - 1 else None
        delta = {"index": 0, "delta": {"content": f"w{step} "}, "finish_reason": reason, "token_ids": [100 + step]}
        usage = {"prompt_tokens": len(PROMPT_IDS), "completion_tokens": step + 1, "total_tokens": 0}
        events.append(sse({**head, "choices": [delta], "usage": usage}))
    usage = {
        "prompt_tokens": len(PROMPT_IDS),
        "completion_tokens": tokens,
        "total_tokens": len(PROMPT_IDS) + tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return [*events, sse({**head, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]


class TestSeller:
    """One provider. Its public attributes are knobs; turn them at any time."""

    __test__ = False

    def __init__(
        self,
        name: str = "seller",
        *,
        country: str = "LT",
        input_upm: int = 200_000,
        output_upm: int = 800_000,
        window_tokens: int = WINDOW,
        credit_limit_pico: int = 10**12,
        max_open_orders: int = 64,
        model: str = MODEL,
        context_tokens: int = 4096,
    ) -> None:
        self.key = secret_key(name)
        self.name = name
        self.country = country
        self.events = chat_events(3)
        self.status = 200
        self.hold_after: int | None = None
        """Send so many events, then wait for `go_on`."""
        self.go_on = asyncio.Event()
        self.cut_after: int | None = None
        """Send so many events, then drop the link."""
        self.refusal: Refusal | None = None
        self.tamper: Tamper | None = None
        self.keep_receipts = False
        """Never send a receipt on an order's stream: it comes when the channel is resumed."""
        self.charges: Tariff | None = None
        """What is billed, whatever the offer says."""
        self.forgets_channels = False
        self.resets_orders = False
        self.ahead_ms = 0
        self.capacity: Capacity | None = None
        self.bodies: list[bytes] = []
        self.orders: list[SellerOrder] = []
        self.aborted = 0
        self.settled: list[Signed[Receipt]] = []
        self.disputed: list[Signed[Dispute]] = []
        self.seen: Counter[Kind] = Counter()
        self.most_open = 0
        self.books: dict[bytes, ChannelBooks] = {}
        self.ledger = MemoryLedger()
        self.written: list[Signed[Any]] = []
        self.listener: DirectListener | None = None
        self.changed = asyncio.Event()
        self.watchers: list[_Talk] = []
        """Streams on which clients watch the offer."""
        entry = ModelOffer(
            model=model,
            tariff=Tariff(input_upm=input_upm, cached_input_upm=input_upm, output_upm=output_upm),
            context_tokens=context_tokens,
            concurrency=8,
            endpoints=ENDPOINTS,
        )
        terms = Terms(window_tokens=window_tokens, credit_limit_pico=credit_limit_pico, max_open_orders=max_open_orders)
        self.offer = self.make_offer(models=(entry,), terms=terms)

    def make_offer(self, **changes: Any) -> Signed[Offer]:
        """An offer of this provider; with changes to the one it has."""
        now_ms = unix_ms()
        fields: dict[str, Any] = {
            "provider": self.key.public_key.raw,
            "sequence": 1,
            "valid_from_ms": now_ms - 60_000,
            "valid_until_ms": now_ms + 3_600_000,
            "operator": f"Operator {self.name}",
            "currency": "EUR",
            "addresses": ("/ip4/127.0.0.1/tcp/1/tls",),
            "data_terms": DataTerms(country=self.country),
        }
        if hasattr(self, "offer"):
            fields = {name: getattr(self.offer.message, name) for name in Offer.__struct_fields__}
        return sign_message(Offer(**{**fields, **changes}), Role.PROVIDER, self.key)

    @property
    def peer_id(self) -> str:
        return self.key.public_key.peer_id

    @property
    def address(self) -> tuple[str, int]:
        assert self.listener is not None
        return self.listener.addresses[0]

    def now_ms(self) -> int:
        return unix_ms() + self.ahead_ms

    async def start(self) -> None:
        self.listener = await listen("127.0.0.1", 0, self.key, on_stream=self.talk)

    def talk(self, stream: Stream) -> StreamHandler:
        """What answers on a stream."""
        return _Talk(self, stream)

    async def stop(self) -> None:
        if self.listener is not None:
            await self.listener.aclose(drain_s=0)
            self.listener = None

    def lose_end_of_ledger(self, kept: int) -> None:
        """As after a disk that forgot: the first records remain, and nothing in memory."""
        written, self.written = self.written[:kept], []
        self.ledger, self.books = MemoryLedger(), {}
        for one in written:
            self.keep(one)
        self.drop_links()

    def keep(self, *signed: Signed[Any]) -> None:
        """Write to the ledger."""
        self.written += signed
        self.ledger.append(*signed)

    def drop_links(self) -> None:
        """Cut every link, as a broken network does."""
        assert self.listener is not None
        for connection in list(self.listener.connections):
            connection.abort()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that happened here made `condition()` true."""
        async with asyncio.timeout(20):
            while not condition():
                await self.changed.wait()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class _Talk(StreamHandler):
    """One stream on the provider's side."""

    def __init__(self, seller: TestSeller, stream: Stream) -> None:
        self.seller = seller
        self.stream = stream
        self.channel: Signed[Channel] | None = None
        self.opening: tuple[Any, OrderOpening] | None = None
        self.body = b""
        self.order: SellerOrder | None = None
        self.theirs: Held | None = None
        self.records: list[Record] = []
        self.n_records = 0
        self.proposals: list[Signed[Receipt]] = []
        self.pump: asyncio.Task[None] | None = None
        self.is_closed = False

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        self.seller.seen[Kind(kind)] += 1
        if kind >= 128:
            stream.consume(len(payload))
        try:
            self.take(kind, payload)
        except Refused as refusal:
            self.send(Kind.REFUSAL, Refusal(code=refusal.code, message=refusal.message).to_bytes())
            self.stream.end()
        self.seller.tell()

    def take(self, kind: int, payload: bytes) -> None:
        seller = self.seller
        if kind == Kind.OFFER_REQUEST:
            self.send(Kind.OFFER, seller.offer.record.to_bytes())
            self.stream.end()
        elif kind == Kind.OFFER_WATCH:
            seller.watchers.append(self)
            self.send(Kind.OFFER, seller.offer.record.to_bytes())
        elif kind == Kind.CHANNELS_REQUEST:
            found = tuple(one.record.to_bytes() for one in seller.ledger.channels())
            self.send(Kind.CHANNELS, Channels(channels=found).to_bytes())
            self.stream.end()
        elif kind == Kind.CHANNEL_REQUEST:
            self.propose(parse_frame(payload, ChannelRequest))
        elif kind == Kind.CHANNEL:
            self.open(self.verify(payload))
            self.send(Kind.CHANNEL_OPENED, b"")
            self.stream.end()
        elif kind == Kind.RESUME:
            self.resume(parse_frame(payload, Resume))
        elif kind == Kind.RECORDS:
            self.n_records = parse_frame(payload, Records).records
            self.take_records()
        elif kind == Kind.RECORD:
            self.records.append(parse_record(payload))
            self.take_records()
        elif self.proposals and kind in (Kind.COUNTERSIGNATURE, Kind.DISPUTE):
            proposal = self.proposals.pop(0)
            if kind == Kind.COUNTERSIGNATURE:
                signed = accept_countersignature(proposal, payload, self.books)
                seller.settled.append(signed)
                seller.keep(signed)
            else:
                dispute = accept_dispute(proposal, payload, self.books, seller.now_ms())
                seller.disputed.append(dispute)
                seller.keep(dispute)
            if not self.proposals:
                self.stream.end()
        elif kind == Kind.DISPUTES:
            compared = DisputesCompared(until=parse_frame(payload, DisputesHeld).until, lacks=(), records=0)
            self.send(Kind.DISPUTES_COMPARED, compared.to_bytes())
            self.send(Kind.DISPUTES_TAKEN, b"")
            self.stream.end()
        elif kind == Kind.DISPUTES_WATCH:
            raise Refused("unsupported", "this provider exchanges no disputes.")
        elif kind == Kind.ORDER and seller.resets_orders:
            self.stream.reset(ResetCode.REFUSED, "not now")
        elif kind == Kind.ORDER:
            self.opening = verify_order(payload, self.find_books(payload))
        elif kind == Kind.BODY:
            self.take_body(payload)
        elif self.order is not None:
            self.run(self.order.message(kind, payload, seller.now_ms()))

    def verify(self, payload: bytes) -> Signed[Channel]:
        return verify_channel(parse_record(payload), provider=self.seller.key.public_key, client=self.stream.peer)

    def find_books(self, payload: bytes) -> ChannelBooks:
        self.books = next(iter(reversed(list(self.seller.books.values()))))
        return self.books

    def propose(self, request: ChannelRequest) -> None:
        self.channel = propose_channel(
            self.seller.offer,
            client=self.stream.peer,
            client_nonce=request.client_nonce,
            provider_nonce=secrets.token_bytes(32),
            key=self.seller.key,
            now_ms=self.seller.now_ms(),
        )
        self.send(Kind.CHANNEL, self.channel.record.to_bytes())

    def open(self, channel: Signed[Channel]) -> None:
        self.seller.keep(channel)
        self.books = restore_books(self.seller.ledger, channel, Role.PROVIDER)
        known = self.seller.books.get(self.books.id)
        if known is not None:
            self.books.last_order_number = max(known.last_order_number, self.books.last_order_number)
        self.seller.books[self.books.id] = self.books

    def resume(self, frame: Resume) -> None:
        if self.seller.forgets_channels:
            raise Refused("unknown-channel", "never seen.")
        self.channel, self.theirs = self.verify(frame.channel), frame.held
        self.open(self.channel)
        held = held_of(self.seller.ledger, self.books.id, last_order_number=self.books.last_order_number)
        batch = lacking(self.seller.ledger, self.books.id, frame.held, Role.PROVIDER)
        self.send(Kind.RESUMED, Resumed(held=held, records=len(batch.records)).to_bytes())
        for record in batch.records:
            self.send(Kind.RECORD, record.to_bytes())

    def take_records(self) -> None:
        seller, ledger = self.seller, self.seller.ledger
        if len(self.records) < self.n_records:
            return
        assert self.channel is not None
        seller.keep(*check_restored(self.records, ledger, self.channel, Role.PROVIDER))
        self.open(self.channel)
        proposals = open_proposals(ledger, self.books.id)
        made = interrupt_open_orders(ledger, self.books, key=seller.key, now_ms=seller.now_ms())
        seller.keep(*made)
        self.proposals = [*proposals, *made]
        self.send(Kind.PROPOSALS, Proposals(proposals=len(self.proposals), is_all=True).to_bytes())
        for proposal in self.proposals:
            self.send(Kind.RECEIPT, proposal.record.to_bytes())
        if not self.proposals:
            self.stream.end()

    def take_body(self, piece: bytes) -> None:
        seller = self.seller
        assert self.opening is not None
        order, opening = self.opening
        self.body += piece
        if len(self.body) < opening.body_bytes:
            return
        seller.bodies.append(self.body)
        if seller.refusal is not None:
            self.send(Kind.REFUSAL, seller.refusal.to_bytes())
            self.stream.end()
            return
        offer = seller.offer if order.message.offer == seller.offer.id else None
        seller.keep(seller.offer)
        self.order, actions = accept_order(
            self.books, order, opening, self.body, offer, key=seller.key, now_ms=seller.now_ms()
        )
        if seller.charges is not None:
            self.order._tariff = seller.charges
        seller.orders.append(self.order)
        seller.most_open = max(seller.most_open, self.books.open_orders)
        self.run(actions)

    async def answer(self) -> None:
        """The engine's part, from the script."""
        seller, order = self.seller, self.order
        assert order is not None
        self.run(order.engine_head(seller.status, "text/event-stream"))
        for index, event in enumerate(seller.events):
            if index == seller.cut_after:
                self.stream.connection.abort()
                return
            if index == seller.hold_after:
                await seller.go_on.wait()
            while not order.wants_engine and order.is_running:
                await seller.changed.wait()
            self.run(order.engine_bytes(event, seller.now_ms()))
        self.run(order.engine_end(seller.now_ms()))

    def run(self, actions: Actions) -> None:
        for action in actions:
            match action:
                case Send(kind, payload):
                    if kind != Kind.RECEIPT or not (self.seller.keep_receipts or self.is_closed):
                        self.send(kind, payload)
                case Persist(signed):
                    self.seller.keep(signed)
                case AskEngine():
                    self.pump = asyncio.create_task(self.answer())
                case AbortEngine():
                    self.seller.aborted += 1
                    if self.pump is not None and self.pump is not asyncio.current_task():
                        self.pump.cancel()
                case Settled(receipt):
                    self.seller.settled.append(receipt)
                case Disputed(_, dispute):
                    self.seller.disputed.append(dispute)
                case EndStream():
                    self.stream.end()
        self.seller.tell()

    def send(self, kind: Kind, payload: bytes) -> None:
        changed = payload if self.seller.tamper is None else self.seller.tamper(kind, payload)
        if changed is not None:
            self.stream.send(kind, changed)

    def writable(self, stream: Stream) -> None:
        pass

    def ended(self, stream: Stream) -> None:
        pass

    def reset(self, stream: Stream, code: int, message: str) -> None:
        self.gone()

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self.gone()

    def gone(self) -> None:
        self.is_closed = True
        if self.order is not None:
            self.run(self.order.link_lost(self.seller.now_ms()))
        self.seller.tell()


class FakeNetwork:
    """Finds the sellers it was given: the network's face, without libp2p."""

    def __init__(self, *sellers: TestSeller) -> None:
        self.sellers = list(sellers)
        self.raw: dict[str, bytes] = {}
        """By peer id: what is sent in place of the offer."""
        self.away: set[str] = set()
        self.fetches: Counter[str] = Counter()
        self.confirmations: Counter[str] = Counter()
        self.searches: list[str] = []

    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        self.searches.append(key)
        return [PeerAddress(seller.peer_id, ("/ip4/127.0.0.1/tcp/1",)) for seller in self.sellers]

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        self.fetches[peer.peer_id] += 1
        if peer.peer_id in self.away:
            raise Unreachable(f"{peer.peer_id} is away.")
        seller = next(one for one in self.sellers if one.peer_id == peer.peer_id)
        return self.raw.get(peer.peer_id, seller.offer.record.to_bytes())

    async def fetch_capacity(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        self.confirmations[peer.peer_id] += 1
        if peer.peer_id in self.away:
            raise Unreachable(f"{peer.peer_id} is away.")
        seller = next(one for one in self.sellers if one.peer_id == peer.peer_id)
        if seller.capacity is None:
            raise Refused("no-capacity", f"{peer.peer_id} does not say.")
        return seller.capacity.to_bytes()

    async def dial(self, addresses: Sequence[str], provider: PublicKey, secret_key: SecretKey) -> LinkConnection:
        """A real link to the seller's real port."""
        seller = next(one for one in self.sellers if one.peer_id == provider.peer_id)
        return await dial(*seller.address, provider, secret_key)


@dataclass
class Shop:
    """A client in the midst of sellers."""

    purchaser: Purchaser
    ledger: MemoryLedger
    network: FakeNetwork
    sellers: list[TestSeller] = field(default_factory=list)

    async def settled(self, receipts: int) -> None:
        """Wait until so many receipts carry both signatures in the client's ledger."""
        await until(lambda: sum(row.countersigned for row in self.ledger.receipts()) >= receipts)


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return as soon as `condition()` is true; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def shop(
    *sellers: TestSeller,
    ledger: Ledger | None = None,
    wishes: Wishes | None = None,
    limits: SessionLimits | None = None,
    now_ms: Callable[[], int] = unix_ms,
    network: FakeNetwork | None = None,
    quarantine: Quarantine | None = None,
) -> AsyncIterator[Shop]:
    """A purchaser with a book of the sellers' offers. Sellers that are not started yet are."""
    network = network or FakeNetwork(*sellers)
    kept = ledger if ledger is not None else MemoryLedger()
    for seller in sellers:
        if seller.listener is None:
            await seller.start()
    book = OfferBook(network, now_ms=now_ms)
    with contextlib.suppress(Unreachable):
        await book.search()
    purchaser = Purchaser(
        CLIENT,
        kept,
        book,
        wishes=wishes,
        limits=limits,
        dial=network.dial,
        now_ms=now_ms,
        quarantine=quarantine,
    )
    try:
        async with purchaser:
            assert isinstance(kept, MemoryLedger)
            yield Shop(purchaser, kept, network, list(sellers))
    finally:
        for seller in sellers:
            await seller.stop()
