"""Self-billing (Directive 2006/112/EC, Article 224): the client writes the document, the provider signs its record.

    client:   statement signed by both -> 389 or 261, numbered in a series of this pair -> invoices/self-billed/2027/...
    a person: hands the file to the provider (e-mail, a portal)
    provider: p2pgrid invoices accept FILE -> looked through as any document from a peer -> Invoice record, signed
    client:   gets the record with the next exchange, as for any invoice

It is so where both sides say `self-billing = true`. Nothing here writes the ledger but the provider's record.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from p2pgrid.clock import unix_ms
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.proto.keys import SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel, Offer, Receipt
from p2pgrid.proto.record import Role, Signed, parse_record, sign_message
from p2pgrid.proto.statement import Invoice, InvoiceType, Statement
from p2pgrid.settlement.billing import Purpose, require
from p2pgrid.settlement.clock import Days
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.document_check import SELF_BILLED, Expected, check_document
from p2pgrid.settlement.document_facts import DocumentRefused, Facts, facts_of, xml_in_pdf
from p2pgrid.settlement.drafting import Case, Drafter, Series
from p2pgrid.settlement.issue_book import IssueBook, Number, parse_number
from p2pgrid.settlement.issued_files import publish
from p2pgrid.settlement.issued_rows import profile_of
from p2pgrid.settlement.making import main_format, needs_document
from p2pgrid.settlement.rendering import Renderer, RenderHere
from p2pgrid.settlement.standing import Records, corrected_by
from p2pgrid.settlement.statements.calendar import offset_of
from p2pgrid.settlement.statements.days import LocalDays

log = logging.getLogger(__name__)

_NOON_MS: Final = 43_200_000


class ClientRecords(Records, Protocol):
    """What of a client's ledger is needed here: any reader has it."""

    def channels(self) -> list[Signed[Channel]]: ...

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None: ...

    def offer(self, offer_id: bytes) -> Signed[Offer] | None: ...


def are_self_billed(details: DetailsBook, terms: Channel) -> bool:
    """True where both sides have said that the client writes the invoices."""
    seller, buyer = details.of(terms.provider, Role.PROVIDER), details.of(terms.client, Role.CLIENT)
    return bool(seller and buyer and seller.message.self_billing_agreed and buyer.message.self_billing_agreed)


def self_bill(
    data: DataFolder,
    records: ClientRecords,
    keys: Sequence[SecretKey],
    *,
    now_ms: Callable[[], int] = unix_ms,
    renderer: Callable[[], Renderer] = RenderHere,
) -> list[str]:
    """Write the documents that are the client's to write, and finish what a crash interrupted. Blocking.

    Numbers of those that were not there before. Raises UsageError (InvoiceRefused among them) for the first that is
    refused, LocalError, LedgerError.
    """
    done: list[str] = []
    own = {key.public_key.raw: key for key in keys}
    with closing(open_database(data.path / FILE_NAME)) as connection, closing(renderer()) as drawing:
        book, details = IssueBook(connection), DetailsBook(connection, now_ms)
        folder = data.path / "invoices" / "self-billed"
        _finish(book, folder, now_ms())
        for signed in records.channels():
            terms = signed.message
            if terms.client not in own:
                continue
            billing = data.load_config().billing
            if billing.self_billing:
                details.make_own(billing, own[terms.client], Role.CLIENT)
            if not are_self_billed(details, terms):
                continue
            for case in _cases(records, details, terms):
                if book.of_statement(case.statement.id):
                    continue
                series = Series(
                    prefix=series_of(terms), key=None, days=_days_of(records, case.statement), now_ms=now_ms
                )
                Drafter(book, drawing).invoice(case, series)
                _finish(book, folder, now_ms())
                done += [str(row.number) for row in book.of_statement(case.statement.id)]
    return done


def series_of(terms: Channel) -> str:
    """The series of a pair: no other client of the provider has it, and no other provider of the client."""
    return f"SB-{hashlib.sha256(terms.provider + terms.client).hexdigest()[:8].upper()}"


def accepted(
    content: bytes,
    *,
    records: ClientRecords,
    details: DetailsBook,
    keys: Sequence[SecretKey],
    now_ms: int,
) -> tuple[Signed[Invoice], Channel, Signed[Statement]]:
    """The provider's record for a document that its client wrote, after looking it through: the one on record, if the
    document was accepted before. Nothing is written here.

    Raises DocumentRefused with what does not fit, UsageError, LedgerError, LocalError.
    """
    facts = facts_of(xml_in_pdf(content) if content[:5] == b"%PDF-" else content)
    if facts.type_code not in {kind.value for kind in SELF_BILLED}:
        raise DocumentRefused("type", f"it is a document of type {facts.type_code}; 389 or 261 was expected.")
    own = {key.public_key.raw: key for key in keys}
    terms, statement = _stated_in(records, own, facts.supporting)
    if not are_self_billed(details, terms):
        raise DocumentRefused(
            "self-billing",
            "both sides have not agreed that the client writes the invoices.",
            hint="Set self-billing = true under [billing], if you have; the client has to do so too.",
        )
    digest = hashlib.sha256(content).digest()
    for one in records.settlement(Invoice, terms.channel):
        if one.message.statement == statement.id:
            if one.message.document_sha256 == digest:
                return one, terms, statement
            raise DocumentRefused("statement", "the statement has an invoice already.")
    kind = InvoiceType(facts.type_code)
    sign = -1 if kind.is_credit_note else 1
    midnight = datetime(facts.issue_date.year, facts.issue_date.month, facts.issue_date.day, tzinfo=UTC)
    issued_ms = max(int(midnight.timestamp() * 1000) + _NOON_MS, statement.message.stated_ms)
    if issued_ms > now_ms + 2 * _NOON_MS:
        raise DocumentRefused("issue-date", f"it is dated {facts.issue_date}, later than today.")
    _check_number(facts, records, terms, own)
    message = Invoice(
        channel=terms.channel,
        statement=statement.id,
        invoice_number=facts.number,
        type_code=kind,
        currency=statement.message.currency,
        net_cents=sign * facts.net_cents,
        vat_cents=sign * facts.vat_cents,
        gross_cents=sign * facts.gross_cents,
        document_sha256=digest,
        issued_ms=issued_ms,
    )
    stated = statement.message
    if (message.net_cents, message.gross_cents) != (stated.net_cents, stated.gross_cents):
        raise DocumentRefused(
            "gross",
            f"it comes to {message.gross_cents} cents ({message.net_cents} net); both sides signed "
            f"{stated.gross_cents} ({stated.net_cents}).",
        )
    check_document(
        facts,
        Expected(
            invoice=message,
            statement=stated,
            statement_id=statement.id,
            seller=[one.message for one in details.all_of(terms.provider, Role.PROVIDER)],
            buyer=[one.message for one in details.all_of(terms.client, Role.CLIENT)],
        ),
    )
    try:
        return sign_message(message, Role.PROVIDER, own[terms.provider]), terms, statement
    except InvalidRecord as error:
        raise DocumentRefused("form", f"no record can be made of it: {error.message}") from None


def _check_number(facts: Facts, records: ClientRecords, terms: Channel, own: Collection[bytes]) -> None:
    """Of the pair's series, so that it is in no other's way, and not used before. Raises DocumentRefused."""
    number, series = parse_number(facts.number), series_of(terms)
    if number is None or (number.series, number.year) != (series, facts.issue_date.year):
        raise DocumentRefused(
            "number",
            f"its number is {facts.number[:70]!r}; {Number(series, facts.issue_date.year, 1)} or a later one of that "
            "series was expected.",
        )
    sold = [signed.message.channel for signed in records.channels() if signed.message.provider in own]
    if any(one.message.invoice_number == facts.number for c in sold for one in records.settlement(Invoice, c)):
        raise DocumentRefused("number", f"another invoice has the number {facts.number} already.")


def _cases(records: ClientRecords, details: DetailsBook, terms: Channel) -> list[Case]:
    seller, buyer = details.of(terms.provider, Role.PROVIDER), details.of(terms.client, Role.CLIENT)
    assert seller is not None and buyer is not None
    provider = parse_public_key(terms.provider).peer_id
    require(seller.message, Purpose.ISSUE, provider)
    require(buyer.message, Purpose.BE_INVOICED)
    billed = {one.message.statement for one in records.settlement(Invoice, terms.channel)}
    stated = {one.id: one for one in records.settlement(Statement, terms.channel) if Role.CLIENT in one.signers}
    found = []
    for one in sorted(stated.values(), key=lambda signed: signed.message.statement_number):
        before = stated.get(one.message.previous)
        held = before.message.held_pico if before is not None else 0
        if one.id in billed or not needs_document(one.message, held):
            continue
        corrected = corrected_by(records, one) if one.message.net_cents < 0 else []
        days = _days_of(records, one)
        found.append(
            Case(
                channel=terms,
                statement=one,
                held_before_pico=held,
                preceding=tuple((i.message.invoice_number, days(i.message.issued_ms)) for i in corrected),
                seller=seller,
                buyer=buyer,
                is_self_billed=True,
            )
        )
    return found


def _days_of(records: ClientRecords, statement: Signed[Statement]) -> Days:
    """The provider's days, by the clock of the offer under which the statement's last receipt was."""
    return LocalDays.at_offset(offset_of(records, statement.message) or 0).of


def _stated_in(
    records: ClientRecords, own: dict[bytes, SecretKey], references: Sequence[str]
) -> tuple[Channel, Signed[Statement]]:
    """The statement that a document names, of a channel in which this node sells."""
    named = {text.lower() for text in references}
    for signed in records.channels():
        if signed.message.provider in own:
            for statement in records.settlement(Statement, signed.message.channel):
                if statement.id.hex() in named and Role.CLIENT in statement.signers:
                    return signed.message, statement
    raise DocumentRefused("statement", "it names no statement that this node and a client of it have signed.")


def _finish(book: IssueBook, folder: Path, now_ms: int) -> None:
    """Put what this node wrote as a client, and has its number, into the folder."""
    for row in book.unpublished():
        if parse_record(row.record).signatures:
            continue  # one that this node issued as a provider
        number = str(row.number)
        publish(folder / str(row.number.year), book.files(number), number + main_format(profile_of(row)).value)
        book.published(number, now_ms)


def read_document(path: Path) -> bytes:
    """A document that a person was handed. Raises UsageError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="Check its name.") from None
