"""The provider's side of one order, without I/O (docs/spec/session.md, sections 3 to 6).

The machine is fed what the engine and the client do, and answers with actions. It holds back what would run more than
one window ahead of the last voucher, meters what it lets go, and ends in a receipt that it proposes to the client.

Who owes what at the end is decided here and nowhere else on the provider's side: see `_finish`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final

import msgspec

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.actions import (
    AbortEngine,
    Action,
    Actions,
    Disputed,
    EndStream,
    Persist,
    Send,
    Settled,
)
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.commitment import ResponseCommitment
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.fields import MAX_DURATION_MS
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import (
    FINISH_REASON_CHARS,
    Meter,
    Order,
    Receipt,
    RequestLine,
    Status,
    Tariff,
    Usage,
    Voucher,
)
from p2pgrid.proto.pricing import (
    is_billed_by_voucher,
    is_within_caps,
    price_of,
    usage_of,
)
from p2pgrid.proto.proposal import Ending, accept_dispute, check_countersignature, propose_receipt
from p2pgrid.proto.record import Role, Signed, parse_record, sign_message, verify_record
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.wire import CHUNK_BYTES, MAX_ENGINE_ERROR_BYTES, Head, Kind

VOUCHER_TIMEOUT_MS: Final = 15_000
"""How long a full window waits for the client's voucher before the order is cut off."""


class SellerState(Enum):
    """Where an order stands on the provider's side."""

    __hash__ = object.__hash__  # members are single: no need to hash their names, at every event

    ASKED = auto()
    """The engine has the request; no token yet."""
    STREAMING = auto()
    """Tokens flow; the window has room."""
    HELD = auto()
    """The window is full; a voucher must come."""
    PROPOSED = auto()
    """The receipt is proposed; the countersignature must come."""
    SETTLED = auto()
    """The receipt carries both signatures."""
    DISPUTED = auto()
    """The client disputes the receipt."""
    SUSPENDED = auto()
    """The link is lost. The order has no receipt before the channel is resumed (`reconcile`)."""


class SellerEvent(Enum):
    """What can happen to an order on the provider's side."""

    __hash__ = object.__hash__  # members are single: no need to hash their names, at every event

    TOKENS = auto()
    WINDOW_FULL = auto()
    VOUCHER = auto()
    FINISHED = auto()
    CANCEL = auto()
    COUNTERSIGNED = auto()
    DISPUTED = auto()
    LINK_LOST = auto()


_STREAMING: Final = SellerState.STREAMING
"""Asked for at every event; to look a member up in its enum costs as much as a call."""
_S, _E = SellerState, SellerEvent
SELLER_TRANSITIONS: Final[dict[tuple[SellerState, SellerEvent], SellerState]] = {
    (_S.ASKED, _E.TOKENS): _S.STREAMING,
    (_S.ASKED, _E.FINISHED): _S.PROPOSED,
    (_S.ASKED, _E.CANCEL): _S.PROPOSED,
    (_S.ASKED, _E.LINK_LOST): _S.SUSPENDED,
    (_S.STREAMING, _E.TOKENS): _S.STREAMING,
    (_S.STREAMING, _E.WINDOW_FULL): _S.HELD,
    (_S.STREAMING, _E.VOUCHER): _S.STREAMING,
    (_S.STREAMING, _E.FINISHED): _S.PROPOSED,
    (_S.STREAMING, _E.CANCEL): _S.PROPOSED,
    (_S.STREAMING, _E.LINK_LOST): _S.SUSPENDED,
    (_S.HELD, _E.WINDOW_FULL): _S.HELD,
    (_S.HELD, _E.VOUCHER): _S.STREAMING,
    (_S.HELD, _E.FINISHED): _S.PROPOSED,
    (_S.HELD, _E.CANCEL): _S.PROPOSED,
    (_S.HELD, _E.LINK_LOST): _S.SUSPENDED,
    (_S.PROPOSED, _E.VOUCHER): _S.PROPOSED,
    (_S.PROPOSED, _E.CANCEL): _S.PROPOSED,
    (_S.PROPOSED, _E.LINK_LOST): _S.PROPOSED,
    (_S.PROPOSED, _E.COUNTERSIGNED): _S.SETTLED,
    (_S.PROPOSED, _E.DISPUTED): _S.DISPUTED,
}
"""The machine as a table; what is not in it is not allowed."""


class _Held(msgspec.Struct, frozen=True, gc=False):
    """An event that waits for the window, and what stands delivered once it has gone."""

    event: bytes
    usage: Usage
    finish_reason: str


class SellerOrder:
    """One accepted order. Made by `accept_order`; fed with events; every method returns actions in order."""

    def __init__(
        self,
        books: ChannelBooks,
        order: Signed[Order],
        tariff: Tariff,
        commitment_key: bytes,
        n: int,
        key: SecretKey,
        now_ms: int,
    ) -> None:
        self.state = SellerState.ASKED
        self.order: Final = order
        self.books: Final = books
        self.receipt: Signed[Receipt] | None = None
        self._tariff = tariff
        self._key = key
        self._arrived_ms = now_ms
        self._first_token_ms = 0
        self._commitment = ResponseCommitment(commitment_key)
        self._splitter = EventSplitter()
        self._counter = TokenCounter(n)
        self._error_status = 0
        self._error_bytes = 0
        self._engine_ended = False
        self._held: list[_Held] = []
        self._delivered = Usage()
        self._finish_reason = ""
        self._ticked = Usage()
        self._acknowledged = Usage()
        self._acknowledged_commitment = self._commitment.digest()
        self._unanswered: dict[bytes, Meter] = {}
        self._ticks = 0
        self._held_since_ms = 0
        self._look_ahead()
        books.open_order(order.message, tariff)

    # -- what the shell asks ------------------------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """What was delivered to the client so far."""
        return self._delivered

    @property
    def wants_engine(self) -> bool:
        """False while the window is full: stop reading the engine."""
        return self.state in (SellerState.ASKED, SellerState.STREAMING)

    @property
    def is_running(self) -> bool:
        """True until the receipt is proposed."""
        return self.state in (SellerState.ASKED, SellerState.STREAMING, SellerState.HELD)

    def deadline_ms(self) -> int | None:
        """When `tick` must be called next, or None."""
        if self.state is SellerState.ASKED:
            return self._arrived_ms + self.order.message.first_token_timeout_ms
        if self.state is SellerState.HELD:
            return self._held_since_ms + VOUCHER_TIMEOUT_MS
        return None

    # -- the engine ---------------------------------------------------------------------------------------------

    def engine_head(self, status: int, content_type: str) -> Actions:
        """The engine answered with an HTTP status; once, before its bytes. No three-digit status counts as 502."""
        if not self.is_running:
            return ()
        status = status if 100 <= status <= 599 else 502
        if status != 200:
            self._error_status = status
        return (Send(Kind.HEAD, Head(status=status, content_type=content_type[:128]).to_bytes()),)

    def engine_bytes(self, data: bytes, now_ms: int) -> Actions:
        """The engine sent bytes of its answer. What is no event stream, or contradicts itself, ends the order."""
        actions = self.feed(data, now_ms)
        return (Send(Kind.CHUNK, data),) if actions is None else actions

    def feed(self, data: bytes, now_ms: int) -> Actions | None:
        """As `engine_bytes`, for what comes a thousand times: None if `data` is to be sent as it is, as one CHUNK."""
        try:
            if self.state is _STREAMING and not self._held and self._splitter.takes(data):
                counter = self._counter
                is_plain = counter.feed_data(data[6:-2])
                output = counter.output_tokens
                if is_plain and output <= self._most_plain_tokens and len(data) <= CHUNK_BYTES:
                    so_far = self._delivered
                    self._delivered = Usage(
                        prompt_tokens=so_far.prompt_tokens, cached_tokens=so_far.cached_tokens, output_tokens=output
                    )
                    self._commitment.update(data)
                    return None
                return self._pass_on(self._line_up(data), now_ms)
        except ProtocolViolation:
            return self._pass_on(Status.FAILED, now_ms)
        if not self.is_running:
            return ()
        if self._error_status:
            data = data[: MAX_ENGINE_ERROR_BYTES - self._error_bytes]
            self._error_bytes += len(data)
            return self._chunks(data)
        try:
            status = self._take_in(data)
        except ProtocolViolation:
            status = Status.FAILED
        return self._pass_on(status, now_ms)

    def engine_end(self, now_ms: int) -> Actions:
        """The engine ended its answer."""
        if not self.is_running:
            return ()
        self._engine_ended = True
        return self._finish_if_drained(now_ms)

    def engine_failed(self, now_ms: int) -> Actions:
        """The engine broke off, or never answered."""
        if not self.is_running:
            return ()
        return [AbortEngine(), *self._finish(Status.FAILED, now_ms)]

    # -- the client ---------------------------------------------------------------------------------------------

    def message(self, kind: int, payload: bytes, now_ms: int) -> Actions:
        """The client sent a message on the order's stream.

        Raises ProtocolViolation or InvalidRecord for what no honest client sends; the order is then `link_lost`.
        """
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise ProtocolViolation(f"the client sent message kind {kind} on an order's stream.")
        return handler(self, payload, now_ms)

    def link_lost(self, now_ms: int) -> Actions:
        """The link or the stream is gone. The order has no receipt before the channel is resumed: the client may hold
        a voucher that is still on its way. One that has a receipt is proposed again then.
        """
        if not self.is_running and self.state is not SellerState.PROPOSED:
            return ()
        was_running = self.is_running
        self._move(SellerEvent.LINK_LOST)
        self._held.clear()
        return [AbortEngine()] if was_running else ()

    def interrupt(self, now_ms: int) -> Actions:
        """Break off while the link lives. What no voucher acknowledged is lost to the provider."""
        if not self.is_running:
            return ()
        return [AbortEngine(), *self._finish(Status.INTERRUPTED, now_ms)]

    # -- the clock ----------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> Actions:
        """A deadline may have passed."""
        deadline_ms = self.deadline_ms()
        if deadline_ms is None or now_ms < deadline_ms:
            return ()
        status = Status.LATE if self.state is SellerState.ASKED else Status.UNACKNOWLEDGED
        return [AbortEngine(), *self._finish(status, now_ms)]

    def _is_late(self, now_ms: int) -> bool:
        """True if no token has gone out and none may be billed any more, whether or not `tick` was called yet."""
        if self.state is not SellerState.ASKED:
            return False
        deadline_ms = self.deadline_ms()
        return deadline_ms is not None and now_ms >= deadline_ms

    # -- inside -------------------------------------------------------------------------------------------------

    def _move(self, event: SellerEvent) -> None:
        following = SELLER_TRANSITIONS.get((self.state, event))
        if following is None:
            raise ProtocolViolation(f"{event.name} came while the order was {self.state.name}.")
        self.state = following

    @property
    def _is_beyond_window(self) -> bool:
        return self._delivered.output_tokens - self._acknowledged.output_tokens > self.books.terms.window_tokens

    def _take_in(self, data: bytes) -> Status | None:
        """Count the engine's events and put them in line. Returns how the order must end, or None to go on."""
        for event in self._splitter.feed(data):
            self._counter.feed(event)
            status = self._line_up(event)
            if status is not None:
                return status
        return None

    def _line_up(self, event: bytes) -> Status | None:
        """Put an event in line that was just counted. Returns as `_take_in`."""
        counter = self._counter
        usage = usage_of(counter)
        if counter.contradiction:
            return Status.FAILED
        if not is_within_caps(usage, self.order.message):
            # The engine did more than was ordered. FAILED would make what went out before free of charge, and a
            # body that an engine reads otherwise than we do a way to get answers for nothing.
            return Status.INTERRUPTED
        self._held.append(_Held(event, usage, (counter.finish_reason or "")[:FINISH_REASON_CHARS]))
        return None

    def _pass_on(self, status: Status | None, now_ms: int) -> Actions:
        """Let go what stands in line, as far as it may; with a status, end the order behind it."""
        if status is None and self._may_go_at_once(now_ms):
            return self._go_at_once(now_ms)
        actions = self._release(now_ms)
        if status is not None and self.is_running:
            actions += [AbortEngine(), *self._finish(status, now_ms)]
        return actions

    def _look_ahead(self) -> None:
        """After a tick or a voucher: up to where output goes on with neither, and within the order's cap."""
        window = self.books.terms.window_tokens
        self._most_plain_tokens = min(
            self.order.message.max_output_tokens,
            self._acknowledged.output_tokens + window,
            self._ticked.output_tokens + window // 2 - 1,
        )

    def _may_go_at_once(self, now_ms: int) -> bool:
        """The plain case, tokens on their way: `_release` would let all of them go together, and do nothing else."""
        if not self._held or self.state is SellerState.HELD or self._is_late(now_ms):
            return False
        output, window = self._held[-1].usage.output_tokens, self.books.terms.window_tokens
        is_within_window = output - self._acknowledged.output_tokens <= window
        return is_within_window and output - self._ticked.output_tokens < window // 2

    def _go_at_once(self, now_ms: int) -> list[Action]:
        last = self._held[-1]
        events = [one.event for one in self._held]
        self._held.clear()
        self._finish_reason = last.finish_reason
        if self.state is SellerState.ASKED and last.usage.output_tokens:
            self._move(SellerEvent.TOKENS)
            self._first_token_ms = max(now_ms - self._arrived_ms, 1)
        self._delivered = last.usage
        return self._let_go(events)

    def _release(self, now_ms: int) -> list[Action]:
        """Let held events go as far as the window reaches, with a meter tick every half window."""
        window, interval = self.books.terms.window_tokens, self.books.terms.window_tokens // 2
        actions: list[Action] = []
        ready: list[bytes] = []
        held, gone = self._held, 0
        for one in held:
            usage = one.usage
            output, delivered = usage.output_tokens, self._delivered.output_tokens
            if output > delivered and self._is_late(now_ms):
                return [*actions, *self._let_go(ready), AbortEngine(), *self._finish(Status.LATE, now_ms)]
            acknowledged = self._acknowledged.output_tokens
            if delivered > acknowledged and output - acknowledged > window:
                break
            gone += 1
            self._finish_reason = one.finish_reason
            ready.append(one.event)
            if output > delivered:
                self._move(SellerEvent.TOKENS)
                self._first_token_ms = self._first_token_ms or max(now_ms - self._arrived_ms, 1)
            self._delivered = usage
            if output - self._ticked.output_tokens >= interval:
                actions += self._let_go(ready)
                ready.clear()
                actions += self._meter(now_ms)
        del held[:gone]
        actions += self._let_go(ready)
        if held:
            if self._delivered.output_tokens > self._ticked.output_tokens:
                actions += self._meter(now_ms)
            if self.state is not SellerState.HELD:
                self._held_since_ms = now_ms
            self._move(SellerEvent.WINDOW_FULL)
        return actions

    def _let_go(self, events: list[bytes]) -> list[Action]:
        """Events on their way, and in the commitment to the answer."""
        if not events:
            return []
        data = events[0] if len(events) == 1 else b"".join(events)
        self._commitment.update(data)
        return self._chunks(data)

    def _chunks(self, data: bytes) -> list[Action]:
        if 0 < len(data) <= CHUNK_BYTES:
            return [Send(Kind.CHUNK, data)]
        return [Send(Kind.CHUNK, data[i : i + CHUNK_BYTES]) for i in range(0, len(data), CHUNK_BYTES)]

    def _meter(self, now_ms: int) -> list[Action]:
        self._ticks += 1
        meter = sign_message(
            Meter(
                channel=self.books.id,
                order_number=self.order.message.order_number,
                tick=self._ticks,
                usage=self._delivered,
                amount_pico=price_of(self._tariff, self._delivered),
                response_commitment=self._digest(),
                metered_ms=now_ms,
            ),
            Role.PROVIDER,
            self._key,
        )
        self._ticked = self._delivered
        self._look_ahead()
        self._unanswered[meter.id] = meter.message
        return [Persist(meter), Send(Kind.METER, meter.record.to_bytes())]

    def _on_voucher(self, payload: bytes, now_ms: int) -> Actions:
        voucher = verify_record(parse_record(payload), Voucher, {Role.CLIENT: self.books.client})
        message = voucher.message
        meter = self._unanswered.get(message.meter)
        if meter is None:
            raise ProtocolViolation("the client sent a voucher for no meter tick that is open.")
        wanted = (meter.channel, meter.order_number, meter.tick, meter.usage, meter.amount_pico)
        if (message.channel, message.order_number, message.tick, message.usage, message.amount_pico) != wanted:
            raise ProtocolViolation("the client's voucher differs from the meter tick it names.")
        self._move(SellerEvent.VOUCHER)
        if self.receipt is not None and is_billed_by_voucher(self.receipt.message.status):
            return ()  # Too late: the receipt goes by an earlier one, and a record of this would contradict it.
        self._unanswered = {i: m for i, m in self._unanswered.items() if m.tick > meter.tick}
        self._acknowledge(meter)
        actions: list[Action] = [Persist(voucher)]
        if self.state is SellerState.STREAMING:
            actions += self._after_voucher(now_ms)
        return actions

    def _after_voucher(self, now_ms: int) -> Actions:
        """The window has room again."""
        return [*self._release(now_ms), *self._finish_if_drained(now_ms)]

    def _acknowledge(self, meter: Meter) -> None:
        """The client has vouched for this tick."""
        self._acknowledged = meter.usage
        self._look_ahead()
        self._acknowledged_commitment = meter.response_commitment

    def _digest(self) -> bytes:
        """The commitment to all that was delivered."""
        return self._commitment.digest()

    def _on_cancel(self, payload: bytes, now_ms: int) -> Actions:
        if payload:
            raise ProtocolViolation(f"the client sent a CANCEL of {len(payload)} bytes; none were expected.")
        if not self.is_running:
            self._move(SellerEvent.CANCEL)
            return ()
        status = Status.LATE if self._is_late(now_ms) else Status.CANCELLED
        if self._is_beyond_window:
            # One event was larger than the window. If the link is lost now, nobody could prove that it arrived.
            status = Status.INTERRUPTED
        return [AbortEngine(), *self._finish(status, now_ms, SellerEvent.CANCEL)]

    def _on_countersignature(self, payload: bytes, now_ms: int) -> Actions:
        receipt = check_countersignature(self.receipt, payload, self.books)
        self._move(SellerEvent.COUNTERSIGNED)
        self.books.settle(receipt.message)
        self.receipt = receipt
        return (Persist(receipt), Settled(receipt), EndStream())

    def _on_dispute(self, payload: bytes, now_ms: int) -> Actions:
        if self.receipt is None:
            raise ProtocolViolation("the client disputed a receipt before it was proposed.")
        dispute = accept_dispute(self.receipt, payload, self.books, now_ms)
        self._move(SellerEvent.DISPUTED)
        return (Persist(dispute), Disputed(self.receipt, dispute), EndStream())

    def _finish_if_drained(self, now_ms: int) -> Actions:
        if not self._engine_ended or self._held or not self.is_running:
            return ()
        if self._error_status:
            is_refusal = 300 <= self._error_status < 500
            return self._finish(Status.REFUSED if is_refusal else Status.FAILED, now_ms)
        if self._counter.has_failed or not self._counter.done:
            return self._finish(Status.FAILED, now_ms)
        if self._is_beyond_window:
            # One event was larger than the window. A receipt for it that is judged only after a lost link would look
            # like one that bills what never came: it must be acknowledged first.
            self._held_since_ms = now_ms
            self._move(SellerEvent.WINDOW_FULL)
            return ()
        empty = self._delivered.output_tokens == 0
        return self._finish(Status.EMPTY if empty else Status.COMPLETED, now_ms)

    def _finish(self, status: Status, now_ms: int, event: SellerEvent = SellerEvent.FINISHED) -> list[Action]:
        """Propose the receipt: the one place where the provider decides what is owed.

        Interrupted and unacknowledged orders state what the last voucher acknowledged, and the commitment of its
        meter; all others what was delivered.
        """
        self._move(event)
        self._held.clear()
        by_voucher = is_billed_by_voucher(status)
        receipt = propose_receipt(
            self.books,
            self.order,
            self._tariff,
            self._acknowledged if by_voucher else self._delivered,
            Ending(
                status=status,
                finish_reason="" if by_voucher else self._finish_reason,
                response_commitment=self._acknowledged_commitment if by_voucher else self._digest(),
                first_token_ms=min(self._first_token_ms, MAX_DURATION_MS),
                total_ms=min(max(now_ms - self._arrived_ms, 0), MAX_DURATION_MS),
                requests=() if by_voucher else self._lines(),
            ),
            key=self._key,
            now_ms=now_ms,
        )
        self.receipt = receipt
        return [Persist(receipt), Send(Kind.RECEIPT, receipt.record.to_bytes())]

    def _lines(self) -> tuple[RequestLine, ...]:
        """What a receipt that goes by the counts says of each request, where there may be several."""
        return ()


_HANDLERS: Final[dict[int, Callable[[SellerOrder, bytes, int], Actions]]] = {
    Kind.VOUCHER: SellerOrder._on_voucher,
    Kind.CANCEL: SellerOrder._on_cancel,
    Kind.COUNTERSIGNATURE: SellerOrder._on_countersignature,
    Kind.DISPUTE: SellerOrder._on_dispute,
}
"""What the client may send on an order's stream."""
