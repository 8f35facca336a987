"""What the exchange of statements asks of whoever issues invoices, and of whoever takes them in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from p2pgrid.clock import unix_ms
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import InvalidRecord, LedgerError, LocalError
from p2pgrid.proto.keys import SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import M, Role, Signed
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.documents import Documents
from p2pgrid.settlement.hooks import InvoiceFile, NamedFile
from p2pgrid.settlement.issue_book import IssueBook
from p2pgrid.settlement.issued_rows import find_document
from p2pgrid.settlement.issuing import Issuer

log = logging.getLogger(__name__)

_MAY_FIT_LATER: Final = frozenset({"statement", "seller", "buyer", "iban"})
"""What was found of a document that came before the statement's second signature, or before newer billing details."""


class SettlementRecords(Protocol):
    """What of a ledger is needed here."""

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...


def details_for(
    data: DataFolder, keys: Sequence[SecretKey], by: Role, now_ms: Callable[[], int] = unix_ms
) -> DetailsBook:
    """The book of a node that runs, with its own details as config.toml has them now, under each of its keys.

    Where `[billing]` does not do, or a library is missing, that is logged, and the node has none or those of before.
    `keys`: the present one first. Raises LedgerError, UsageError for a config.toml that cannot be read.
    """
    book = DetailsBook(open_database(data.path / FILE_NAME), now_ms)
    billing = data.load_config().billing
    if not billing.legal_name:
        return book  # nobody has set any
    try:
        book.make_own_of_all(billing, keys, by)
    except LedgerError:
        raise
    except (InvalidRecord, LocalError) as error:
        log.warning("billing details are not told to anybody: %s", error)
    return book


class IssuingHooks:
    """The provider's."""

    def __init__(self, data: DataFolder, issuer: Issuer, now_ms: Callable[[], int] = unix_ms) -> None:
        self._issuer: Final = issuer
        self._folder: Final = data.path / "invoices" / "issued"
        # Another connection than the issuer's: that one is its thread's.
        connection = open_database(data.path / FILE_NAME)
        self._book: Final = IssueBook(connection)
        self._documents: Final = Documents(data.path, connection, now_ms=now_ms)
        self._now_ms: Final = now_ms

    async def on_stated(self, signed: Signed[Statement], channel: Channel) -> None:
        """Issue its invoice. What is refused is noted and logged. Raises LedgerError, LocalError."""
        await self._issuer.on_stated(signed, channel)

    def document(self, invoice: Signed[Invoice]) -> InvoiceFile | None:
        """The file of that invoice, and a note that the client was given it. Raises LocalError, LedgerError."""
        found = find_document(self._book, self._folder, invoice)
        if found is None:
            # A self-billed one is the client's own; it is given back to a client that has lost it.
            received = self._documents.received(invoice.id)
            if received is None or received.is_refused or not received.files:
                return None
            return InvoiceFile(name=received.files[0].name, content=received.files[0].read_bytes())
        self._book.sent(invoice.message.invoice_number, self._now_ms())
        return InvoiceFile(name=found[0], content=found[1])


class ReceivingHooks:
    """The client's."""

    def __init__(self, data: DataFolder, ledger: SettlementRecords, now_ms: Callable[[], int] = unix_ms) -> None:
        self._ledger: Final = ledger
        self._documents: Final = Documents(data.path, now_ms=now_ms)
        self._seen: Final = Documents(data.path, now_ms=now_ms)  # for reading, beside what a thread writes
        self._lock: Final = asyncio.Lock()

    async def on_stated(self, signed: Signed[Statement], channel: Channel) -> None:
        """Nothing is to be done: the provider issues."""

    def lacks(self, invoices: Sequence[Signed[Invoice]]) -> Sequence[Signed[Invoice]]:
        """Of these, those whose file has not come yet, or came before what it was held against."""
        found = ((one, self._seen.received(one.id)) for one in invoices)
        return [one for one, received in found if received is None or received.code in _MAY_FIT_LATER]

    async def on_document(self, invoice: Signed[Invoice], channel: Channel, file: NamedFile) -> None:
        """Look through it and keep it. What does not fit is logged. Raises LocalError, LedgerError."""
        stated = self._ledger.settlement(Statement, channel.channel)
        statement = next((one for one in stated if one.id == invoice.message.statement), None)
        async with self._lock:
            taken = await asyncio.to_thread(
                self._documents.take_received, invoice, file.content, channel=channel, statement=statement
            )
        if taken.is_refused:
            peer = parse_public_key(channel.provider).peer_id
            log.error(
                "DO NOT PAY invoice %r of %s: its document does not fit (%s). %s It lies in %s",
                invoice.message.invoice_number, peer, taken.code, taken.message, self._documents.refused_folder / peer,
            )  # fmt: skip
