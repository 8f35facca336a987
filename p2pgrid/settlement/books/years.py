"""Accounting records by year: until when they stay, and the files that may go after that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from p2pgrid.errors import LocalError
from p2pgrid.settlement.books.days import year_closed_in
from p2pgrid.settlement.books.documents import DocumentFiles
from p2pgrid.settlement.books.legal_years import Kept, keep_until
from p2pgrid.settlement.books.records import ChannelRecords


@dataclass(frozen=True, kw_only=True)
class RecordsOfYear:
    """What there is of the fiscal years that ended in one calendar year."""

    year: int
    statements: int
    invoices: int
    payments: int
    documents: tuple[Path, ...]
    """Files of its invoices on this disk."""
    keep_until: dict[Kept, date]
    """Empty where the country's law is not known."""

    def may_go(self, kept: Kept, today: date) -> bool:
        """True once it need not be kept any more."""
        return kept in self.keep_until and today > self.keep_until[kept]


def records_by_year(
    channels: Iterable[ChannelRecords],
    documents: DocumentFiles,
    *,
    country: str,
    fiscal_year_begins: tuple[int, int] = (1, 1),
) -> list[RecordsOfYear]:
    """Every year with records, the oldest first. Raises UsageError for a country whose law is not known, unless it is
    empty."""
    counts: dict[int, list[int]] = {}
    files: dict[int, list[Path]] = {}
    for records in channels:
        days = [(0, records.day(one.message.stated_ms, one.id)) for one in records.statements]
        days += [(1, records.day(one.message.issued_ms, one.message.statement)) for one in records.invoices]
        days += [(2, records.day(one.message.booked_ms, one.message.statement)) for one in records.payments]
        for which, day in days:
            counts.setdefault(year_closed_in(day, fiscal_year_begins), [0, 0, 0])[which] += 1
        for one in records.invoices:
            year = year_closed_in(records.day(one.message.issued_ms, one.message.statement), fiscal_year_begins)
            files.setdefault(year, []).extend(documents.of(one.message.document_sha256))
    return [
        RecordsOfYear(
            year=year,
            statements=statements,
            invoices=invoices,
            payments=payments,
            documents=tuple(dict.fromkeys(files.get(year, ()))),
            keep_until={kept: keep_until(country, kept, year) for kept in Kept} if country else {},
        )
        for year, (statements, invoices, payments) in sorted(counts.items())
    ]


def expired_documents(years: Sequence[RecordsOfYear], today: date) -> list[Path]:
    """Files of invoices that need not be kept any more, and of none that must."""
    kept = {path for one in years if not one.may_go(Kept.INVOICES, today) for path in one.documents}
    gone = [path for one in years if one.may_go(Kept.INVOICES, today) for path in one.documents]
    return [path for path in dict.fromkeys(gone) if path not in kept]


def delete(paths: Iterable[Path]) -> int:
    """Delete files; how many there were. Raises LocalError."""
    count = 0
    for path in paths:
        try:
            path.unlink()
            count += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LocalError(f"{path} cannot be deleted: {error.strerror}.", hint="Check its owner.") from None
    return count
