"""The yearly archive: one folder, or one zip, with all that an audit of a year needs (docs/settlement/books.md, 5).

It is made beside its place, verified there, and moved in whole; nothing is ever overwritten. The same ledger gives the
same bytes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from p2pgrid.errors import LocalError, UsageError
from p2pgrid.ledger.bundle import read_bundle, write_bundle
from p2pgrid.proto.record import Record, Role
from p2pgrid.settlement.books.accounts import Chart
from p2pgrid.settlement.books.archive_contents import Archived, bundle_file, contents_of
from p2pgrid.settlement.books.book_set import BookSet
from p2pgrid.settlement.books.booking import Rules, bookings_of
from p2pgrid.settlement.books.days import Span, year_closed_in
from p2pgrid.settlement.books.documents import DocumentFiles, sha256_of
from p2pgrid.settlement.books.parties import Parties, name_of, vat_id_of
from p2pgrid.settlement.books.personal import Personal, peer_id
from p2pgrid.settlement.books.records import ChannelRecords, SetOffs, records_of_bundle
from p2pgrid.settlement.books.trial_balance import channel_balance
from p2pgrid.settlement.clock import Days

SUMS: Final = "SHA256SUMS"
_ZIP_DAY: Final = (1980, 1, 1, 0, 0, 0)

PersonalOf = Callable[[Collection[tuple[Role, bytes]]], Personal]
"""Personal accounts of counterparties; whoever has none is given one."""


@dataclass(frozen=True, kw_only=True)
class ArchiveSources:
    """Where an archive's parts come from."""

    channels: Sequence[ChannelRecords]
    """Every channel of ours."""
    last_activity: Callable[[ChannelRecords], int]
    """When the last receipt of a channel was made, Unix milliseconds; 0 if there is none."""
    bundle: Callable[[bytes], Iterator[Record]]
    """All records of a channel, with the offers and cards that they need."""
    documents: DocumentFiles
    chart: Chart
    rules: Rules
    personal: PersonalOf
    parties: Parties
    country: str
    set_offs: SetOffs | None = None
    days: Days | None = None
    more: Mapping[str, bytes] = field(default_factory=dict)
    """Further files, by name: what bank entries were taken for."""


@dataclass(frozen=True, kw_only=True)
class WrittenArchive:
    """What was written."""

    path: Path
    files: int
    channels: int
    statements: int
    invoices: int
    payments: int
    missing: tuple[str, ...]


Verify = Callable[[Path], None]
"""Looks the finished folder over; raises where something is wrong with it."""


def write_archive(sources: ArchiveSources, year: int, target: Path, verify: Verify) -> WrittenArchive:
    """Write the archive of a calendar year; a target that ends in .zip is one file.

    Raises UsageError: the target exists, its folder does not, or the ledger has nothing of that year; LocalError where
    the disk refuses or what was written does not verify. Then nothing is left.
    """
    _check_target(target)
    span = Span(date(year, 1, 1), date(year, 12, 31))
    active = [one for one in sources.channels if _is_active(one, span, sources)]
    if not active:
        raise UsageError(
            f"no channel was active in {year}.", hint="`p2pgrid receipts list` shows what this ledger has."
        )
    with _beside(target) as folder:
        archived = _fill(sources, year, span, active, folder)
        write_sums(folder)
        verify(folder)
        files = sum(1 for path in folder.rglob("*") if path.is_file())
        if target.suffix.lower() == ".zip":
            packed = folder.with_suffix(".zip.part")
            try:
                _pack(folder, packed)
                _move(packed, target)
            finally:
                packed.unlink(missing_ok=True)
        else:
            _sync_tree(folder)
            _move(folder, target)
    books = archived.books
    return WrittenArchive(
        path=target,
        files=files,
        channels=len(archived.channels),
        statements=sum(
            one.day(s.message.stated_ms, s.id) in books.span for one in archived.channels for s in one.statements
        ),
        invoices=len(archived.documents) + sum("has no file" in text for text in archived.missing),
        payments=sum(
            one.day(p.message.booked_ms, p.message.statement) in books.span
            for one in archived.channels
            for p in one.payments
        ),
        missing=tuple(archived.missing),
    )


def _is_active(records: ChannelRecords, span: Span, sources: ArchiveSources) -> bool:
    """Something of it is of the year, or of before and was not settled when the year began."""
    if records.day(records.channel.opened_ms) > span.last:
        return False
    times = [(sources.last_activity(records), b""), (records.channel.opened_ms, b"")]
    times += [(one.message.stated_ms, one.id) for one in records.statements]
    times += [(one.message.issued_ms, one.message.statement) for one in records.invoices]
    times += [(one.message.booked_ms, one.message.statement) for one in records.payments]
    times += [(one.set_off_ms, one.statement) for one in records.set_offs]
    if any(records.day(*one) >= span.first for one in times):
        return True
    eve = span.first - timedelta(days=1)
    return channel_balance(records, bookings_of([records], sources.rules), eve).books_cents != 0


def _fill(sources: ArchiveSources, year: int, span: Span, active: Sequence[ChannelRecords], folder: Path) -> Archived:
    """Bundles first: all else is made of what stands in them, so that a node may go on writing meanwhile."""
    for name in ("bundles", "statements", "invoices", "exports"):
        (folder / name).mkdir(mode=0o700)
    bundles, channels = {}, []
    for one in sorted(active, key=lambda c: (c.channel.opened_ms, c.id)):
        bundles[one.id] = name = bundle_file(one.id, one.side)
        write_bundle(folder / name, sources.bundle(one.id))
        lines = (line for _, line in read_bundle(folder / name) if isinstance(line, Record))
        channels.append(records_of_bundle(lines, one.id, one.side, set_offs=sources.set_offs, days=sources.days))
    documents, missing = _copy_documents(sources.documents, channels, span, folder)
    parties = list(dict.fromkeys((one.side, one.counterparty) for one in channels))
    names = {one: name_of(sources.parties, one[1], one[0]) for one in parties}
    books = BookSet(
        span=span,
        bookings=bookings_of(channels, sources.rules, span=span),
        chart=sources.chart,
        personal=sources.personal(parties),
        names={one: name for one, name in names.items() if name != peer_id(one[1])},
        vat_ids={one: vat_id_of(sources.parties, one[1], one[0]) for one in parties},
    )
    archived = Archived(
        year=year,
        closed_in=year_closed_in(span.last, sources.chart.fiscal_year_begins),
        channels=channels,
        bundles=bundles,
        books=books,
        before=bookings_of(channels, sources.rules, span=Span(date.min, span.first - timedelta(days=1))),
        documents=documents,
        country=sources.country,
        missing=missing,
    )
    for name, content in sorted({**sources.more, **contents_of(archived)}.items()):
        _write(folder / name, content)
    return archived


def _copy_documents(
    found: DocumentFiles, channels: Sequence[ChannelRecords], span: Span, folder: Path
) -> tuple[dict[bytes, list[str]], list[str]]:
    """The files of the year's invoices: issued ones in one folder, received ones by who issued them."""
    names: dict[bytes, list[str]] = {}
    missing = []
    for records in channels:
        for one in records.invoices:
            if records.day(one.message.issued_ms, one.message.statement) not in span:
                continue
            paths = found.of(one.message.document_sha256)
            if not paths:
                missing.append(
                    f"Invoice {one.message.invoice_number} ({one.id.hex()[:16]}) has no file: "
                    f"SHA-256 {one.message.document_sha256.hex()}."
                )
                continue
            is_issued = records.side is Role.PROVIDER
            place = Path("invoices") / ("issued" if is_issued else f"received/{peer_id(records.counterparty)}")
            (folder / place).mkdir(mode=0o700, parents=True, exist_ok=True)
            names[one.id] = [(place / path.name).as_posix() for path in paths]
            for path, name in zip(paths, names[one.id], strict=True):
                _write(folder / name, path.read_bytes())
    return names, missing


def write_sums(folder: Path) -> None:
    """SHA256SUMS over all files of a folder, as `sha256sum --check` reads it. Raises LocalError."""
    lines = [
        f"{sha256_of(path).hex()}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix())
        if path.is_file() and path.name != SUMS
    ]
    _write(folder / SUMS, "".join(lines).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        if path.read_bytes() == content:
            return
        raise LocalError(f"two files of the archive would be called {path.name}.", hint="Rename one of them.")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _check_target(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists.", hint="An archive is never overwritten: name another place.")
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist.", hint="Create it, or name another.")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder next to the target, gone at the end unless it was moved there. Raises LocalError."""
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:64]}.", suffix=".part"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise LocalError(
            f"the archive {target} cannot be written: {error}.", hint="Free some space, or name another disk."
        ) from error


def _pack(folder: Path, path: Path) -> None:
    """Everything in the folder as one zip, with the same day on every file."""
    made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(made, "w+b") as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
        for file in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
            if file.is_file():
                info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _ZIP_DAY)
                info.external_attr = 0o600 << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                info.create_system = 3
                with file.open("rb") as source, packed.open(info, "w") as sink:
                    shutil.copyfileobj(source, sink, 1024 * 1024)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(made: Path, target: Path) -> None:
    """To its place, if that is free still."""
    _check_target(target)
    if made.is_file():
        with suppress(PermissionError, NotImplementedError):  # a disk without links
            os.link(made, target)  # unlike a rename it does not replace
            made.unlink()
    if made.exists():
        made.rename(target)
    _sync(target.parent)


def _sync_tree(folder: Path) -> None:
    for path in [folder, *(one for one in folder.rglob("*") if one.is_dir())]:
        _sync(path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
