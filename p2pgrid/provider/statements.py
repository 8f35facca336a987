"""The exchanges about settlement: records brought together, a statement drafted and signed, documents handed out.

docs/spec/settlement.md has the messages. What reads many records runs as a task, so that tokens flow meanwhile.
"""

from __future__ import annotations

import logging
from enum import Enum, auto
from typing import Any, Final

from p2pgrid.errors import LedgerError, ProtocolViolation
from p2pgrid.net.stream import Stream
from p2pgrid.proto.record import Record, Role, Signed, parse_record, verify_countersigned
from p2pgrid.proto.settle_check import check_taken
from p2pgrid.proto.settle_exchange import END, compare
from p2pgrid.proto.settle_listing import Listing
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.settlement import (
    MAX_STATED_IDS,
    MAX_STATEMENT_BYTES,
    NothingToState,
    SettlementCompared,
    SettlementHeld,
    StatedReceipts,
    StatedReceiptsRequest,
    StatementDiffers,
    StatementDraft,
    StatementRequest,
)
from p2pgrid.provider.exchange import Shop
from p2pgrid.provider.listed_records import ListedRecords
from p2pgrid.provider.open_channel import OpenChannel
from p2pgrid.provider.settlement_exchange import SettlementExchange
from p2pgrid.settlement.statements.drafting import Draft
from p2pgrid.settlement.statements.keeping import keep_taken, read_listed
from p2pgrid.settlement.statements.refused import NotStated

log = logging.getLogger(__name__)

JUDGING_TIMEOUT_S: Final = 120.0
"""How long a client may look at a draft of very many receipts."""
MAX_RECORD_BYTES: Final = MAX_STATEMENT_BYTES
MOST_TOLD: Final = 8
"""How often a client may ask which receipts are in a draft, beside once for each full answer: it is held meanwhile."""
PAGE_COST: Final = 1.0
DRAFT_COST: Final = 5.0
"""Of what an address may settle (`ProviderLimits.settlement_burst`)."""


class _Stage(Enum):
    """What is expected of the client."""

    FIRST = auto()
    NOTHING = auto()
    """Work is under way, or all is said."""
    TAKEN = auto()
    RECORDS = auto()
    VERDICT = auto()
    """On the draft."""
    COUNTERSIGNATURE = auto()


class SettleExchange(SettlementExchange):
    """SETTLE -> SETTLE_COMPARED, RECORD* -> SETTLE_TAKEN, RECORD* -> SETTLE_TAKEN."""

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._stage = _Stage.FIRST
        self._channel: OpenChannel
        self._held: Listing
        self._compared: SettlementCompared
        self._came: ListedRecords

    @property
    def may_end(self) -> bool:
        return self._stage is _Stage.NOTHING

    def take(self, kind: int, payload: bytes) -> None:
        try:
            if self._stage is _Stage.FIRST:
                self._compare(payload)
            elif self._stage is _Stage.TAKEN and kind == Kind.SETTLE_TAKEN and not payload:
                self._stage = _Stage.RECORDS
                self._records_so_far()
            elif self._stage is _Stage.RECORDS and kind == Kind.RECORD:
                self._came.take(payload)
                self._records_so_far()
            else:
                raise ProtocolViolation(f"message kind {kind} came where records of settlement were exchanged.")
        except LedgerError as error:
            self.unreadable(error)

    def _compare(self, payload: bytes) -> None:
        theirs = parse_frame(payload, SettlementHeld)
        self.shop.links.check_settlement(self.stream.connection, PAGE_COST)
        self._channel = self.find(theirs.channel)
        self._held = self.book.held(self._channel)
        self._compared, lacking = compare(self._held.places, theirs)
        self._came = ListedRecords(self._compared.lacks, max_bytes=MAX_RECORD_BYTES)
        sent = [one.record for one in self._held.read(lacking)]
        self.stream.send(Kind.SETTLE_COMPARED, self._compared.to_bytes())
        for record in sent:
            self.stream.send(Kind.RECORD, record.to_bytes())
        self._stage = _Stage.TAKEN
        self.expect_next()

    def _records_so_far(self) -> None:
        if not self._came.is_whole:
            self.expect_next()
            return
        self._stage = _Stage.NOTHING
        self.work(self._keep())

    async def _keep(self) -> None:
        shop, channel, peer = self.shop, self._channel, self.stream.peer
        held = await read_listed(self._held) if self._came.records else []
        taken = check_taken(
            self._came.records,
            held,
            channel.books.terms,
            Role.PROVIDER,
            now_ms=shop.now_ms(),
            left_out=self._held.left_out,
        )
        await keep_taken(
            shop.ledger,
            taken,
            self.book.details,
            lambda record, reason: shop.evidence.keep(peer, record, reason),
        )
        self.book.restored(channel, taken.keep, is_last=self._compared.until == END)
        if not self.is_over:
            self.stream.send(Kind.SETTLE_TAKEN, b"")
            self.finish()


class StatementExchange(SettlementExchange):
    """STATEMENT_REQUEST -> STATEMENT_DRAFT -> STATEMENT_AGREED -> STATEMENT -> STATEMENT -> STATEMENT_TAKEN.

    In place of STATEMENT_DRAFT: NOTHING_TO_STATE. In place of STATEMENT_AGREED: STATEMENT_DIFFERS; and before either
    the client may ask which receipts are in the draft. A draft that was signed before is countersigned at once.
    """

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._stage = _Stage.FIRST
        self._channel: OpenChannel
        self._draft: Draft | None = None
        self._signed: Signed[Statement] | None = None
        self._ids: tuple[int, list[bytes]] = (1, [])
        """The first receipt's number, and the ids of all."""
        self._told = 0
        """How often the client asked for some of them."""
        self._outbox = self.outbox()

    @property
    def may_end(self) -> bool:
        return self._stage is _Stage.NOTHING

    @property
    def is_taken(self) -> bool:
        return self._signed is not None

    def ledger_failed(self, error: LedgerError) -> None:
        self.book.signed(self._channel)

    def take(self, kind: int, payload: bytes) -> None:
        try:
            match self._stage, kind:
                case _Stage.FIRST, Kind.STATEMENT_REQUEST:
                    request = parse_frame(payload, StatementRequest)
                    self.shop.links.check_settlement(self.stream.connection, DRAFT_COST)
                    self._channel = self.find(request.channel)
                    self._stage = _Stage.NOTHING
                    self.work(self._state(request))
                case _Stage.VERDICT, Kind.STATED_RECEIPTS_REQUEST:
                    self._tell_receipts(parse_frame(payload, StatedReceiptsRequest))
                case _Stage.VERDICT, Kind.STATEMENT_DIFFERS:
                    self.book.differs(self._channel, parse_frame(payload, StatementDiffers))
                    self._stage = _Stage.NOTHING
                    self.finish()
                case _Stage.VERDICT, Kind.STATEMENT_AGREED if self._signed is None and not payload:
                    self._sign()
                case ((_Stage.VERDICT | _Stage.COUNTERSIGNATURE), Kind.STATEMENT) if self._signed is not None:
                    self._countersigned(self._signed, payload)
                case _:
                    raise ProtocolViolation(f"message kind {kind} came where a statement was exchanged.")
        except LedgerError as error:
            self.unreadable(error)

    async def _state(self, request: StatementRequest) -> None:
        book, channel = self.book, self._channel
        pending = book.pending(channel)
        try:
            if pending is not None:
                self._signed = pending
                self._send_draft(pending.record, book.days_of(pending.message))
                return
            self._draft = draft = await book.draft(channel, request)
        except NotStated as error:
            if not self.is_over:
                frame = NothingToState(code=error.code[:64], message=str(error)[:512])
                self.stream.send(Kind.NOTHING_TO_STATE, frame.to_bytes())
                self.finish()
            return
        self._ids = draft.statement.first_receipt, [one.receipt_id for one in draft.receipts]
        self._send_draft(draft.record, (draft.first_day, draft.last_day))

    def _send_draft(self, record: Record, days: tuple[Any, Any]) -> None:
        if self.is_over:
            return
        first, last = days
        frame = StatementDraft(statement=record.to_bytes(), first_day=first.toordinal(), last_day=last.toordinal())
        self.stream.send(Kind.STATEMENT_DRAFT, frame.to_bytes())
        self._stage = _Stage.VERDICT
        self.call_after(JUDGING_TIMEOUT_S, self._silent)

    def _tell_receipts(self, request: StatedReceiptsRequest) -> None:
        first, ids = self._ids
        if request.first < first:
            raise ProtocolViolation(f"receipts from {request.first} on were asked for; the draft begins with {first}.")
        self._told += 1
        if self._told > MOST_TOLD + len(ids) // MAX_STATED_IDS:
            raise ProtocolViolation(f"the receipts of a draft were asked for {self._told} times.")
        some = ids[request.first - first :][:MAX_STATED_IDS]
        self.stream.send(Kind.STATED_RECEIPTS, StatedReceipts(ids=tuple(some)).to_bytes())
        self.call_after(JUDGING_TIMEOUT_S, self._silent)

    def _sign(self) -> None:
        draft = self._draft
        assert draft is not None
        self._channel.check_usable()
        self._stage = _Stage.NOTHING
        self.cancel_timer()
        self._signed = signed = self.book.sign(self._channel, draft)
        self._outbox.persist(signed)
        self._outbox.run(lambda: self._send_signed(signed))

    def _send_signed(self, signed: Signed[Statement]) -> None:
        self.book.signed(self._channel)
        if not self.is_over:
            self.stream.send(Kind.STATEMENT, signed.record.to_bytes())
            self._stage = _Stage.COUNTERSIGNATURE
            self.call_after(JUDGING_TIMEOUT_S, self._silent)

    def _countersigned(self, standing: Signed[Statement], payload: bytes) -> None:
        if len(payload) > MAX_STATEMENT_BYTES:
            raise ProtocolViolation(f"a statement has at most {MAX_STATEMENT_BYTES} bytes.")
        both = verify_countersigned(parse_record(payload), standing, Role.CLIENT, self.stream.peer)
        self._channel.check_usable()
        self._stage = _Stage.NOTHING
        self.cancel_timer()
        self._outbox.persist(both)
        self._outbox.run(lambda: self._on_record(both))

    def _on_record(self, both: Signed[Statement]) -> None:
        self.book.stated(self._channel, both)
        if not self.is_over:
            self.stream.send(Kind.STATEMENT_TAKEN, b"")
            self.finish()
