"""The client's side of one batch order, without I/O (docs/spec/session.md, section 11).

Each request is counted by itself; vouchers and the receipt are held against all of them together, and every line of the
receipt against the request that it is about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import ProtocolViolation, Refused
from p2pgrid.proto.actions import Action, Actions, Deliver, Persist, Send
from p2pgrid.proto.batch import NO_COMMITMENT, batch_commitment, counts, request_key, sum_of
from p2pgrid.proto.books import ChannelBooks, risk_pico
from p2pgrid.proto.buyer import BUYER_TRANSITIONS, BuyerEvent, BuyerOrder, BuyerState, entry_on_offer
from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import (
    FINISH_REASON_CHARS,
    ModelOffer,
    Offer,
    Order,
    Receipt,
    RequestLine,
    Status,
    Tariff,
    Usage,
)
from p2pgrid.proto.pricing import is_billed_by_voucher, is_within_caps, most_owed, owes_nothing, price_of, usage_of
from p2pgrid.proto.receipt_check import Fault, beyond_voucher, counts_text
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.request import RequestFields
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.wire import (
    MAX_ENGINE_ERROR_BYTES,
    MAX_REQUEST_BYTES,
    BatchOpening,
    Head,
    Kind,
    Refusal,
    RequestCancel,
    RequestEnded,
    RequestHead,
    RequestRefused,
    parse_frame,
)
from p2pgrid.units import MAX_TOKENS

BATCH_BUYER_TRANSITIONS: Final = {**BUYER_TRANSITIONS, (BuyerState.RECEIVING, BuyerEvent.HEAD): BuyerState.RECEIVING}
"""As a single order's; several heads come. REQUEST_ENDED and REQUEST_REFUSED move no state."""
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


class AskedRequest:
    """One request of ours, as the program's answer sees it."""

    def __init__(self, batch: BuyerBatch, index: int, key: bytes, body: bytes, n: int) -> None:
        self.index: Final = index
        self.books: Final = batch.books
        self.order: Final = batch.order
        self.counter: Final = TokenCounter(n)
        self.head: Head | None = None
        self.refusal: Refusal | None = None
        self.ended: Status | None = None
        """The provider's word that it is over, other than `completed`."""
        self.request_commitment: Final = request_commitment(key, body)
        self._tariff: Final = batch.tariff
        self._commitment = ResponseCommitment(key)
        self._splitter = EventSplitter()
        self._error_bytes = 0
        self.is_cancelled = False

    @property
    def usage(self) -> Usage:
        """Our own count of what has been delivered."""
        return usage_of(self.counter)

    @property
    def counts(self) -> bool:
        """True if it is in the order's counts."""
        return self.refusal is None and counts(self.ended, self.usage)

    def cost_pico(self) -> int:
        """What is owed for it, by our own count."""
        return price_of(self._tariff, self.usage) if self.counts else 0

    def digest(self) -> bytes:
        """The commitment to its answer so far."""
        return self._commitment.digest()

    def take_in(self, data: bytes) -> None:
        """Bytes of its answer came. Raises ProtocolViolation."""
        if self.head is None or self.refusal is not None or self.ended is not None:
            raise ProtocolViolation(f"the provider sent an answer to request {self.index} where none may come.")
        if self.head.status == 200:
            self._commitment.update(data)
            for event in self._splitter.feed(data):
                self.counter.feed(event)
            return
        self._error_bytes += len(data)
        if self._error_bytes > MAX_ENGINE_ERROR_BYTES:
            raise ProtocolViolation(f"the provider sent an error of over {MAX_ENGINE_ERROR_BYTES} bytes.")

    def fault_of(self, line: RequestLine) -> Fault | None:
        """What is wrong with the receipt's line about it."""
        what, counter, counted = f"request {self.index}", self.counter, self.usage
        if line.usage != counted:
            said, own = counts_text(line.usage), counts_text(counted)
            return "wrong-count", f"of {what} the receipt says {said}; {own} were counted here."
        if line.response_commitment != self.digest():
            return "wrong-commitment", f"of {what} the receipt commits to other bytes than were delivered."
        if line.finish_reason != (counter.finish_reason or "")[:FINISH_REASON_CHARS]:
            return "wrong-status", f"of {what} the finish reason {line.finish_reason!r} is not the answer's."
        if line.status is Status.CANCELLED and not self.is_cancelled:
            return "wrong-status", f"the receipt says that {what} was cancelled; this side did not cancel it."
        if line.status is Status.COMPLETED and (counter.has_failed or not counter.done):
            return "wrong-status", f"the receipt says that {what} was completed; its answer failed or did not end."
        if line.status is not (self.ended or Status.COMPLETED) and (self.ended or not owes_nothing(line.status)):
            return "wrong-status", f"the receipt says that {what} is {line.status}; it was told otherwise before."
        if not owes_nothing(line.status) and counter.contradiction:
            return "wrong-count", f"the answer to {what} contradicts itself: {counter.contradiction}."
        return None


class BuyerBatch(BuyerOrder):
    """One batch order of ours. Made by `place_batch`; every method returns actions in order."""

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
        asked = AskedRequest(self, index, request_key(self._batch_key, index), body, fields.n or 1)
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

    def _move(self, event: BuyerEvent) -> None:
        following = BATCH_BUYER_TRANSITIONS.get((self.state, event))
        if following is None:
            raise ProtocolViolation(f"the provider sent {event.name} while the order was {self.state.name}.")
        self.state = following

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
        answered = [one for one in self.asked if one.counts and _is_answered(one)]
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


def _is_answered(one: AskedRequest) -> bool:
    """True if the client's own count says that it is owed for."""
    counter = one.counter
    return (counter.done or one.is_cancelled) and not counter.has_failed and not counter.contradiction


_OF_ALL: Final = (Kind.METER, Kind.RECEIPT, Kind.REFUSAL)
"""What the provider says of the whole order, as of one for a single request."""
_HANDLERS: Final[dict[int, Callable[[BuyerBatch, bytes], None]]] = {
    Kind.REQUEST_HEAD: BuyerBatch._on_request_head,
    Kind.REQUEST_REFUSED: BuyerBatch._on_request_refused,
    Kind.REQUEST_ENDED: BuyerBatch._on_request_ended,
}
"""What the provider says of one request, beside PART."""


def place_batch(
    books: ChannelBooks,
    offer: Signed[Offer],
    fields: RequestFields,
    endpoint: str,
    need: Need,
    *,
    key: SecretKey,
    commitment_key: bytes,
    now_ms: int,
    first_token_timeout_ms: int,
) -> tuple[BuyerBatch, Actions]:
    """Sign a batch order with room for as many requests like this one as the offer, risk and credit allow.

    The request itself is then the first that is asked (`BuyerBatch.ask`). `need` is what each may take. Raises Refused
    with the codes of `place_order` where there is no room for two: it needs an order of its own.
    """
    entry = entry_on_offer(books, offer, fields.model, endpoint, now_ms)
    tariff = offer.message.tariff_at(entry, now_ms)
    n, window = offer.message.batch.batch_requests, books.terms.window_tokens
    while n > 1:
        max_prompt, max_output = n * need.prompt_tokens, n * need.output_tokens
        if max(max_prompt, max_output) <= MAX_TOKENS:
            most = most_owed(tariff, max_prompt_tokens=max_prompt, max_output_tokens=max_output)
            message = Order(
                channel=books.id,
                order_number=books.last_order_number + 1,
                offer=offer.id,
                model=fields.model,
                endpoint=endpoint,
                request_commitment=NO_COMMITMENT,
                max_prompt_tokens=max_prompt,
                max_output_tokens=max_output,
                max_amount_pico=most,
                ordered_ms=now_ms,
                first_token_deadline_ms=now_ms + first_token_timeout_ms,
                max_requests=n,
            )
            if most <= books.credit_left_pico() and books.may_open(risk_pico(message, tariff, window), now_ms):
                break
        n //= 2
    else:
        raise Refused("too-many-open-orders", "there is no room for an order of several requests.")
    order = sign_message(message, Role.CLIENT, key)
    opening = BatchOpening(order=order.record.to_bytes(), commitment_key=commitment_key)
    buyer = BuyerBatch(books, order, entry, tariff, commitment_key, key)
    actions: list[Action] = [Persist(order), Send(Kind.BATCH, opening.to_bytes())]
    return buyer, actions
