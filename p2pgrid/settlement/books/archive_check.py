"""An archive looked over, by whoever has it: sums, the audit of its records, and that all belongs together.

What is looked at is what an archive is by its page, not how this version writes one: an archive of another version is
checked by the same rules.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from p2pgrid.errors import InvalidRecord, LocalError, P2pgridError, UsageError
from p2pgrid.ledger.bundle import read_bundle
from p2pgrid.proto.record import Message, Record, parse_message
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.settlement.books.archive import SUMS
from p2pgrid.settlement.books.archive_contents import FORMAT
from p2pgrid.settlement.books.documents import sha256_of
from p2pgrid.settlement.payments.cents import NotAnAmount, cents_of

MAX_FILES: Final = 1_000_000
MAX_UNPACKED_BYTES: Final = 1 << 40
MAX_RATIO: Final = 200
"""How much larger than the zip its contents may be: text packs to a tenth, a bomb to a thousandth."""
MAX_SMALL_BYTES: Final = 512 * 1024 * 1024
_SUM: Final = re.compile(r"([0-9a-f]{64})  (\S.*)")
_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class ArchiveFault:
    """Something that is wrong with an archive."""

    file: str
    what: str
    """One sentence."""


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
    with _unpacked(place) as folder:
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
    if index:
        faults += _check_records(folder, index, bundles)
        faults += _check_bookings(folder, index)
    return CheckedArchive(
        year=int(index.get("year", 0)),
        files=sum(1 for path in folder.rglob("*") if path.is_file()),
        faults=tuple(faults),
        audit=audited,
        missing=tuple(str(one) for one in index.get("missing", ())),
        keep_until={str(kind): str(day) for kind, day in dict(index.get("keep_until", {})).items()},
    )


def _check_sums(folder: Path) -> Iterator[ArchiveFault]:
    listed: dict[str, str] = {}
    for number, line in enumerate(_text(folder / SUMS).splitlines(), 1):
        found = _SUM.fullmatch(line)
        if found is None or not _is_plain(found[2]) or found[2] in listed:
            yield ArchiveFault(SUMS, f"line {number} is no sum of a file: {line[:_SHOWN]!r}.")
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


def _index(folder: Path) -> tuple[dict[str, Any], list[ArchiveFault]]:
    try:
        index = json.loads(_text(folder / "index.json"))
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            return {}, [ArchiveFault("index.json", f"its format is not {FORMAT}: use the p2pgrid that wrote it.")]
        rows = [index[name] for name in ("channels", "statements", "invoices", "payments", "set_offs")]
        if not all(isinstance(one, dict) for row in rows for one in row) or not isinstance(index["year"], int):
            raise TypeError("a row is no object")
        return index, []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return {}, [ArchiveFault("index.json", f"it cannot be read ({type(error).__name__}).")]


def _check_records(folder: Path, index: dict[str, Any], bundles: Sequence[Path]) -> Iterator[ArchiveFault]:
    """Are index and documents those of the records?"""
    wanted: dict[type[Message], str] = {Statement: "statements", Invoice: "invoices", Payment: "payments"}
    by_type = {one.payload_type: one for one in wanted}
    found: dict[str, Any] = {}
    named = {str(one.get("bundle")) for one in index["channels"]}
    for path in bundles:
        if path.relative_to(folder).as_posix() not in named:
            yield ArchiveFault(path.relative_to(folder).as_posix(), "index.json does not name it.")
        for record in _records(path):
            if message_type := by_type.get(record.payload_type):
                with suppress(InvalidRecord):  # the audit says so
                    found[record.id.hex()] = parse_message(record, message_type)
    for message_type, name in wanted.items():
        for row in index[name]:
            message = found.get(str(row.get("id")))
            if not isinstance(message, message_type):
                yield ArchiveFault("index.json", f"{name}: {str(row.get('id'))[:16]} is in no bundle.")
                continue
            yield from _compare(row, message)
            if isinstance(message, Invoice):
                yield from _check_document(folder, row, message)


def _records(bundle: Path) -> Iterator[Record]:
    """Its records; none of a file that is no bundle, for the audit says so."""
    with suppress(UsageError):
        for _, line in read_bundle(bundle):
            if isinstance(line, Record):
                yield line


def _compare(row: dict[str, Any], message: Any) -> Iterator[ArchiveFault]:
    """Whatever the row and the record both say has to be the same."""
    for name in (
        "net_cents",
        "vat_cents",
        "gross_cents",
        "closing_cents",
        "amount_cents",
        "invoice_number",
        "currency",
    ):
        if name in row and hasattr(message, name) and row[name] != getattr(message, name):
            yield ArchiveFault(
                "index.json",
                f"{str(row['id'])[:16]} says {name} {str(row[name])[:_SHOWN]}, its record {getattr(message, name)}.",
            )


def _check_document(folder: Path, row: dict[str, Any], invoice: Invoice) -> Iterator[ArchiveFault]:
    files = [str(name) for name in row.get("files", ())]
    plain = [name for name in files if _is_plain(name) and (folder / name).is_file()]
    for name in set(files) - set(plain):
        yield ArchiveFault(name[:_SHOWN], f"a file of invoice {invoice.invoice_number} is not there.")
    if plain and invoice.document_sha256 not in {sha256_of(folder / name) for name in plain}:
        yield ArchiveFault(
            plain[0], f"none of its files is the one that invoice {invoice.invoice_number} names by its hash."
        )


def _check_bookings(folder: Path, index: dict[str, Any]) -> Iterator[ArchiveFault]:
    """Does every record of the year stand in the bookings with its amount, and nothing else?"""
    name = "exports/bookings.csv"
    amounts: Counter[str] = Counter()
    totals: dict[str, Counter[str]] = {}
    try:
        for row in csv.DictReader(io.StringIO(_text(folder / name), newline=""), delimiter=";"):
            for side in ("debit", "credit"):
                cents = cents_of(row[side]) if row[side] else 0
                totals.setdefault(row["currency"], Counter())[side] += cents
                amounts[row["record"]] += cents if side == "debit" else 0
    except (OSError, UnicodeDecodeError, KeyError, TypeError, csv.Error, NotAnAmount) as error:
        yield ArchiveFault(name, f"it cannot be read ({type(error).__name__}).")
        return
    for currency, sums in sorted(totals.items()):
        stated = dict(index.get("totals", {})).get(currency)
        if sums["debit"] != sums["credit"] or stated != {"debit_cents": sums["debit"], "credit_cents": sums["credit"]}:
            yield ArchiveFault(name, f"debit and credit in {currency} are not the same, or not those of index.json.")
    expected = {str(one["id"]): abs(int(one["gross_cents"])) for one in index["invoices"] if one["gross_cents"]}
    expected |= {str(one["id"]): abs(int(one["amount_cents"])) for one in index["payments"]}
    others = {str(one["id"]) for one in (*index["set_offs"], *index["invoices"])}
    for record, cents in sorted(expected.items()):
        # Purchases under reverse charge have their VAT on both sides besides.
        if amounts.get(record, 0) < cents or (record not in others and amounts[record] != cents):
            yield ArchiveFault(name, f"record {record[:16]} is not booked with {cents} cents.")
    for record in sorted(set(amounts) - set(expected) - others):
        yield ArchiveFault(name, f"record {record[:16]} is booked and not in index.json.")


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_SMALL_BYTES:
        raise UsageError(f"{path.name} is larger than {MAX_SMALL_BYTES} bytes.", hint="This is no archive of ours.")
    return path.read_bytes().decode()


def _is_plain(name: str) -> bool:
    """A name within the folder, and nothing clever."""
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and str(path) == name
        and "\0" not in name
    )


@contextmanager
def _unpacked(place: Path) -> Iterator[Path]:
    """The folder itself, or the zip's contents in a folder that is gone afterwards."""
    if place.is_dir():
        yield place
        return
    if not place.is_file():
        raise UsageError(f"{place} is not there.", hint="Name an archive's folder, or its zip.")
    with tempfile.TemporaryDirectory(prefix="p2pgrid-archive-") as name:
        try:
            with zipfile.ZipFile(place) as packed:
                _unpack(packed, place, Path(name))
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise UsageError(f"{place} is no zip that can be read: {error}.", hint="Fetch it again.") from None
        except OSError as error:
            raise LocalError(f"{place} cannot be unpacked: {error}.", hint="Set TMPDIR to a larger disk.") from error
        yield Path(name)


def _unpack(packed: zipfile.ZipFile, place: Path, folder: Path) -> None:
    """Plain files alone, each once, and not more than a zip of that size holds."""
    members = packed.infolist()
    most = min(MAX_UNPACKED_BYTES, max(place.stat().st_size, 1024) * MAX_RATIO)
    if len(members) > MAX_FILES or sum(one.file_size for one in members) > most:
        raise UsageError(f"{place} unpacks to more than an archive of its size holds.", hint="Do not trust its sender.")
    left = most
    for member in members:
        target = folder / member.filename
        if not _is_plain(member.filename) or target.exists():
            raise UsageError(f"{place} holds a file with the name {member.filename[:_SHOWN]!r}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with packed.open(member) as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1024 * 1024)
        left -= target.stat().st_size
        if left < 0:
            raise UsageError(f"{place} unpacks to more than it says.", hint="Do not trust its sender.")
