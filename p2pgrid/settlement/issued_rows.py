"""What a row of issued documents leads to: its record, its profile, its file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from p2pgrid.errors import InvalidRecord, LedgerError, LocalError
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed, parse_record, verify_record
from p2pgrid.proto.statement import Invoice
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.issue_book import IssueBook, IssuedRow, State
from p2pgrid.settlement.issued_files import read_file
from p2pgrid.settlement.making import decode_inputs, main_format


def find_document(book: IssueBook, folder: Path, invoice: Signed[Invoice]) -> tuple[str, bytes] | None:
    """Name and bytes of the file that an issued invoice's record is about; None if it is not here. `folder`: of what
    is issued. Raises LocalError, LedgerError."""
    row = book.row(invoice.message.invoice_number)
    if row is None or not row.inputs or parse_record(row.record).id != invoice.id:
        return None
    name = str(row.number) + main_format(profile_of(row)).value
    if row.state is State.ALLOTTED:
        content = dict(book.files(str(row.number))).get(name)
    else:
        content = read_file(folder / str(row.number.year) / name)
    if content is None:
        return None
    if hashlib.sha256(content).digest() != invoice.message.document_sha256:
        raise LocalError(
            f"{folder / str(row.number.year) / name} is not the file that was signed: it was changed since.",
            hint="Restore it from a backup.",
        )
    return name, content


def profile_of(row: IssuedRow) -> Profile:
    """The profile that a document was written to. Raises LedgerError."""
    inputs = decode_inputs(row.inputs)
    name = decode_inputs(inputs.cancels).profile if inputs.cancels else inputs.profile
    try:
        return Profile(name)
    except ValueError as error:
        raise LedgerError(f"settlement.db has an unknown profile for {row.number}: {error}.") from None


def signed_row(row: IssuedRow, terms: Channel) -> Signed[Invoice]:
    try:
        return verify_record(parse_record(row.record), Invoice, {Role.PROVIDER: parse_public_key(terms.provider)})
    except InvalidRecord as error:
        raise LedgerError(
            f"settlement.db holds an invoice {row.number} that does not verify: {error.message}",
            hint="Restore it from a backup.",
        ) from None
