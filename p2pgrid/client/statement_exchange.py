"""The client's half of the exchanges about settlement, one channel at a time (docs/spec/settlement.md)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from p2pgrid.client.exchanges import DisputedRecord, Exchange, exchange
from p2pgrid.errors import InvalidRecord, P2pgridError, ProtocolViolation, Refused
from p2pgrid.ledger.base import Ledger, SlotTaken
from p2pgrid.net.connection import LinkConnection
from p2pgrid.printable import printable
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.keys import SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel, Offer
from p2pgrid.proto.record import Record, Role, Signed, parse_message, parse_record, verify_record
from p2pgrid.proto.settle_check import CONFLICT, Taken, check_taken
from p2pgrid.proto.settle_exchange import (
    BEGIN,
    END,
    MOST_BYTES,
    MOST_RECORDS,
    check_compared,
    page_of,
)
from p2pgrid.proto.settle_listing import Listing
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.proto.statement_difference import differs, receipt_differences
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.settlement import (
    MAX_DOCUMENT_BYTES,
    MAX_SETTLED,
    MAX_STATED_IDS,
    MAX_STATEMENT_BYTES,
    DocumentPiece,
    DocumentRequest,
    NothingToState,
    SettlementCompared,
    StatedReceipts,
    StatedReceiptsRequest,
    StatementDifference,
    StatementDraft,
    StatementRequest,
)
from p2pgrid.settlement.hooks import BuyerHooks, Details, InvoiceFile
from p2pgrid.settlement.statements.agreed import Agreed
from p2pgrid.settlement.statements.judging import Judged, judge
from p2pgrid.settlement.statements.keeping import details_of, keep_taken, read_listed

log = logging.getLogger(__name__)

DRAFT_TIMEOUT_S: Final = 120.0
"""How long a provider may take over a draft of very many receipts."""
MOST_DOCUMENTS: Final = 16
"""That are fetched at once; the rest comes the next time."""
_AT_ONCE: Final = 32
"""Records that are checked in one turn of the loop; more are in a thread: each costs a signature or two."""
_MOST_PAGES: Final = MOST_RECORDS // 16
_WAITING_BYTES: Final = MAX_SETTLED * MAX_STATEMENT_BYTES
_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(slots=True)
class ChannelSettled:
    """What one settling of a channel brought."""

    channel: bytes
    taken: int = 0
    """Records of the provider's that this side lacked."""
    sent: int = 0
    to_judge: int = 0
    """Statements that the provider has signed and this side not yet."""
    statements: list[Signed[Statement]] = field(default_factory=list)
    """Signed by both now."""
    drafted: Statement | None = None
    """What the provider states, where this side states something else."""
    is_drafted_signed: bool = False
    """True if it had signed that before."""
    differences: list[StatementDifference] = field(default_factory=list)
    nothing: NothingToState | None = None
    """Why there was no (further) statement."""
    waiting: list[str] = field(default_factory=list)
    """Why a record that came was not kept."""
    documents: list[str] = field(default_factory=list)
    """Numbers of the invoices whose files came."""


class StatementClient:
    """Carries them out on a link. All raise RemoteError, InvalidRecord and LedgerError."""

    def __init__(
        self,
        ledger: Ledger,
        key: SecretKey,
        *,
        details: Details,
        hooks: BuyerHooks,
        agreed: Agreed,
        now_ms: Callable[[], int],
        keep_evidence: Callable[[Record, str], None],
        offer: Callable[[], Signed[Offer] | None] = lambda: None,
        on_signed: Callable[[Signed[Statement]], None] = lambda _: None,
    ) -> None:
        """`offer`: what the provider sells by now. `on_signed` with what both have signed."""
        self._ledger = ledger
        self._key = key
        self._details = details
        self._hooks = hooks
        self._agreed = agreed
        self._now_ms = now_ms
        self._keep_evidence = keep_evidence
        self._offer = offer
        self._on_signed = on_signed

    # -- records ----------------------------------------------------------------------------------------------------

    async def bring_together(self, link: LinkConnection, channel: Signed[Channel], done: ChannelSettled) -> None:
        """Each side gets the records of settlement that it lacks."""
        channel_id = channel.message.channel
        details = details_of(self._details, channel.message)
        listing = Listing(self._ledger, channel_id, details, now_ms=self._now_ms())
        by_id = {at.id: at for at in listing.places}
        records: list[Record] = []
        after, pages, n_bytes = BEGIN, 0, 0
        while after < END:
            pages += 1
            if pages > _MOST_PAGES:
                raise ProtocolViolation("the provider compares records of settlement without end.")
            async with exchange(link, max_messages=2 * MAX_SETTLED, max_bytes=_WAITING_BYTES) as talk:
                page = page_of(listing.places, channel_id, after)
                talk.send(Kind.SETTLE, page.to_bytes())
                compared = parse_frame(await talk.expect(Kind.SETTLE_COMPARED), SettlementCompared)
                check_compared(compared, page)
                for _ in range(compared.records):
                    payload = await talk.expect(Kind.RECORD)
                    n_bytes += len(payload)
                    if len(payload) > MAX_STATEMENT_BYTES or n_bytes > MOST_BYTES:
                        raise ProtocolViolation("the provider sends more records of settlement than a channel has.")
                    records.append(parse_record(payload))
                talk.send(Kind.SETTLE_TAKEN)
                for one in listing.read(by_id[record_id] for record_id in compared.lacks):
                    talk.send(Kind.RECORD, one.record.to_bytes())
                await talk.expect(Kind.SETTLE_TAKEN)
                done.sent += len(compared.lacks)
                after = compared.until
        held = await read_listed(listing) if records else []
        if len(records) <= _AT_ONCE:
            taken = self._checked(records, held, listing.left_out, channel)
        else:
            taken = await asyncio.to_thread(self._checked, records, held, listing.left_out, channel)
        await keep_taken(self._ledger, taken, self._details, self._keep_evidence)
        done.taken += len(taken.keep) + len(taken.details)
        done.to_judge = len(taken.to_judge)
        done.waiting = [printable(sentence) for _, sentence in taken.waiting]

    def _checked(
        self,
        records: list[Record],
        held: list[Signed[Any]],
        left_out: Sequence[Signed[Any]],
        channel: Signed[Channel],
    ) -> Taken:
        now_ms = self._now_ms()
        try:
            return check_taken(records, held, channel.message, Role.CLIENT, now_ms=now_ms, left_out=left_out)
        except InvalidRecord as fault:
            for record in records:
                try:
                    check_taken([record], [], channel.message, Role.CLIENT, now_ms=now_ms)
                except InvalidRecord as its_own:
                    if record.payload_type != BillingDetails.payload_type:  # an address is no evidence
                        raise DisputedRecord(its_own, record) from fault
            raise

    # -- statements -------------------------------------------------------------------------------------------------

    async def state(
        self,
        link: LinkConnection,
        channel: Signed[Channel],
        done: ChannelSettled,
        *,
        is_wanted: bool,
        until_ms: int,
        until_day: int = 0,
        accepts_due: bool = False,
    ) -> bool:
        """The next statement, if there is one: judged, signed by both. True if it was signed.

        The arguments are those of `StatementRequest`, and of `judge`.
        """
        terms = channel.message
        async with exchange(link, max_bytes=8 * MAX_STATEMENT_BYTES) as talk:
            request = StatementRequest(
                channel=terms.channel, is_wanted=is_wanted, until_ms=until_ms, until_day=until_day
            )
            talk.send(Kind.STATEMENT_REQUEST, request.to_bytes())
            kinds = Kind.STATEMENT_DRAFT, Kind.NOTHING_TO_STATE
            received = await talk.receive(*kinds, timeout_s=DRAFT_TIMEOUT_S)
            if received.kind == Kind.NOTHING_TO_STATE:
                said = parse_frame(received.payload, NothingToState)
                done.nothing = NothingToState(code=said.code, message=printable(said.message))
                return False
            draft = parse_frame(received.payload, StatementDraft)
            record = parse_record(draft.statement)
            theirs = parse_message(record, Statement)
            signed = self._signed_by_provider(record, terms) if record.signatures else None
            days = date.fromordinal(draft.first_day), date.fromordinal(draft.last_day)
            judged = await self._judge(channel, theirs, days, signed, accepts_due)
            if judged.differences:
                await self._differ(talk, theirs, judged)
                done.drafted, done.differences = theirs, judged.differences
                done.is_drafted_signed = signed is not None
                return False
            if signed is None:
                self._agreed.note(record, theirs, self._now_ms())
                talk.send(Kind.STATEMENT_AGREED)
                signed = self._very_draft(parse_record(await talk.expect(Kind.STATEMENT)), record, terms)
            both = signed.countersigned(Role.CLIENT, self._key)
            await self._keep(both)
            talk.send(Kind.STATEMENT, both.record.to_bytes())
            await talk.expect(Kind.STATEMENT_TAKEN)
        done.statements.append(both)
        done.drafted, done.differences = None, []
        self._on_signed(both)
        try:
            await self._hooks.on_stated(both, terms)
        except P2pgridError as error:
            log.error("a statement that both signed could not be gone on with: %s", error)
        return True

    async def _judge(
        self,
        channel: Signed[Channel],
        theirs: Statement,
        days: tuple[date, date],
        signed: Signed[Statement] | None,
        accepts_due: bool,
    ) -> Judged:
        if signed is not None and self._agreed.knows(theirs.channel, theirs.statement_number, signed.id):
            return Judged([], {})
        offer = self._offer()
        return await judge(
            self._ledger,
            channel,
            self._details,
            theirs,
            days,
            now_ms=self._now_ms(),
            offer=offer.message if offer is not None else None,
            is_signed=signed is not None,
            accepts_due=accepts_due,
        )

    async def _differ(self, talk: Exchange, theirs: Statement, judged: Judged) -> None:
        """Find out which receipts are others, where it is they, and say what differs."""
        if judged.is_of_other_receipts:
            judged.differences[:0] = await self._other_receipts(talk, theirs, judged)
        talk.send(Kind.STATEMENT_DIFFERS, differs(judged.differences).to_bytes())

    async def _other_receipts(self, talk: Exchange, theirs: Statement, judged: Judged) -> list[StatementDifference]:
        found: list[StatementDifference] = []
        first = theirs.first_receipt
        while first <= theirs.last_receipt and len(found) <= MAX_SETTLED:
            talk.send(Kind.STATED_RECEIPTS_REQUEST, StatedReceiptsRequest(first=first).to_bytes())
            told = parse_frame(await talk.expect(Kind.STATED_RECEIPTS), StatedReceipts)
            found += receipt_differences(judged.ids, told.ids, first)
            first += len(told.ids)
            if len(told.ids) < MAX_STATED_IDS:
                break
        return found

    def _signed_by_provider(self, record: Record, terms: Channel) -> Signed[Statement]:
        return verify_record(record, Statement, {Role.PROVIDER: parse_public_key(terms.provider)})

    def _very_draft(self, record: Record, draft: Record, terms: Channel) -> Signed[Statement]:
        signed = self._signed_by_provider(record, terms)
        if signed.id != draft.id:
            fault = InvalidRecord("statement-mismatch", "the provider signed another statement than it had drafted.")
            raise DisputedRecord(fault, record)
        return signed

    async def _keep(self, both: Signed[Statement]) -> None:
        try:
            await self._ledger.append(both)
        except SlotTaken:
            self._keep_evidence(both.record, CONFLICT)
            raise ProtocolViolation(
                f"the provider has signed two statements with the number {both.message.statement_number}."
            ) from None

    # -- documents --------------------------------------------------------------------------------------------------

    async def fetch_documents(self, link: LinkConnection, channel: Signed[Channel], done: ChannelSettled) -> None:
        """The files of invoices on record that are not here yet, some at a time."""
        invoices = self._ledger.settlement(Invoice, channel.message.channel)
        try:
            lacking = list(self._hooks.lacks(invoices))[:MOST_DOCUMENTS]
        except P2pgridError as error:
            log.error("which invoices' files are here cannot be read: %s", error)
            return
        for invoice in lacking:
            try:
                file = await self._fetch(link, channel.message.channel, invoice)
            except Refused as refusal:
                done.waiting.append(f"invoice {printable(invoice.message.invoice_number)}: {refusal.message}")
                continue
            try:
                await self._hooks.on_document(invoice, channel.message, file)
            except P2pgridError as error:
                log.error("an invoice's file could not be taken in: %s", error)
                continue
            done.documents.append(invoice.message.invoice_number)

    async def _fetch(self, link: LinkConnection, channel: bytes, invoice: Signed[Invoice]) -> InvoiceFile:
        wanted = invoice.message.document_sha256
        content = bytearray()
        async with exchange(link) as talk:
            while True:
                request = DocumentRequest(channel=channel, document_sha256=wanted, offset=len(content))
                talk.send(Kind.DOCUMENT_REQUEST, request.to_bytes())
                piece = parse_frame(await talk.expect(Kind.DOCUMENT), DocumentPiece)
                content += piece.content
                if len(content) > min(piece.size, MAX_DOCUMENT_BYTES):
                    raise ProtocolViolation("a document is longer than its provider says.")
                if len(content) == piece.size:
                    break
        if hashlib.sha256(content).digest() != wanted:
            raise Refused("document-mismatch", "the file that came is not the one whose hash the invoice's record has.")
        name = _NAME.sub("-", piece.name).lstrip(".-")[:128]
        return InvoiceFile(name=name or "invoice", content=bytes(content))
