"""What every order has on the provider's side, be it for one request or for several, without I/O.

Meter ticks and the vouchers that answer them, the window between the two, and the receipt that ends it all
(docs/spec/session.md, sections 5 to 7). What is delivered, and when, is for `SellerOrder` and `SellerBatch`.

Who owes what at the end is decided here and nowhere else on the provider's side: see `_finish`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.actions import AbortEngine, Action, Actions, Disputed, EndStream, Persist, Send, Settled
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.fields import MAX_DURATION_MS
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Meter, Order, Receipt, RequestLine, Status, Tariff, Usage, Voucher
from p2pgrid.proto.order_states import SELLER_TRANSITIONS, SellerEvent, SellerState
from p2pgrid.proto.pricing import is_billed_by_voucher, price_of
from p2pgrid.proto.proposal import Ending, accept_dispute, check_countersignature, propose_receipt
from p2pgrid.proto.record import Role, Signed, parse_record, sign_message, verify_record
from p2pgrid.proto.wire.kinds import Kind

VOUCHER_TIMEOUT_MS: Final = 15_000
"""How long a full window waits for the client's voucher before the order is cut off."""


class MeteredOrder(ABC):
    """One accepted order. Fed with events; every method returns actions in order."""

    def __init__(
        self,
        books: ChannelBooks,
        order: Signed[Order],
        tariff: Tariff,
        empty_commitment: bytes,
        key: SecretKey,
        now_ms: int,
    ) -> None:
        """`empty_commitment`: what is committed to while nothing is delivered."""
        self.state = SellerState.ASKED
        self.order: Final = order
        self.books: Final = books
        self.receipt: Signed[Receipt] | None = None
        self._tariff = tariff
        self._key = key
        self._arrived_ms = now_ms
        self._first_token_ms = 0
        self._finish_reason = ""
        self._delivered = Usage()
        self._ticked = Usage()
        self._acknowledged = Usage()
        self._acknowledged_commitment = empty_commitment
        self._unanswered: dict[bytes, Meter] = {}
        self._ticks = 0
        self._held_since_ms = 0
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

    @abstractmethod
    def deadline_ms(self) -> int | None:
        """When `tick` must be called next, or None."""

    # -- what happens -------------------------------------------------------------------------------------------

    @abstractmethod
    def message(self, kind: int, payload: bytes, now_ms: int) -> Actions:
        """The client sent a message on the order's stream.

        Raises ProtocolViolation or InvalidRecord for what no honest client sends; the order is then `link_lost`.
        """

    @abstractmethod
    def engine_failed(self, now_ms: int) -> Actions:
        """The engine broke off, or never answered."""

    @abstractmethod
    def tick(self, now_ms: int) -> Actions:
        """A deadline may have passed."""

    def link_lost(self, now_ms: int) -> Actions:
        """The link or the stream is gone. The order has no receipt before the channel is resumed: the client may hold
        a voucher that is still on its way. One that has a receipt is proposed again then.
        """
        if not self.is_running and self.state is not SellerState.PROPOSED:
            return ()
        was_running = self.is_running
        self._move(SellerEvent.LINK_LOST)
        return [AbortEngine()] if was_running else ()

    def interrupt(self, now_ms: int) -> Actions:
        """Break off while the link lives. What no voucher acknowledged is lost to the provider."""
        if not self.is_running:
            return ()
        return [AbortEngine(), *self._finish(Status.INTERRUPTED, now_ms)]

    # -- for subclasses -----------------------------------------------------------------------------------------

    @abstractmethod
    def _digest(self) -> bytes:
        """The commitment to all that was delivered."""

    @abstractmethod
    def _window_moved(self) -> None:
        """A tick went out, or a voucher came."""

    @abstractmethod
    def _after_voucher(self, now_ms: int) -> Actions:
        """The window has room again."""

    @abstractmethod
    def _stop_counting(self) -> tuple[RequestLine, ...]:
        """Nothing more is delivered. What a receipt that goes by the counts says of each request of a batch."""

    def _move(self, event: SellerEvent) -> None:
        following = SELLER_TRANSITIONS.get((self.state, event))
        if following is None:
            raise ProtocolViolation(f"{event.name} came while the order was {self.state.name}.")
        self.state = following

    def _hold(self, now_ms: int) -> None:
        """The window is full: a voucher must come first."""
        if self.state is not SellerState.HELD:
            self._held_since_ms = now_ms
        self._move(SellerEvent.WINDOW_FULL)

    # -- ticks and vouchers -------------------------------------------------------------------------------------

    def _meter(self, now_ms: int) -> list[Action]:
        """State what is delivered, for the client to vouch for."""
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
        self._window_moved()
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

    def _acknowledge(self, meter: Meter) -> None:
        """The client has vouched for this tick."""
        self._acknowledged = meter.usage
        self._window_moved()
        self._acknowledged_commitment = meter.response_commitment

    # -- the receipt --------------------------------------------------------------------------------------------

    def _finish(self, status: Status, now_ms: int, event: SellerEvent = SellerEvent.FINISHED) -> list[Action]:
        """Propose the receipt: the one place where the provider decides what is owed.

        Interrupted and unacknowledged orders state what the last voucher acknowledged, and the commitment of its
        meter; all others what was delivered.
        """
        self._move(event)
        lines = self._stop_counting()
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
                requests=() if by_voucher else lines,
            ),
            key=self._key,
            now_ms=now_ms,
        )
        self.receipt = receipt
        return [Persist(receipt), Send(Kind.RECEIPT, receipt.record.to_bytes())]

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


def ending_of(counter: TokenCounter, error_status: int) -> Status:
    """How an answer ended that the engine has ended, and that has left whole.

    `error_status`: the engine's HTTP status where it was not 200, else 0.
    """
    if error_status:
        return Status.REFUSED if 300 <= error_status < 500 else Status.FAILED
    if counter.has_failed or not counter.done:
        return Status.FAILED
    return Status.COMPLETED if counter.output_tokens else Status.EMPTY
