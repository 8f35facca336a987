"""What a client may begin on a link: the first message of a stream decides the exchange (docs/spec/session.md, 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.stream import OnStream, Stream, StreamHandler
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.batch import BatchExchange
from p2pgrid.provider.control import CardExchange, ChannelExchange, ChannelsExchange, OfferExchange
from p2pgrid.provider.disputes import DisputesExchange, DisputesWatch
from p2pgrid.provider.exchange import Exchange, Shop
from p2pgrid.provider.log_exchange import CosignatureExchange, LogExchange, WitnessExchange
from p2pgrid.provider.offer_watch import OfferWatch
from p2pgrid.provider.order import OrderExchange
from p2pgrid.provider.resume import ResumeExchange
from p2pgrid.provider.settlement_exchange import DocumentExchange, SettleWatch
from p2pgrid.provider.statements import SettleExchange, StatementExchange

Exchanges = Mapping[int, Callable[[Shop, Stream], StreamHandler]]
"""Who goes on with a stream, by the kind of its first message."""

EXCHANGES: Final[Exchanges] = {
    Kind.OFFER_REQUEST: OfferExchange,
    Kind.OFFER_WATCH: OfferWatch,
    Kind.CARD_REQUEST: CardExchange,
    Kind.CHANNEL_REQUEST: ChannelExchange,
    Kind.RESUME: ResumeExchange,
    Kind.CHANNELS_REQUEST: ChannelsExchange,
    Kind.ORDER: OrderExchange,
    Kind.BATCH: BatchExchange,
    Kind.DISPUTES: DisputesExchange,
    Kind.DISPUTES_WATCH: DisputesWatch,
    Kind.SETTLE: SettleExchange,
    Kind.STATEMENT_REQUEST: StatementExchange,
    Kind.DOCUMENT_REQUEST: DocumentExchange,
    Kind.SETTLE_WATCH: SettleWatch,
    Kind.LOG_REQUEST: LogExchange,
    Kind.WITNESS_REQUEST: WitnessExchange,
    Kind.COSIGNATURE: CosignatureExchange,
}


FOR_THE_MAIN_PROCESS: Final = frozenset(
    {
        Kind.OFFER_REQUEST,
        Kind.OFFER_WATCH,
        Kind.CARD_REQUEST,
        Kind.CHANNEL_REQUEST,
        Kind.CHANNELS_REQUEST,
        Kind.DISPUTES,
        Kind.DISPUTES_WATCH,
        Kind.SETTLE,
        Kind.STATEMENT_REQUEST,
        Kind.DOCUMENT_REQUEST,
        Kind.SETTLE_WATCH,
        Kind.LOG_REQUEST,
        Kind.WITNESS_REQUEST,
        Kind.COSIGNATURE,
    }
)
"""Where a node has several processes, these run in the main one; all others in the one that holds the channel."""


class Opening(Exchange):
    """A stream before its first message."""

    def __init__(self, shop: Shop, stream: Stream, exchanges: Exchanges = EXCHANGES) -> None:
        super().__init__(shop, stream)
        self._exchanges = exchanges
        self.expect_next()

    def take(self, kind: int, payload: bytes) -> None:
        exchange = self._exchanges.get(kind)
        if exchange is None:
            raise ProtocolViolation(f"a stream begins with message kind {kind}, which begins nothing.")
        self.cancel_timer()
        self.stream.handler = following = exchange(self.shop, self.stream)
        following.message_received(self.stream, kind, payload)


def serve_streams(shop: Shop, exchanges: Exchanges = EXCHANGES) -> OnStream:
    """What a listener calls for every stream that a client opens, on whatever road."""

    def on_stream(stream: Stream) -> StreamHandler:
        shop.links.note(stream.connection)
        return Opening(shop, stream, exchanges)

    return on_stream
