"""The client's side of one order, without I/O (docs/spec/session.md, sections 3 to 6).

The machine counts what arrives on its own, signs a voucher only for a meter tick that states exactly its own count,
and countersigns only a receipt that it would have written itself. A receipt that fits the chain and says something
else is disputed, and the chain goes on above it. Anything else is a `Breach`: the record is kept as evidence, nothing
is signed, and the provider is dealt with no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Final

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.proto.actions import (
    Action,
    Actions,
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
from p2pgrid.proto.books import ChannelBooks, risk_pico
from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.disputing import sign_dispute
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import (
    FINISH_REASON_CHARS,
    Meter,
    ModelOffer,
    Offer,
    Order,
    Receipt,
    Status,
    Tariff,
    Usage,
    Voucher,
)
from p2pgrid.proto.pricing import (
    is_billed_by_voucher,
    is_within_caps,
    most_owed,
    owes_nothing,
    price_of,
    usage_of,
)
from p2pgrid.proto.receipt_check import (
    DISPUTABLE,
    Fault,
    beyond_voucher,
    clock_fault,
    counts_text,
    receipt_fault,
    resumed_fault,
)
from p2pgrid.proto.record import Record, Role, Signed, parse_record, sign_message, verify_record
from p2pgrid.proto.request import RequestFields
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.wire import (
    CHUNK_BYTES,
    MAX_ENGINE_ERROR_BYTES,
    Head,
    Kind,
    OrderOpening,
    Refusal,
    parse_frame,
)
from p2pgrid.units import MAX_TOKENS


class BuyerState(Enum):
    """Where an order stands on the client's side."""

    __hash__ = object.__hash__  # members are single: no need to hash their names, at every event

    ORDERED = auto()
    """The order is signed; nothing came back yet."""
    RECEIVING = auto()
    """The engine has answered."""
    WAITING = auto()
    """The receipt came before one that stands before it in the chain, whose stream is slower."""
    SETTLED = auto()
    """The receipt carries both signatures."""
    REFUSED = auto()
    """The provider refused the order. Nothing is owed."""
    DISPUTED = auto()
    """The receipt says what is not so. We signed that we dispute it; the chain goes on above it."""
    BREACHED = auto()
    """The provider broke the rules. Nothing more is signed."""
    LOST = auto()
    """The link is gone; the receipt comes when the channel is resumed."""


class BuyerEvent(Enum):
    """What can happen to an order on the client's side."""

    __hash__ = object.__hash__  # members are single: no need to hash their names, at every event

    HEAD = auto()
    CHUNK = auto()
    METER = auto()
    RECEIPT = auto()
    EARLY_RECEIPT = auto()
    WRONG_RECEIPT = auto()
    REFUSAL = auto()
    FAULT = auto()
    LINK_LOST = auto()


_RECEIVING: Final = BuyerState.RECEIVING
"""Asked for at every event; to look a member up in its enum costs as much as a call."""
_S, _E = BuyerState, BuyerEvent
BUYER_TRANSITIONS: Final[dict[tuple[BuyerState, BuyerEvent], BuyerState]] = {
    (_S.ORDERED, _E.HEAD): _S.RECEIVING,
    (_S.ORDERED, _E.REFUSAL): _S.REFUSED,
    (_S.ORDERED, _E.RECEIPT): _S.SETTLED,
    (_S.ORDERED, _E.WRONG_RECEIPT): _S.DISPUTED,
    (_S.ORDERED, _E.EARLY_RECEIPT): _S.WAITING,
    (_S.ORDERED, _E.FAULT): _S.BREACHED,
    (_S.ORDERED, _E.LINK_LOST): _S.LOST,
    (_S.RECEIVING, _E.CHUNK): _S.RECEIVING,
    (_S.RECEIVING, _E.METER): _S.RECEIVING,
    (_S.RECEIVING, _E.RECEIPT): _S.SETTLED,
    (_S.RECEIVING, _E.WRONG_RECEIPT): _S.DISPUTED,
    (_S.RECEIVING, _E.EARLY_RECEIPT): _S.WAITING,
    (_S.RECEIVING, _E.FAULT): _S.BREACHED,
    (_S.RECEIVING, _E.LINK_LOST): _S.LOST,
    (_S.WAITING, _E.RECEIPT): _S.SETTLED,
    (_S.WAITING, _E.WRONG_RECEIPT): _S.DISPUTED,
    (_S.WAITING, _E.FAULT): _S.BREACHED,
    (_S.WAITING, _E.LINK_LOST): _S.LOST,
}
"""The machine as a table; what is not in it is not allowed."""


class BuyerOrder:
    """One order of ours. Made by `place_order`; fed with what comes; every method returns actions in order."""

    def __init__(
        self,
        books: ChannelBooks,
        order: Signed[Order],
        tariff: Tariff,
        commitment_key: bytes,
        n: int,
        key: SecretKey,
    ) -> None:
        self.state = BuyerState.ORDERED
        self.order: Final = order
        self.books: Final = books
        self.tariff: Final = tariff
        self.head: Head | None = None
        self.refusal: Refusal | None = None
        self.receipt: Signed[Receipt] | None = None
        self.dispute: Signed[Dispute] | None = None
        self.counter: Final = TokenCounter(n)
        self._key = key
        self._commitment = ResponseCommitment(commitment_key)
        self._splitter = EventSplitter()
        self._is_answer = False
        self._vouched = Usage()
        self._ticks = 0
        self._cancelled = False
        self._error_bytes = 0
        self._early: bytes | None = None
        books.open_order(order.message, tariff)

    @property
    def usage(self) -> Usage:
        """Our own count of what has been delivered."""
        return usage_of(self.counter)

    @property
    def vouched(self) -> Usage:
        """What we have signed a voucher for."""
        return self._vouched

    @property
    def is_open(self) -> bool:
        """True while something may still come on the order's stream."""
        return self.state in (BuyerState.ORDERED, BuyerState.RECEIVING, BuyerState.WAITING)

    def cost_pico(self) -> int:
        """What the delivered tokens cost, by our own count."""
        return price_of(self.tariff, self.usage)

    # -- what comes from the provider -----------------------------------------------------------------------------

    def message(self, kind: int, payload: bytes, now_ms: int) -> Actions:
        """The provider sent a message on the order's stream. Never raises for what a peer does: see `Breach`."""
        if kind == Kind.CHUNK:
            refused = self.chunk(payload)
            return (Deliver(payload),) if refused is None else refused
        if not self.is_open:
            return ()
        handler = _HANDLERS.get(kind)
        try:
            if handler is None:
                raise ProtocolViolation(f"the provider sent message kind {kind} on an order's stream.")
            self._check_no_receipt(kind)
            return handler(self, payload, now_ms)
        except ProtocolViolation as violation:
            return self._breach("protocol-violation", str(violation))
        except InvalidRecord as invalid:
            return self._breach(invalid.code, str(invalid))

    def chunk(self, data: bytes) -> Actions | None:
        """A CHUNK came: None if its bytes are for the program. As `message`, for what comes a thousand times."""
        try:
            if self.state is not _RECEIVING:
                if not self.is_open:
                    return ()
                self._check_no_receipt(Kind.CHUNK)
                self._move(BuyerEvent.CHUNK)
            if self._is_answer:
                self._commitment.update(data)
                if self._splitter.takes(data):
                    self.counter.feed_data(data[6:-2])
                else:
                    for event in self._splitter.feed(data):
                        self.counter.feed(event)
            else:
                self._error_bytes += len(data)
                if self._error_bytes > MAX_ENGINE_ERROR_BYTES:
                    raise ProtocolViolation(f"the provider sent an error of over {MAX_ENGINE_ERROR_BYTES} bytes.")
        except ProtocolViolation as violation:
            return self._breach("protocol-violation", str(violation))
        return None

    def cancel(self) -> Actions:
        """Our program has gone or wants no more: the provider stops, and bills what was delivered."""
        if self.state not in (BuyerState.ORDERED, BuyerState.RECEIVING) or self._cancelled:
            return ()
        self._cancelled = True
        return (Send(Kind.CANCEL, b""),)

    def proceed(self, now_ms: int) -> Actions:
        """The receipt that this order's waited for is countersigned (`Turn`): judge ours now. Never raises."""
        if self.state is not BuyerState.WAITING or self._early is None:
            return ()
        payload, self._early = self._early, None
        try:
            return self._on_receipt(payload, now_ms)
        except InvalidRecord as invalid:
            return self._breach(invalid.code, str(invalid))

    def link_lost(self) -> None:
        """The link or the stream is gone. The books stay open until the channel is resumed."""
        if self.is_open:
            self._move(BuyerEvent.LINK_LOST)
            self.books.leave_turn(self.order.message.order_number)

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _contradiction(self) -> str:
        return self.counter.contradiction

    def _digest(self) -> bytes:
        """The commitment to all that has come."""
        return self._commitment.digest()

    def _move(self, event: BuyerEvent) -> None:
        following = BUYER_TRANSITIONS.get((self.state, event))
        if following is None:
            raise ProtocolViolation(f"the provider sent {event.name} while the order was {self.state.name}.")
        self.state = following

    def _check_no_receipt(self, kind: int) -> None:
        if self.state is BuyerState.WAITING:
            raise ProtocolViolation(f"the provider sent message kind {kind} after its receipt.")

    def _on_head(self, payload: bytes, now_ms: int) -> Actions:
        head = parse_frame(payload, Head)
        self._move(BuyerEvent.HEAD)
        self.head = head
        self._is_answer = head.status == 200
        return ()

    def _on_refusal(self, payload: bytes, now_ms: int) -> Actions:
        refusal = parse_frame(payload, Refusal)
        self._move(BuyerEvent.REFUSAL)
        self.refusal = refusal
        self.books.close_order(self.order.message.order_number)
        return (EndStream(),)

    def _on_meter(self, payload: bytes, now_ms: int) -> Actions:
        record = parse_record(payload)
        self._move(BuyerEvent.METER)
        meter = verify_record(record, Meter, {Role.PROVIDER: self.books.provider})
        fault = self._meter_fault(meter.message, now_ms)
        if fault:
            return self._breach(*fault, record)
        message = meter.message
        self._ticks = message.tick
        self._vouched = message.usage
        voucher = sign_message(
            Voucher(
                channel=message.channel,
                order_number=message.order_number,
                tick=message.tick,
                meter=meter.id,
                usage=message.usage,
                amount_pico=message.amount_pico,
            ),
            Role.CLIENT,
            self._key,
        )
        return (Persist(meter), Persist(voucher), Send(Kind.VOUCHER, voucher.record.to_bytes()))

    def _meter_fault(self, meter: Meter, now_ms: int) -> Fault | None:
        order = self.order.message
        if (meter.channel, meter.order_number) != (order.channel, order.order_number):
            return "wrong-order", "the meter tick is for another channel or order."
        if meter.tick != self._ticks + 1:
            return "meter-gap", f"the meter tick {meter.tick} came, and {self._ticks + 1} was due."
        counted = self.usage
        if self._contradiction:
            return "wrong-count", f"the answer contradicts itself: {self._contradiction}."
        if not is_within_caps(counted, order):
            return "over-caps", f"{counts_text(counted)} were delivered, which passes the order's caps."
        if meter.usage != counted:
            return (
                "wrong-count",
                f"the meter says {counts_text(meter.usage)}; {counts_text(counted)} were counted here.",
            )
        if meter.amount_pico != price_of(self.tariff, counted):
            return "wrong-amount", f"the meter says {meter.amount_pico} pico-EUR; the tariff gives {self.cost_pico()}."
        if meter.response_commitment != self._digest():
            return "wrong-commitment", "the meter commits to other bytes than were delivered."
        return clock_fault(meter.metered_ms, now_ms)

    def _on_receipt(self, payload: bytes, now_ms: int) -> Actions:
        record = parse_record(payload)
        receipt = verify_record(record, Receipt, {Role.PROVIDER: self.books.provider})
        message = receipt.message
        stray = (message.order_number, message.order) != (self.order.message.order_number, self.order.id)
        broken = ("wrong-order", "the receipt is not for the order that was placed.") if stray else None
        broken = broken or clock_fault(message.issued_ms, now_ms)
        if broken is None and self._must_wait(message):
            self._move(BuyerEvent.EARLY_RECEIPT)
            self._early = payload
            self.books.wait_for_turn(message)
            return ()
        broken = broken or self.books.chain_fault(message)
        fault = broken or self._receipt_fault(message)
        if fault is not None and fault[0] not in DISPUTABLE:
            return self._breach(*fault, record)
        self._move(BuyerEvent.RECEIPT if fault is None else BuyerEvent.WRONG_RECEIPT)
        owed_pico = self._owed_pico(message) if fault is not None else message.amount_pico
        self.receipt, self.dispute = conclude(
            self.books, receipt, fault, owed_pico=owed_pico, key=self._key, now_ms=now_ms
        )
        following = self.books.order_in_turn()
        turn = () if following is None else (Turn(following),)
        if self.dispute is None:
            countersignature = Send(Kind.COUNTERSIGNATURE, self.receipt.record.to_bytes())
            return (Persist(self.receipt), countersignature, EndStream(), Settled(self.receipt), *turn)
        sent = Send(Kind.DISPUTE, self.dispute.record.to_bytes())
        ended = Disputed(self.receipt, self.dispute)
        return (Persist(self.receipt), Persist(self.dispute), sent, EndStream(), ended, *turn)

    def _receipt_fault(self, receipt: Receipt) -> Fault | None:
        return (
            receipt_fault(receipt, self.order, self.tariff)
            or self._ending_fault(receipt)
            or self.books.mention_fault(receipt)
        )

    def _owed_pico(self, receipt: Receipt) -> int:
        """What this side says is owed where it disputes the receipt: never more than was billed."""
        counted = self.usage
        if owes_nothing(receipt.status) or self.counter.has_failed:
            return 0
        is_counted = is_within_caps(counted, self.order.message) and not self.counter.contradiction
        is_ended = self.counter.done or (receipt.status is Status.CANCELLED and self._cancelled)
        by_count = is_counted and is_ended and not is_billed_by_voucher(receipt.status)
        return min(price_of(self.tariff, counted if by_count else self._vouched), receipt.amount_pico)

    def _must_wait(self, receipt: Receipt) -> bool:
        """True if the gap before this receipt can be filled by other orders of ours that are open."""
        missing = receipt.receipt_number - self.books.last_receipt_number - 1
        return 0 < missing < self.books.open_orders and self.books.is_turn_free(receipt)

    def _ending_fault(self, receipt: Receipt) -> Fault | None:
        """Hold the receipt against what this side saw of the answer."""
        counted = self.usage
        if is_billed_by_voucher(receipt.status):
            return beyond_voucher(receipt, self._vouched, self.tariff)
        if receipt.usage != counted:
            return (
                "wrong-count",
                f"the receipt says {counts_text(receipt.usage)}; {counts_text(counted)} were counted here.",
            )
        if receipt.response_commitment != self._commitment.digest():
            return "wrong-commitment", "the receipt commits to other bytes than were delivered."
        if receipt.finish_reason != (self.counter.finish_reason or "")[:FINISH_REASON_CHARS]:
            return "wrong-status", f"the receipt's finish reason {receipt.finish_reason!r} is not the answer's."
        if receipt.status is Status.CANCELLED and not self._cancelled:
            return "wrong-status", "the receipt says cancelled; this side did not cancel."
        if receipt.status is Status.COMPLETED and (self.counter.has_failed or not self.counter.done):
            return "wrong-status", "the receipt says completed; the answer failed or did not end."
        if not owes_nothing(receipt.status) and self.counter.contradiction:
            return "wrong-count", f"the answer contradicts itself: {self.counter.contradiction}."
        return None

    def _breach(self, code: str, message: str, record: Record | None = None) -> list[Action]:
        self._move(BuyerEvent.FAULT)
        self.books.leave_turn(self.order.message.order_number)
        kept: Sequence[Action] = (KeepEvidence(record, f"{code}: {message}"),) if record is not None else ()
        return [*kept, Breach(code, message)]


_HANDLERS: Final[dict[int, Callable[[BuyerOrder, bytes, int], Actions]]] = {
    Kind.METER: BuyerOrder._on_meter,
    Kind.HEAD: BuyerOrder._on_head,
    Kind.RECEIPT: BuyerOrder._on_receipt,
    Kind.REFUSAL: BuyerOrder._on_refusal,
}
"""What the provider may send on an order's stream, beside CHUNK."""


def place_order(
    books: ChannelBooks,
    offer: Signed[Offer],
    fields: RequestFields,
    endpoint: str,
    body: bytes,
    *,
    key: SecretKey,
    commitment_key: bytes,
    now_ms: int,
    first_token_timeout_ms: int,
    max_amount_pico: int | None = None,
    most_prompt_tokens: int | None = None,
) -> tuple[BuyerOrder, Actions]:
    """Sign an order for a body made by `metered_body`. The shell sends the body's pieces and ends its direction.

    `max_amount_pico` is what the program allows; it must cover the order's caps. `most_prompt_tokens`: where more is
    known than the body's size, so many the prompt has at most. Raises Refused with the codes that the
    provider would use (`unknown-model`, `unknown-endpoint`, `offer-expired`, `unknown-offer`, `wrong-currency`,
    `channel-expired`, `too-many-open-orders`, `bad-request`, `credit-exhausted`), and `over-budget`.
    """
    entry = entry_on_offer(books, offer, fields.model, endpoint, now_ms)
    max_prompt = fields.max_prompt_tokens(entry, len(body))
    if most_prompt_tokens is not None:
        max_prompt = min(max_prompt, most_prompt_tokens)
    max_output = fields.max_output_tokens(entry)
    if max(max_prompt, max_output) > MAX_TOKENS:
        raise Refused(
            "bad-request",
            f"the answers may come to {max_output} tokens; an order has at most {MAX_TOKENS} either way.",
            hint="Ask for fewer answers or set max_tokens.",
        )
    tariff = offer.message.tariff_at(entry, now_ms)
    most = most_owed(tariff, max_prompt_tokens=max_prompt, max_output_tokens=max_output)
    if max_amount_pico is not None and most > max_amount_pico:
        raise Refused(
            "over-budget",
            f"the answer may cost {most} pico-EUR; {max_amount_pico} are allowed.",
            hint="Lower max_tokens or raise the budget.",
        )
    if most > books.credit_left_pico():
        raise Refused(
            "credit-exhausted",
            f"the answer may cost {most} pico-EUR; {books.credit_left_pico()} of the channel's credit are left.",
            hint="Settle what is open, or lower max_tokens.",
        )
    message = Order(
        channel=books.id,
        order_number=books.last_order_number + 1,
        offer=offer.id,
        model=fields.model,
        endpoint=endpoint,
        request_commitment=request_commitment(commitment_key, body),
        max_prompt_tokens=max_prompt,
        max_output_tokens=max_output,
        max_amount_pico=most,
        ordered_ms=now_ms,
        first_token_deadline_ms=now_ms + first_token_timeout_ms,
    )
    books.check_may_open(risk_pico(message, tariff, books.terms.window_tokens), now_ms)
    order = sign_message(message, Role.CLIENT, key)
    opening = OrderOpening(order=order.record.to_bytes(), commitment_key=commitment_key, body_bytes=len(body))
    buyer = BuyerOrder(books, order, tariff, commitment_key, fields.n or 1, key)
    pieces = [Send(Kind.BODY, body[i : i + CHUNK_BYTES]) for i in range(0, len(body), CHUNK_BYTES)]
    return buyer, [Persist(order), Send(Kind.ORDER, opening.to_bytes()), *pieces]


def entry_on_offer(books: ChannelBooks, offer: Signed[Offer], model: str, endpoint: str, now_ms: int) -> ModelOffer:
    """What the offer has of the model, if it can be ordered now. Raises Refused, as `place_order` does."""
    entry = offer.message.model_offer(model)
    if entry is None:
        raise Refused("unknown-model", f"the model {model!r} is not in the offer.")
    if endpoint not in entry.endpoints:
        raise Refused("unknown-endpoint", f"{endpoint!r} is not offered for {model!r}.")
    if offer.message.provider != books.provider.raw:
        raise Refused("unknown-offer", "the offer is another provider's than the channel's.")
    if offer.message.currency != books.terms.currency:
        raise Refused("wrong-currency", "the offer's currency is not the channel's.", hint="Open a new channel.")
    if now_ms > offer.message.valid_until_ms:
        raise Refused("offer-expired", "the offer is not in force any more.", hint="Fetch it again.")
    if books.is_expired(now_ms):
        raise Refused("channel-expired", "the channel has expired.", hint="Open a new one.")
    return entry


def conclude(
    books: ChannelBooks, receipt: Signed[Receipt], fault: Fault | None, *, owed_pico: int, key: SecretKey, now_ms: int
) -> tuple[Signed[Receipt], Signed[Dispute] | None]:
    """Make a proposal that fits the chain its last receipt, and close its order in the books.

    Without a fault it is countersigned. With one it is disputed: the receipt as it came, and our dispute of it.
    """
    message = receipt.message
    books.append(receipt)
    if fault is None:
        books.settle(message)
        return receipt.countersigned(Role.CLIENT, key), None
    dispute = sign_dispute(
        receipt, books.terms, reason=fault[0], statement=fault[1], owed_pico=owed_pico, key=key, now_ms=now_ms
    )
    books.note_disputed(message, dispute.message.owed_pico)
    books.note_held(dispute.id, dispute.message)
    return receipt, dispute


def check_resumed(
    books: ChannelBooks,
    proposal: Record,
    order: Signed[Order],
    tariff: Tariff,
    *,
    vouched: Usage,
    delivered: Usage | None,
    key: SecretKey,
    now_ms: int,
    is_closed: bool = False,
) -> tuple[Signed[Receipt], Signed[Dispute] | None]:
    """Judge a receipt that comes after a lost link, within what this side can still know: see `resumed_fault`.

    `is_closed`: both sides went on without a receipt for the order, because it never became the provider's business.
    The order is then closed in the books, which are those that it was placed in, or were restored with it. Returns what
    `conclude` does. Raises InvalidRecord with the finding's code for a receipt that the chain cannot go on with.
    """
    receipt = verify_record(proposal, Receipt, {Role.PROVIDER: books.provider})
    message = receipt.message
    broken = books.chain_fault(message) or clock_fault(message.issued_ms, now_ms)
    fault = (
        broken
        or receipt_fault(message, order, tariff)
        or resumed_fault(
            message,
            tariff,
            vouched=vouched,
            delivered=delivered,
            window_tokens=books.terms.window_tokens,
            is_closed=is_closed,
            is_batch=order.message.is_batch,
        )
        or books.mention_fault(message)
    )
    if fault is not None and fault[0] not in DISPUTABLE:
        raise InvalidRecord(*fault)
    by_count = delivered if delivered is not None and not is_billed_by_voucher(message.status) else vouched
    owed = 0 if owes_nothing(message.status) else min(price_of(tariff, by_count), message.amount_pico)
    return conclude(books, receipt, fault, owed_pico=owed, key=key, now_ms=now_ms)
