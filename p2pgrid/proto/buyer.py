"""The client's side of one order, without I/O (docs/spec/session.md, sections 3 to 6).

The machine counts what arrives on its own, signs a voucher only for a meter tick that states exactly its own count,
and countersigns only a receipt that it would have written itself. Anything else is a `Dispute`: the record is kept as
evidence, nothing is signed, and the provider is dealt with no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.proto.actions import (
    Action,
    Actions,
    Deliver,
    Dispute,
    EndStream,
    KeepEvidence,
    Persist,
    Send,
    Settled,
)
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS, ChannelBooks
from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Meter, ModelOffer, Offer, Order, Receipt, Status, Usage, Voucher
from p2pgrid.proto.pricing import amount_owed, most_owed, owes_nothing, price_of
from p2pgrid.proto.record import Record, Role, Signed, parse_record, sign_message, verify_record
from p2pgrid.proto.request import RequestFields
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.wire import CHUNK_BYTES, Head, Kind, OrderOpening, Refusal, parse_frame


class BuyerState(Enum):
    """Where an order stands on the client's side."""

    ORDERED = auto()
    """The order is signed; nothing came back yet."""
    RECEIVING = auto()
    """The engine has answered."""
    SETTLED = auto()
    """The receipt carries both signatures."""
    REFUSED = auto()
    """The provider refused the order. Nothing is owed."""
    DISPUTED = auto()
    """The provider broke the rules. Nothing more is signed."""
    LOST = auto()
    """The link is gone; the receipt comes when the channel is resumed."""


class BuyerEvent(Enum):
    """What can happen to an order on the client's side."""

    HEAD = auto()
    CHUNK = auto()
    METER = auto()
    RECEIPT = auto()
    REFUSAL = auto()
    FAULT = auto()
    LINK_LOST = auto()


_S, _E = BuyerState, BuyerEvent
BUYER_TRANSITIONS: Final[dict[tuple[BuyerState, BuyerEvent], BuyerState]] = {
    (_S.ORDERED, _E.HEAD): _S.RECEIVING,
    (_S.ORDERED, _E.REFUSAL): _S.REFUSED,
    (_S.ORDERED, _E.RECEIPT): _S.SETTLED,
    (_S.ORDERED, _E.FAULT): _S.DISPUTED,
    (_S.ORDERED, _E.LINK_LOST): _S.LOST,
    (_S.RECEIVING, _E.CHUNK): _S.RECEIVING,
    (_S.RECEIVING, _E.METER): _S.RECEIVING,
    (_S.RECEIVING, _E.RECEIPT): _S.SETTLED,
    (_S.RECEIVING, _E.FAULT): _S.DISPUTED,
    (_S.RECEIVING, _E.LINK_LOST): _S.LOST,
}
"""The machine as a table; what is not in it is not allowed."""

_DELIVERED_IN_FULL: Final = (Status.COMPLETED, Status.CANCELLED)


class BuyerOrder:
    """One order of ours. Made by `place_order`; fed with what comes; every method returns actions in order."""

    def __init__(
        self,
        books: ChannelBooks,
        order: Signed[Order],
        entry: ModelOffer,
        commitment_key: bytes,
        n: int,
        key: SecretKey,
    ) -> None:
        self.state = BuyerState.ORDERED
        self.order: Final = order
        self.books: Final = books
        self.entry: Final = entry
        self.head: Head | None = None
        self.refusal: Refusal | None = None
        self.receipt: Signed[Receipt] | None = None
        self.counter: Final = TokenCounter(n)
        self._key = key
        self._commitment = ResponseCommitment(commitment_key)
        self._splitter = EventSplitter()
        self._vouched = Usage()
        self._ticks = 0
        self._cancelled = False
        books.open_orders += 1
        books.last_order_number = order.message.order_number
        books.reserved_pico += order.message.max_amount_pico

    @property
    def usage(self) -> Usage:
        """Our own count of what has been delivered."""
        counter = self.counter
        return Usage(
            prompt_tokens=counter.prompt_tokens,
            cached_tokens=counter.cached_tokens,
            output_tokens=counter.output_tokens,
        )

    @property
    def vouched(self) -> Usage:
        """What we have signed a voucher for."""
        return self._vouched

    @property
    def is_open(self) -> bool:
        """True while something may still come on the order's stream."""
        return self.state in (BuyerState.ORDERED, BuyerState.RECEIVING)

    def cost_pico(self) -> int:
        """What the delivered tokens cost, by our own count."""
        return price_of(self.entry.tariff, self.usage)

    # -- what comes from the provider -----------------------------------------------------------------------------

    def message(self, kind: int, payload: bytes, now_ms: int) -> Actions:
        """The provider sent a message on the order's stream. Never raises for what a peer does: see `Dispute`."""
        if not self.is_open:
            return ()
        handler = {
            Kind.CHUNK: self._on_chunk,
            Kind.METER: self._on_meter,
            Kind.HEAD: self._on_head,
            Kind.RECEIPT: self._on_receipt,
            Kind.REFUSAL: self._on_refusal,
        }.get(kind)  # type: ignore[call-overload]
        try:
            if handler is None:
                raise ProtocolViolation(f"the provider sent message kind {kind} on an order's stream.")
            actions: Actions = handler(payload, now_ms)
            return actions
        except ProtocolViolation as violation:
            return self._dispute("protocol-violation", str(violation))
        except InvalidRecord as invalid:
            return self._dispute(invalid.code, str(invalid))

    def cancel(self) -> Actions:
        """Our program has gone or wants no more: the provider stops, and bills what was delivered."""
        if not self.is_open or self._cancelled:
            return ()
        self._cancelled = True
        return (Send(Kind.CANCEL, b""),)

    def link_lost(self) -> None:
        """The link or the stream is gone. The books stay open until the channel is resumed."""
        if self.is_open:
            self._move(BuyerEvent.LINK_LOST)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _move(self, event: BuyerEvent) -> None:
        following = BUYER_TRANSITIONS.get((self.state, event))
        if following is None:
            raise ProtocolViolation(f"the provider sent {event.name} while the order was {self.state.name}.")
        self.state = following

    def _on_head(self, payload: bytes, now_ms: int) -> Actions:
        self._move(BuyerEvent.HEAD)
        self.head = parse_frame(payload, Head)
        return ()

    def _on_refusal(self, payload: bytes, now_ms: int) -> Actions:
        self._move(BuyerEvent.REFUSAL)
        self.refusal = parse_frame(payload, Refusal)
        self._close_books()
        return (EndStream(),)

    def _on_chunk(self, data: bytes, now_ms: int) -> Actions:
        self._move(BuyerEvent.CHUNK)
        if self.head is not None and self.head.status == 200:
            self._commitment.update(data)
            for event in self._splitter.feed(data):
                self.counter.feed(event)
        return (Deliver(data),)

    def _on_meter(self, payload: bytes, now_ms: int) -> Actions:
        record = parse_record(payload)
        self._move(BuyerEvent.METER)
        meter = verify_record(record, Meter, {Role.PROVIDER: self.books.provider})
        fault = self._meter_fault(meter.message, now_ms)
        if fault:
            return self._dispute(*fault, record)
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

    def _meter_fault(self, meter: Meter, now_ms: int) -> tuple[str, str] | None:
        order = self.order.message
        if (meter.channel, meter.order_number, meter.tick) != (order.channel, order.order_number, self._ticks + 1):
            return "wrong-slot", "the meter tick is for another channel or order, or out of turn."
        counted = self.usage
        if meter.usage != counted:
            return "wrong-count", f"the meter says {_counts(meter.usage)}; {_counts(counted)} were counted here."
        if meter.amount_pico != price_of(self.entry.tariff, counted):
            return "wrong-amount", f"the meter says {meter.amount_pico} pico-EUR; the tariff gives {self.cost_pico()}."
        if meter.amount_pico > order.max_amount_pico:
            return "over-caps", "the meter passes the most that the order allows."
        if meter.response_commitment != self._commitment.digest():
            return "wrong-commitment", "the meter commits to other bytes than were delivered."
        return _clock_fault(meter.metered_ms, now_ms)

    def _on_receipt(self, payload: bytes, now_ms: int) -> Actions:
        record = parse_record(payload)
        receipt = verify_record(record, Receipt, {Role.PROVIDER: self.books.provider})
        fault = (
            self.books.chain_fault(receipt.message)
            or receipt_fault(receipt.message, self.order, self.entry)
            or self._ending_fault(receipt.message)
            or _clock_fault(receipt.message.issued_ms, now_ms)
        )
        if fault:
            refusal = Refusal(code=fault[0], message=fault[1])
            return [Send(Kind.RECEIPT_REFUSAL, refusal.to_bytes()), *self._dispute(*fault, record)]
        self._move(BuyerEvent.RECEIPT)
        self.receipt = countersign(self.books, receipt, self._key)
        self._close_books()
        return (
            Persist(self.receipt),
            Send(Kind.COUNTERSIGNATURE, self.receipt.record.to_bytes()),
            EndStream(),
            Settled(self.receipt),
        )

    def _ending_fault(self, receipt: Receipt) -> tuple[str, str] | None:
        """Hold the receipt against what this side saw of the answer."""
        counted = self.usage
        if receipt.status in (Status.INTERRUPTED, Status.UNACKNOWLEDGED):
            if not self._vouched.covers(receipt.usage):
                return (
                    "wrong-count",
                    f"the receipt bills {_counts(receipt.usage)}; {_counts(self._vouched)} are vouched.",
                )
            return None
        if receipt.usage != counted:
            return "wrong-count", f"the receipt says {_counts(receipt.usage)}; {_counts(counted)} were counted here."
        if receipt.status in _DELIVERED_IN_FULL and receipt.response_commitment != self._commitment.digest():
            return "wrong-commitment", "the receipt commits to other bytes than were delivered."
        if receipt.status is Status.CANCELLED and not self._cancelled:
            return "wrong-status", "the receipt says cancelled; this side did not cancel."
        if receipt.status is Status.COMPLETED and (self.counter.error or not self.counter.done):
            return "wrong-status", "the receipt says completed; the answer failed or did not end."
        return None

    def _dispute(self, code: str, message: str, record: Record | None = None) -> list[Action]:
        self._move(BuyerEvent.FAULT)
        kept: Sequence[Action] = (KeepEvidence(record, f"{code}: {message}"),) if record is not None else ()
        return [*kept, Dispute(code, message)]

    def _close_books(self) -> None:
        self.books.open_orders -= 1
        self.books.reserved_pico -= self.order.message.max_amount_pico


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
) -> tuple[BuyerOrder, Actions]:
    """Sign an order for a body made by `metered_body`. The shell sends the body's pieces and ends its direction.

    `max_amount_pico` is what the program allows; it must cover the order's caps. Raises Refused with the codes that the
    provider would use (`unknown-model`, `offer-expired`, `channel-expired`, `credit-exhausted`), and `over-budget`.
    """
    entry = offer.message.model_offer(fields.model)
    if entry is None:
        raise Refused("unknown-model", f"the model {fields.model!r} is not in the offer.")
    if now_ms > offer.message.valid_until_ms:
        raise Refused("offer-expired", "the offer is not in force any more.", hint="Fetch it again.")
    if books.is_expired(now_ms):
        raise Refused("channel-expired", "the channel has expired.", hint="Open a new one.")
    max_prompt = fields.max_prompt_tokens(entry, len(body))
    max_output = fields.max_output_tokens(entry)
    most = most_owed(entry, max_prompt_tokens=max_prompt, max_output_tokens=max_output)
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
    order = sign_message(
        Order(
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
        ),
        Role.CLIENT,
        key,
    )
    opening = OrderOpening(order=order.record.to_bytes(), commitment_key=commitment_key, body_bytes=len(body))
    buyer = BuyerOrder(books, order, entry, commitment_key, fields.n or 1, key)
    pieces = [Send(Kind.BODY, body[i : i + CHUNK_BYTES]) for i in range(0, len(body), CHUNK_BYTES)]
    return buyer, [Persist(order), Send(Kind.ORDER, opening.to_bytes()), *pieces]


def receipt_fault(receipt: Receipt, order: Signed[Order], entry: ModelOffer) -> tuple[str, str] | None:
    """What can be said of a receipt from its order and tariff alone: a finding code and a sentence, or None."""
    message = order.message
    named = (receipt.order_number, receipt.order, receipt.offer, receipt.model, receipt.request_commitment)
    if named != (message.order_number, order.id, message.offer, message.model, message.request_commitment):
        return "wrong-order", "the receipt is not for the order that was placed."
    owed = amount_owed(entry.tariff, receipt.usage, receipt.status)
    if receipt.amount_pico != owed:
        code = "refund-rule" if owes_nothing(receipt.status) else "wrong-amount"
        return code, f"the receipt bills {receipt.amount_pico} pico-EUR; tariff and refund rule give {owed}."
    usage = receipt.usage
    if usage.prompt_tokens > message.max_prompt_tokens or usage.output_tokens > message.max_output_tokens:
        return "over-caps", f"the receipt's {_counts(usage)} pass the order's caps."
    if receipt.amount_pico > message.max_amount_pico:
        return "over-caps", "the receipt's amount passes the most that the order allows."
    return None


def countersign(books: ChannelBooks, receipt: Signed[Receipt], key: SecretKey) -> Signed[Receipt]:
    """Sign a checked proposal and make it the chain's last."""
    books.append(receipt)
    books.countersigned += 1
    return receipt.countersigned(Role.CLIENT, key)


def check_resumed(
    books: ChannelBooks,
    proposal: Record,
    order: Signed[Order],
    entry: ModelOffer,
    *,
    vouched: Usage,
    delivered: Usage | None,
    key: SecretKey,
    now_ms: int,
) -> Signed[Receipt]:
    """Countersign a receipt that comes after a lost link, within what this side can still know.

    `delivered` is our own count where this process made it; after a crash it is None, and up to one window beyond the
    last voucher is accepted: that is the most that is ever at risk. Raises InvalidRecord with the finding's code.
    """
    receipt = verify_record(proposal, Receipt, {Role.PROVIDER: books.provider})
    message = receipt.message
    fault = (
        books.chain_fault(message) or receipt_fault(message, order, entry) or _clock_fault(message.issued_ms, now_ms)
    )
    if fault is None and not owes_nothing(message.status):
        by_voucher = message.status in (Status.INTERRUPTED, Status.UNACKNOWLEDGED)
        if by_voucher and not vouched.covers(message.usage):
            fault = "wrong-count", f"the receipt bills {_counts(message.usage)}; {_counts(vouched)} are vouched."
        elif not by_voucher and delivered is not None and message.usage != delivered:
            fault = "wrong-count", f"the receipt bills {_counts(message.usage)}; {_counts(delivered)} arrived."
        elif message.usage.output_tokens > vouched.output_tokens + books.terms.window_tokens:
            fault = "beyond-window", "the receipt bills more than one window beyond the last voucher."
    if fault is not None:
        raise InvalidRecord(*fault)
    return countersign(books, receipt, key)


def _clock_fault(their_ms: int, our_ms: int) -> tuple[str, str] | None:
    if their_ms > our_ms + CLOCK_TOLERANCE_MS:
        return "clock-skew", f"the record is dated {(their_ms - our_ms) // 1000} s in the future."
    return None


def _counts(usage: Usage) -> str:
    return f"{usage.prompt_tokens} in ({usage.cached_tokens} cached), {usage.output_tokens} out"
