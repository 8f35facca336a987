"""The provider's side of an order for one request, without I/O (docs/spec/session.md, sections 3 to 6).

The machine is fed what the engine and the client do, and answers with actions. It holds back what would run more than
one window ahead of the last voucher, meters what it lets go, and ends in a receipt that it proposes to the client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.actions import AbortEngine, Action, Actions, Send
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.commitment import ResponseCommitment
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import FINISH_REASON_CHARS, Order, RequestLine, Status, Tariff, Usage
from p2pgrid.proto.metered_order import VOUCHER_TIMEOUT_MS, MeteredOrder, ending_of
from p2pgrid.proto.order_states import SellerEvent, SellerState
from p2pgrid.proto.pricing import is_within_caps, usage_of
from p2pgrid.proto.record import Signed
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.wire.base import CHUNK_BYTES
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import MAX_ENGINE_ERROR_BYTES, Head

_STREAMING: Final = SellerState.STREAMING
"""Asked for at every event; to look a member up in its enum costs as much as a call."""


class _Held(msgspec.Struct, frozen=True, gc=False):
    """An event that waits for the window, and what stands delivered once it has gone."""

    event: bytes
    usage: Usage
    finish_reason: str


class SellerOrder(MeteredOrder):
    """One accepted order for one request. Made by `accept_order`."""

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
        self._commitment = ResponseCommitment(commitment_key)
        super().__init__(books, order, tariff, self._commitment.digest(), key, now_ms)
        self._splitter = EventSplitter()
        self._counter = TokenCounter(n)
        self._error_status = 0
        self._error_bytes = 0
        self._engine_ended = False
        self._held: list[_Held] = []
        self._window_moved()

    # -- what the shell asks ------------------------------------------------------------------------------------

    def deadline_ms(self) -> int | None:
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
        if not self.is_running:
            return ()
        return [AbortEngine(), *self._finish(Status.FAILED, now_ms)]

    # -- the client ---------------------------------------------------------------------------------------------

    def message(self, kind: int, payload: bytes, now_ms: int) -> Actions:
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise ProtocolViolation(f"the client sent message kind {kind} on an order's stream.")
        return handler(self, payload, now_ms)

    # -- the clock ----------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> Actions:
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

    def _window_moved(self) -> None:
        """Look ahead, up to where output goes on with no tick and no voucher, and within the order's cap."""
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
            self._hold(now_ms)
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

    def _after_voucher(self, now_ms: int) -> Actions:
        return [*self._release(now_ms), *self._finish_if_drained(now_ms)]

    def _digest(self) -> bytes:
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

    def _finish_if_drained(self, now_ms: int) -> Actions:
        if not self._engine_ended or self._held or not self.is_running:
            return ()
        status = ending_of(self._counter, self._error_status)
        if status is Status.COMPLETED and self._is_beyond_window:
            # One event was larger than the window. A receipt for it that is judged only after a lost link would look
            # like one that bills what never came: it must be acknowledged first.
            self._hold(now_ms)
            return ()
        return self._finish(status, now_ms)

    def _stop_counting(self) -> tuple[RequestLine, ...]:
        self._held.clear()
        return ()


_HANDLERS: Final[dict[int, Callable[[SellerOrder, bytes, int], Actions]]] = {
    Kind.VOUCHER: SellerOrder._on_voucher,
    Kind.CANCEL: SellerOrder._on_cancel,
    Kind.COUNTERSIGNATURE: SellerOrder._on_countersignature,
    Kind.DISPUTE: SellerOrder._on_dispute,
}
"""What the client may send on an order's stream."""
