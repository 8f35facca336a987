"""A client resumes a channel: both ledgers are brought together, and what was left open is closed."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from p2pgrid.errors import InvalidRecord, LedgerError, ProtocolViolation, Refused
from p2pgrid.net.stream import Stream
from p2pgrid.proto.channel import verify_channel
from p2pgrid.proto.messages import Channel, Receipt
from p2pgrid.proto.proposal import accept_countersignature, accept_dispute
from p2pgrid.proto.reconcile import (
    check_restored,
    check_same_chain,
    held_of,
    interrupt_open_orders,
    lacking,
    open_proposals,
)
from p2pgrid.proto.record import Record, Role, Signed, parse_message, parse_record
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.channels import MAX_BATCH_RECORDS, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.control import note_dispute
from p2pgrid.provider.exchange import Exchange, Shop
from p2pgrid.provider.open_channel import OpenChannel

log = logging.getLogger(__name__)

_MAX_TAKEN_BYTES: Final = 1024 * 1024
"""Of records in one exchange: four times what a client sends that keeps to the limits."""


class _Stage(Enum):
    """What is expected of the client."""

    RESUME = auto()
    NOTHING = auto()
    """A write is under way."""
    RECORDS = auto()
    RECORD = auto()
    ANSWERS = auto()
    """To the proposals, in their order."""


class ResumeExchange(Exchange):
    """RESUME -> RESUMED, RECORD* -> RECORDS, RECORD* -> PROPOSALS, RECEIPT* -> COUNTERSIGNATURE or DISPUTE each -> END.

    The client's other links are given up at its beginning, with what runs on them. Where either side has more than one
    exchange holds, the client resumes again, and no receipt is made before all records are there.
    """

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._stage = _Stage.RESUME
        self._resume: Resume | None = None
        self._channel: OpenChannel | None = None
        self._records: list[Record] = []
        self._record_bytes = 0
        self._n_records = 0
        self._is_all = True
        self._waiting: deque[Signed[Receipt]] = deque()
        self._outbox = self.outbox()

    def take(self, kind: int, payload: bytes) -> None:
        takers: dict[tuple[_Stage, int], Callable[[bytes], None]] = {
            (_Stage.RESUME, Kind.RESUME): self._begin,
            (_Stage.RECORDS, Kind.RECORDS): self._expect_records,
            (_Stage.RECORD, Kind.RECORD): self._take_record,
            (_Stage.ANSWERS, Kind.COUNTERSIGNATURE): self._countersigned,
            (_Stage.ANSWERS, Kind.DISPUTE): self._disputed,
        }
        taker = takers.get((self._stage, kind))
        if taker is None:
            raise ProtocolViolation(f"message kind {kind} came out of turn while a channel was resumed.")
        taker(payload)

    @property
    def may_end(self) -> bool:
        return self._stage is _Stage.ANSWERS and not self._waiting

    @property
    def is_taken(self) -> bool:
        return self._stage is not _Stage.RESUME

    def ledger_failed(self, error: LedgerError) -> None:
        if self._channel is not None:
            self.shop.channels.ledger_failed(self._channel, error)

    def lost(self, reason: str) -> None:
        self._leave()

    # -- the channel ------------------------------------------------------------------------------------------------

    def _begin(self, payload: bytes) -> None:
        self._resume = parse_frame(payload, Resume)
        record, channels = parse_record(self._resume.channel), self.shop.channels
        named = parse_message(record, Channel)
        self._stage = _Stage.NOTHING
        self.cancel_timer()
        if self.shop.claims is not None:
            claimed = self.shop.claims.claim(record, named, self.stream.connection)
            claimed.add_done_callback(lambda _: self._then(lambda: self._check_terms(record, claimed.result())))
            return
        try:
            channel = channels.find(named.channel, self.stream.peer)
        except Refused:
            # A channel that the client signed, and that a crash kept from our ledger: our signature stands.
            signed = verify_channel(record, provider=channels.own_key(named.provider), client=self.stream.peer)
            channels.check_room(self.stream.peer)
            self._outbox.persist(signed)
            self._then(lambda: self._take_over(channels.open(signed)))
            return
        self._check_terms(record, channel)

    def _check_terms(self, record: Record, channel: OpenChannel) -> None:
        if not channel.is_held:
            raise Refused("busy", "the channel was resumed on another link just now.", hint="Resume it again.")
        if record.id != channel.books.signed.id:
            raise InvalidRecord("wrong-channel", "the client resumes a channel on other terms than were signed.")
        self._take_over(channel)

    def _take_over(self, channel: OpenChannel) -> None:
        channel.check_usable()
        channel.begin_resume(self.stream.connection)
        if channel.resuming is not None:
            channel.resuming.interrupt("the client resumed the channel once more")
        self._channel, channel.resuming = channel, self
        # A write that changes nothing: once it is durable, so are all that were queued before it.
        self._outbox.persist(channel.books.signed)
        self._then(lambda: self._tell(channel))

    def interrupt(self, reason: str) -> None:
        """The client resumes on another stream."""
        self.cut(reason)

    def _tell(self, channel: OpenChannel) -> None:
        """Say what we hold, and send what the client lacks."""
        assert self._resume is not None
        ledger, theirs = self.shop.ledger, self._resume.held
        self.shop.channels.refresh(channel)
        check_same_chain(ledger, channel.books.signed, theirs)
        held = held_of(ledger, channel.books.id, last_order_number=channel.books.last_order_number)
        batch = lacking(ledger, channel.books.id, theirs, Role.PROVIDER)
        self._is_all = batch.is_all
        self.stream.send(Kind.RESUMED, Resumed(held=held, records=len(batch.records)).to_bytes())
        for record in batch.records:
            self.stream.send(Kind.RECORD, record.to_bytes())
        self._stage = _Stage.RECORDS
        self.expect_next()

    # -- what we lack -----------------------------------------------------------------------------------------------

    def _expect_records(self, payload: bytes) -> None:
        frame = parse_frame(payload, Records)
        self._is_all = self._is_all and frame.is_all
        self._n_records = frame.records
        self._stage = _Stage.RECORD
        self._records_so_far()

    def _take_record(self, payload: bytes) -> None:
        self._record_bytes += len(payload)
        if self._record_bytes > _MAX_TAKEN_BYTES:
            raise ProtocolViolation(f"the client sent records of over {_MAX_TAKEN_BYTES} bytes in one exchange.")
        self._records.append(parse_record(payload))
        self._records_so_far()

    def _records_so_far(self) -> None:
        if len(self._records) < self._n_records:
            self.expect_next()
            return
        channel = self._channel
        assert channel is not None
        self._stage = _Stage.NOTHING
        self.cancel_timer()
        signed = check_restored(self._records, self.shop.ledger, channel.books.signed, Role.PROVIDER)
        if signed:
            log.warning("channel %s: %d records are back from the client", channel.books.id.hex()[:16], len(signed))
            self._outbox.persist(*signed)
        self._then(lambda: self._propose(channel))

    # -- what was left open -----------------------------------------------------------------------------------------

    def _propose(self, channel: OpenChannel) -> None:
        """Turn open orders into receipts, and propose them after those that wait already."""
        shop, ledger = self.shop, self.shop.ledger
        is_all = self._is_all
        if is_all:
            assert self._resume is not None
            check_same_chain(ledger, channel.books.signed, self._resume.held, is_caught_up=True)
            shop.channels.refresh(channel)
            proposals = open_proposals(ledger, channel.books.id)
            made = interrupt_open_orders(ledger, channel.books, key=shop.channels.key_of(channel), now_ms=shop.now_ms())
            if made:
                self._outbox.persist(*made)
            self._waiting.extend([*proposals, *made][:MAX_BATCH_RECORDS])
            is_all = len(self._waiting) == len(proposals) + len(made)
        self._is_all = is_all
        self._then(self._send_proposals)

    def _send_proposals(self) -> None:
        frame = Proposals(proposals=len(self._waiting), is_all=self._is_all)
        self.stream.send(Kind.PROPOSALS, frame.to_bytes())
        for receipt in self._waiting:
            self.stream.send(Kind.RECEIPT, receipt.record.to_bytes())
        self._stage = _Stage.ANSWERS
        self._next_or_finish()

    def _countersigned(self, payload: bytes) -> None:
        channel, proposal = self._answered()
        receipt = accept_countersignature(proposal, payload, channel.books)
        self._outbox.persist(receipt)
        self._outbox.run(functools.partial(self.shop.tally.settled, receipt.message))
        self._next_or_finish()

    def _disputed(self, payload: bytes) -> None:
        channel, proposal = self._answered()
        dispute = accept_dispute(proposal, payload, channel.books, self.shop.now_ms())
        self._outbox.persist(dispute)
        self._outbox.run(functools.partial(note_dispute, self.shop, dispute))
        self._next_or_finish()

    def _answered(self) -> tuple[OpenChannel, Signed[Receipt]]:
        if not self._waiting or self._channel is None:
            raise ProtocolViolation("more answers came than receipts were proposed.")
        self._channel.check_usable()
        return self._channel, self._waiting.popleft()

    def _next_or_finish(self) -> None:
        if self._waiting:
            self.expect_next()
            return
        self.cancel_timer()
        if self._channel is not None and self._is_all:
            self._channel.link = self.stream.connection
        self._leave()
        self._outbox.run(self.finish)

    def _leave(self) -> None:
        if self._channel is not None and self._channel.resuming is self:
            self._channel.resuming = None

    def _then(self, step: Callable[[], None]) -> None:
        """Go on when all that was written is durable. What the step raises ends the exchange as `take` does."""

        def run() -> None:
            if self.is_over:
                return
            try:
                step()
            except Refused as refusal:
                self.refuse(refusal)
                self._leave()
            except (ProtocolViolation, InvalidRecord) as fault:
                self.fault(fault)
            except LedgerError as error:
                log.error("the ledger cannot be read: %s", error)
                self.cut("ledger-unavailable: the provider could not read its ledger")

        self._outbox.run(run)
