"""The exchanges about disputes: both ledgers brought together, and a stream for news (docs/spec/disputes.md, 3)."""

from __future__ import annotations

import logging
from enum import Enum, auto
from typing import Final

from p2pgrid.errors import LedgerError, ProtocolViolation
from p2pgrid.net.stream import Stream
from p2pgrid.proto.dispute_exchange import (
    CONFLICT,
    MAX_DISPUTE_BYTES,
    Checked,
    check_sent,
    compare,
    held_by_both,
)
from p2pgrid.proto.record import Record, Role
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.disputes import DisputesCompared, DisputesHeld, DisputesNews
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.control import note_dispute
from p2pgrid.provider.exchange import Exchange, Shop
from p2pgrid.provider.listed_records import ListedRecords
from p2pgrid.provider.news_watch import NewsBook, NewsWatch
from p2pgrid.provider.open_channel import OpenChannel

log = logging.getLogger(__name__)

PAGE_COST: Final = 0.25
"""Of what an address may settle (`ProviderLimits.settlement_burst`): one page of a channel's disputes is read."""


class _Stage(Enum):
    """What is expected of the client."""

    HELD = auto()
    TAKEN = auto()
    RECORDS = auto()
    NOTHING = auto()


class DisputesExchange(Exchange):
    """DISPUTES -> DISPUTES_COMPARED, RECORD* -> DISPUTES_TAKEN, RECORD* -> DISPUTES_TAKEN."""

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._stage = _Stage.HELD
        self._outbox = self.outbox()
        self._sent: list[Record] = []
        self._channel: OpenChannel
        self._theirs: DisputesHeld
        self._came: ListedRecords
        self._compared: DisputesCompared

    @property
    def may_end(self) -> bool:
        return self._stage is _Stage.NOTHING

    def take(self, kind: int, payload: bytes) -> None:
        try:
            if self._stage is _Stage.HELD:
                self._compare(payload)
            elif self._stage is _Stage.TAKEN and kind == Kind.DISPUTES_TAKEN and not payload:
                self._confirmed()
            elif self._stage is _Stage.RECORDS and kind == Kind.RECORD:
                self._came.take(payload)
                self._records_so_far()
            else:
                raise ProtocolViolation(f"message kind {kind} came where disputes were exchanged.")
        except LedgerError as error:
            log.error("the ledger cannot be read: %s", error)
            self.cut("ledger-unavailable: the provider could not read its ledger")

    def _compare(self, payload: bytes) -> None:
        theirs = parse_frame(payload, DisputesHeld)
        self.shop.links.check_settlement(self.stream.connection, PAGE_COST)
        self._channel = self.shop.channels.find(theirs.channel, self.stream.peer)
        self._channel.check_usable()
        self._theirs = theirs
        self._compared, self._sent = compare(self.shop.ledger, theirs)
        self._came = ListedRecords(self._compared.lacks, max_bytes=MAX_DISPUTE_BYTES)
        self.stream.send(Kind.DISPUTES_COMPARED, self._compared.to_bytes())
        for record in self._sent:
            self.stream.send(Kind.RECORD, record.to_bytes())
        self._stage = _Stage.TAKEN
        self.expect_next()

    def _confirmed(self) -> None:
        """What was sent is on record with the client."""
        self._stage = _Stage.RECORDS
        self._records_so_far()

    def _records_so_far(self) -> None:
        if not self._came.is_whole:
            self.expect_next()
            return
        self._stage = _Stage.NOTHING
        self.cancel_timer()
        shop, channel = self.shop, self._channel
        channel.check_usable()
        checked = check_sent(self._came.records, shop.ledger, channel.books.signed, now_ms=shop.now_ms())
        for record in checked.conflicting:
            shop.evidence.keep(self.stream.peer, record, CONFLICT)
        if checked.keep:
            self._outbox.persist(*checked.keep)
        self._outbox.run(lambda: self._kept(checked))

    def _kept(self, checked: Checked) -> None:
        shop = self.shop
        both = held_by_both(shop.ledger, self._theirs, self._compared.until, self._sent, checked.conflicting)
        shop.channels.note_held(self._channel, both)
        if not self.is_over:
            self.stream.send(Kind.DISPUTES_TAKEN, b"")
            self.finish()
        for dispute in checked.disputes:
            if dispute.message.by is Role.CLIENT:
                note_dispute(shop, dispute)


class DisputesWatch(NewsWatch):
    """DISPUTES_WATCH -> DISPUTES_NEWS whenever there is news, until the client ends the stream."""

    first = Kind.DISPUTES_WATCH
    news = Kind.DISPUTES_NEWS

    @property
    def news_book(self) -> NewsBook:
        return self.shop.disputes

    def frame(self, channel: bytes) -> bytes:
        return DisputesNews(channel=channel).to_bytes()
