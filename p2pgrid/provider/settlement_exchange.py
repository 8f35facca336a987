"""What the exchanges about settlement have in common, the documents of invoices, and a stream for news."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from p2pgrid.errors import InvalidRecord, LedgerError, LocalError, P2pgridError, ProtocolViolation, Refused
from p2pgrid.net.stream import Stream
from p2pgrid.proto.statement import Invoice
from p2pgrid.proto.wire.base import CHUNK_BYTES, parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.settlement import MAX_DOCUMENT_BYTES, DocumentPiece, DocumentRequest, SettlementNews
from p2pgrid.provider.exchange import Exchange, Shop
from p2pgrid.provider.news_watch import NewsBook, NewsWatch
from p2pgrid.provider.open_channel import OpenChannel
from p2pgrid.provider.statement_book import StatementBook
from p2pgrid.settlement.hooks import NamedFile

log = logging.getLogger(__name__)

DOCUMENT_COST: Final = 0.25
"""Of what an address may settle (`ProviderLimits.settlement_burst`): a channel's invoices are read for a file."""


def book_of(shop: Shop) -> StatementBook:
    """Raises Refused (`unsupported`) for a node that does not settle."""
    if shop.statements is None:
        raise Refused("unsupported", "this provider settles by no statements.")
    return shop.statements


class SettlementExchange(Exchange):
    """What the exchanges about settlement have in common: the book, and work that goes on as a task."""

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._task: asyncio.Task[None] | None = None

    @property
    def book(self) -> StatementBook:
        """Raises Refused (`unsupported`) for a node that does not settle."""
        return book_of(self.shop)

    def find(self, channel_id: bytes) -> OpenChannel:
        """The client's channel, in order. Raises Refused (`unknown-channel`, `ledger-unavailable`)."""
        channel = self.shop.channels.find(channel_id, self.stream.peer)
        channel.check_usable()
        return channel

    def work(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on in a task; nothing is taken from the client meanwhile."""
        self.cancel_timer()
        self._task = self._loop.create_task(self._guarded(work), name="settlement exchange")
        self._task.add_done_callback(self._worked)

    def lost(self, reason: str) -> None:
        # What is being written is written; nobody is there to be told.
        self._task = None

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Refused as refusal:
            if not self.is_over:
                self.refuse(refusal)
        except (ProtocolViolation, InvalidRecord) as fault:
            if not self.is_over:
                self.fault(fault)
        except LedgerError as error:
            self.unreadable(error)
        except P2pgridError as error:
            log.error("a settlement exchange ended: %s", error)
            self.cut("the provider cannot settle now")

    def _worked(self, task: asyncio.Task[None]) -> None:
        """A fault of our own leaves nobody waiting: there is no timer while work goes on."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a settlement exchange failed", exc_info=error)
            self.cut("the provider cannot settle now")

    def unreadable(self, error: LedgerError) -> None:
        """The ledger cannot be read or written: cut the stream."""
        log.error("the ledger failed while a channel was settled: %s", error)
        self.cut("ledger-unavailable: the provider could not use its ledger")


class DocumentExchange(SettlementExchange):
    """DOCUMENT_REQUEST -> DOCUMENT, as often as the client likes, each for a piece of one file."""

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._wanted = b""
        self._file: NamedFile | None = None

    @property
    def may_end(self) -> bool:
        return True

    def take(self, kind: int, payload: bytes) -> None:
        if kind != Kind.DOCUMENT_REQUEST:
            raise ProtocolViolation(f"message kind {kind} came where a document was handed out.")
        request = parse_frame(payload, DocumentRequest)
        try:
            file = self._opened(request)
        except LedgerError as error:
            self.unreadable(error)
            return
        except LocalError as error:
            log.error("an invoice's file cannot be handed out: %s", error)
            raise Refused("unknown-document", "the invoice's file cannot be read here now.") from None
        if request.offset >= len(file.content):
            raise ProtocolViolation(f"the document has {len(file.content)} bytes; {request.offset} was asked for.")
        piece = DocumentPiece(
            name=file.name[:128],
            size=len(file.content),
            content=file.content[request.offset : request.offset + CHUNK_BYTES],
        )
        self.stream.send(Kind.DOCUMENT, piece.to_bytes())
        self.expect_next()

    def _opened(self, request: DocumentRequest) -> NamedFile:
        if self._file is not None:
            if request.document_sha256 != self._wanted:
                raise ProtocolViolation("another document was asked for on one stream.")
            return self._file
        self.shop.links.check_settlement(self.stream.connection, DOCUMENT_COST)
        channel = self.find(request.channel)
        invoices = self.shop.ledger.settlement(Invoice, channel.books.id)
        invoice = next((one for one in invoices if one.message.document_sha256 == request.document_sha256), None)
        file = self.book.hooks.document(invoice) if invoice is not None else None
        if file is None or not 0 < len(file.content) <= MAX_DOCUMENT_BYTES:
            raise Refused("unknown-document", "no invoice of that channel has such a file here.")
        self._wanted, self._file = request.document_sha256, file
        return file


class SettleWatch(NewsWatch):
    """SETTLE_WATCH -> SETTLE_NEWS whenever there is news, until the client ends the stream."""

    first = Kind.SETTLE_WATCH
    news = Kind.SETTLE_NEWS

    @property
    def news_book(self) -> NewsBook:
        return book_of(self.shop)

    def frame(self, channel: bytes) -> bytes:
        return SettlementNews(channel=channel).to_bytes()
