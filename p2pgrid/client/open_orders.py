"""The orders under way with one provider: placed on the current channel, alone or together, and what they tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from p2pgrid.client.batch import BatchStream, SharedRequest
from p2pgrid.client.batcher import Batcher
from p2pgrid.client.channels import ProviderChannels
from p2pgrid.client.faults import FaultGuard
from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.link_life import LinkLife
from p2pgrid.client.order import OrderOwner, OrderStream
from p2pgrid.client.prompt_sizes import PromptSizes, Shape
from p2pgrid.client.purchase import Purchase
from p2pgrid.errors import LedgerError, Refused, RemoteError
from p2pgrid.ledger.base import Ledger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.actions import Actions, Breach
from p2pgrid.proto.batch_buyer import Need
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.commitment import COMMITMENT_KEY_BYTES
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.order_states import BuyerState
from p2pgrid.proto.placement import place_batch, place_order
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.request import RequestFields


class OpenOrders(OrderOwner):
    """Places orders, and keeps those that are not over."""

    def __init__(
        self,
        ledger: Ledger,
        life: LinkLife,
        guard: FaultGuard,
        channels: ProviderChannels,
        *,
        key: SecretKey,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        limits: SessionLimits,
    ) -> None:
        self._ledger = ledger
        self._life = life
        self._guard = guard
        self._channels = channels
        self._key = key
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._shares_receipts = limits.shares_receipts
        self._first_token_timeout_ms = int(limits.first_token_timeout_s * 1000)
        self._orders: dict[OrderStream, Shape | None] = {}
        self._stored_offers: set[bytes] = set()
        self.prompt_sizes: Final = PromptSizes()
        """What the prompts that were paid for came to."""
        self.batcher: Final = Batcher(self._place_batch)
        """Which requests share an order."""

    @property
    def n_orders(self) -> int:
        """Orders that are not over."""
        return len(self._orders)

    async def over(self) -> None:
        """Wait for the orders that are under way now: resuming would interrupt them."""
        for order in list(self._orders):
            await asyncio.shield(order.ended_future)

    async def cancel(self, drain_s: float) -> None:
        """Cancel all, and give them so long to be settled."""
        orders = list(self._orders)
        for order in orders:
            order.cancel()
        if orders and drain_s:
            await asyncio.wait([order.ended_future for order in orders], timeout=drain_s)

    def forget_stored(self) -> None:
        """The ledger failed: offers are written with the next order again."""
        self._stored_offers.clear()

    # -- placing -------------------------------------------------------------------------------------------------

    def place(
        self, link: LinkConnection, books: ChannelBooks, offer: Signed[Offer], purchase: Purchase
    ) -> OrderStream | SharedRequest:
        """Order it now. Raises RemoteError: the codes of `place_order`, or no stream could be opened."""
        if purchase.whole and offer.message.batch.batch_requests > 1 and self._shares_receipts:
            return self._place_short(link, books, offer, purchase)
        return self._place_alone(link, books, offer, purchase)

    def _place_short(
        self, link: LinkConnection, books: ChannelBooks, offer: Signed[Offer], purchase: Purchase
    ) -> OrderStream | SharedRequest:
        """Under an order with others, if the request is short and others are on their way."""
        fields, body = purchase.fields, purchase.body
        entry = offer.message.model_offer(fields.model)
        most = self.prompt_sizes.most(offer.id, purchase.shape, len(body))
        need = self.batcher.need_of(entry, fields, body, most) if entry is not None else None
        if need is None:
            return self._place_alone(link, books, offer, purchase)
        shared = self.batcher.ask(
            offer,
            fields,
            purchase.endpoint,
            body,
            need,
            max_amount_pico=purchase.max_amount_pico,
            now_ms=self._now_ms(),
        )
        if shared is not None:
            return shared
        order = self._place_alone(link, books, offer, purchase)
        self.batcher.note_alone(order)
        return order

    def _place_batch(
        self, offer: Signed[Offer], fields: RequestFields, endpoint: str, need: Need, close_s: float
    ) -> BatchStream:
        link, books = self._life.link, self._channels.books
        if link is None or books is None:
            raise Refused("not-resumed", "the provider is not there.")
        commitment_key = self._random_bytes(COMMITMENT_KEY_BYTES)
        buyer, actions = place_batch(
            books,
            offer,
            fields,
            endpoint,
            need,
            key=self._key,
            commitment_key=commitment_key,
            now_ms=self._now_ms(),
            first_token_timeout_ms=self._first_token_timeout_ms,
        )
        batch = BatchStream(buyer, self._ledger, self, self._now_ms, self._unstored(offer), close_s)
        self._start(link, batch, actions, offer, commitment_key)
        return batch

    def _place_alone(
        self, link: LinkConnection, books: ChannelBooks, offer: Signed[Offer], purchase: Purchase
    ) -> OrderStream:
        commitment_key = self._random_bytes(COMMITMENT_KEY_BYTES)
        buyer, actions = place_order(
            books,
            offer,
            purchase.fields,
            purchase.endpoint,
            purchase.body,
            key=self._key,
            commitment_key=commitment_key,
            now_ms=self._now_ms(),
            first_token_timeout_ms=self._first_token_timeout_ms,
            max_amount_pico=purchase.max_amount_pico,
            most_prompt_tokens=self.prompt_sizes.most(offer.id, purchase.shape, len(purchase.body)),
        )
        order = OrderStream(buyer, self._ledger, self, self._now_ms, self._unstored(offer))
        self._start(link, order, actions, offer, commitment_key, purchase.shape)
        return order

    def _unstored(self, offer: Signed[Offer]) -> tuple[Signed[Offer], ...]:
        """The offer, if it has to be written with the order."""
        return () if offer.id in self._stored_offers else (offer,)

    def _start(
        self,
        link: LinkConnection,
        order: OrderStream,
        actions: Actions,
        offer: Signed[Offer],
        commitment_key: bytes,
        shape: Shape | None = None,
    ) -> None:
        signed = order.buyer.order
        try:
            stream = link.open_stream(order)
        except RemoteError:
            order.buyer.books.close_order(signed.message.order_number)
            raise
        self._stored_offers.add(offer.id)
        self._orders[order] = shape
        self._ledger.keep_request_key(signed, commitment_key)
        order.start(stream, actions)

    # -- what orders tell ----------------------------------------------------------------------------------------

    def receipt_signed(self, order: OrderStream) -> None:
        self._life.tell()

    def order_turn(self, order: OrderStream, number: int) -> None:
        for other in list(self._orders):
            if other.buyer.books is order.buyer.books and other.buyer.order.message.order_number == number:
                other.proceed()

    def keep_evidence(self, record: Record, reason: str) -> None:
        self._guard.keep_evidence(record, reason)

    def order_ended(self, order: OrderStream) -> None:
        buyer = order.buyer
        shape = self._orders.pop(order, None)
        signed = buyer.receipt.message if buyer.receipt is not None and buyer.dispute is None else None
        self.prompt_sizes.learn(buyer.order.message.offer, shape, signed)
        if buyer.state in (BuyerState.LOST, BuyerState.BREACHED) and buyer.usage.prompt_tokens:
            self._channels.order_lost(buyer.books.id, buyer.order.message.order_number, buyer.usage)
        self._life.tell()

    def order_disputed(self, order: OrderStream, dispute: Signed[Dispute]) -> None:
        self._guard.disputed(dispute, order.buyer.books)
        self._life.tell()

    def order_breached(self, order: OrderStream, breach: Breach) -> None:
        self._guard.breached(breach)

    def order_cut(self, order: OrderStream) -> None:
        # Its receipt may be the chain's next: nothing more can be settled before the channel is resumed.
        self._life.close("an order's stream was cut")

    def ledger_failed(self, error: LedgerError) -> None:
        self._guard.ledger_failed(error)
