"""One order on its stream: the shell around `BuyerOrder`, which holds the rules.

It moves bytes between the link, the ledger and the program: records become durable before anything that depends on
them is sent, and answer bytes are handed over at once. When the program has gone, it lives on until the receipt
is signed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Final, Protocol

from p2pgrid.client.background import log_failed_write
from p2pgrid.client.delivery import CONSUMED_BYTES, MAX_BUFFERED_BYTES, Delivery, refused_with
from p2pgrid.client.order_sender import OrderSender
from p2pgrid.errors import LedgerError, P2pgridError, ProtocolViolation, RemoteError, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.outbox import Outbox
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.printable import printable
from p2pgrid.proto.actions import (
    Action,
    Actions,
    Breach,
    Disputed,
    EndStream,
    KeepEvidence,
    Persist,
    Send,
    Settled,
    Turn,
)
from p2pgrid.proto.buyer import BuyerOrder
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.frame import FIRST_CREDITED_KIND, ResetCode, reset_name
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.order_states import BuyerState
from p2pgrid.proto.record import Message, Record, Signed
from p2pgrid.proto.wire.kinds import Kind

_CHUNK: Final = int(Kind.CHUNK)
"""Compared with at every message; to look a member up in its enum costs as much as a call."""
RECEIPT_TIMEOUT_S: Final = 30.0
"""How long the receipt may take after the answer's end, or after a cancellation."""


class AnswerLost(Unreachable):
    """The link or the stream of an order went away. The provider was there, and may be again in an instant."""


class OrderOwner(Protocol):
    """What an order tells the session it belongs to."""

    def receipt_signed(self, order: OrderStream) -> None:
        """A receipt has become the chain's last."""

    def order_turn(self, order: OrderStream, number: int) -> None:
        """The order of that number may go on: its receipt waited for this one's."""

    def order_ended(self, order: OrderStream) -> None:
        """Nothing more will happen to it. Called once."""

    def order_disputed(self, order: OrderStream, dispute: Signed[Dispute]) -> None:
        """Its receipt says what is not so: it is the chain's last, and we have signed that we dispute it."""

    def order_breached(self, order: OrderStream, breach: Breach) -> None:
        """The provider broke the rules on it."""

    def keep_evidence(self, record: Record, reason: str) -> None:
        """The provider signed what is not acceptable."""

    def order_cut(self, order: OrderStream) -> None:
        """It lost its stream while the link lives, and its receipt may still come."""

    def ledger_failed(self, error: LedgerError) -> None:
        """A record of it could not be made durable."""


class OrderStream(Delivery, StreamHandler):
    """An order under way, and the delivery of its answer. `ended_future` is done when the order is over for good."""

    def __init__(
        self,
        buyer: BuyerOrder,
        ledger: Ledger,
        owner: OrderOwner,
        now_ms: Callable[[], int],
        stored: tuple[Signed[Message], ...],
        sender: OrderSender | None = None,
    ) -> None:
        """`stored` is what the order rests on and the ledger may not have yet: it is written with the order."""
        super().__init__(buyer.counter)
        self.buyer: Final = buyer
        self.receipt: Signed[Receipt] | None = None
        """The receipt with both signatures, once it is durable."""
        self.dispute: Signed[Dispute] | None = None
        """Our dispute of its receipt, once it is durable."""
        self._ledger = ledger
        self._owner = owner
        self._now_ms = now_ms
        self._stored = stored
        self._outbox = Outbox(ledger, self._ledger_failed)
        self._sender = sender or OrderSender()
        self._is_abandoned = self._is_told_soon = False
        self._timer: asyncio.TimerHandle | None = None

    # -- for the program -----------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """The program wants no more. What was delivered is still paid, and the receipt still signed."""
        if self._is_abandoned:
            return
        self._is_abandoned = True
        self._buffer.clear()
        if self._unconsumed and self._stream is not None:
            self._consume(self._stream)
        if self._sender.unsent_pieces and self._stream is not None:
            # The provider takes on nothing before the whole body is there.
            self._stream.reset(ResetCode.CANCELLED)
            self._lost(Unreachable("the request was cancelled before it was sent."), "cancelled-unsent")
            return
        if not self._is_answered:
            self._act(self.buyer.cancel())
        if self.buyer.is_open:
            self._expect_receipt()

    # -- for the session -----------------------------------------------------------------------------------------

    def start(self, stream: Stream, actions: Actions) -> None:
        """Send the order: `actions` are what `place_order` returned."""
        self._stream = self._sender.stream = stream
        self._act(actions)

    def proceed(self) -> None:
        """Its turn has come: see `order_turn`."""
        self._act(self.buyer.proceed(self._now_ms()))

    # -- StreamHandler -------------------------------------------------------------------------------------------

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if kind != _CHUNK:
            self._act(self.buyer.message(kind, payload, self._now_ms()))
            return
        size = len(payload)
        self._unconsumed += size
        if self._unconsumed >= CONSUMED_BYTES and (self._buffered < MAX_BUFFERED_BYTES or self._is_abandoned):
            self._consume(stream)
        refused = self.buyer.chunk(payload)
        if refused is not None:
            self._act(refused)
            return
        if not self._is_abandoned:
            self._buffer.append(payload)
            self._buffered += size
        if not self._is_told_soon:
            self._is_told_soon = True
            stream.after_read(self._tell)

    def _tell(self) -> None:
        """After chunks came: see where the answer stands, and tell the program, once for all of them."""
        self._is_told_soon = False
        counter = self._counter
        if self.first_token_s is None and counter.output_tokens:
            self.first_token_s = self._loop.time() - self._began_s
        if counter.done and not self._is_answered:
            self._is_answered = True
            self._wake()
            self._expect_receipt()
        elif self._buffer:
            if self._wakeup is None and self.on_progress is not None:
                self.on_progress()  # nobody waits, and a program is told: the plain case
            else:
                self._wake()

    def writable(self, stream: Stream) -> None:
        self._sender.writable()

    def ended(self, stream: Stream) -> None:
        if self.buyer.is_open:
            stream.reset(ResetCode.CANCELLED)
            self._lost(RemoteError("the provider ended the answer without a receipt."))
            self._owner.order_cut(self)

    def reset(self, stream: Stream, code: int, message: str) -> None:
        text = f"the provider cut the answer off ({reset_name(code)}): {printable(message) or 'it gave no reason'}."
        not_taken = code == ResetCode.REFUSED and self.buyer.state is BuyerState.ORDERED
        self._lost(AnswerLost(text), "not-taken" if not_taken else "")
        if not not_taken:
            self._owner.order_cut(self)

    def link_lost(self, stream: Stream, error: P2pgridError) -> None:
        self._lost(AnswerLost(error.message, hint=error.hint))

    # -- inside --------------------------------------------------------------------------------------------------

    def _act(self, actions: Actions) -> None:
        records: list[Signed[Message]] = []
        for action in actions:
            if type(action) is Persist:
                records += [*self._stored, action.signed]
                self._stored = ()
                continue
            if records:
                self._outbox.persist(*records)
                records = []
            if type(action) is Send:
                if action.kind >= FIRST_CREDITED_KIND:
                    self._sender.unsent_pieces += 1
                    send = self._sender.send_body
                else:
                    send = self._sender.send
                self._outbox.run(functools.partial(send, action.kind, action.payload))
            else:
                self._happened(action)
        if records:
            self._outbox.persist(*records)
        if self.buyer.state is BuyerState.REFUSED and not self.ended_future.done():
            self._refused()

    def _happened(self, action: Action) -> None:
        match action:
            case EndStream():
                self._outbox.run(self._sender.end)
            case Settled(receipt):
                self._owner.receipt_signed(self)
                self._outbox.run(functools.partial(self._settled, receipt))
            case Turn(number):
                self._owner.order_turn(self, number)
            case KeepEvidence(record, reason):
                self._owner.keep_evidence(record, reason)
            case Disputed(_, dispute):
                self._owner.order_disputed(self, dispute)
                self._outbox.run(functools.partial(self._disputed, dispute))
            case Breach():
                self._finish(ProtocolViolation(f"the provider broke the rules: {action.message}"))
                self._owner.order_breached(self, action)
            case _:
                raise AssertionError(f"the buyer's machine asked for {action}")

    def _refused(self) -> None:
        refusal = self.buyer.refusal
        assert refusal is not None
        order = self.buyer.order
        outcome = self._ledger.note_outcome(order, f"refused:{refusal.code}")
        outcome.add_done_callback(log_failed_write)
        self._finish(refused_with(refusal.code, refusal.message, refusal.retry_after_ms))
        if refusal.code == "not-resumed":
            self._owner.order_cut(self)

    def _settled(self, receipt: Signed[Receipt]) -> None:
        self.receipt = receipt
        failed = self.buyer.head is None or (self.buyer.head.status == 200 and not self.buyer.counter.done)
        if failed and not self._is_abandoned:
            self._finish(RemoteError(f"the provider could not answer: the receipt says {receipt.message.status}."))
        else:
            self._finish(None)

    def _disputed(self, dispute: Signed[Dispute]) -> None:
        self.dispute = dispute
        self._finish(RemoteError(f"the provider's receipt is disputed: {dispute.message.statement}"))

    def _lost(self, error: P2pgridError, outcome: str = "") -> None:
        """The stream is gone. A receipt that is being made durable still settles the order."""
        self._sender.drop()
        if not self.buyer.is_open:
            return
        self.buyer.link_lost()
        if outcome:
            self.buyer.books.close_order(self.buyer.order.message.order_number)
            self._ledger.note_outcome(self.buyer.order, outcome).add_done_callback(log_failed_write)
        self._finish(error)

    def _ledger_failed(self, error: LedgerError) -> None:
        self.buyer.link_lost()
        if self._stream is not None:
            self._stream.reset(ResetCode.INTERNAL, "ledger-unavailable")
        self._finish(error)
        self._owner.ledger_failed(error)

    def _expect_receipt(self) -> None:
        if self._timer is None and not self.ended_future.done():
            self._timer = self._loop.call_later(RECEIPT_TIMEOUT_S, self._receipt_overdue)

    def _receipt_overdue(self) -> None:
        """Wait no longer: the order is closed when the channel is resumed."""
        if self._stream is not None:
            self._stream.reset(ResetCode.CANCELLED, "given up")
        self._lost(RemoteError(f"the provider sent no receipt within {RECEIPT_TIMEOUT_S:g} s."))
        self._owner.order_cut(self)

    def _finish(self, error: P2pgridError | None) -> None:
        if self.ended_future.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_answered:
            self.error = error
        self._is_answered = True
        self._wake()
        self.ended_future.set_result(None)
        self._owner.order_ended(self)
