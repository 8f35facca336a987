"""OFFER_WATCH: a client's stream on which it hears what is on sale (docs/spec/discovery.md, section 6)."""

from __future__ import annotations

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.stream import Stream
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.capacity import capacity_of
from p2pgrid.provider.exchange import Exchange, Shop
from p2pgrid.provider.offer_news import CONFIRM_INTERVAL_S


class OfferWatch(Exchange):
    """OFFER_WATCH -> OFFER or WITHDRAWAL whenever there is another, CAPACITY, until the client ends the stream."""

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._is_watching = False
        self._told_id = b""
        self._told_capacity = b""
        self._told_s = 0.0

    @property
    def connection(self) -> LinkConnection:
        return self.stream.connection

    @property
    def may_end(self) -> bool:
        return self._is_watching

    def take(self, kind: int, payload: bytes) -> None:
        if self._is_watching or payload:
            raise ProtocolViolation("an OFFER_WATCH carries no bytes, and nothing follows it.")
        self._is_watching = True
        self.shop.news.watch(self)
        self.look()

    def look(self) -> None:
        """Tell the client what it has not been told."""
        if self.is_over:
            return
        shop, now_s = self.shop, self._loop.time()
        offer = shop.offers.current
        shown = offer or shop.offers.withdrawal
        if shown is not None and shown.id != self._told_id:
            self._told_id = shown.id
            self.stream.send(Kind.WITHDRAWAL if offer is None else Kind.OFFER, shown.record.to_bytes())
        capacity = capacity_of(offer, shop.admission).to_bytes()
        if capacity != self._told_capacity or now_s - self._told_s >= CONFIRM_INTERVAL_S:
            self._told_capacity, self._told_s = capacity, now_s
            self.stream.send(Kind.CAPACITY, capacity)

    def replaced(self) -> None:
        """The client has opened another on this link."""
        self.finish()

    def ended(self, stream: Stream) -> None:
        self.shop.news.unwatch(self)
        if self.is_over:
            super().ended(stream)
        else:
            self.finish()

    def lost(self, reason: str) -> None:
        self.shop.news.unwatch(self)
