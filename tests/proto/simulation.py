"""A client and a provider joined by an in-memory wire, and an engine that follows a script. No clock, no sockets.

What a real link promises, this one keeps: messages of one stream arrive in order; control messages from the client
arrive in order across streams; apart from that, streams are independently slow.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.proto.acceptance import accept_order, verify_order
from p2pgrid.proto.actions import (
    AbortEngine,
    Actions,
    AskEngine,
    Breach,
    Deliver,
    Disputed,
    EndStream,
    KeepEvidence,
    Persist,
    Send,
    Settled,
    Turn,
)
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.buyer import BuyerOrder
from p2pgrid.proto.channel import ChannelHead, accept_channel, propose_channel
from p2pgrid.proto.countersigning import check_resumed
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import (
    Channel,
    DataTerms,
    Meter,
    ModelOffer,
    Offer,
    Order,
    Receipt,
    Status,
    Tariff,
    Terms,
    Usage,
    Voucher,
)
from p2pgrid.proto.order_states import SellerState
from p2pgrid.proto.placement import place_order
from p2pgrid.proto.proposal import Ending, accept_countersignature, propose_receipt
from p2pgrid.proto.record import Message, Role, Signed, sign_message
from p2pgrid.proto.request import metered_body, parse_request
from p2pgrid.proto.seller import SellerOrder
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.verdict import Verdict, audit_records
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import OrderOpening

NOW_MS = 1_800_000_000_000
PROVIDER = SecretKey(bytes(range(32)))
CLIENT = SecretKey(bytes(range(32, 64)))
STRANGER = SecretKey(bytes(range(64, 96)))
MODEL = "smollm2-135m"
CHAT = "/v1/chat/completions"
TARIFF = Tariff(input_upm=200_000, cached_input_upm=50_000, output_upm=600_000)

M = TypeVar("M", bound=Message)


def make_offer(
    *, window: int = 16, max_open_orders: int = 64, credit_pico: int = 10**13, **changes: Any
) -> Signed[Offer]:
    """A provider's offer of one model."""
    fields: dict[str, Any] = {
        "provider": PROVIDER.public_key.raw,
        "sequence": 1,
        "valid_from_ms": NOW_MS - 1000,
        "valid_until_ms": NOW_MS + 3_600_000,
        "operator": "Vilnius GPU",
        "currency": "EUR",
        "addresses": ("/dns/gpu.example/tcp/4801/tls",),
        "data_terms": DataTerms(country="LT"),
        "models": (
            ModelOffer(
                model=MODEL,
                tariff=TARIFF,
                context_tokens=8192,
                concurrency=16,
                endpoints=(CHAT, "/v1/completions"),
                engine="vllm 0.32.0",
            ),
        ),
        "gpus": ("NVIDIA H100",),
        "terms": Terms(window_tokens=window, credit_limit_pico=credit_pico, max_open_orders=max_open_orders),
    }
    return sign_message(Offer(**{**fields, **changes}), Role.PROVIDER, PROVIDER)


def make_channel(offer: Signed[Offer]) -> Signed[Channel]:
    """A channel under the offer, signed by both."""
    proposed = propose_channel(
        offer,
        client=CLIENT.public_key,
        client_nonce=bytes([1] * 32),
        provider_nonce=bytes([2] * 32),
        key=PROVIDER,
        now_ms=NOW_MS,
    )
    return accept_channel(proposed.record, offer, key=CLIENT, client_nonce=bytes([1] * 32), now_ms=NOW_MS)


def make_books(channel: Signed[Channel], *, countersigned: int = 0) -> ChannelBooks:
    """The books of a channel that has no receipts yet (`countersigned` receipts of 1 EUR cover open orders)."""
    return ChannelBooks(channel, ChannelHead(0, 0, channel.id, 0, countersigned, countersigned * 10**12))


def sse(chunk: dict[str, Any] | str) -> bytes:
    """One event, as vLLM writes it."""
    return b"data: " + (chunk if isinstance(chunk, str) else json.dumps(chunk)).encode() + b"\n\n"


def first_event(prompt: int, *, index: int = 0) -> bytes:
    """The chunk that opens a chat answer: a role, the prompt's ids, no token."""
    return sse(
        {
            "id": "chatcmpl-1",
            "choices": [{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
            "prompt_token_ids": list(range(prompt)),
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt, "completion_tokens": 0},
        }
    )


def token_event(prompt: int, so_far: int, count: int, *, index: int = 0, finish: str | None = None) -> bytes:
    """A chunk that brings `count` more tokens of a choice, after `so_far` of them."""
    return sse(
        {
            "id": "chatcmpl-1",
            "choices": [
                {
                    "index": index,
                    "delta": {"content": "x" * count},
                    "token_ids": list(range(so_far, so_far + count)),
                    "finish_reason": finish,
                }
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": so_far + count},
        }
    )


def final_events(prompt: int, output: int, *, cached: int = 0) -> list[bytes]:
    """The chunk with the whole usage, and [DONE]."""
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return [sse({"id": "chatcmpl-1", "choices": [], "usage": usage}), sse("[DONE]")]


def answer(prompt: int, counts: Sequence[int], *, cached: int = 0, finish: str = "stop") -> list[bytes]:
    """A whole answer of one choice, as events: `counts` tokens in each chunk."""
    events, so_far = [first_event(prompt)], 0
    for i, count in enumerate(counts):
        events.append(token_event(prompt, so_far, count, finish=finish if i == len(counts) - 1 else None))
        so_far += count
    return [*events, *final_events(prompt, so_far, cached=cached)]


@dataclass
class Engine:
    """What the engine does for one order: a status, then pieces of bytes, then an end or a failure."""

    pieces: deque[bytes]
    status: int = 200
    content_type: str = "text/event-stream"
    fails: bool = False
    asked: bool = False
    headed: bool = False
    over: bool = False


def script(events: Sequence[bytes], random: Random | None = None, **changes: Any) -> Engine:
    """An engine that sends these events, cut into pieces of any size if `random` is given."""
    data = b"".join(events)
    if random is None:
        return Engine(deque(events), **changes)
    pieces: deque[bytes] = deque()
    while data:
        size = random.choice((1, 7, 100, 1000, 10_000))
        pieces.append(data[:size])
        data = data[size:]
    return Engine(pieces, **changes)


@dataclass
class Lane:
    """One order: both machines, and the two directions of its stream."""

    number: int
    buyer: BuyerOrder
    engine: Engine
    opening: OrderOpening | None = None
    order: Signed[Order] | None = None
    seller: SellerOrder | None = None
    to_client: deque[tuple[int, bytes]] = field(default_factory=deque)
    bodies: deque[bytes] = field(default_factory=deque)
    body: bytes = b""
    delivered: bytes = b""
    breaches: list[Breach] = field(default_factory=list)
    disputes: list[Disputed] = field(default_factory=list)
    evidence: list[KeepEvidence] = field(default_factory=list)
    settled: list[Signed[Receipt]] = field(default_factory=list)
    sent: TokenCounter = field(default_factory=TokenCounter)
    splitter: EventSplitter = field(default_factory=EventSplitter)
    sent_before_last_event: int = 0
    acknowledged: int = 0
    refused: Refused | None = None

    @property
    def complaints(self) -> list[str]:
        """Codes of what the client found wrong."""
        return [one.code for one in self.breaches] + [one.dispute.message.reason for one in self.disputes]


Tamper = Callable[[int, bytes], "Iterator[tuple[int, bytes]]"]


class Grid:
    """One channel, its two sides, and any number of orders."""

    def __init__(self, *, window: int = 16, max_open_orders: int = 64, countersigned: int = 0) -> None:
        self.offer = make_offer(window=window, max_open_orders=max_open_orders)
        self.channel = make_channel(self.offer)
        self.window = window
        self.provider = make_books(self.channel, countersigned=countersigned)
        self.client = make_books(self.channel, countersigned=countersigned)
        self.now_ms = NOW_MS
        self.lanes: dict[int, Lane] = {}
        self.to_provider: deque[tuple[Lane, int, bytes]] = deque()
        self.provider_ledger: list[Signed[Message]] = []
        self.client_ledger: list[Signed[Message]] = []
        self.violations: list[ProtocolViolation | InvalidRecord] = []
        self.never_signs = False
        self.tamper_provider: Tamper | None = None
        self.tamper_client: Tamper | None = None

    # -- starting ---------------------------------------------------------------------------------------------

    def place(self, engine: Engine, *, max_tokens: int | None = 4000, n: int = 1, timeout_ms: int = 60_000) -> Lane:
        """Sign an order, and let its ORDER message arrive at the provider; the body is still under way."""
        program: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Labas! " * 20}]}
        if max_tokens is not None:
            program["max_tokens"] = max_tokens
        if n > 1:
            program["n"] = n
        body = metered_body(program)
        buyer, actions = place_order(
            self.client,
            self.offer,
            parse_request(CHAT, body),
            CHAT,
            body,
            key=CLIENT,
            commitment_key=bytes([7] * 32),
            now_ms=self.now_ms,
            first_token_timeout_ms=timeout_ms,
        )
        lane = Lane(buyer.order.message.order_number, buyer, engine)
        lane.sent = TokenCounter(n)
        self.lanes[lane.number] = lane
        self._run_client(lane, actions)
        while self.to_provider and self.to_provider[-1][0] is lane and lane.order is None:
            self.step_provider()
        return lane

    def ordered(self, engine: Engine, **changes: Any) -> Lane:
        """`place`, and let the body arrive."""
        lane = self.place(engine, **changes)
        while lane.bodies:
            self.step_body(lane)
        return lane

    # -- one step each ----------------------------------------------------------------------------------------

    def step_body(self, lane: Lane) -> None:
        assert lane.order is not None and lane.opening is not None
        lane.body += lane.bodies.popleft()
        if len(lane.body) < lane.opening.body_bytes:
            return
        try:
            lane.seller, actions = accept_order(
                self.provider, lane.order, lane.opening, lane.body, self.offer, key=PROVIDER, now_ms=self.now_ms
            )
        except Refused as refused:
            lane.refused = refused
            refusal = Refusal(code=refused.code, message=str(refused)[:512])
            lane.to_client.append((Kind.REFUSAL, refusal.to_bytes()))
            return
        self._run_provider(lane, actions)

    def step_provider(self) -> None:
        """The oldest control message reaches the provider."""
        lane, kind, payload = self.to_provider.popleft()
        if kind == Kind.ORDER:
            lane.order, lane.opening = verify_order(payload, self.provider)
            return
        if lane.seller is None and kind == Kind.CANCEL:
            if lane.refused is None:  # As the provider's shell does before the body is whole.
                lane.bodies.clear()
                lane.refused = Refused("cancelled", "the client cancelled the order before it was accepted.")
                lane.to_client.append((Kind.REFUSAL, Refusal(code="cancelled", message="").to_bytes()))
            return
        assert lane.seller is not None
        try:
            self._run_provider(lane, lane.seller.message(kind, payload, self.now_ms))
        except (ProtocolViolation, InvalidRecord) as violation:
            self.violations.append(violation)
            self._run_provider(lane, lane.seller.link_lost(self.now_ms))

    def step_client(self, lane: Lane) -> None:
        """The oldest message of the order's stream reaches the client."""
        kind, payload = lane.to_client.popleft()
        self._run_client(lane, lane.buyer.message(kind, payload, self.now_ms))

    def step_engine(self, lane: Lane) -> None:
        """The engine does one more thing for the order."""
        engine, seller = lane.engine, lane.seller
        assert seller is not None
        if not engine.headed:
            engine.headed = True
            self._run_provider(lane, seller.engine_head(engine.status, engine.content_type))
        elif engine.pieces:
            self._run_provider(lane, seller.engine_bytes(engine.pieces.popleft(), self.now_ms))
        else:
            engine.over = True
            self._run_provider(lane, (seller.engine_failed if engine.fails else seller.engine_end)(self.now_ms))

    def step_clock(self, lane: Lane) -> None:
        """Time passes to the order's next deadline."""
        assert lane.seller is not None
        deadline_ms = lane.seller.deadline_ms()
        if deadline_ms is not None:
            self.now_ms = max(self.now_ms, deadline_ms)
            self._run_provider(lane, lane.seller.tick(self.now_ms))

    def cancel(self, lane: Lane) -> None:
        self._run_client(lane, lane.buyer.cancel())

    def lose_link(self) -> None:
        """Everything under way is gone; both sides notice."""
        self.to_provider.clear()
        for lane in self.lanes.values():
            lane.to_client.clear()
            lane.bodies.clear()
            lane.buyer.link_lost()
            if lane.seller is not None:
                self._run_provider(lane, lane.seller.link_lost(self.now_ms))
            lane.to_client.clear()

    def resume(self) -> None:
        """As a shell resumes a channel on a new link: the last voucher that either side holds decides."""
        for lane in self.lanes.values():
            billed = {r.message.order_number for r in receipts(self.provider_ledger)}
            is_suspended = lane.seller is not None and lane.seller.state is SellerState.SUSPENDED
            if is_suspended and lane.number not in billed:
                self.provider_ledger.append(self._interrupted(lane))
        signed = {s.id for s in self.provider_ledger if isinstance(s.message, Receipt) and Role.CLIENT in s.signers}
        for proposal in receipts(self.provider_ledger):
            if proposal.id in signed or Role.CLIENT in proposal.signers:
                continue
            held = next((r for r in receipts(self.client_ledger) if r.id == proposal.id), None)
            if held is None:
                buyer = self.lanes[proposal.message.order_number].buyer
                held, dispute = check_resumed(
                    self.client,
                    proposal.record,
                    buyer.order,
                    buyer.tariff,
                    vouched=buyer.vouched,
                    delivered=buyer.usage,
                    key=CLIENT,
                    now_ms=self.now_ms,
                )
                assert dispute is None
                self.client_ledger.append(held)
            self.provider_ledger.append(accept_countersignature(proposal, held.record.to_bytes(), self.provider))
        ended = {r.message.order_number for r in receipts(self.client_ledger)}
        for lane in self.lanes.values():
            if lane.number not in ended and lane.buyer.refusal is None:
                self.client.close_order(lane.number)

    def _interrupted(self, lane: Lane) -> Signed[Receipt]:
        vouchers = [
            s.message
            for s in (*self.provider_ledger, *self.client_ledger)
            if isinstance(s.message, Voucher) and s.message.order_number == lane.number
        ]
        last = max(vouchers, key=lambda voucher: voucher.tick, default=None)
        usage = last.usage if last is not None else Usage()
        meters = {s.id: s.message for s in self.client_ledger if isinstance(s.message, Meter)}
        commitment = meters[last.meter].response_commitment if last is not None else bytes(32)
        ending = Ending(status=Status.INTERRUPTED, response_commitment=commitment)
        return propose_receipt(
            self.provider, lane.buyer.order, lane.buyer.tariff, usage, ending, key=PROVIDER, now_ms=self.now_ms
        )

    # -- running to the end -----------------------------------------------------------------------------------

    def enabled(self, lane: Lane) -> list[str]:
        """What can happen next to an order."""
        steps = []
        if lane.bodies:
            steps.append("body")
        if lane.to_client:
            steps.append("client")
        seller, engine = lane.seller, lane.engine
        if seller is not None and engine.asked and not engine.over and seller.is_running and seller.wants_engine:
            steps.append("engine")
        return steps

    def step(self, lane: Lane, name: str) -> None:
        {"body": self.step_body, "client": self.step_client, "engine": self.step_engine}[name](lane)

    def settle(self, random: Random | None = None) -> None:
        """Let everything happen, in any order (or oldest first), until nothing can; deadlines come last."""
        while True:
            steps: list[tuple[Lane | None, str]] = [(None, "provider")] if self.to_provider else []
            steps += [(lane, name) for lane in self.lanes.values() for name in self.enabled(lane)]
            if steps:
                lane, name = random.choice(steps) if random else steps[0]
                if lane is None:
                    self.step_provider()
                else:
                    self.step(lane, name)
                continue
            waiting = [x for x in self.lanes.values() if x.seller is not None and x.seller.deadline_ms() is not None]
            if not waiting:
                return
            self.step_clock(waiting[0])

    # -- actions ----------------------------------------------------------------------------------------------

    def _run_client(self, lane: Lane, actions: Actions) -> None:
        for action in actions:
            match action:
                case Send(kind, payload):
                    self._send_to_provider(lane, kind, payload)
                case Persist(signed):
                    self.client_ledger.append(signed)
                case Deliver(data):
                    lane.delivered += data
                case Breach():
                    lane.breaches.append(action)
                case Disputed():
                    lane.disputes.append(action)
                case KeepEvidence():
                    lane.evidence.append(action)
                case Settled(receipt):
                    lane.settled.append(receipt)
                case Turn(number):
                    other = self.lanes[number]
                    self._run_client(other, other.buyer.proceed(self.now_ms))
                case EndStream():
                    pass
                case _:
                    raise AssertionError(f"a client's machine asked for {action}")

    def _send_to_provider(self, lane: Lane, kind: Kind, payload: bytes) -> None:
        if kind == Kind.BODY:
            lane.bodies.append(payload)
            return
        if self.never_signs and kind in (Kind.VOUCHER, Kind.COUNTERSIGNATURE):
            return
        sent = self.tamper_client(kind, payload) if self.tamper_client else ((kind, payload),)
        self.to_provider.extend((lane, k, p) for k, p in sent)

    def _run_provider(self, lane: Lane, actions: Actions) -> None:
        for action in actions:
            match action:
                case AskEngine():
                    lane.engine.asked = True
                case AbortEngine():
                    lane.engine.over = True
                case Send(kind, payload):
                    if kind == Kind.CHUNK and lane.engine.status == 200:
                        self._watch_window(lane, payload)
                    sent = self.tamper_provider(kind, payload) if self.tamper_provider else ((kind, payload),)
                    lane.to_client.extend(sent)
                case Persist(signed):
                    self.provider_ledger.append(signed)
                    if isinstance(signed.message, Voucher):
                        lane.acknowledged = signed.message.usage.output_tokens
                case Settled() | EndStream() | Disputed():
                    pass
                case _:
                    raise AssertionError(f"a provider's machine asked for {action}")

    def _watch_window(self, lane: Lane, data: bytes) -> None:
        for event in lane.splitter.feed(data):
            before = lane.sent.output_tokens
            lane.sent.feed(event)
            ahead = lane.sent.output_tokens - lane.acknowledged
            alone = before == lane.acknowledged
            assert ahead <= self.window or alone or lane.sent.output_tokens == before, "more than a window ran ahead"


def receipts(ledger: Sequence[Signed[Message]]) -> list[Signed[Receipt]]:
    """The receipts and proposals of a ledger, in order."""
    return [s for s in ledger if isinstance(s.message, Receipt)]  # type: ignore[misc]


def assert_equal_books(grid: Grid) -> None:
    """Both sides hold the same chain, and nothing is open or reserved."""
    for books in (grid.provider, grid.client):
        assert books.open_orders == 0
        assert books.reserved_pico == 0
    both = [
        (b.last_receipt_number, b.last_receipt_id, b.total_pico, b.countersigned, b.last_order_number)
        for b in (grid.provider, grid.client)
    ]
    assert both[0] == both[1]
    theirs = [r.record for r in receipts(grid.provider_ledger) if Role.CLIENT in r.signers]
    ours = [r.record for r in receipts(grid.client_ledger)]
    assert {r.id for r in theirs} == {r.id for r in ours}
    assert len(theirs) == len(ours) == grid.client.last_receipt_number
    assert sum(r.message.amount_pico for r in receipts(grid.client_ledger)) == grid.client.total_pico


def audit(grid: Grid) -> Verdict:
    """What an auditor says of both sides' ledgers."""
    common: list[Signed[Message]] = [grid.offer, grid.channel]
    return audit_records(
        Bundle(f"{side}.jsonl", enumerate((s.record for s in [*common, *ledger]), start=1), side)
        for side, ledger in ((Role.PROVIDER, grid.provider_ledger), (Role.CLIENT, grid.client_ledger))
    )


def signed_by_client(grid: Grid) -> list[Signed[Message]]:
    """Vouchers and receipts that the client has signed."""
    return [s for s in grid.client_ledger if Role.CLIENT in s.signers and isinstance(s.message, Voucher | Receipt)]


def usage(prompt: int, output: int, cached: int = 0) -> Usage:
    return Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)
