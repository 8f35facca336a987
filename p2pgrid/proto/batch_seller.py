"""The provider's side of one batch order, without I/O (docs/spec/session.md, section 11).

Its requests run side by side, each with a count, a commitment and an ending of its own (`TakenRequest`); window, ticks,
vouchers and the receipt are those of the order, over all of them. Nobody watches an unstreamed answer come, so what the
engine makes is gathered, and leaves together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from p2pgrid.errors import ProtocolViolation, Refused
from p2pgrid.proto.actions import AbortEngine, AbortEngineFor, Action, Actions, AskEngineFor, Send
from p2pgrid.proto.batch import CLOSE_GRACE_MS, GATHER_MS, batch_commitment, counts, request_key, sum_of
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import (
    FINISH_REASON_CHARS,
    BatchTerms,
    Meter,
    ModelOffer,
    Order,
    RequestLine,
    Status,
    Tariff,
)
from p2pgrid.proto.metered_order import VOUCHER_TIMEOUT_MS, MeteredOrder
from p2pgrid.proto.order_states import SellerEvent, SellerState
from p2pgrid.proto.pricing import owes_nothing, usage_of
from p2pgrid.proto.record import Signed
from p2pgrid.proto.request import parse_ordered
from p2pgrid.proto.taken_request import TakenRequest, WaitingEvent
from p2pgrid.proto.wire.base import CHUNK_BYTES, parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import (
    MAX_ENGINE_ERROR_BYTES,
    MAX_REQUEST_BYTES,
    RequestCancel,
    RequestEnded,
    RequestHead,
    RequestRefused,
)

_GATHERED_BYTES: Final = 8 * 1024
"""Bytes of one answer that wait to leave together."""


class SellerBatch(MeteredOrder):
    """One accepted batch order. Made by `accept_batch`; the engine's events carry the request's index."""

    def __init__(
        self,
        books: ChannelBooks,
        order: Signed[Order],
        entry: ModelOffer,
        tariff: Tariff,
        batch: BatchTerms,
        commitment_key: bytes,
        key: SecretKey,
        now_ms: int,
    ) -> None:
        super().__init__(books, order, tariff, batch_commitment(()), key, now_ms)
        self._entry = entry
        self._batch_key = commitment_key
        self._parts: list[TakenRequest | None] = []
        """By index; None for one that was refused."""
        self._waiting_events = 0
        """Of all requests."""
        self._waiting_since_ms = 0
        self._is_held_up = False
        """The window was full, and no voucher has come since."""
        self._running = 0
        self._reserved_output = 0
        """Most output of all requests that were taken."""
        self._counted_prompt = self._counted_output = 0
        """Of all requests, whatever became of them, with what waits to leave."""
        self._gone = self._gone_ticked = self._gone_acknowledged = 0
        """Output tokens of all requests, whatever became of them: that left, were metered, were acknowledged."""
        self._gone_at: dict[int, int] = {}
        self._is_closed = self._is_closed_by_client = False
        self._closes_ms = now_ms + batch.batch_ms + CLOSE_GRACE_MS

    # -- what the shell asks ------------------------------------------------------------------------------------

    def deadline_ms(self) -> int | None:
        if not self.is_running:
            return None
        deadlines = [part.deadline_ms for part in self._open_parts() if not part.first_token_ms]
        if not self._is_closed:
            deadlines.append(self._closes_ms)
        if self.state is SellerState.HELD:
            deadlines.append(self._held_since_ms + VOUCHER_TIMEOUT_MS)
        elif self._waiting_events:
            deadlines.append(self._waiting_since_ms + GATHER_MS)
        return min(deadlines, default=None)

    @property
    def is_complete(self) -> bool:
        """True once nothing more comes: call `conclude` when all is on its way to the client."""
        is_drained = self.is_running and self._is_closed and not self._running
        return is_drained and not (self.state is SellerState.HELD and self._is_beyond_window)

    def conclude(self, now_ms: int) -> Actions:
        """Propose the receipt, or wait for the voucher that must come before it."""
        if not self.is_complete:
            return ()
        if self._is_beyond_window:
            self._hold(now_ms)
            return ()
        return self._finish(Status.COMPLETED, now_ms)

    # -- requests -----------------------------------------------------------------------------------------------

    def request(self, body: bytes, now_ms: int, refusal: Refused | None = None, retry_after_ms: int = 0) -> Actions:
        """The client sent a request. `refusal`: why the shell has no room for it.

        Raises ProtocolViolation for one that no honest client sends.
        """
        if self._is_closed_by_client or len(self._parts) >= self.order.message.max_requests:
            raise ProtocolViolation("the client sent a request after it had closed the order, or one too many.")
        if not 2 <= len(body) <= MAX_REQUEST_BYTES:
            raise ProtocolViolation(f"the client sent a request of {len(body)} bytes; 2 to {MAX_REQUEST_BYTES} may be.")
        index = len(self._parts)
        if not self.is_running:
            return ()
        try:
            if refusal is not None:
                raise refusal
            part = self._taken(index, body, now_ms)
        except Refused as error:
            self._parts.append(None)
            said = RequestRefused(
                index=index, code=error.code[:64], message=str(error)[:512], retry_after_ms=retry_after_ms
            )
            return (Send(Kind.REQUEST_REFUSED, said.to_bytes()),)
        self._parts.append(part)
        self._running += 1
        return (AskEngineFor(index, body),)

    def _taken(self, index: int, body: bytes, now_ms: int) -> TakenRequest:
        if self._is_closed:
            raise Refused("batch-closed", "the order takes no more requests.", hint="Order anew.")
        message = self.order.message
        fields = parse_ordered(message, body)
        most = self._reserved_output + fields.max_output_tokens(self._entry)
        if most > message.max_output_tokens:
            raise Refused("order-caps", f"the order's requests may come to {most} tokens; its cap is lower.")
        self._reserved_output = most
        key = request_key(self._batch_key, index)
        return TakenRequest(index, key, body, fields.n or 1, now_ms, message.first_token_timeout_ms)

    # -- the engine ---------------------------------------------------------------------------------------------

    def head_for(self, index: int, status: int, content_type: str) -> Actions:
        """The engine answered a request with an HTTP status; once, before its bytes."""
        part = self._heard(index)
        if part is None:
            return ()
        status = status if 100 <= status <= 599 else 502
        if status != 200:
            part.error_status = status
        said = RequestHead(index=index, status=status, content_type=content_type[:128])
        return (Send(Kind.REQUEST_HEAD, said.to_bytes()),)

    def bytes_for(self, index: int, data: bytes, now_ms: int) -> Actions:
        """The engine sent bytes of its answer to a request."""
        part = self._heard(index)
        if part is None:
            return ()
        if part.error_status:
            data = data[: MAX_ENGINE_ERROR_BYTES - part.error_bytes]
            part.error_bytes += len(data)
            return _pieces(index, data)
        try:
            status = self._take_in_for(part, data, now_ms)
        except ProtocolViolation:
            status = Status.FAILED
        if status is Status.INTERRUPTED:
            return [*self._release(now_ms), AbortEngine(), *self._finish(status, now_ms)] if self.is_running else ()
        if status is not None:
            return [AbortEngineFor(index), *self._hear_out(part, status, now_ms)]
        if self._must_leave(now_ms):
            return self._release(now_ms)
        return self._release(now_ms, only=part) if part.waiting_bytes >= _GATHERED_BYTES else ()

    def end_for(self, index: int, now_ms: int) -> Actions:
        """The engine ended its answer to a request."""
        part = self._heard(index)
        return () if part is None else self._hear_out(part, part.ending(), now_ms)

    def failed_for(self, index: int, now_ms: int) -> Actions:
        """The engine broke off its answer to a request, or never answered."""
        part = self._heard(index)
        return () if part is None else self._end_now(part, Status.FAILED, now_ms)

    def engine_failed(self, now_ms: int) -> Actions:
        """The engine is lost to all of them: what runs ends as failed, and nothing more is taken."""
        if not self.is_running:
            return ()
        self._is_closed = True
        actions: list[Action] = []
        for part in self._open_parts():
            actions += self._end(part, Status.FAILED, now_ms)
        return [AbortEngine(), *actions, *self._release(now_ms)]

    # -- the client ---------------------------------------------------------------------------------------------

    def message(self, kind: int, payload: bytes, now_ms: int) -> Actions:
        """The client sent a message on the order's stream, other than REQUEST. Raises as `MeteredOrder.message`."""
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise ProtocolViolation(f"the client sent message kind {kind} on the stream of a batch order.")
        return handler(self, payload, now_ms)

    def _on_close(self, payload: bytes, now_ms: int) -> Actions:
        if payload or self._is_closed_by_client:
            raise ProtocolViolation("the client closed the order twice, or with a payload.")
        self._is_closed = self._is_closed_by_client = True
        return ()

    def _on_request_cancel(self, payload: bytes, now_ms: int) -> Actions:
        index = parse_frame(payload, RequestCancel).index
        if not self.is_running:
            return ()
        if index >= len(self._parts):
            raise ProtocolViolation(f"the client cancelled request {index}, which it never sent.")
        part = self._parts[index]
        if part is None or part.status is not None:
            return ()
        return self._end_now(part, Status.LATE if part.is_late(now_ms) else Status.CANCELLED, now_ms)

    # -- the clock ----------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> Actions:
        deadline_ms = self.deadline_ms()
        if deadline_ms is None or now_ms < deadline_ms:
            return ()
        if self.state is SellerState.HELD and now_ms >= self._held_since_ms + VOUCHER_TIMEOUT_MS:
            return [AbortEngine(), *self._finish(Status.UNACKNOWLEDGED, now_ms)]
        actions: list[Action] = []
        for part in self._open_parts():
            if part.is_late(now_ms):
                actions += [AbortEngineFor(part.index), *self._end(part, Status.LATE, now_ms)]
        self._is_closed = self._is_closed or now_ms >= self._closes_ms
        return [*actions, *self._release(now_ms)]

    # -- inside -------------------------------------------------------------------------------------------------

    @property
    def _is_beyond_window(self) -> bool:
        return self._gone - self._gone_acknowledged > self.books.terms.window_tokens

    def _open_parts(self) -> Iterator[TakenRequest]:
        return (part for part in self._parts if part is not None and part.status is None)

    def _heard(self, index: int) -> TakenRequest | None:
        """The request, if what the engine says of it still matters."""
        part = self._parts[index] if self.is_running else None
        return part if part is not None and part.status is None and part.then is None else None

    def _take_in_for(self, part: TakenRequest, data: bytes, now_ms: int) -> Status | None:
        """Count the engine's events and put them in line. Returns how the request must end, or None to go on;
        INTERRUPTED is said of the whole order."""
        counter, order = part.counter, self.order.message
        for event in part.splitter.feed(data):
            counter.feed(event)
            if counter.contradiction:
                return Status.FAILED
            before, usage = part.counted, usage_of(counter)
            self._counted_prompt += usage.prompt_tokens - before.prompt_tokens
            self._counted_output += usage.output_tokens - before.output_tokens
            if self._counted_prompt > order.max_prompt_tokens or self._counted_output > order.max_output_tokens:
                return Status.INTERRUPTED
            part.counted = usage
            part.waiting.append(WaitingEvent(event, usage, (counter.finish_reason or "")[:FINISH_REASON_CHARS]))
            if not self._waiting_events:
                self._waiting_since_ms = now_ms
            self._waiting_events += 1
            part.waiting_bytes += len(event)
        return None

    def _must_leave(self, now_ms: int) -> bool:
        """True if what waits should wait no longer."""
        return self._counted_output - self._gone >= self.books.terms.window_tokens or (
            self._waiting_events > 0 and now_ms >= self._waiting_since_ms + GATHER_MS
        )

    def _hear_out(self, part: TakenRequest, status: Status, now_ms: int) -> list[Action]:
        """The engine has said all that counts: once it is out, the request ends so. Others' events may wait on."""
        part.then = status
        return self._release(now_ms, only=part)

    def _end_now(self, part: TakenRequest, status: Status, now_ms: int) -> list[Action]:
        """The request ends with what is out; what waits is dropped."""
        return [AbortEngineFor(part.index), *self._end(part, status, now_ms)]

    def _end(self, part: TakenRequest, status: Status, now_ms: int) -> list[Action]:
        self._forget_waiting(part, len(part.waiting))
        part.status = status
        part.total_ms = max(now_ms - part.arrived_ms, 0)
        self._running -= 1
        if status is Status.COMPLETED:
            return []
        actions: list[Action] = [
            Send(Kind.REQUEST_ENDED, RequestEnded(index=part.index, status=status).to_bytes()),
        ]
        if part.is_metered and owes_nothing(status):
            # The client vouched for what it does not owe: it should not stay so.
            actions += self._meter(now_ms)
        return actions

    def _release(self, now_ms: int, only: TakenRequest | None = None) -> list[Action]:
        """Let what waits go as far as the window reaches; a meter tick follows if half a window is unmetered.

        `only`: of one request, if none has to wait for a voucher.
        """
        actions: list[Action] = []
        ready: dict[TakenRequest, list[bytes]] = {}
        is_held = False
        parts = list(self._open_parts()) if only is None or self.state is SellerState.HELD else [only]
        for part in parts:
            is_held = self._release_part(part, now_ms, actions, ready)
            if is_held:
                break
        actions += self._let_go_of(ready)
        unmetered = self._gone - self._gone_ticked
        if unmetered >= self.books.terms.window_tokens // 2 or (is_held and unmetered):
            actions += self._meter(now_ms)
        if is_held:
            self._hold(now_ms)
        return actions

    def _release_part(
        self, part: TakenRequest, now_ms: int, actions: list[Action], ready: dict[TakenRequest, list[bytes]]
    ) -> bool:
        """True if one of its events does not fit the window."""
        window, gone = self.books.terms.window_tokens, 0
        for one in part.waiting:
            output = one.usage.output_tokens - part.delivered.output_tokens
            beyond = self._gone + output - self._gone_acknowledged
            if self._gone > self._gone_acknowledged and beyond > window:
                self._forget_waiting(part, gone)
                return True
            if output and part.is_late(now_ms):
                actions += [*self._let_go_of(ready), AbortEngineFor(part.index)]
                actions += self._end(part, Status.LATE, now_ms)
                return False
            gone += 1
            ready.setdefault(part, []).append(one.event)
            self._note_gone(part, one, output, now_ms)
        self._forget_waiting(part, gone)
        if part.then is not None:
            actions += self._let_go_of(ready)
            actions += self._end(part, part.then, now_ms)
        return False

    def _forget_waiting(self, part: TakenRequest, count: int) -> None:
        """So many of its events have left."""
        self._waiting_events -= count
        del part.waiting[:count]
        part.waiting_bytes = sum(len(one.event) for one in part.waiting)

    def _note_gone(self, part: TakenRequest, one: WaitingEvent, output: int, now_ms: int) -> None:
        part.delivered, part.finish_reason = one.usage, one.finish_reason
        if output:
            self._move(SellerEvent.TOKENS)
            self._gone += output
            part.first_token_ms = part.first_token_ms or max(now_ms - part.arrived_ms, 1)
            self._first_token_ms = self._first_token_ms or part.first_token_ms

    def _window_moved(self) -> None:
        pass  # nothing is looked ahead for

    def _after_voucher(self, now_ms: int) -> Actions:
        is_held_up, self._is_held_up = self._is_held_up, False
        return self._release(now_ms) if is_held_up else ()

    def _hold(self, now_ms: int) -> None:
        super()._hold(now_ms)
        self._is_held_up = True

    def _let_go_of(self, ready: dict[TakenRequest, list[bytes]]) -> list[Action]:
        """Events on their way, and in the commitments to their answers."""
        actions: list[Action] = []
        for part, events in ready.items():
            data = b"".join(events)
            part.commitment.update(data)
            actions += _pieces(part.index, data)
        ready.clear()
        return actions

    def _counting(self) -> list[TakenRequest]:
        return [part for part in self._parts if part is not None and counts(part.status, part.delivered)]

    def _meter(self, now_ms: int) -> list[Action]:
        counting = self._counting()
        self._delivered = sum_of(part.delivered for part in counting)
        for part in counting:
            part.is_metered = True
        self._gone_ticked = self._gone
        self._gone_at[self._ticks + 1] = self._gone
        return super()._meter(now_ms)

    def _acknowledge(self, meter: Meter) -> None:
        super()._acknowledge(meter)
        self._gone_acknowledged = self._gone_at[meter.tick]
        self._gone_at = {tick: gone for tick, gone in self._gone_at.items() if tick > meter.tick}

    def _digest(self) -> bytes:
        return batch_commitment(part.commitment.digest() for part in self._counting())

    def _stop_counting(self) -> tuple[RequestLine, ...]:
        self._delivered = sum_of(part.delivered for part in self._counting())
        return tuple(part.line() for part in self._parts if part is not None)


def _pieces(index: int, data: bytes) -> list[Action]:
    mark, size = bytes([index]), CHUNK_BYTES - 1
    return [Send(Kind.PART, mark + data[i : i + size]) for i in range(0, len(data), size)]


_HANDLERS: Final[dict[int, Callable[[SellerBatch, bytes, int], Actions]]] = {
    Kind.VOUCHER: SellerBatch._on_voucher,
    Kind.REQUEST_CANCEL: SellerBatch._on_request_cancel,
    Kind.BATCH_CLOSE: SellerBatch._on_close,
    Kind.COUNTERSIGNATURE: SellerBatch._on_countersignature,
    Kind.DISPUTE: SellerBatch._on_dispute,
}
"""What the client may send on a batch order's stream, beside REQUEST."""
