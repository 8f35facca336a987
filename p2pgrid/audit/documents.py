"""Invoice files held against the records that name them by their SHA-256.

Reading a file's sums is handed in: this room knows records, and no formats of invoices.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from p2pgrid.errors import UsageError
from p2pgrid.proto.settlement_summary import ChannelSettlement, SettledInvoice
from p2pgrid.units import format_cents

MOST_FILES: Final = 100_000
MOST_BYTES: Final = 64 * 1024 * 1024
"""Of a file: larger ones are no invoices, and are passed over."""
ENDINGS: Final = (".xml", ".pdf")


class Totals(Protocol):
    """What an invoice file says; amounts with the record's sign."""

    @property
    def number(self) -> str: ...
    @property
    def type_code(self) -> int: ...
    @property
    def currency(self) -> str: ...
    @property
    def net_cents(self) -> int: ...
    @property
    def vat_cents(self) -> int: ...
    @property
    def gross_cents(self) -> int: ...
    @property
    def supporting(self) -> tuple[str, ...]: ...


ReadTotals = Callable[[bytes], Totals]
"""From a file's bytes to what it says. Raises UsageError for what is no invoice."""


class DocumentCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One invoice and its file."""

    invoice_id: str
    invoice_number: str
    state: str
    """`ok`; `missing`: no file has its SHA-256; `altered`: a file has its number and another SHA-256; `wrong`: the file
    is the one, or another form of the invoice beside it, and does not say what the record says; `unreadable`: the file
    is the one, and is no invoice."""
    file: str
    sentence: str
    difference_cents: int | None = None
    """By how much the file's gross is more than the record's, where it is another."""


def check_documents(
    settlement: Iterable[ChannelSettlement], folder: Path, read: ReadTotals, report: Callable[[str, int, int], None]
) -> tuple[DocumentCheck, ...]:
    """Hold every invoice against the files in a folder and below it. Raises UsageError if there is no such folder."""
    files = _files_in(folder)
    by_hash: dict[str, Path] = {}
    for done, path in enumerate(files):
        report("hashing", done, len(files))
        by_hash.setdefault(_hash_of(path), path)
    invoices = [invoice for one in settlement for invoice in one.invoices]
    matched = {by_hash[one.document_sha256] for one in invoices if one.document_sha256 in by_hash}
    others = [path for path in files if path not in matched]
    claimed = _numbers_in(others, read, report) if invoices else {}
    checks = []
    for done, invoice in enumerate(invoices):
        report("comparing", done, len(invoices))
        file = by_hash.get(invoice.document_sha256)
        if file is not None:
            beside = [path for path in claimed.get(invoice.invoice_number, ()) if path.parent == file.parent]
            checks.append(_compared_with_others(invoice, file, beside, folder, read))
        else:
            checks.append(_lacking(invoice, claimed.get(invoice.invoice_number, ()), folder))
    return tuple(checks)


def _files_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder.", hint="Name the folder with the invoice files.")
    found = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(parent) / name for name in sorted(names) if name.lower().endswith(ENDINGS)]
        if len(found) > MOST_FILES:
            raise UsageError(f"{folder} holds more than {MOST_FILES} files.", hint="Check a year at a time.")
    return [path for path in found if path.is_file() and path.stat().st_size <= MOST_BYTES]


def _hash_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def _numbers_in(
    paths: Sequence[Path], read: ReadTotals, report: Callable[[str, int, int], None]
) -> dict[str, list[Path]]:
    """Of files that no record names: those that say which invoice they are, by its number."""
    found: dict[str, list[Path]] = defaultdict(list)
    for done, path in enumerate(paths):
        report("reading", done, len(paths))
        try:
            found[read(path.read_bytes()).number].append(path)
        except (UsageError, OSError):
            continue
    return found


def _compared_with_others(
    invoice: SettledInvoice, path: Path, others: Iterable[Path], folder: Path, read: ReadTotals
) -> DocumentCheck:
    """`others`: further forms of the same invoice in the same folder. They have to say the same."""
    check = _compared(invoice, path, folder, read)
    for other in others if check.state == "ok" else ():
        if (of_other := _compared(invoice, other, folder, read)).state != "ok":
            return of_other
    return check


def _compared(invoice: SettledInvoice, path: Path, folder: Path, read: ReadTotals) -> DocumentCheck:
    name = str(path.relative_to(folder))
    try:
        totals = read(path.read_bytes())
    except UsageError as error:
        sentence = f"The file {name} of invoice {invoice.invoice_number} cannot be read: {error.message}"
        return _check(invoice, "unreadable", name, sentence)
    for what, in_file, in_record in (
        ("number", totals.number, invoice.invoice_number),
        ("type", totals.type_code, invoice.type_code),
        ("currency", totals.currency, invoice.currency),
    ):
        if in_file != in_record:
            sentence = (
                f"The file {name} says {in_file} for the {what} of invoice {invoice.invoice_number}; its record says"
            )
            return _check(invoice, "wrong", name, f"{sentence} {in_record}.")
    for what, cents, recorded in (
        ("net", totals.net_cents, invoice.net_cents),
        ("VAT", totals.vat_cents, invoice.vat_cents),
        ("gross", totals.gross_cents, invoice.gross_cents),
    ):
        if cents != recorded:
            sentence = f"The {what} of invoice {invoice.invoice_number} is {format_cents(cents)} {invoice.currency} in "
            sentence += f"{name}; its record says {format_cents(recorded)}."
            return _check(invoice, "wrong", name, sentence, totals.gross_cents - invoice.gross_cents)
    if invoice.statement_id not in totals.supporting:
        sentence = f"The file {name} of invoice {invoice.invoice_number} does not name its statement, "
        return _check(invoice, "wrong", name, f"{sentence}{invoice.statement_id}.")
    return _check(invoice, "ok", name, f"The file {name} is the one, and says what the record says.")


def _lacking(invoice: SettledInvoice, claimed: Sequence[Path], folder: Path) -> DocumentCheck:
    if not claimed:
        sentence = f"No file has the SHA-256 of invoice {invoice.invoice_number}, {invoice.document_sha256}."
        return _check(invoice, "missing", "", sentence)
    name = str(claimed[0].relative_to(folder))
    sentence = f"{name} says that it is invoice {invoice.invoice_number}, and is another file than the one recorded: "
    return _check(invoice, "altered", name, f"{sentence}its SHA-256 is not {invoice.document_sha256}.")


def _check(
    invoice: SettledInvoice, state: str, file: str, sentence: str, difference: int | None = None
) -> DocumentCheck:
    return DocumentCheck(
        invoice_id=invoice.invoice_id,
        invoice_number=invoice.invoice_number,
        state=state,
        file=file,
        sentence=sentence,
        difference_cents=difference,
    )
