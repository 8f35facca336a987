"""One order on its stream: the body in, the engine's answer out, and the machine between them (proto.seller).

The shell moves bytes and holds no rule of the trade. What it adds is time and room: the body must arrive, the engine
is not read while the window is full or the client takes no bytes, and a client that stays away loses its link.
Everything is a callback, from the link, from the engine, from the ledger or from the one timer; there is no task.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final

from p2pgrid.engine.base import OpenAnswer
from p2pgrid.errors import EngineError, LedgerError, P2pgridError, ProtocolViolation, Refused
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.stream import Stream
from p2pgrid.proto.acceptance import accept_order, parse_order, verify_arrived
from p2pgrid.proto.actions import (
    AbortEngine,
    Action,
    Actions,
    AskEngine,
    Disputed,
    EndStream,
    KeepEvidence,
    Persist,
    Send,
    Settled,
)
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.frame import FIRST_CREDITED_KIND
from p2pgrid.proto.messages import Order, Receipt
from p2pgrid.proto.record import Signed
from p2pgrid.proto.seller import SellerOrder, SellerState
from p2pgrid.proto.wire import Kind, OrderOpening
from p2pgrid.provider.admission import ServedModel
from p2pgrid.provider.channels import OpenChannel
from p2pgrid.provider.control import note_dispute
from p2pgrid.provider.exchange import Exchange, Shop

log = logging.getLogger(__name__)

_CHUNK: Final = Kind.CHUNK
"""To look a member up in its enum costs as much as a call."""

"""Compared with at every event; to look a member up in its enum costs as much as a call."""


class OrderExchange(Exchange):
    """ORDER, BODY* -> REFUSAL, or HEAD, CHUNK*, METER* <-> VOUCHER*, RECEIPT -> COUNTERSIGNATURE, END."""

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._outbox = self.outbox()
        self._channel: OpenChannel | None = None
        self._order: Signed[Order] | None = None
        self._opening: OrderOpening | None = None
        self._body = bytearray()
        self._reserved_bytes = 0
        self._machine: SellerOrder | None = None
        self._answer: OpenAnswer | None = None
        """The engine's, while it is under way."""
        self._waiting: list[tuple[Kind, bytes]] = []
        self._unsent_bytes = 0
        self._served: ServedModel | None = None
        self._is_engine_done = self._is_end_told = self._is_engine_failed = False
        self._is_dropping = False
        """The client was too slow: only the receipt is still sent."""
        self._stuck_since_ms: int | None = None
        self._proposed_ms: int | None = None
        self._timer_due_ms: int | None = None

    # -- what the channel sees (LiveOrder) --------------------------------------------------------------------------

    @property
    def connection(self) -> LinkConnection:
        return self.stream.connection

    @property
    def state(self) -> SellerState | None:
        """Where the accepted order stands; None before, and after its books were lost."""
        return self._machine.state if self._machine is not None else None

    def interrupt(self, reason: str) -> None:
        self.cut(reason)

    def abandon(self, error: LedgerError) -> None:
        self._machine = None
        self.cut("ledger-unavailable: the provider could not make a record durable")

    def send_waiting(self) -> None:
        self._send_waiting()
        self._go_on()

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

    def writable(self, stream: Stream) -> None:
        if not self.is_over:
            self.send_waiting()

    @property
    def may_end(self) -> bool:
        return self._machine is not None and self._machine.state in (SellerState.SETTLED, SellerState.DISPUTED)

    @property
    def is_taken(self) -> bool:
        return self._machine is not None

    def refuse(self, refusal: Refused) -> None:
        super().refuse(refusal)
        self._forget_body()

    def lost(self, reason: str) -> None:
        self._forget_body()
        channel, machine = self._channel, self._machine
        if channel is None:
            return
        if machine is not None and not self.may_end:
            log.info("order %s was interrupted: %s", self._name, reason)
            self._run(machine.link_lost(self.shop.now_ms()))
            channel.lost(self, self.shop.now_ms())
            channel.interrupt_all_on(self.connection)
            self.shop.links.close(self.connection, "an order's stream was lost; resume the channel")
        else:
            channel.lost(self, self.shop.now_ms())
        self._abort_engine()

    def ledger_failed(self, error: LedgerError) -> None:
        if self._channel is not None:
            self.shop.channels.ledger_failed(self._channel, error)

    # -- before it is accepted --------------------------------------------------------------------------------------

    def _open(self, payload: bytes) -> None:
        shop = self.shop
        arrived = parse_order(payload)
        channel = shop.channels.find_current(arrived.channel, self.stream.peer)
        self._order, self._opening = verify_arrived(arrived, channel.books), arrived.opening
        channel.check_usable()
        channel.check_resumed_on(self.connection)
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
        channel.check_resumed_on(self.connection)
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

    # -- the machine's actions --------------------------------------------------------------------------------------

    def _run(self, actions: Actions, ask_engine: Callable[[], None] | None = None) -> None:
        for action in actions:
            if type(action) is Send:
                self._send(action.kind, action.payload)
            elif type(action) is AskEngine:
                assert ask_engine is not None
                ask_engine()
            else:
                self._act(action)
        self._go_on()

    def _act(self, action: Action) -> None:
        match action:
            case Persist(signed):
                self._outbox.persist(signed)
            case AbortEngine():
                self._abort_engine()
            case Settled(receipt):
                self._outbox.run(functools.partial(self._settled, receipt.message))
            case EndStream():
                self._outbox.run(self.finish)
            case KeepEvidence(record, reason):
                self.shop.evidence.keep(self.stream.peer, record, reason)
            case Disputed(_, dispute):
                self._outbox.run(functools.partial(self._disputed, dispute))
            case _:
                raise AssertionError(f"the seller's machine asked for {action}")

    def _send(self, kind: Kind, payload: bytes) -> None:
        if kind >= FIRST_CREDITED_KIND and self._has_sent_at_once(kind, payload):
            return
        self._unsent_bytes += len(payload)
        if kind == Kind.RECEIPT:
            self.shop.tally.proposals += 1
            if self._channel is not None:
                self._channel.proposed(self)
        self._outbox.run(functools.partial(self._durable, kind, payload))

    def _has_sent_at_once(self, kind: Kind, payload: bytes) -> bool:
        """The plain case, a token on its way: nothing is before it."""
        return not self._waiting and self._outbox.is_idle and self.stream.send_if_credited(kind, payload)

    def _durable(self, kind: Kind, payload: bytes) -> None:
        """All that the message depends on is durable."""
        if not self.is_over and (kind == Kind.RECEIPT or not self._is_dropping):
            self._waiting.append((kind, payload))
            self.send_waiting()

    def _send_waiting(self) -> None:
        """Let go what waits, as far as credit and the order of receipts allow."""
        waiting, stream = self._waiting, self.stream
        while waiting:
            kind, payload = waiting[0]
            if kind >= FIRST_CREDITED_KIND and stream.writable_bytes < len(payload):
                if self._stuck_since_ms is None:
                    self._stuck_since_ms = self.shop.now_ms()
                return
            if kind == Kind.RECEIPT and self._channel is not None and not self._channel.may_send_receipt(self):
                return
            del waiting[0]
            self._unsent_bytes -= len(payload)
            self._stuck_since_ms = None
            stream.send(kind, payload)
            if kind == Kind.RECEIPT and self._channel is not None:
                self._proposed_ms = self.shop.now_ms()
                self._channel.receipt_sent()
        self._stuck_since_ms = None

    def _disputed(self, dispute: Signed[Dispute]) -> None:
        assert self._channel is not None
        self._channel.closed(self)
        note_dispute(self.shop, dispute)

    def _settled(self, receipt: Receipt) -> None:
        assert self._channel is not None
        self._channel.closed(self)
        self.shop.tally.settled(receipt)
        if not log.isEnabledFor(logging.INFO):
            return
        log.info(
            "order %s: %s, %d in (%d cached), %d out, %d pico-EUR, %d ms",
            self._name,
            receipt.status.value,
            receipt.usage.prompt_tokens,
            receipt.usage.cached_tokens,
            receipt.usage.output_tokens,
            receipt.amount_pico,
            receipt.total_ms,
        )

    @property
    def _name(self) -> str:
        assert self._order is not None
        return f"{self._order.message.channel.hex()[:16]}/{self._order.message.order_number}"

    # -- time -------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """After anything happened: read the engine if it may be read, and look at the clock."""
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

    def _due_ms(self, machine: SellerOrder) -> int | None:
        """The next moment at which something may have to be done. A timer set for an earlier one just looks again."""
        due_ms = machine.deadline_ms()
        if self._stuck_until_ms is not None:
            due_ms = self._stuck_until_ms if due_ms is None else min(due_ms, self._stuck_until_ms)
        if self._proposed_ms is not None and not self.may_end:
            late_ms = self._proposed_ms + int(self.shop.limits.countersignature_timeout_s * 1000)
            due_ms = late_ms if due_ms is None else min(due_ms, late_ms)
        return due_ms

    @property
    def _stuck_until_ms(self) -> int | None:
        if self._stuck_since_ms is None or self._machine is None:
            return None
        limits = self.shop.limits
        is_asked = self._machine.is_running and not self._is_engine_done
        timeout_s = limits.slow_reader_timeout_s if is_asked else limits.slow_end_timeout_s
        return self._stuck_since_ms + int(timeout_s * 1000)

    def tick(self) -> None:
        """Look at the clock: a deadline may have passed."""
        self._timer, self._timer_due_ms = None, None
        if self.is_over or self._machine is None:
            return
        now_ms, limits = self.shop.now_ms(), self.shop.limits
        deadline_ms = self._machine.deadline_ms()
        if self._stuck_until_ms is not None and (
            now_ms >= self._stuck_until_ms or (deadline_ms is not None and now_ms >= deadline_ms)
        ):
            self._give_up_on_slow_reader(self._machine)
        elif (
            self._proposed_ms is not None
            and not self.may_end
            and now_ms >= self._proposed_ms + limits.countersignature_timeout_s * 1000
        ):
            self.cut("no countersignature came in time")
        else:
            self._run(self._machine.tick(now_ms))

    def _give_up_on_slow_reader(self, machine: SellerOrder) -> None:
        """The client takes no bytes of this answer: end it as interrupted, and its other orders go on.

        What waits is dropped, meter ticks among it: the receipt bills what vouchers acknowledged.
        """
        log.info("order %s: the client takes no bytes", self._name)
        if not machine.is_running:
            self.cut("the client takes no bytes")
            return
        self._is_dropping = True
        self._waiting.clear()
        self._unsent_bytes, self._stuck_since_ms = 0, None
        self._run(machine.interrupt(self.shop.now_ms()))

    # -- the engine -------------------------------------------------------------------------------------------------

    def _may_read(self, machine: SellerOrder) -> bool:
        """False while the window is full, or what the engine made already waits: read no more of it."""
        return (
            machine.wants_engine
            and self._stuck_since_ms is None
            and self._unsent_bytes <= self.shop.limits.unsent_bytes
        )

    def _is_sent(self) -> bool:
        return not self._unsent_bytes and self._stuck_since_ms is None

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

    def _hear(self, event: Callable[..., Actions], *what: Any) -> None:
        """Feed the machine."""
        try:
            self._run(event(*what))
        except Exception as error:  # noqa: BLE001 - told apart, and logged, there
            self._hear_failed(error)

    def _hear_failed(self, error: Exception) -> None:
        """A mistake of ours ends this order and nothing else."""
        if isinstance(error, ProtocolViolation):
            self._abort_engine()
            self._engine_failed(error)
            self._go_on()
        else:
            log.error("order %s failed", self._name, exc_info=error)
            self.cut("the provider failed")

    @property
    def _is_running(self) -> bool:
        return not self.is_over and self._machine is not None and self._machine.is_running

    def fail(self) -> None:
        """End it as failed, on which nothing is owed: the engine failed, or the node shuts down."""
        if self._is_running and self._machine is not None:
            self._run(self._machine.engine_failed(self.shop.now_ms()))


def _nothing() -> Actions:
    """What the machine says to news that is for the shell alone."""
    return ()
