"""An order of several short requests, and each of these (docs/spec/session.md, section 11).

The answer of a request goes to its program as soon as it is whole; the receipt comes later, for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from p2pgrid.client.delivery import Delivery, refused_with
from p2pgrid.client.order import OrderOwner, OrderStream
from p2pgrid.client.order_sender import OrderedSender
from p2pgrid.errors import P2pgridError, Refused, RemoteError, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.stream import Stream
from p2pgrid.proto.asked_request import AskedRequest
from p2pgrid.proto.batch_buyer import BuyerBatch, Need
from p2pgrid.proto.messages import Receipt, Status
from p2pgrid.proto.record import Message, Signed
from p2pgrid.proto.request import RequestFields
from p2pgrid.proto.wire.kinds import Kind


class SharedRequest(Delivery):
    """One request under a batch order, and the delivery of its answer."""

    def __init__(self, batch: BatchStream, asked: AskedRequest) -> None:
        super().__init__(asked.counter)
        self.buyer: Final = asked
        self.receipt: Final = None
        """It has a line in the batch's receipt, which comes later and is no program's matter."""
        self._batch = batch

    def cancel(self) -> None:
        """The program wants no more. What was delivered is still paid. Harmless at the answer's end, and twice."""
        if not self._is_answered:
            self._batch.cancel_request(self)

    # -- for the batch -------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes of the answer came."""
        self._buffer.append(data)
        counter = self._counter
        if self.first_token_s is None and counter.output_tokens:
            self.first_token_s = self._loop.time() - self._began_s
        if counter.done:
            self.finish(None)
        else:
            self._wake()

    def look(self) -> None:
        """The provider may have refused or ended it."""
        asked = self.buyer
        if asked.refusal is not None:
            said = asked.refusal
            self.finish(refused_with(said.code, said.message, said.retry_after_ms))
        elif asked.ended is not None:
            # An engine's own refusal is an answer, and so is one without a token.
            is_answer = asked.ended in (Status.REFUSED, Status.EMPTY) or (
                asked.head is not None and asked.head.status != 200
            )
            self.finish(None if is_answer else RemoteError(f"the provider could not answer: {asked.ended}."))

    def finish(self, error: P2pgridError | None) -> None:
        """Nothing more comes of it. Only the first call counts."""
        if self._is_answered:
            return
        self.error = error
        self._is_answered = True
        self.ended_future.set_result(None)
        self._batch.request_over()
        self._wake()


class BatchStream(OrderStream):
    """A batch order under way: the shell around `BuyerBatch`."""

    def __init__(
        self,
        buyer: BuyerBatch,
        ledger: Ledger,
        owner: OrderOwner,
        now_ms: Callable[[], int],
        stored: tuple[Signed[Message], ...],
        close_s: float,
    ) -> None:
        """`close_s`: how long requests may join it."""
        super().__init__(buyer, ledger, owner, now_ms, stored, OrderedSender())
        self.batch: Final = buyer
        self._requests: list[SharedRequest] = []
        self._closing: asyncio.TimerHandle | None = self._loop.call_later(close_s, self.close)

    # -- for the batcher -----------------------------------------------------------------------------------------

    def ask(self, fields: RequestFields, endpoint: str, body: bytes, need: Need) -> SharedRequest | None:
        """One more request, or None if it does not fit. A batch that is full is closed."""
        asked = self.batch.ask(fields, endpoint, body, need)
        if asked is None:
            return None
        request = SharedRequest(self, asked[0])
        self._requests.append(request)
        self._act(asked[1])
        if len(self._requests) == self.batch.order.message.max_requests:
            self.close()
        return request

    def close(self) -> None:
        """No more requests come. Harmless twice."""
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self._act(self.batch.close())
        self.request_over()

    def cancel(self) -> None:
        """The session ends: nobody waits for any of it."""
        for request in self._requests:
            if not request.is_answered:
                self._act(self.batch.cancel_request(request.buyer))
                request.finish(Unreachable("the dealings with the provider were ended before the answer was whole."))
        self.close()

    def cancel_request(self, request: SharedRequest) -> None:
        """The program of one request has gone."""
        self._act(self.batch.cancel_request(request.buyer))
        request.finish(None)

    def request_over(self) -> None:
        """One more request has its answer: once all have and no more come, the receipt is due."""
        if self.batch.is_closed and self.batch.is_open and all(one.is_answered for one in self._requests):
            self._expect_receipt()

    # -- what comes ----------------------------------------------------------------------------------------------

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        if kind == Kind.PART:
            stream.consume(len(payload))
            refused = self.batch.part(payload)
            if refused is not None:
                self._act(refused)
            elif not (request := self._requests[payload[0]]).is_answered:
                request.received(payload[1:])
            return
        self._act(self.batch.message(kind, payload, self._now_ms()))
        if kind in (Kind.REQUEST_REFUSED, Kind.REQUEST_ENDED):
            for request in self._requests:
                request.look()
            if any(one.refusal is not None and one.refusal.code == "batch-closed" for one in self.batch.asked):
                self.close()  # by the provider's clock its time is over

    # -- inside --------------------------------------------------------------------------------------------------

    def _settled(self, receipt: Signed[Receipt]) -> None:
        self.receipt = receipt
        self._finish(None)

    def _finish(self, error: P2pgridError | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        super()._finish(error)
        for request in self._requests:
            request.finish(error or self._why_not(request.buyer))

    def _why_not(self, asked: AskedRequest) -> P2pgridError:
        """The order has its receipt, and the request no answer."""
        if asked.head is None and (self.receipt is None or self.receipt.message.status is Status.COMPLETED):
            return Refused("batch-closed", "the provider did not take the request.", hint="Try again.")
        return RemoteError("the provider's receipt came before the answer was whole.")
