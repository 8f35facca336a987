"""The client's side of one order, without I/O (docs/spec/session.md, sections 3 to 6).

The machine counts what arrives on its own, signs a voucher only for a meter tick that states exactly its own count,
and countersigns only a receipt that it would have written itself. A receipt that fits the chain and says something
else is disputed, and the chain goes on above it. Anything else is a `Breach`: the record is kept as evidence, nothing
is signed, and the provider is dealt with no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from p2pgrid.errors import InvalidRecord, ProtocolViolation
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
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.commitment import ResponseCommitment
from p2pgrid.proto.countersigning import conclude
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Meter, Order, Receipt, Status, Tariff, Usage, Voucher
from p2pgrid.proto.order_states import BUYER_TRANSITIONS, BuyerEvent, BuyerState
from p2pgrid.proto.pricing import is_billed_by_voucher, is_within_caps, owes_nothing, price_of, usage_of
from p2pgrid.proto.receipt_check import (
    DISPUTABLE,
    Fault,
    answer_fault,
    beyond_voucher,
    clock_fault,
    contradiction_fault,
    counts_text,
    receipt_fault,
)
from p2pgrid.proto.record import Record, Role, Signed, parse_record, sign_message, verify_record
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import MAX_ENGINE_ERROR_BYTES, Head

_RECEIVING: Final = BuyerState.RECEIVING
"""Asked for at every event; to look a member up in its enum costs as much as a call."""


class BuyerOrder:
    """One order of ours. Made by `place_order`; fed with what comes; every method returns actions in order."""

    _transitions = BUYER_TRANSITIONS

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
        following = self._transitions.get((self.state, event))
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
        if is_billed_by_voucher(receipt.status):
            return beyond_voucher(receipt, self._vouched, self.tariff)
        fault = answer_fault(receipt, self.counter, self._commitment.digest(), is_cancelled=self._cancelled)
        if fault is None and self.counter.contradiction:
            return contradiction_fault(receipt, self.counter)
        return fault

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
