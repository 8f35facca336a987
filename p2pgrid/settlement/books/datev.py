"""Bookings as a DATEV Buchungsstapel (EXTF), for tax advisers in Germany (docs/settlement/books.md, section 4).

DATEV computes VAT itself: a row has the gross amount, and the account or the tax key says the rate. A row of which it
would compute another VAT than the invoice has is refused. So a row is one VAT case of an invoice, or a payment.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Final

from p2pgrid.cells import harmless
from p2pgrid.errors import UsageError
from p2pgrid.proto.record import Role
from p2pgrid.settlement.books.accounts import AccountRole, Chart
from p2pgrid.settlement.books.book_set import PERSONAL_ROLES, BookSet
from p2pgrid.settlement.books.datev_fields import (
    CATEGORY,
    COLUMNS,
    ENCODING,
    FORMAT_NAME,
    FORMAT_VERSION,
    HEADER_VERSION,
    MAX_DOCUMENT,
    MAX_TEXT,
    MAX_UMSATZ_CENTS,
    TEXT_COLUMNS,
)
from p2pgrid.settlement.books.days import fiscal_year_of
from p2pgrid.settlement.books.journal import Booking, BookingKind, BookingLine, totals_of
from p2pgrid.units import format_cents

CURRENCY: Final = "EUR"
_RATE_DENOMINATOR: Final = 10_000
_NOT_IN_DOCUMENTS: Final = re.compile(r"[^A-Za-z0-9_$&%*+\-/]")
_TAX_ROLES: Final = frozenset(
    {
        AccountRole.VAT_OUTPUT,
        AccountRole.VAT_INPUT,
        AccountRole.VAT_INPUT_REVERSE,
        AccountRole.VAT_OUTPUT_REVERSE,
    }
)
_MARK_BYTES: Final = 4


def file_name(books: BookSet) -> str:
    """How the file has to be called: DATEV goes by the first letters."""
    return f"EXTF_Buchungsstapel_{books.span.first:%Y%m%d}-{books.span.last:%Y%m%d}.csv"


def datev_of(books: BookSet) -> bytes:
    """The file. The same bookings give the same bytes.

    Raises UsageError: a span of two fiscal years, another currency, an account that is no number, an amount that is
    too large, a rate that DATEV would not compute so. Raises Unbalanced.
    """
    totals_of(books.bookings)
    begins = _fiscal_year(books)
    lines = [_header(books, begins), ";".join(COLUMNS)]
    for booking in books.bookings:
        lines += [_row(fields) for fields in _rows(booking, books)]
    return "".join(f"{line}\r\n" for line in lines).encode(ENCODING)


def _fiscal_year(books: BookSet) -> date:
    first = fiscal_year_of(books.span.first, books.chart.fiscal_year_begins)
    if first != fiscal_year_of(books.span.last, books.chart.fiscal_year_begins):
        raise UsageError(
            f"{books.span.first} to {books.span.last} are two fiscal years: a DATEV file is of one.",
            hint="Export each by itself; fiscal-year-begins says when yours begins.",
        )
    return first


def _header(books: BookSet, begins: date) -> str:
    """Written at the time of the last booking, so that the file is the same when it is written again."""
    chart = books.chart
    last_ms = max((one.time_ms for one in books.bookings), default=0)
    at = (
        datetime.fromtimestamp(last_ms // 1000, UTC)
        if last_ms
        else datetime.combine(books.span.first, datetime.min.time())
    )
    fields = [
        '"EXTF"',
        str(HEADER_VERSION),
        str(CATEGORY),
        f'"{FORMAT_NAME}"',
        str(FORMAT_VERSION),
        f"{at:%Y%m%d%H%M%S}{last_ms % 1000:03d}",
        "",
        '"RE"',
        '"p2pgrid"',
        '""',
        str(chart.consultant),
        str(chart.client),
        f"{begins:%Y%m%d}",
        str(chart.account_length),
        f"{books.span.first:%Y%m%d}",
        f"{books.span.last:%Y%m%d}",
        '"p2pgrid"',
        '""',
        "1",
        "0",
        "1" if chart.is_final else "0",
        f'"{CURRENCY}"',
        "",
        '""',
        "",
        "",
        f'"{chart.name[3:]}"' if chart.is_german else '""',
        "",
        "",
        '""',
        '""',
    ]
    return ";".join(fields)


def _rows(booking: Booking, books: BookSet) -> Iterator[dict[str, str]]:
    """Each against the counterparty's account, or what stands for it."""
    if booking.currency != CURRENCY:
        raise UsageError(
            f"{booking.text} is in {booking.currency}; a DATEV file is in {CURRENCY}.", hint="Export it as CSV."
        )
    if booking.kind not in (BookingKind.INVOICE, BookingKind.CREDIT_NOTE):
        own, other = booking.lines
        yield _fields(booking, books, own, other, -other.signed_cents)
        return
    own = next((one for one in booking.lines if one.role in PERSONAL_ROLES), booking.lines[0])
    for base, tax_cents in _supplies(booking):
        gross = base.signed_cents + tax_cents
        if base.vat_category:
            _check_rate(booking, base, tax_cents, gross, books.chart)
        if gross:
            yield _fields(booking, books, own, base, -gross)


def _supplies(booking: Booking) -> Iterator[tuple[BookingLine, int]]:
    """Each net line with the VAT that its invoice has on it: of a reverse charge none."""
    for one in booking.lines:
        if one.role in _TAX_ROLES or one.role in PERSONAL_ROLES:
            continue
        case = one.vat_category, one.vat_rate_bp
        taxes = [t for t in booking.lines if t.role in _TAX_ROLES and (t.vat_category, t.vat_rate_bp) == case]
        yield one, sum(tax.signed_cents for tax in taxes)


def _check_rate(booking: Booking, base: BookingLine, tax_cents: int, gross: int, chart: Chart) -> None:
    """Would DATEV compute the VAT that the invoice has?"""
    is_reverse = base.role is AccountRole.EXPENSE_AE
    if is_reverse and not chart.input_vat_deducted:
        raise UsageError(
            f"{booking.text}: reverse charge without deduction of VAT cannot be written for DATEV.",
            hint="Export it as CSV.",
        )
    deducts = _deducts(booking, base, chart)
    rate_bp = base.vat_rate_bp if (is_reverse or deducts) and base.vat_category in ("S", "AE", "L", "M") else 0
    if base.role is AccountRole.REVENUE_AE:
        rate_bp = 0
    computed = chart.tax_rates.get(base.role, 0)
    key = chart.tax_keys.get(base.role, "")
    if not deducts:
        computed, rate_bp = 0, 0
    account = f"account {chart.number(base.role)}{f' with tax key {key}' if key else ''} ({base.role})"
    if computed != rate_bp:
        raise UsageError(
            f"{booking.text} has VAT of {format_cents(rate_bp)} %, and DATEV would compute "
            f"{format_cents(computed)} % on {account}.",
            hint=f'Set numbers, tax-keys and tax-rates ("{base.role}" = {rate_bp}) under [billing.accounts], as your '
            "tax adviser says.",
        )
    if not is_reverse and abs(tax_cents) != _tax_in(abs(gross), rate_bp):
        raise UsageError(
            f"{booking.text} has VAT of {format_cents(abs(tax_cents))}, and DATEV would compute "
            f"{format_cents(_tax_in(abs(gross), rate_bp))} from {format_cents(abs(gross))}.",
            hint="Its VAT is not its rate's: `p2pgrid audit` says more. Export it as CSV.",
        )


def _deducts(booking: Booking, base: BookingLine, chart: Chart) -> bool:
    """False where the VAT of a purchase is part of the expense, and DATEV is to compute none."""
    if booking.side is Role.PROVIDER:
        return True
    return chart.input_vat_deducted and base.role is not AccountRole.EXPENSE_FOREIGN_VAT


def _tax_in(gross_cents: int, rate_bp: int) -> int:
    """The VAT in a gross amount, rounded half up. Of any net with VAT that was rounded so, it is that VAT again."""
    whole = _RATE_DENOMINATOR + rate_bp
    return (2 * gross_cents * rate_bp + whole) // (2 * whole)


def _fields(booking: Booking, books: BookSet, own: BookingLine, other: BookingLine, own_cents: int) -> dict[str, str]:
    chart = books.chart
    if abs(own_cents) > MAX_UMSATZ_CENTS:
        raise UsageError(f"{booking.text} is over {format_cents(abs(own_cents))}: DATEV has ten digits for it.")
    numbers = [books.account(booking, one).number for one in (own, other)]
    for number, one in zip(numbers, (own, other), strict=True):
        if not number.isdigit() or not int(number):
            raise UsageError(f"the account {number!r} is no number: DATEV knows no other.")
        digits = chart.account_length + (one.role in PERSONAL_ROLES)
        if len(number) != digits:
            raise UsageError(
                f"the account {number!r} has {len(number)} digits, and {digits} were expected: DATEV would take it for "
                "another.",
                hint=f'Set account-length, or "{one.role}" under [billing.accounts.numbers] with all its digits.',
            )
    is_sale_abroad = booking.side is Role.PROVIDER and other.role is AccountRole.REVENUE_AE
    key = chart.tax_keys.get(other.role, "") if _deducts(booking, other, chart) else ""
    return {
        "Umsatz (ohne Soll/Haben-Kz)": format_cents(abs(own_cents)).replace(".", ","),
        "Soll/Haben-Kennzeichen": "S" if own_cents > 0 else "H",
        "WKZ Umsatz": booking.currency,
        "Konto": numbers[0],
        "Gegenkonto (ohne BU-Schlüssel)": numbers[1],
        "BU-Schlüssel": key.zfill(4) if key else "",
        "Belegdatum": f"{booking.day:%d%m}",
        "Belegfeld 1": document_field(booking.document_number),
        "Buchungstext": text_field(
            f"{booking.text} {books.names.get((booking.side, booking.counterparty), '')}".strip()
        ),
        "Beleginfo - Art 1": "p2pgrid record",
        "Beleginfo - Inhalt 1": booking.record.hex(),
        "Beleginfo - Art 2": "Belegnummer",
        "Beleginfo - Inhalt 2": text_field(harmless(booking.document_number), 210),
        "EU-Land u. UStID (Bestimmung)": _vat_id(booking, books.vat_ids) if is_sale_abroad else "",
        "Festschreibung": "1" if chart.is_final else "0",
        "Leistungsdatum": _day(booking.supply.last) if booking.supply is not None else "",
        "Fälligkeit": _day(booking.due) if booking.due is not None else "",
    }


def _day(day: date) -> str:
    """TTMMJJJJ; nothing for a day of another century, for which the field has no form."""
    return f"{day:%d%m%Y}" if 2000 <= day.year <= 2099 else ""


def _vat_id(booking: Booking, vat_ids: Mapping[tuple[Role, bytes], str]) -> str:
    found = vat_ids.get((booking.side, booking.counterparty), "")
    return found if found.isascii() and found.isalnum() and len(found) <= 15 else ""


def _row(fields: dict[str, str]) -> str:
    assert fields.keys() <= set(COLUMNS)
    return ";".join(
        f'"{fields.get(name, "").replace(chr(34), chr(34) * 2)}"' if name in TEXT_COLUMNS else fields.get(name, "")
        for name in COLUMNS
    )


def document_field(number: str) -> str:
    """A document's number as Belegfeld 1: at most 36 characters of those that DATEV takes.

    One that is changed for that gets a mark of its own, so that no two become one.
    """
    kept = _NOT_IN_DOCUMENTS.sub("-", number)
    if kept.startswith(("-", "+")):  # a formula, where the file is opened in a spreadsheet
        kept = f"_{kept[1:]}"
    if kept == number and len(number) <= MAX_DOCUMENT:
        return number
    mark = hashlib.sha256(number.encode()).digest()[:_MARK_BYTES].hex()
    return f"{kept[: MAX_DOCUMENT - len(mark) - 1]}-{mark}"


def text_field(text: str, limit: int = MAX_TEXT) -> str:
    """Text in the letters of Windows-1252, without line breaks, not longer than that."""
    return "".join(_letter(c) for c in unicodedata.normalize("NFC", text))[:limit].strip()


def _letter(letter: str) -> str:
    if not letter.isprintable():
        return " "
    for form in (letter, "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))):
        try:
            form.encode(ENCODING)
        except UnicodeEncodeError:
            continue
        return form
    return "?"
