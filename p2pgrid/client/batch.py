"""Short unstreamed requests that share an order and its receipt (docs/spec/session.md, section 11).

A request that finds others on their way to the same provider joins the batch order that is open there, or opens one at
once: it never waits for company. One that is alone has an order of its own. Its answer goes to the program as soon as
it is whole; the receipt comes later, for all of them.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from p2pgrid.client.order import OrderOwner, OrderStream
from p2pgrid.client.text import printable
from p2pgrid.errors import P2pgridError, Refused, RemoteError, Unreachable
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.stream import Stream
from p2pgrid.proto.asked_request import AskedRequest
from p2pgrid.proto.batch_buyer import BuyerBatch, Need
from p2pgrid.proto.frame import FIRST_CREDITED_KIND
from p2pgrid.proto.messages import ModelOffer, Offer, Receipt, Status
from p2pgrid.proto.pricing import most_owed
from p2pgrid.proto.record import Message, Signed
from p2pgrid.proto.request import RequestFields
from p2pgrid.proto.wire import MAX_REQUEST_BYTES, Kind

SHORT_OUTPUT_TOKENS: Final = 512
"""Most output, all choices together, of a request that shares its order with others."""


class SharedRequest:
    """One request under a batch order, with what `Answer` needs of an `OrderStream`."""

    def __init__(self, batch: BatchStream, asked: AskedRequest) -> None:
        self.buyer: Final = asked
        self.receipt: Final = None
        """It has a line in the batch's receipt, which comes later and is no program's matter."""
        self.error: P2pgridError | None = None
        """Why the answer broke off, or never came."""
        self.on_progress: Callable[[], None] | None = None
        """Called when there is something to `take`, or the answer is over."""
        self.first_token_s: float | None = None
        """From the request's departure to the first token's arrival."""
        self._batch = batch
        self._loop = asyncio.get_running_loop()
        self.ended_future: Final[asyncio.Future[None]] = self._loop.create_future()
        """Done when nothing more comes of the answer."""
        self._buffer: list[bytes] = []
        self._wakeup: asyncio.Future[None] | None = None
        self._began_s = self._loop.time()

    # -- for the program -----------------------------------------------------------------------------------------

    @property
    def is_whole(self) -> bool:
        """True once the answer has come to its proper end."""
        counter = self.buyer.counter
        return counter.done and counter.error is None

    @property
    def is_answered(self) -> bool:
        """True once nothing more will come of the answer."""
        return self.ended_future.done()

    async def wait(self) -> bool:
        """Wait for answer bytes. False at the answer's end. Raises what `take` raises."""
        while not self._buffer:
            if self.error is not None:
                raise self.error
            if self.is_answered:
                return False
            self._wakeup = self._loop.create_future()
            await self._wakeup
        return True

    def take(self) -> bytes | None:
        """The bytes that have come since the last call; empty if none have, None at the answer's end.

        Raises what `OrderStream.take` does.
        """
        if not self._buffer:
            if self.error is not None:
                raise self.error
            return None if self.is_answered else b""
        data = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        return data

    def cancel(self) -> None:
        """The program wants no more. What was delivered is still paid. Harmless at the answer's end, and twice."""
        if not self.is_answered:
            self._batch.cancel_request(self)

    # -- for the batch -------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes of the answer came."""
        self._buffer.append(data)
        counter = self.buyer.counter
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
            hint = f"Try again in {-(-said.retry_after_ms // 1000)} s." if said.retry_after_ms else ""
            self.finish(Refused(said.code, f"the provider refused: {printable(said.message)}", hint=hint))
        elif asked.ended is not None:
            # An engine's own refusal is an answer, and so is one without a token.
            is_answer = asked.ended in (Status.REFUSED, Status.EMPTY) or (
                asked.head is not None and asked.head.status != 200
            )
            self.finish(None if is_answer else RemoteError(f"the provider could not answer: {asked.ended}."))

    def finish(self, error: P2pgridError | None) -> None:
        """Nothing more comes of it. Only the first call counts."""
        if self.is_answered:
            return
        self.error = error
        self.ended_future.set_result(None)
        self._batch.request_over()
        self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)
        if self.on_progress is not None:
            self.on_progress()


class BatchStream(OrderStream):
    """A batch order under way: the shell around `BuyerBatch`."""

    def __init__(
        self,
        buyer: BuyerBatch,
        ledger: Ledger,
        owner: OrderOwner,
        now_ms: Callable[[], int],
        stored: Sequence[Signed[Message]],
        close_s: float,
    ) -> None:
        """`close_s`: how long requests may join it."""
        super().__init__(buyer, ledger, owner, now_ms, stored)
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

    def _send(self, kind: int, payload: bytes) -> None:
        if self._body:
            self._body.append((kind, payload))  # a request waits for credit, and this may speak of it
        else:
            super()._send(kind, payload)

    def _send_body(self) -> None:
        stream = self._stream
        while self._body and stream is not None:
            kind, payload = self._body[0]
            if kind >= FIRST_CREDITED_KIND and stream.writable_bytes < len(payload):
                return
            del self._body[0]
            stream.send(kind, payload)

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


class BatchPlace(Protocol):
    """How the session opens a batch order."""

    def __call__(
        self, offer: Signed[Offer], fields: RequestFields, endpoint: str, need: Need, close_s: float
    ) -> BatchStream:
        """Raises Refused where there is no room for an order of several requests, RemoteError without a link."""


class Batcher:
    """Which requests of one session share an order."""

    def __init__(self, place: BatchPlace) -> None:
        self._place = place
        self._open: dict[tuple[bytes, str, str], BatchStream] = {}
        self._largest: dict[tuple[str, str], Need] = {}
        """By model and endpoint, the most that a request needed since the last order was opened: the next has room for
        as many of that size."""
        self._under_way: set[OrderStream | SharedRequest] = set()
        """Short requests, whichever order they are under."""

    def need_of(
        self, entry: ModelOffer, fields: RequestFields, body: bytes, most_prompt_tokens: int | None
    ) -> Need | None:
        """What a short request may take of the order's caps; None for one that is not short."""
        if len(body) > MAX_REQUEST_BYTES:
            return None
        output_tokens = fields.max_output_tokens(entry)
        if output_tokens > SHORT_OUTPUT_TOKENS:
            return None
        prompt_tokens = fields.max_prompt_tokens(entry, len(body))
        return Need(min(prompt_tokens, most_prompt_tokens or prompt_tokens), output_tokens)

    def ask(
        self,
        offer: Signed[Offer],
        fields: RequestFields,
        endpoint: str,
        body: bytes,
        need: Need,
        *,
        max_amount_pico: int | None,
        now_ms: int,
    ) -> SharedRequest | None:
        """Put a short request under an order with others; None where it should have one of its own."""
        if max_amount_pico is not None:
            entry = offer.message.model_offer(fields.model)
            tariff = offer.message.tariff_at(entry, now_ms) if entry is not None else None
            if tariff is None or max_amount_pico < most_owed(
                tariff, max_prompt_tokens=need.prompt_tokens, max_output_tokens=need.output_tokens
            ):
                return None
        place = offer.id, fields.model, endpoint
        largest = self._largest[place[1:]] = need.covering(self._largest.get(place[1:], need))
        batch = self._open.get(place)
        if batch is not None:
            request = batch.ask(fields, endpoint, body, need)
            if request is not None:
                self._note(request)
                return request
            batch.close()
            self._open.pop(place, None)
        if all(one.is_answered for one in self._under_way):
            return None
        try:
            batch = self._place(offer, fields, endpoint, largest, offer.message.batch.batch_ms / 1000)
        except Refused:
            return None
        request = batch.ask(fields, endpoint, body, need)
        assert request is not None, "the order was made for it"
        self._largest[place[1:]] = need
        self._open[place] = batch
        batch.ended_future.add_done_callback(functools.partial(self._over, place, batch))
        self._note(request)
        return request

    def note_alone(self, order: OrderStream) -> None:
        """A short request has an order of its own: others that come meanwhile have company."""
        self._note(order)

    def _note(self, one: OrderStream | SharedRequest) -> None:
        self._under_way.add(one)
        one.ended_future.add_done_callback(lambda _: self._under_way.discard(one))

    def _over(self, place: tuple[bytes, str, str], batch: BatchStream, _: asyncio.Future[None]) -> None:
        if self._open.get(place) is batch:
            del self._open[place]
