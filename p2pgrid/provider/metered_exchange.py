"""An order's stream at the provider, whatever the order is for: the shell around its machine (proto.metered_order).

It moves bytes and holds no rule of the trade: the machine's actions are carried out, each behind the records it depends
on; what is to be sent waits for the client to take it, and receipts for one another; and the clock is looked at. A
client that stays away loses its link. Everything is a callback, from the link, from the engine, from the ledger or from
the one timer; there is no task.
"""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from p2pgrid.errors import LedgerError, P2pgridError, ProtocolViolation
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.stream import Stream
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
from p2pgrid.proto.metered_order import MeteredOrder
from p2pgrid.proto.order_states import SellerState
from p2pgrid.proto.record import Signed
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.control import note_dispute
from p2pgrid.provider.exchange import Exchange, Shop
from p2pgrid.provider.open_channel import OpenChannel

log = logging.getLogger(__name__)


class MeteredExchange(Exchange):
    """METER* <-> VOUCHER*, RECEIPT -> COUNTERSIGNATURE, END. Subclasses accept the order and hold its engine."""

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._outbox = self.outbox()
        self._channel: OpenChannel | None = None
        self._order: Signed[Order] | None = None
        self._machine: MeteredOrder | None = None
        """From the order's acceptance on."""
        self._waiting: list[tuple[Kind, bytes]] = []
        self._unsent_bytes = 0
        self._is_engine_done = False
        self._is_dropping = False
        """The client was too slow: only the receipt is still sent."""
        self._stuck_since_ms: int | None = None
        self._proposed_ms: int | None = None
        self._timer_due_ms: int | None = None

    # -- for subclasses ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _go_on(self) -> None:
        """After anything happened: read the engine if it may be read, and look at the clock."""

    @abstractmethod
    def _abort_engine(self) -> None:
        """Nothing more is wanted of the engine."""

    @abstractmethod
    def _engine_failed(self, error: P2pgridError) -> None:
        """The engine broke off, or what it sent is no answer."""

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

    @property
    def _is_running(self) -> bool:
        return not self.is_over and self._machine is not None and self._machine.is_running

    def fail(self) -> None:
        """End it as failed, on which nothing is owed: the engine failed, or the node shuts down."""
        if self._is_running and self._machine is not None:
            self._run(self._machine.engine_failed(self.shop.now_ms()))

    def stop(self) -> None:
        """Break it off while its link lives: what vouchers have acknowledged is owed."""
        if self._is_running and self._machine is not None:
            self._break_off(self._machine)

    # -- what the link says -----------------------------------------------------------------------------------------

    def writable(self, stream: Stream) -> None:
        if not self.is_over:
            self.send_waiting()

    @property
    def may_end(self) -> bool:
        return self._machine is not None and self._machine.state in (SellerState.SETTLED, SellerState.DISPUTED)

    @property
    def is_taken(self) -> bool:
        return self._machine is not None

    def lost(self, reason: str) -> None:
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

    def _run(self, actions: Actions, ask_engine: Callable[[], None] | None = None) -> None:
        """`ask_engine`: what to do where the machine of a single request asks for its answer."""
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

    def _due_ms(self, machine: MeteredOrder) -> int | None:
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
        if self._stuck_until_ms is not None and self._is_too_slow(self._machine, self._stuck_until_ms, now_ms):
            self._give_up_on_slow_reader(self._machine)
        elif (
            self._proposed_ms is not None
            and not self.may_end
            and now_ms >= self._proposed_ms + limits.countersignature_timeout_s * 1000
        ):
            self.cut("no countersignature came in time")
        else:
            self._run(self._machine.tick(now_ms))

    def _is_too_slow(self, machine: MeteredOrder, stuck_until_ms: int, now_ms: int) -> bool:
        return now_ms >= stuck_until_ms

    def _give_up_on_slow_reader(self, machine: MeteredOrder) -> None:
        """The client takes no bytes of this answer: end it as interrupted, and its other orders go on.

        What waits is dropped, meter ticks among it: the receipt bills what vouchers acknowledged.
        """
        log.info("order %s: the client takes no bytes", self._name)
        if not machine.is_running:
            self.cut("the client takes no bytes")
            return
        self._break_off(machine)

    def _break_off(self, machine: MeteredOrder) -> None:
        self._is_dropping = True
        self._waiting.clear()
        self._unsent_bytes, self._stuck_since_ms = 0, None
        self._run(machine.interrupt(self.shop.now_ms()))

    # -- the engine -------------------------------------------------------------------------------------------------

    def _may_read(self, machine: MeteredOrder) -> bool:
        """False while the window is full, or what the engine made already waits: read no more of it."""
        return (
            machine.wants_engine
            and self._stuck_since_ms is None
            and self._unsent_bytes <= self.shop.limits.unsent_bytes
        )

    def _is_sent(self) -> bool:
        return not self._unsent_bytes and self._stuck_since_ms is None

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
