"""Invoices for statements that both sides have signed: once each, numbered without gaps, through every crash.

    statement signed by both -> document made and validated -> number, record and bytes in one transaction of
    settlement.db -> record in the ledger -> files in <data>/invoices/issued -> told

What comes before the transaction leaves nothing behind, and what comes after it is made up for at the next start.
Drawing and validating is done by a process of its own (`rendering`), which one thread here waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from p2pgrid.clock import unix_ms
from p2pgrid.config import Config
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import InvalidRecord, LedgerError, LocalError, P2pgridError, UsageError
from p2pgrid.proto.keys import SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Message, Role, Signed
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.settlement.billing import Purpose as BillingPurpose
from p2pgrid.settlement.billing import require
from p2pgrid.settlement.clock import days_of_zone
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.documents import Documents
from p2pgrid.settlement.drafting import Case, Drafter, Series
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.issue_book import IssueBook, IssuedRow, NotIssued, State
from p2pgrid.settlement.issued_files import publish
from p2pgrid.settlement.issued_rows import find_document, profile_of, signed_row
from p2pgrid.settlement.making import checked_reason, main_format, needs_document
from p2pgrid.settlement.rendering import Renderer, RenderProcess
from p2pgrid.settlement.self_billing import ClientRecords, accepted
from p2pgrid.settlement.standing import corrected_by, standing

log = logging.getLogger(__name__)

INTERVAL_S: Final = 3600.0
"""How often what is pending is tried again."""
IDLE_S: Final = 30.0
"""How long the processes that draw and check, some 400 MB, are kept for the next document."""

T = TypeVar("T")


class LedgerOfInvoices(ClientRecords, Protocol):
    """What of a ledger is needed here; its writer has it."""

    def append(self, *signed: Signed[Message]) -> asyncio.Future[None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueReport:
    """What came of issuing what was pending."""

    issued: tuple[str, ...]
    """Numbers that were not there before."""
    refused: tuple[NotIssued, ...]
    """Statements that still have no invoice."""


class Issuer:
    """Issues the invoices of a provider. One for a ledger's writer; `aclose` it before the ledger."""

    def __init__(
        self,
        data: DataFolder,
        ledger: LedgerOfInvoices,
        keys: Sequence[SecretKey],
        *,
        now_ms: Callable[[], int] = unix_ms,
        renderer: Callable[[], Renderer] = RenderProcess,
    ) -> None:
        """`keys`: the node's own first, then those it had before. Raises LedgerError."""
        self._data: Final = data
        self._ledger: Final = ledger
        self._keys: Final = {key.public_key.raw: key for key in keys}
        self._own: Final = tuple(keys)
        self._now_ms: Final = now_ms
        self._make_renderer: Final = renderer
        self._renderer: Renderer | None = None
        data.make()
        # One thread has the connection and the process that draws: nothing in it runs twice at once.
        self._thread: Final = ThreadPoolExecutor(1, thread_name_prefix="invoices")
        connection = open_database(data.path / FILE_NAME)
        self._connection: Final = connection
        self._book: Final = IssueBook(connection)
        self._details: Final = DetailsBook(connection, now_ms)
        self._lock: Final = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._is_recovered = False
        self.on_issued: Callable[[bytes], None] = lambda channel: None
        """Called with a channel's id when there is an invoice in it that the client may not have heard of."""
        self._unwritten: list[LocalError] = []

    @property
    def folder(self) -> Path:
        """Where issued documents are, in a folder for each year."""
        return self._data.path / "invoices" / "issued"

    # -- issuing ----------------------------------------------------------------------------------------------------

    async def on_stated(self, signed: Signed[Statement], channel: Channel | None = None) -> None:
        """Both sides have signed this statement: issue its invoice, if it is not there. It may be called again.

        A document that is refused is noted with the reason, and tried again (`issue_pending`). Raises LedgerError,
        LocalError where this machine has to be mended first.
        """
        async with self._session():
            if not self._is_recovered:
                await self._recover(self._channels())
            terms = channel if channel is not None else self._channels().get(signed.message.channel)
            if terms is not None and terms.provider in self._keys:
                await self._issue(terms, signed)
            self._raise_unwritten()

    async def issue_pending(self) -> IssueReport:
        """Finish what a crash interrupted, then issue what is missing. Raises LedgerError, LocalError."""
        async with self._session():
            before = {str(row.number) for row in await self._run(self._book.all)}
            channels = self._channels()
            await self._recover(channels)
            for terms in channels.values():
                for statement in self._unbilled(terms):
                    await self._issue(terms, statement)
            rows = await self._run(self._book.all)
            waiting = {statement.id for terms in channels.values() for statement in self._unbilled(terms)}
            refused = [one for one in (await self._run(self._book.not_issued)).values() if one.statement in waiting]
            self._raise_unwritten()
        return IssueReport(
            issued=tuple(str(row.number) for row in rows if str(row.number) not in before),
            refused=tuple(refused),
        )

    async def run(self) -> None:
        """For the node's task: what is pending, now and every hour. What stops it is logged, and tried again."""
        while True:
            try:
                report = await self.issue_pending()
                if report.issued:
                    log.info("invoices issued: %s", ", ".join(report.issued))
            except P2pgridError as error:
                log.warning("invoices are not issued now: %s", error)
            await asyncio.sleep(INTERVAL_S)

    async def cancel(self, number: str, reason: str) -> tuple[str, str]:
        """Take back an invoice by a credit note, and write the statement's anew by the billing details of today.

        Both are issued, or neither: an invoice's sums are its statement's, which both sides have signed, so that there
        is no taking back alone. The numbers of both. Raises InvoiceRefused, UsageError, LedgerError, LocalError.
        """
        async with self._session():
            channels = self._channels()
            await self._recover(channels)
            row = await self._run(lambda: self._book.row(number))
            terms = channels.get(row.channel) if row is not None else None
            if row is None or terms is None or not row.inputs:
                raise UsageError(
                    f"this node has issued no invoice {number!r}, or has forgotten what it was made of.",
                    hint="`p2pgrid invoices list --issued` shows what it has issued.",
                )
            statement = next((one for one in self._stated(terms) if one.id == row.statement), None)
            if statement is None:
                raise LedgerError(f"the ledger has no longer the statement of {number}.")
            case = await self._case(terms, statement)
            series, text = self._series(terms), checked_reason(reason)
            await self._run(lambda: self._drafter().again(case, series, row, text))
            await self._finish({terms.channel: terms})
            self._raise_unwritten()
            *_, note, anew = await self._run(lambda: self._book.of_statement(statement.id))
        return str(note.number), str(anew.number)

    async def accept(self, content: bytes) -> Signed[Invoice]:
        """Sign the record of a document that the client wrote (`self_billing`); durable when this returns, file too.

        Raises DocumentRefused with what does not fit, UsageError, LedgerError, LocalError.
        """
        async with self._session():
            config = self._data.load_config()
            for terms in self._channels().values():
                key = self._keys[terms.provider]
                await self._run(functools.partial(self._details.make_own, config.billing, key, Role.PROVIDER))
            invoice, terms, statement = accepted(
                content, records=self._ledger, details=self._details, keys=self._own, now_ms=self._now_ms()
            )
            await self._ledger.append(invoice)
            self.on_issued(terms.channel)
            documents = Documents(self._data.path, self._connection, now_ms=self._now_ms)
            await self._run(
                lambda: documents.take_received(invoice, content, channel=terms, statement=statement, by=Role.CLIENT)
            )
        return invoice

    # -- what was issued --------------------------------------------------------------------------------------------

    async def document(self, invoice: Signed[Invoice]) -> tuple[str, bytes] | None:
        """Name and bytes of the file that the record is about; None if it is not here. Raises LocalError."""
        return await self._run(lambda: find_document(self._book, self.folder, invoice))

    async def sent(self, invoice: Signed[Invoice]) -> None:
        """The client has the document."""
        await self._run(lambda: self._book.sent(invoice.message.invoice_number, self._now_ms()))

    async def aclose(self) -> None:
        """End the process that draws, and close the file. What is under way is waited for."""
        async with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            await self._run(self._stop_renderer)
            await self._run(self._connection.close)
        self._thread.shutdown(wait=False)

    # -- inside: in the loop ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[None]:
        async with self._lock:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
            try:
                yield
            finally:
                if self._renderer is not None:
                    loop = asyncio.get_running_loop()
                    self._idle = loop.call_later(IDLE_S, lambda: self._thread.submit(self._stop_renderer))

    async def _run(self, work: Callable[[], T]) -> T:
        """In the thread. Cancelled, it is waited for: what is being made durable must not go on behind our back."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise

    def _channels(self) -> dict[bytes, Channel]:
        """The channels in which this node sells."""
        return {
            signed.message.channel: signed.message
            for signed in self._ledger.channels()
            if signed.message.provider in self._keys
        }

    def _stated(self, terms: Channel) -> list[Signed[Statement]]:
        """The channel's statements that both have signed, by number."""
        found = [s for s in self._ledger.settlement(Statement, terms.channel) if Role.CLIENT in s.signers]
        return sorted(found, key=lambda signed: signed.message.statement_number)

    def _unbilled(self, terms: Channel) -> list[Signed[Statement]]:
        billed = {invoice.message.statement for invoice in self._ledger.settlement(Invoice, terms.channel)}
        return [statement for statement in self._stated(terms) if statement.id not in billed]

    async def _issue(self, terms: Channel, statement: Signed[Statement]) -> None:
        if not needs_document(statement.message, self._held_before(terms, statement)):
            return
        if any(i.message.statement == statement.id for i in self._ledger.settlement(Invoice, terms.channel)):
            return
        try:
            case = await self._case(terms, statement)
            series = self._series(terms)
            await self._run(lambda: self._drafter().invoice(case, series))
        except LedgerError:
            raise
        except (UsageError, InvalidRecord, LocalError) as refused:
            await self._note_refusal(terms, statement, refused)
            return
        await self._finish({terms.channel: terms})

    async def _note_refusal(self, terms: Channel, statement: Signed[Statement], refused: P2pgridError) -> None:
        code = getattr(refused, "code", "this-machine" if isinstance(refused, LocalError) else "billing")
        client = parse_public_key(terms.client).peer_id
        log.warning("statement %d with %s has no invoice yet: %s", statement.message.statement_number, client, refused)
        await self._run(lambda: self._book.refused(statement.id, code, refused.message, refused.hint, self._now_ms()))

    async def _case(self, terms: Channel, statement: Signed[Statement]) -> Case:
        """Raises InvoiceRefused, UsageError, InvalidRecord where a side's billing details do not do."""
        config = self._data.load_config()
        key = self._keys[terms.provider]
        seller = await self._run(lambda: self._details.make_own(config.billing, key, Role.PROVIDER))
        await self._run(lambda: require(seller.message, BillingPurpose.ISSUE))
        buyer = await self._run(lambda: self._details.of(terms.client, Role.CLIENT))
        client = parse_public_key(terms.client).peer_id
        if buyer is None:
            raise InvoiceRefused(
                "buyer-details",
                f"{client} has not said who it is: its billing details are not here.",
                hint="They come with the next exchange once it has run `p2pgrid billing set`.",
            )
        await self._run(lambda: require(buyer.message, BillingPurpose.BE_INVOICED, client))
        if seller.message.self_billing_agreed and buyer.message.self_billing_agreed:
            raise InvoiceRefused(
                "self-billing",
                "both sides have agreed that the client writes this invoice.",
                hint="Take it in with `p2pgrid invoices accept FILE` when it comes.",
            )
        days = days_of_zone(config.provider.time_zone)
        corrected = corrected_by(self._ledger, statement) if statement.message.net_cents < 0 else []
        return Case(
            channel=terms,
            statement=statement,
            held_before_pico=self._held_before(terms, statement),
            preceding=tuple((one.message.invoice_number, days(one.message.issued_ms)) for one in corrected),
            seller=seller,
            buyer=buyer,
        )

    def _held_before(self, terms: Channel, statement: Signed[Statement]) -> int:
        before = [s for s in self._ledger.settlement(Statement, terms.channel) if s.id == statement.message.previous]
        return before[0].message.held_pico if before else 0

    def _series(self, terms: Channel) -> Series:
        config: Config = self._data.load_config()
        return Series(
            prefix=config.billing.invoice_prefix,
            key=self._keys[terms.provider],
            days=days_of_zone(config.provider.time_zone),
            now_ms=self._now_ms,
        )

    async def _recover(self, channels: Mapping[bytes, Channel]) -> None:
        """Bring file, ledger and folder together: whatever one of them lacks that another has."""
        known = {}
        for terms in channels.values():
            for invoice in self._ledger.settlement(Invoice, terms.channel):
                known[invoice.message.invoice_number] = invoice
        rows = {str(row.number): row for row in await self._run(self._book.all)}
        for one in standing(known.values()):
            if one.invoice.message.invoice_number not in rows:
                await self._run(functools.partial(self._book.adopt, one.invoice))
        await self._finish(channels, [row for row in rows.values() if str(row.number) not in known])
        self._is_recovered = True

    async def _finish(self, channels: Mapping[bytes, Channel], lost: Sequence[IssuedRow] = ()) -> None:
        """What has its number in these channels gets into the ledger, then into the folder. `lost`: what the ledger has
        not. A file that cannot be written holds up no other (`_raise_unwritten`)."""
        rows = {str(row.number): row for row in (*lost, *await self._run(self._book.unpublished))}
        by_statement: dict[bytes, list[IssuedRow]] = {}
        for row in rows.values():
            if row.channel in channels:
                by_statement.setdefault(row.statement, []).append(row)
        for of_one in by_statement.values():
            terms = channels[of_one[0].channel]
            # Those of one statement together: a cancellation and what replaces it are in the ledger both, or neither.
            await self._ledger.append(*(signed_row(row, terms) for row in of_one))
            self.on_issued(terms.channel)
            for row in of_one:
                if row.state is State.ALLOTTED:
                    await self._publish_or_note(row)

    async def _publish_or_note(self, row: IssuedRow) -> None:
        try:
            await self._run(lambda: self._publish(row))
        except LedgerError:
            raise
        except LocalError as error:
            log.error("the files of invoice %s are not in their folder yet: %s", row.number, error)
            self._unwritten.append(error)

    def _raise_unwritten(self) -> None:
        """Raises LocalError where the files of an invoice could not be written: they are tried again."""
        errors, self._unwritten = self._unwritten, []
        if errors:
            raise errors[0]

    # -- inside: in the thread --------------------------------------------------------------------------------------

    def _drafter(self) -> Drafter:
        if self._renderer is None:
            self._renderer = self._make_renderer()
        return Drafter(self._book, self._renderer)

    def _stop_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None

    def _publish(self, row: IssuedRow) -> None:
        number = str(row.number)
        main = number + main_format(profile_of(row)).value
        publish(self.folder / str(row.number.year), self._book.files(number), main)
        self._book.published(number, self._now_ms())
