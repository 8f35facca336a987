"""How long accounting records have to be kept, by country (docs/settlement/books.md, section 6).

Dated facts, as rates of VAT are: each row has its law, and was looked at on `LOOKED_AT`. A term that changes is a new
row, never a changed one. A test compares the table with the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Final

from p2pgrid.errors import UsageError
from p2pgrid.settlement.books.days import year_closed_in

LOOKED_AT: Final = date(2026, 11, 27)


class Kept(StrEnum):
    """What has to be kept."""

    INVOICES = "invoices"
    """Issued and received."""
    VOUCHERS = "vouchers"
    """What bookings rest on: receipts, statements, payments and what the bank said of them."""
    BOOKS = "books"
    """Journals and accounts: the exports, and so the yearly archive as a whole."""


@dataclass(frozen=True, slots=True)
class LegalTerm:
    """So many years from the end of the calendar year in which the fiscal year ended."""

    years: int
    law: str


TERMS: Final[dict[str, dict[Kept, LegalTerm]]] = {
    "LT": {
        Kept.INVOICES: LegalTerm(10, "PVM įstatymas IX-751, Art. 78; Bendrųjų dokumentų saugojimo terminų rodyklė"),
        Kept.VOUCHERS: LegalTerm(10, "Bendrųjų dokumentų saugojimo terminų rodyklė (V-100, 2011)"),
        Kept.BOOKS: LegalTerm(10, "Bendrųjų dokumentų saugojimo terminų rodyklė (V-100, 2011)"),
    },
    "LV": {
        Kept.INVOICES: LegalTerm(5, "Grāmatvedības likums, Sec. 28(5); PVN likums, Sec. 133"),
        Kept.VOUCHERS: LegalTerm(5, "Grāmatvedības likums, Sec. 28(5)"),
        Kept.BOOKS: LegalTerm(10, "Grāmatvedības likums, Sec. 28(2)"),
    },
    "EE": {
        Kept.INVOICES: LegalTerm(7, "RPS § 12; KMS § 36"),
        Kept.VOUCHERS: LegalTerm(7, "RPS § 12(1)"),
        Kept.BOOKS: LegalTerm(7, "RPS § 12(2)"),
    },
    "FI": {
        Kept.INVOICES: LegalTerm(6, "Kirjanpitolaki 2:10; AVL 209 n §"),
        Kept.VOUCHERS: LegalTerm(6, "Kirjanpitolaki 2:10"),
        Kept.BOOKS: LegalTerm(10, "Kirjanpitolaki 2:10"),
    },
    "DE": {
        Kept.INVOICES: LegalTerm(8, "UStG § 14b(1); AO § 147(3), by BEG IV since 2025"),
        Kept.VOUCHERS: LegalTerm(8, "AO § 147(3), HGB § 257(4), by BEG IV since 2025"),
        Kept.BOOKS: LegalTerm(10, "AO § 147(3), HGB § 257(4)"),
    },
    "IT": {
        Kept.INVOICES: LegalTerm(10, "Codice civile, Art. 2220; DPR 633/1972, Art. 39"),
        Kept.VOUCHERS: LegalTerm(10, "Codice civile, Art. 2220"),
        Kept.BOOKS: LegalTerm(10, "Codice civile, Art. 2220"),
    },
}
"""The countries whose terms are known here."""


def term_of(country: str, kept: Kept) -> LegalTerm:
    """Raises UsageError for a country that is not in the table."""
    if country not in TERMS:
        raise UsageError(
            f"how long accounting records are kept in {country or 'a country that is not named'} is not known here.",
            hint=f"Give --country with one of {', '.join(sorted(TERMS))}, or ask your accountant.",
        )
    return TERMS[country][kept]


def keep_until(country: str, kept: Kept, year: int) -> date:
    """The last day on which what is of a fiscal year that ended in `year` has to be kept. Raises UsageError."""
    return date(min(year + term_of(country, kept).years, date.max.year), 12, 31)


def may_go(country: str, kept: Kept, day: date, *, today: date, fiscal_year_begins: tuple[int, int] = (1, 1)) -> bool:
    """True once what is of that day need not be kept any more. Raises UsageError."""
    return today > keep_until(country, kept, year_closed_in(day, fiscal_year_begins))
