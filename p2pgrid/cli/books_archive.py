"""`p2pgrid books archive` and `verify`: a year in one folder, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pgrid.cli.books_options import country_option, mapping_options
from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.cli.progress import Progress, progress
from p2pgrid.printable import printable

if TYPE_CHECKING:
    from p2pgrid.ledger.reader import SqliteReader
    from p2pgrid.proto.record import Record
    from p2pgrid.settlement.books.archive_check import Audited, CheckedArchive
    from p2pgrid.settlement.books.records import ChannelRecords

_SHOWN = 20


@click.command()
@click.argument("year", type=click.IntRange(2000, 2999))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder to make, or a file that ends in .zip. It must not exist.",
)
@mapping_options
@country_option
@click.option("--json", "as_json", is_flag=True, help="Print what was written as a JSON object.")
@click.pass_obj
def archive(
    context: CliContext,
    year: int,
    output: Path,
    chart: str | None,
    mapping: Path | None,
    country: str,
    as_json: bool,
) -> None:
    """Write a year's archive: all that an audit needs, in one folder.

    The signed records of every channel that was active, statements, invoices' files, bookings, an index, and a README
    that says how a stranger verifies it offline. No key, no prompt, no answer. It is audited before it appears in its
    place, and nothing is overwritten.

    Example: p2pgrid books archive 2026 -o archive-2026.zip

    Exit codes: 0 written, complete and clean; 1 written, and a file of an invoice is missing or the audit has findings:
    which, is said.
    """
    from p2pgrid.errors import LocalError
    from p2pgrid.settlement.books.archive import ArchiveSources, write_archive
    from p2pgrid.settlement.books.archive_check import check_archive
    from p2pgrid.settlement.books.days import Span
    from p2pgrid.settlement.books.documents import DocumentFiles
    from p2pgrid.settlement.books.office import open_office

    checked: list[CheckedArchive] = []

    def verify(folder: Path) -> None:
        report("checking the files", 0, 1)
        found = check_archive(folder, partial(audit_bundles, report=report))
        if found.faults:
            fault = found.faults[0]
            raise LocalError(f"the archive does not verify: {fault.file}: {fault.what}", hint="Nothing was written.")
        checked.append(found)

    with (
        progress() as report,
        open_office(context.data, chart=chart, mapping=mapping, country=country) as office,
    ):
        report("writing records and documents", 0, 1)
        sources = ArchiveSources(
            channels=office.channels,
            last_activity=lambda records: _last_receipt_ms(office.ledger, records),
            bundle=lambda channel: _bundle(context, office.ledger, channel),
            documents=DocumentFiles([context.data.path / "invoices"]),
            chart=office.chart,
            rules=office.rules,
            personal=office.personal,
            parties=office.parties,
            country=office.country,
            set_offs=office.set_offs,
            days=office.days,
            more=office.bank_files(Span(date(year, 1, 1), date(year, 12, 31))),
        )
        written = write_archive(sources, year, output, verify)
    (found,) = checked
    is_over = datetime.now(UTC).date() > date(year, 12, 31)
    if as_json:
        echo_json(
            {
                "file": str(written.path),
                "year": year,
                "is_over": is_over,
                "files": written.files,
                "channels": written.channels,
                "statements": written.statements,
                "invoices": written.invoices,
                "payments": written.payments,
                "missing": list(written.missing),
                **_audit_json(found.audit),
                "keep_until": found.keep_until,
            }
        )
    else:
        click.echo(
            f"{written.path}: {written.channels} channel(s), {written.statements} statement(s), {written.invoices} "
            f"invoice(s), {written.payments} payment(s); {written.files} files."
        )
        if not is_over:
            click.echo(f"{year} is not over: make it again, under another name, when it is.")
        _print_findings(found)
    if written.missing or found.audit is None or not found.audit.is_clean:
        click.get_current_context().exit(1)


@click.command()
@click.argument("place", metavar="FOLDER|ZIP", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(place: Path, as_json: bool) -> None:
    """Verify an archive: every file's hash, and a full audit of its records.

    Works offline and without keys, for whoever was handed the archive. A file that was changed, taken away or put
    there is named; so is a record or a booking that does not belong to the others. Sums tell of accidents; what no
    forger can change without being seen is what both parties signed.

    Example: p2pgrid books verify archive-2026.zip

    Exit codes: 0 whole and clean; 1 not; 2 no archive.
    """
    from p2pgrid.settlement.books.archive_check import check_archive

    with progress() as report:
        report("checking the files", 0, 1)
        found = check_archive(place, partial(audit_bundles, report=report))
    if as_json:
        echo_json(
            {
                "whole": found.is_whole,
                "year": found.year,
                "files": found.files,
                "faults": [{"file": one.file, "what": one.what} for one in found.faults],
                "missing": list(found.missing),
                **_audit_json(found.audit),
                "keep_until": found.keep_until,
            }
        )
    else:
        for one in found.faults[:_SHOWN]:
            click.echo(f"{printable(one.file)}: {printable(one.what)}")
        if len(found.faults) > _SHOWN:
            click.echo(f"and {len(found.faults) - _SHOWN} more faults.")
        _print_findings(found)
        click.echo(f"{place} is {'whole' if found.is_whole else 'NOT as it should be'}: {found.files} files.")
    if not found.is_whole:
        click.get_current_context().exit(1)


def audit_bundles(bundles: Sequence[Path], *, report: Progress | None = None) -> Audited:
    """A full audit. `report`: is told how far it is. Raises P2pgridError."""
    from p2pgrid.audit.check import audit_files
    from p2pgrid.settlement.books.archive_check import Audited

    verdict = audit_files(bundles, report=report or (lambda _step, _done, _total: None))
    return Audited(
        is_clean=verdict.clean,
        findings=tuple(f"{one.code}: {one.sentence}" for one in verdict.findings),
        channels=len(verdict.channels),
        receipts=sum(one.receipts for one in verdict.channels),
    )


def _bundle(context: CliContext, ledger: SqliteReader, channel: bytes) -> Iterator[Record]:
    from p2pgrid.cli.receipts import own_cards

    yield from own_cards(context, ledger, channel)
    yield from ledger.records(channel=channel)


def _last_receipt_ms(ledger: SqliteReader, records: ChannelRecords) -> int:
    newest = ledger.receipts(channel=records.id, limit=1)
    return newest[0].receipt.issued_ms if newest else 0


def _audit_json(audit: Audited | None) -> dict[str, Any]:
    if audit is None:
        return {"clean": False, "findings": [], "receipts": 0}
    return {"clean": audit.is_clean, "findings": list(audit.findings), "receipts": audit.receipts}


def _print_findings(found: CheckedArchive) -> None:
    for one in found.missing:
        click.echo(f"Missing: {printable(one)}")
    if found.audit is not None:
        for one in found.audit.findings[:_SHOWN]:
            click.echo(f"Finding: {printable(one)}")
        more = len(found.audit.findings) - _SHOWN
        if more > 0:
            click.echo(f"and {more} more findings: p2pgrid audit bundles/*")
        click.echo(
            f"Audited: {found.audit.channels} channel(s), {found.audit.receipts} receipt(s), "
            f"{'clean' if found.audit.is_clean else 'with findings'}."
        )
    if "books" in found.keep_until:
        click.echo(f"By law it has to be kept until {printable(found.keep_until['books'])}.")
