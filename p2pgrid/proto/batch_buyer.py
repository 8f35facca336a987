"""The client's side of one batch order, without I/O (docs/spec/session.md, section 11).

Each request is counted by itself; vouchers and the receipt are held against all of them together, and every line of the
receipt against the request that it is about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.actions import Actions, Deliver, Send
from p2pgrid.proto.asked_request import AskedRequest
from p2pgrid.proto.batch import batch_commitment, request_key, sum_of
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.buyer import BuyerOrder
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import ModelOffer, Order, Receipt, Status, Tariff, Usage
from p2pgrid.proto.order_states import BATCH_BUYER_TRANSITIONS, BuyerEvent, BuyerState
from p2pgrid.proto.pricing import is_billed_by_voucher, is_within_caps, price_of
from p2pgrid.proto.receipt_check import Fault, beyond_voucher
from p2pgrid.proto.record import Signed
from p2pgrid.proto.request import RequestFields
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import MAX_REQUEST_BYTES, Head, RequestCancel, RequestEnded, RequestHead, RequestRefused

_RUNS_ON: Final = (Status.INTERRUPTED, Status.UNACKNOWLEDGED, Status.COMPLETED)
"""No REQUEST_ENDED says these."""


@dataclass(frozen=True, slots=True)
class Need:
    """Most that a request may take of the caps of its order."""

    prompt_tokens: int
    output_tokens: int

    def covering(self, other: Need) -> Need:
        """Enough for either."""
        return Need(max(self.prompt_tokens, other.prompt_tokens), max(self.output_tokens, other.output_tokens))


class BuyerBatch(BuyerOrder):
    """One batch order of ours. Made by `place_batch`; every method returns actions in order."""

    _transitions = BATCH_BUYER_TRANSITIONS

    def __init__(
        self,
        books: ChannelBooks,
        order: Signed[Order],
        entry: ModelOffer,
        tariff: Tariff,
        commitment_key: bytes,
        key: SecretKey,
    ) -> None:
        super().__init__(books, order, tariff, commitment_key, 1, key)
        self.asked: Final[list[AskedRequest]] = []
        self.is_closed = False
        self._entry = entry
        self._batch_key = commitment_key
        self._left_prompt = order.message.max_prompt_tokens
        self._left_output = order.message.max_output_tokens
        self._vouched_before: set[Usage] = set()
        """What any voucher said. Where the counts fell, the last may not have arrived when the order was broken off."""

    @property
    def usage(self) -> Usage:
        """Our own count of all requests that count."""
        return sum_of(one.usage for one in self.asked if one.counts)

    # -- what we send -----------------------------------------------------------------------------------------------

    def ask(self, fields: RequestFields, endpoint: str, body: bytes, need: Need) -> tuple[AskedRequest, Actions] | None:
        """One more request under the order, or None if it does not fit."""
        message = self.order.message
        fits = (
            not self.is_closed
            and self.state in (BuyerState.ORDERED, BuyerState.RECEIVING)
            and len(self.asked) < message.max_requests
            and (fields.model, endpoint) == (message.model, message.endpoint)
            and len(body) <= MAX_REQUEST_BYTES
            and need.prompt_tokens <= self._left_prompt
            and need.output_tokens <= self._left_output
        )
        if not fits:
            return None
        self._left_prompt -= need.prompt_tokens
        self._left_output -= need.output_tokens
        index = len(self.asked)
        key = request_key(self._batch_key, index)
        asked = AskedRequest(self.books, self.order, self.tariff, index, key, body, fields.n or 1)
        self.asked.append(asked)
        return asked, (Send(Kind.REQUEST, body),)

    def cancel(self) -> Actions:
        """Every program has gone: all requests are cancelled, and no more come."""
        cancelled = [action for asked in self.asked for action in self.cancel_request(asked)]
        return [*cancelled, *self.close()]

    def close(self) -> Actions:
        """No more requests come. Harmless twice."""
        if self.is_closed or self.state not in (BuyerState.ORDERED, BuyerState.RECEIVING):
            return ()
        self.is_closed = True
        return (Send(Kind.BATCH_CLOSE, b""),)

    def cancel_request(self, asked: AskedRequest) -> Actions:
        """The program of one request wants no more: what was delivered of it is billed."""
        is_over = asked.refusal is not None or asked.ended is not None or asked.counter.done or asked.is_cancelled
        if is_over or self.state not in (BuyerState.ORDERED, BuyerState.RECEIVING):
            return ()
        asked.is_cancelled = True
        return (Send(Kind.REQUEST_CANCEL, RequestCancel(index=asked.index).to_bytes()),)

    # -- what comes from the provider -------------------------------------------------------------------------------

    def message(self, kind: int, payload: bytes, now_ms: int) -> Actions:
        """The provider sent a message on the order's stream. Never raises for what a peer does: see `Breach`."""
        if kind == Kind.PART:
            refused = self.part(payload)
            return (Deliver(payload[1:]),) if refused is None else refused
        if not self.is_open or kind in _OF_ALL:
            actions = super().message(kind, payload, now_ms)
            self._vouched_before.add(self._vouched)
            return actions
        handler = _HANDLERS.get(kind)
        try:
            if handler is None:
                raise ProtocolViolation(f"the provider sent message kind {kind} on the stream of a batch order.")
            self._check_no_receipt(kind)
            handler(self, payload)
        except ProtocolViolation as violation:
            return self._breach("protocol-violation", str(violation))
        return ()

    def part(self, payload: bytes) -> Actions | None:
        """A PART came: None if its bytes, after the first, are for the program of that request."""
        try:
            if not self.is_open:
                return ()
            self._check_no_receipt(Kind.PART)
            self._move(BuyerEvent.CHUNK)
            self._asked(payload[0] if payload else -1).take_in(payload[1:])
        except ProtocolViolation as violation:
            return self._breach("protocol-violation", str(violation))
        return None

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _contradiction(self) -> str:
        return next((one.counter.contradiction for one in self.asked if one.counts and one.counter.contradiction), "")

    def _digest(self) -> bytes:
        return batch_commitment(one.digest() for one in self.asked if one.counts)

    def _asked(self, index: int) -> AskedRequest:
        if not 0 <= index < len(self.asked):
            raise ProtocolViolation(f"the provider spoke of request {index}, which was never sent.")
        return self.asked[index]

    def _on_request_head(self, payload: bytes) -> None:
        said = parse_frame(payload, RequestHead)
        asked = self._asked(said.index)
        if asked.head is not None or asked.refusal is not None or asked.ended is not None:
            raise ProtocolViolation(f"the provider began its answer to request {said.index} where none may begin.")
        self._move(BuyerEvent.HEAD)
        asked.head = Head(status=said.status, content_type=said.content_type)

    def _on_request_refused(self, payload: bytes) -> None:
        said = parse_frame(payload, RequestRefused)
        asked = self._asked(said.index)
        if asked.head is not None or asked.refusal is not None or asked.ended is not None:
            raise ProtocolViolation(f"the provider refused request {said.index}, which it had taken.")
        asked.refusal = Refusal(code=said.code, message=said.message, retry_after_ms=said.retry_after_ms)

    def _on_request_ended(self, payload: bytes) -> None:
        said = parse_frame(payload, RequestEnded)
        asked = self._asked(said.index)
        if asked.ended is not None or asked.refusal is not None or said.status in _RUNS_ON:
            raise ProtocolViolation(f"the provider ended request {said.index} as {said.status} where it may not.")
        asked.ended = said.status

    def _owed_pico(self, receipt: Receipt) -> int:
        """What this side says is owed where it disputes the receipt: never more than was billed."""
        by_count = not is_billed_by_voucher(receipt.status) and is_within_caps(self.usage, self.order.message)
        answered = [one for one in self.asked if one.counts and one.is_answered]
        owed = sum(one.cost_pico() for one in answered) if by_count else price_of(self.tariff, self._vouched)
        return min(owed, receipt.amount_pico)

    def _ending_fault(self, receipt: Receipt) -> Fault | None:
        """Hold the receipt, and each of its lines, against what this side saw of the answers."""
        if is_billed_by_voucher(receipt.status):
            went_by = receipt.usage if receipt.usage in self._vouched_before else self._vouched
            return beyond_voucher(receipt, went_by, self.tariff)
        if receipt.status is not Status.COMPLETED:
            return "wrong-status", f"a batch order does not end as {receipt.status}."
        lines = list(receipt.requests)
        for asked in self.asked:
            if asked.refusal is not None:
                continue
            if not lines or lines[0].request_commitment != asked.request_commitment:
                if asked.head is not None or asked.ended is not None:
                    return "wrong-count", f"the receipt leaves out request {asked.index}, of which something came."
                continue
            fault = asked.fault_of(lines.pop(0))
            if fault is not None:
                return fault
        if lines:
            return "wrong-commitment", f"{len(lines)} of the receipt's requests are none of this side's."
        return None


_OF_ALL: Final = (Kind.METER, Kind.RECEIPT, Kind.REFUSAL)
"""What the provider says of the whole order, as of one for a single request."""
_HANDLERS: Final[dict[int, Callable[[BuyerBatch, bytes], None]]] = {
    Kind.REQUEST_HEAD: BuyerBatch._on_request_head,
    Kind.REQUEST_REFUSED: BuyerBatch._on_request_refused,
    Kind.REQUEST_ENDED: BuyerBatch._on_request_ended,
}
"""What the provider says of one request, beside PART."""
