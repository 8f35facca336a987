"""An archive looked over, by whoever has it: sums, the audit of its records, and that all belongs together.

What is looked at is what an archive is by its page, not how this version writes one: an archive of another version is
checked by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from p2pgrid.errors import InvalidRecord, LocalError, P2pgridError, UsageError
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.cycle import Leg
from p2pgrid.proto.record import Record, parse_message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.settlement.books.archive import SUMS
from p2pgrid.settlement.books.archive_contents import FORMAT
from p2pgrid.settlement.books.archive_exports import check_exports, check_statement, set_offs_of
from p2pgrid.settlement.books.archive_fault import SHOWN, ArchiveFault, content_of
from p2pgrid.settlement.books.archive_index import Format, Index, InvoiceRow, Row, StatementRow
from p2pgrid.settlement.books.archive_place import is_plain, unpacked
from p2pgrid.settlement.books.documents import sha256_of

_SUM: Final = re.compile(r"([0-9a-f]{64})  (\S.*)")
_DAY_MS: Final = 86_400_000
_TYPES: Final[dict[str, type[Statement | Invoice | Payment]]] = {
    one.payload_type: one for one in (Statement, Invoice, Payment)
}
_SET_OFFS: Final[dict[str, type[SetOff | Leg]]] = {one.payload_type: one for one in (SetOff, Leg)}


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What an audit of bundles said."""

    is_clean: bool
    findings: tuple[str, ...]
    channels: int
    receipts: int


Audit = Callable[[Sequence[Path]], Audited]


@dataclass(frozen=True, kw_only=True)
class CheckedArchive:
    """What was found."""

    year: int
    files: int
    faults: tuple[ArchiveFault, ...]
    audit: Audited | None
    """None where there were no bundles to audit."""
    missing: tuple[str, ...]
    """What the archive itself says that it lacks."""
    keep_until: dict[str, str]

    @property
    def is_whole(self) -> bool:
        """True if nothing is wrong with files and records; what is missing is known."""
        return not self.faults and self.audit is not None and self.audit.is_clean


def check_archive(place: Path, audit: Audit) -> CheckedArchive:
    """Look over a folder or a zip. Raises UsageError if it is no archive, LocalError if the disk fails."""
    with unpacked(place) as folder:
        try:
            return _check(folder, audit)
        except OSError as error:
            raise LocalError(f"{place} cannot be read: {error}.", hint="Check its disk and its owner.") from error


def _check(folder: Path, audit: Audit) -> CheckedArchive:
    if not (folder / SUMS).is_file():
        raise UsageError(f"{folder} is no archive: it has no {SUMS}.", hint="`p2pgrid books archive` writes one.")
    faults = list(_check_sums(folder))
    index, more = _index(folder)
    faults += more
    bundles = sorted((folder / "bundles").glob("*.jsonl")) if (folder / "bundles").is_dir() else []
    audited = None
    if bundles:
        try:
            audited = audit(bundles)
        except P2pgridError as error:
            faults.append(ArchiveFault("bundles", f"they cannot be audited: {error.message}"))
    else:
        faults.append(ArchiveFault("bundles", "no record is there."))
    if index is not None:
        faults += _check_records(folder, index, bundles)
        faults += check_exports(folder, index)
    return CheckedArchive(
        year=index.year if index is not None else 0,
        files=sum(1 for path in folder.rglob("*") if path.is_file()),
        faults=tuple(faults),
        audit=audited,
        missing=index.missing if index is not None else (),
        keep_until=index.keep_until if index is not None else {},
    )


def _check_sums(folder: Path) -> Iterator[ArchiveFault]:
    listed: dict[str, str] = {}
    for number, line in enumerate(content_of(folder / SUMS).decode("utf-8", "replace").splitlines(), 1):
        found = _SUM.fullmatch(line)
        if found is None or not is_plain(found[2]) or found[2] in listed:
            yield ArchiveFault(SUMS, f"line {number} is no sum of a file: {line[:SHOWN]!r}.")
            continue
        listed[found[2]] = found[1]
    there = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    for name, path in sorted(there.items()):
        if path.is_symlink() or not path.is_file():
            yield ArchiveFault(name, "it is a link, or no plain file.")
        elif name not in listed and name != SUMS:
            yield ArchiveFault(name, f"it is not in {SUMS}: somebody put it there.")
    for name, expected in sorted(listed.items()):
        path = folder / name
        if name not in there:
            yield ArchiveFault(name, f"it is in {SUMS} and not there.")
        elif path.is_file() and not path.is_symlink() and sha256_of(path).hex() != expected:
            yield ArchiveFault(name, "it was changed: its SHA-256 is another.")


def _index(folder: Path) -> tuple[Index | None, list[ArchiveFault]]:
    try:
        content = content_of(folder / "index.json")
        if msgspec.json.decode(content, type=Format).format != FORMAT:
            return None, [ArchiveFault("index.json", f"its format is not {FORMAT}: use the p2pgrid that wrote it.")]
        return msgspec.json.decode(content, type=Index), []
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return None, [ArchiveFault("index.json", f"it cannot be read: {error}")]


Found = dict[str, Statement | Invoice | Payment]
"""Records of bundles by their ids in hex."""


def _check_records(folder: Path, index: Index, bundles: Sequence[Path]) -> Iterator[ArchiveFault]:
    """Are index and documents those of the records, and are all of the year's there?"""
    found: Found = {}
    named = {one.bundle for one in index.channels}
    set_offs: dict[str, SetOff | Leg] = {}
    for path in bundles:
        name = path.relative_to(folder).as_posix()
        if name not in named:
            yield ArchiveFault(name, "index.json does not name it.")
        for record in _records(path):
            if set_off_type := _SET_OFFS.get(record.payload_type):
                with suppress(InvalidRecord):
                    set_offs[record.id.hex()] = parse_message(record, set_off_type)
            if message_type := _TYPES.get(record.payload_type):
                with suppress(InvalidRecord):  # the audit says so
                    found[record.id.hex()] = parse_message(record, message_type)
    yield from _check_set_offs(index, set_offs)
    rows: list[Row] = [*index.statements, *index.invoices, *index.payments]
    for row in rows:
        message = found.get(row.id)
        if not isinstance(message, row.message_type):
            yield ArchiveFault("index.json", f"{row.message_type.__name__} {row.id[:16]!r} is in no bundle.")
            continue
        for field in row.__struct_fields__:
            said = getattr(row, field)
            if hasattr(message, field) and said != getattr(message, field):
                what = f"{row.id[:16]} says {field} {str(said)[:SHOWN]!r}, its record {getattr(message, field)!r}."
                yield ArchiveFault("index.json", what)
        if isinstance(row, StatementRow) and isinstance(message, Statement):
            yield from check_statement(folder, row, message)
        if isinstance(row, InvoiceRow) and isinstance(message, Invoice):
            yield from _check_document(folder, row, message)
    yield from _check_year(index, {row.id for row in rows}, found)


def _check_set_offs(index: Index, found: Mapping[str, SetOff | Leg]) -> Iterator[ArchiveFault]:
    """Each takes off in every channel what both parties signed."""
    for (record, _), cents in sorted(set_offs_of(index).items()):
        message = found.get(record)
        if message is None:
            yield ArchiveFault("index.json", f"Set-off {record[:16]!r} is in no bundle.")
        elif message.amount_cents != cents:
            what = f"Set-off {record[:16]} takes off {cents} cents, by its record {message.amount_cents}."
            yield ArchiveFault("index.json", what)


def _check_year(index: Index, listed: set[str], found: Found) -> Iterator[ArchiveFault]:
    """Records of the year that the index does not have, and others that it has. A day at either end is left open: days
    are the provider's."""
    if not 1971 <= index.year <= 9998:
        yield ArchiveFault("index.json", f"{index.year} is no year.")
        return
    first = int(datetime(index.year, 1, 1, tzinfo=UTC).timestamp()) * 1000
    until = int(datetime(index.year + 1, 1, 1, tzinfo=UTC).timestamp()) * 1000
    for record, message in sorted(found.items()):
        time_ms, what = _time_of(message), f"{type(message).__name__} {record[:16]}"
        if record not in listed and first + _DAY_MS <= time_ms < until - _DAY_MS:
            yield ArchiveFault("index.json", f"{what} of {index.year} is not in it.")
        if record in listed and not first - _DAY_MS <= time_ms < until + _DAY_MS:
            yield ArchiveFault("index.json", f"{what} is in it, and not of {index.year}.")


def _time_of(message: Statement | Invoice | Payment) -> int:
    match message:
        case Statement():
            return message.stated_ms
        case Invoice():
            return message.issued_ms
    return message.booked_ms


def _records(bundle: Path) -> Iterator[Record]:
    """Its records; none of a file that is no bundle, for the audit says so."""
    with suppress(UsageError):
        for _, line in read_bundle(bundle):
            if isinstance(line, Record):
                yield line


def _check_document(folder: Path, row: InvoiceRow, invoice: Invoice) -> Iterator[ArchiveFault]:
    plain = [name for name in row.files if is_plain(name) and (folder / name).is_file()]
    for name in sorted(set(row.files) - set(plain)):
        yield ArchiveFault(name[:SHOWN], f"a file of invoice {invoice.invoice_number} is not there.")
    if plain and invoice.document_sha256 not in {sha256_of(folder / name) for name in plain}:
        what = f"none of its files is the one that invoice {invoice.invoice_number} names by its hash."
        yield ArchiveFault(plain[0], what)
