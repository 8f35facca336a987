"""Which short unstreamed requests share an order and its receipt (docs/spec/session.md, section 11).

A request that finds others on their way to the same provider joins the batch order that is open there, or opens one at
once: it never waits for company. One that is alone has an order of its own.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Final, Protocol

from p2pgrid.client.batch import BatchStream, SharedRequest
from p2pgrid.client.order import OrderStream
from p2pgrid.errors import Refused
from p2pgrid.proto.batch_buyer import Need
from p2pgrid.proto.messages import ModelOffer, Offer
from p2pgrid.proto.pricing import most_owed
from p2pgrid.proto.record import Signed
from p2pgrid.proto.request import RequestFields
from p2pgrid.proto.wire.orders import MAX_REQUEST_BYTES

SHORT_OUTPUT_TOKENS: Final = 512
"""Most output, all choices together, of a request that shares its order with others."""


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
