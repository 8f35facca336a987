"""One order for one request on its stream: the body in, the engine's answer out (proto.seller).

What it adds to every order's shell is time and room: the body must arrive, and the engine is not read while the window
is full or the client takes no bytes.
"""

from __future__ import annotations

import functools
import logging

from p2pgrid.engine.base import OpenAnswer
from p2pgrid.errors import EngineError, P2pgridError, ProtocolViolation, Refused
from p2pgrid.net.stream import Stream
from p2pgrid.proto.acceptance import accept_order, parse_order, verify_arrived
from p2pgrid.proto.actions import Actions
from p2pgrid.proto.metered_order import MeteredOrder
from p2pgrid.proto.order_states import SellerState
from p2pgrid.proto.seller import SellerOrder
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import OrderOpening
from p2pgrid.provider.admission import ServedModel
from p2pgrid.provider.exchange import Shop
from p2pgrid.provider.metered_exchange import MeteredExchange

log = logging.getLogger(__name__)


class OrderExchange(MeteredExchange):
    """ORDER, BODY* -> REFUSAL, or HEAD, CHUNK*, METER* <-> VOUCHER*, RECEIPT -> COUNTERSIGNATURE, END."""

    _machine: SellerOrder | None

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._opening: OrderOpening | None = None
        self._body = bytearray()
        self._reserved_bytes = 0
        self._answer: OpenAnswer | None = None
        """The engine's, while it is under way."""
        self._served: ServedModel | None = None
        self._is_end_told = self._is_engine_failed = False

    # -- what the link says -----------------------------------------------------------------------------------------

    def take(self, kind: int, payload: bytes) -> None:
        if self._machine is not None:
            self._run(self._machine.message(kind, payload, self.shop.now_ms()))
        elif kind == Kind.ORDER and self._opening is None:
            self._open(payload)
        elif kind == Kind.BODY and self._opening is not None:
            self._take_body(payload, self._opening)
        elif kind == Kind.CANCEL and self._opening is not None:
            raise Refused("cancelled", "the client cancelled the order before it was accepted.")
        else:
            raise ProtocolViolation(f"message kind {kind} came where an order and its body were expected.")

    def refuse(self, refusal: Refused) -> None:
        super().refuse(refusal)
        self._forget_body()

    def lost(self, reason: str) -> None:
        self._forget_body()
        super().lost(reason)

    # -- before it is accepted --------------------------------------------------------------------------------------

    def _open(self, payload: bytes) -> None:
        shop = self.shop
        arrived = parse_order(payload)
        channel = shop.channels.find_current(arrived.channel, self.stream.peer)
        self._order, self._opening = verify_arrived(arrived, channel.books), arrived.opening
        channel.check_usable()
        channel.check_resumed_on(self.stream.connection)
        shop.admission.check(arrived.model)
        shop.admission.reserve_body(self.stream.peer, self._opening.body_bytes)
        self._reserved_bytes = self._opening.body_bytes
        self._channel = channel
        channel.arriving.add(self)
        self.call_after(shop.limits.body_timeout_s, self._body_late)

    def _take_body(self, piece: bytes, opening: OrderOpening) -> None:
        self.stream.consume(len(piece))
        self._body += piece
        if len(self._body) > opening.body_bytes:
            raise ProtocolViolation(f"the body has more than the {opening.body_bytes} bytes that the order announced.")
        if len(self._body) == opening.body_bytes:
            self.cancel_timer()
            self._accept()

    def _accept(self) -> None:
        shop, channel, order, opening = self.shop, self._channel, self._order, self._opening
        assert channel is not None and order is not None and opening is not None
        body = bytes(self._body)
        self._forget_body()
        channel.check_usable()
        channel.check_resumed_on(self.stream.connection)
        served = shop.admission.check(order.message.model)
        offer = shop.offers.find(order.message.offer)
        machine, actions = accept_order(channel.books, order, opening, body, offer, key=shop.key, now_ms=shop.now_ms())
        self._machine = machine
        channel.live.add(self)
        shop.ledger.keep_request_key(order, opening.commitment_key)
        self._run(actions, functools.partial(self._ask_engine, served, body))

    def _forget_body(self) -> None:
        self._body = bytearray()
        self.shop.admission.release_body(self.stream.peer, self._reserved_bytes)
        self._reserved_bytes = 0
        if self._channel is not None:
            self._channel.arriving.discard(self)

    def _body_late(self) -> None:
        self._timer = None
        self.refuse(Refused("timeout", f"the body did not arrive in {self.shop.limits.body_timeout_s:g} s."))

    # -- the engine -------------------------------------------------------------------------------------------------

    def _is_too_slow(self, machine: MeteredOrder, stuck_until_ms: int, now_ms: int) -> bool:
        deadline_ms = machine.deadline_ms()
        return now_ms >= stuck_until_ms or (deadline_ms is not None and now_ms >= deadline_ms)

    def _go_on(self) -> None:
        machine = self._machine
        if self.is_over or machine is None:
            return
        if machine.state is SellerState.STREAMING and self._answer is not None and self._may_read(machine):
            self._answer.resume()
            return  # the plain case, a token on its way: nobody is waited for
        if machine.is_running:
            self._go_on_with_engine(machine)
        elif self._answer is not None:
            self._abort_engine()
        if machine.state is SellerState.STREAMING and self._stuck_since_ms is None:
            return  # nobody is waited for
        due_ms = self._due_ms(machine)
        if due_ms is not None and (self._timer is None or self._timer_due_ms is None or due_ms < self._timer_due_ms):
            self._timer_due_ms = due_ms
            self.call_after(max(due_ms - self.shop.now_ms(), 0) / 1000, self.tick)

    def _go_on_with_engine(self, machine: SellerOrder) -> None:
        """Read the engine, or let it wait; and end the order once all that the engine made is on its way.

        A receipt has its number from the moment it is made: one that waited behind bytes which a slow reader does not
        take would keep every later receipt of the channel waiting.
        """
        if self._answer is not None:
            if self._may_read(machine):
                self._answer.resume()
            else:
                self._answer.pause()
        elif self._is_engine_failed and self._is_sent():
            self.fail()
        elif self._is_engine_done and not self._is_end_told and machine.wants_engine and self._is_sent():
            self._is_end_told = True
            self._run(machine.engine_end(self.shop.now_ms()))

    def _ask_engine(self, served: ServedModel, body: bytes) -> None:
        assert self._order is not None
        served.running += 1
        self._served = served
        try:
            self._answer = served.engine.ask(self._order.message.endpoint, body, self._order.id.hex(), self)
        except (EngineError, Refused) as error:
            self._engine_failed(error)

    def _free_slot(self) -> None:
        """The engine works on this order no more."""
        if self._served is not None:
            self._served.running -= 1
            self._served = None

    def _abort_engine(self) -> None:
        if self._answer is not None:
            self._answer.abort()
            self._answer = None
        self._free_slot()

    def _engine_failed(self, error: P2pgridError) -> None:
        log.error("order %s: the engine failed: %s", self._name, error)
        self.shop.tally.engine_failures += 1
        self._is_engine_failed = True
        self._answer = None
        self._free_slot()

    # AnswerReader: what the engine says

    def answer_began(self, status: int, content_type: str) -> None:
        if self._machine is not None:
            self._hear(self._machine.engine_head, status, content_type)

    def answer_received(self, data: bytes) -> None:
        machine = self._machine
        if machine is None:
            return
        try:
            actions = machine.feed(data, self.shop.now_ms())
            if actions is not None:
                self._run(actions)
            elif not self._has_sent_at_once(Kind.CHUNK, data):
                self._send(Kind.CHUNK, data)
                self._go_on()
        except Exception as error:  # noqa: BLE001 - told apart, and logged, there
            self._hear_failed(error)

    def answer_ended(self) -> None:
        self._answer = None
        self._is_engine_done = True
        self._free_slot()
        self._hear(_nothing)

    def answer_failed(self, error: EngineError) -> None:
        self._engine_failed(error)
        self._hear(_nothing)


def _nothing() -> Actions:
    """What the machine says to news that is for the shell alone."""
    return ()
