"""The page a person reads: who, what, when, how much, where to pay."""

from __future__ import annotations

import functools
from datetime import date
from typing import Final

from p2pgrid.proto.statement import InvoiceType
from p2pgrid.settlement.invoices.document import Document, InvoiceLine
from p2pgrid.settlement.invoices.parties import Party
from p2pgrid.settlement.invoices.sheet import ACCENT, BOTTOM, LEFT, QUIET, RIGHT, Sheets, leading
from p2pgrid.settlement.invoices.texts import euros, percent, price
from p2pgrid.settlement.invoices.vat import VatCategory

TITLES: Final = {
    InvoiceType.INVOICE: "Invoice",
    InvoiceType.CREDIT_NOTE: "Credit note",
    InvoiceType.SELF_BILLED_INVOICE: "Self-billed invoice",
    InvoiceType.SELF_BILLED_CREDIT_NOTE: "Self-billed credit note",
}
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
COUNTRIES: Final = {
    "AT": "Austria", "BE": "Belgium", "BG": "Bulgaria", "CH": "Switzerland", "CY": "Cyprus", "CZ": "Czechia",
    "DE": "Germany", "DK": "Denmark", "EE": "Estonia", "ES": "Spain", "FI": "Finland", "FR": "France",
    "GB": "United Kingdom", "GR": "Greece", "HR": "Croatia", "HU": "Hungary", "IE": "Ireland", "IS": "Iceland",
    "IT": "Italy", "LI": "Liechtenstein", "LT": "Lithuania", "LU": "Luxembourg", "LV": "Latvia", "MT": "Malta",
    "NL": "Netherlands", "NO": "Norway", "PL": "Poland", "PT": "Portugal", "RO": "Romania", "SE": "Sweden",
    "SI": "Slovenia", "SK": "Slovakia", "UA": "Ukraine", "US": "United States",
}  # fmt: skip
"""For the page; a country that is not here stands as its code."""
_TOKENS: Final = 132.0
_PRICE: Final = 164.0
_NAME_WIDTH: Final = 82.0
_SUMS: Final = 118.0
_MINUS: Final = "\u2212"
_TO: Final = "\u2013"
_THIN: Final = "\u202f"
"""Narrow space, unbroken: between thousands."""


def draw_page(document: Document) -> Sheets:
    """The document on paper. Raises InvoiceRefused (`glyph`) for a text that the font cannot show."""
    # Drawn twice: every sheet says how many there are.
    return _drawn(document, total=_drawn(document, total=0).count)


def _drawn(document: Document, *, total: int) -> Sheets:
    sheets = Sheets(
        title=title_of(document),
        author=document.seller.name,
        subject=subject_of(document),
        on=document.issue_date,
        foot=functools.partial(_draw_foot, document=document, total=total),
    )
    _draw_head(sheets, document)
    _draw_lines(sheets, document)
    _draw_sums(sheets, document)
    _draw_payment(sheets, document)
    _draw_small_print(sheets, document)
    return sheets


def title_of(document: Document) -> str:
    """What a reader's window shows: "Invoice 2026-0001"."""
    return f"{TITLES[document.type]} {document.number}"


def subject_of(document: Document) -> str:
    """The title and the day."""
    return f"{title_of(document)}, {_day(document.issue_date)}"


def _draw_head(sheets: Sheets, document: Document) -> None:
    below = sheets.put_block(LEFT, sheets.y, 88, document.seller.name, size=12, is_bold=True, color=ACCENT)
    sheets.put(RIGHT, sheets.y - 1.5, TITLES[document.type], size=19, is_bold=True, color=ACCENT, to_right=True)
    y = max(sheets.y + 14, below + 5)
    facts = [("Number", document.number), ("Date", _day(document.issue_date))]
    if document.due_date is not None:
        facts.append(("Due", _day(document.due_date)))
    facts.append(("Period", _period(document.period_first, document.period_last)))
    if document.buyer_reference:
        facts.append(("Your reference", document.buyer_reference))
    facts += [
        ("Corrects" if not number else "", f"{earlier.number}, {_day(earlier.issue_date)}")
        for number, earlier in enumerate(document.preceding)
    ]
    right = y
    for label, value in facts:
        sheets.put(_SUMS, right, label, color=QUIET)
        right = sheets.put_block(_SUMS + 24, right, RIGHT - _SUMS - 24, value) + 0.8
    label = "Credited to" if document.is_credit_note else "Billed to"
    left = _draw_party(sheets, label, document.buyer, document.tax_ids.buyer_vat_id or document.buyer.vat_id, y)
    left = _draw_party(
        sheets, "From", document.seller, document.seller.vat_id, left + 4, tax_number=document.seller.tax_number
    )
    sheets.y = max(left, right) + 8


def _draw_party(sheets: Sheets, label: str, party: Party, vat_id: str, y: float, *, tax_number: str = "") -> float:
    sheets.put(LEFT, y, label, size=8, color=QUIET)
    y = sheets.put_block(LEFT, y + 4.2, 90, party.name, size=10, is_bold=True)
    address = party.address
    town = " ".join(part for part in (address.post_code, address.city) if part)
    for line in (
        address.line1,
        address.line2,
        f"{town}, {address.subdivision}" if address.subdivision else town,
        COUNTRIES.get(address.country, address.country),
        f"VAT ID {vat_id}" if vat_id else "",
        f"Tax number {tax_number}" if tax_number else "",
        f"Registration {party.registration.number}" if party.registration is not None else "",
    ):
        if line:
            y = sheets.put_block(LEFT, y, 90, line)
    return y


def _draw_lines(sheets: Sheets, document: Document) -> None:
    _draw_columns(sheets)
    group, at_top = "", True
    for position, line in enumerate(document.lines):
        name = _kind(line) if line.group else line.name
        begins = line.group != group
        group = line.group
        rows = sheets.lines_of(name, _NAME_WIDTH - (3 if line.group else 0))
        heading = sheets.lines_of(line.group, RIGHT - LEFT, is_bold=True) if begins and line.group else []
        together = _kept_together(document.lines[position:]) if begins else 1
        height = (len(rows) * together + len(heading)) * leading(9) + 1.2 * together + 1.6
        if not sheets.has_room(height):
            _turn_over(sheets)
            at_top = True
            if line.group and not begins:
                heading = sheets.lines_of(f"{line.group} (continued)", RIGHT - LEFT, is_bold=True)
        if begins and not at_top:
            sheets.rule(sheets.y - 0.4)
            sheets.y += 1.2
        at_top = False
        for row in heading:
            sheets.put(LEFT, sheets.y, row, is_bold=True)
            sheets.y += leading(9) + 0.3
        _draw_line(sheets, line, rows)


def _kept_together(lines: tuple[InvoiceLine, ...]) -> int:
    """How many lines of the first one's model are not torn from their heading: the three kinds of token at most."""
    return sum(1 for line in lines[:3] if line.group == lines[0].group)


def _draw_line(sheets: Sheets, line: InvoiceLine, rows: list[str]) -> None:
    y = sheets.y
    if line.base_quantity > 1:  # what is for no tokens is one thing, at its whole price
        sheets.put(_TOKENS, y, grouped(str(line.quantity)), to_right=True)
        sheets.put(_PRICE, y, grouped(price(line.price_micro)), to_right=True)
    sheets.put(RIGHT, y, grouped(euros(line.net_cents)), to_right=True)
    for row in rows:
        sheets.put(LEFT + (3 if line.group else 0), sheets.y, row)
        sheets.y += leading(9)
    sheets.y += 1.2


def _draw_columns(sheets: Sheets) -> None:
    y = sheets.y
    sheets.shade(LEFT - 2, y - 1.6, RIGHT - LEFT + 4, 7)
    sheets.put(LEFT, y, "Model and tokens", size=8, is_bold=True, color=QUIET)
    sheets.put(_TOKENS, y, "Tokens", size=8, is_bold=True, color=QUIET, to_right=True)
    sheets.put(_PRICE, y, "EUR per million", size=8, is_bold=True, color=QUIET, to_right=True)
    sheets.put(RIGHT, y, "Net EUR", size=8, is_bold=True, color=QUIET, to_right=True)
    sheets.y = y + 8


def _turn_over(sheets: Sheets) -> None:
    sheets.add()
    _draw_columns(sheets)


def _draw_sums(sheets: Sheets, document: Document) -> None:
    totals = document.totals
    rows = [("Sum of lines", totals.lines_cents)] if document.allowances else []
    rows += [(allowance.reason, -allowance.net_cents) for allowance in document.allowances]
    rows += [("Net", totals.net_cents), (_vat_label(document), totals.vat_cents)]
    if totals.paid_cents:
        rows += [("Total with VAT", totals.gross_cents), ("Paid ahead", -totals.paid_cents)]
    if not sheets.has_room(len(rows) * 5.4 + 20):
        sheets.add()
    sheets.y += 2
    sheets.rule(sheets.y, x=_SUMS)
    sheets.y += 2.4
    for label, cents in rows:
        after = sheets.put_block(_SUMS, sheets.y, 46, label, color=QUIET)
        sheets.put(RIGHT, sheets.y, grouped(euros(cents)), to_right=True)
        sheets.y = after + 0.9
    sheets.y += 1
    sheets.shade(_SUMS - 3, sheets.y, RIGHT - _SUMS + 5, 10)
    label = "Amount credited" if document.is_credit_note else "Amount due"
    sheets.put(_SUMS, sheets.y + 2.6, label, size=11, is_bold=True, color=ACCENT)
    sheets.put(
        RIGHT, sheets.y + 2.6, f"{grouped(euros(totals.due_cents))} EUR", size=11, is_bold=True, color=ACCENT,
        to_right=True,
    )  # fmt: skip
    sheets.y += 16


def _vat_label(document: Document) -> str:
    if document.vat.category is VatCategory.STANDARD:
        return f"VAT {percent(document.vat.rate_bp)} %"
    names = {VatCategory.REVERSE_CHARGE: "VAT, reverse charge", VatCategory.EXEMPT: "VAT, exempt"}
    return names.get(document.vat.category, "VAT, out of scope")


def _draw_payment(sheets: Sheets, document: Document) -> None:
    payment = document.payment
    facts = []
    if payment.account is not None and document.totals.due_cents:
        facts = [
            ("IBAN", _fours(payment.account.iban)),
            ("BIC", payment.account.bic),
            ("Account holder", payment.account.holder or (document.seller.name if not document.is_credit_note else "")),
            ("Reference", payment.reference or document.number),
        ]
    facts = [(label, value) for label, value in facts if value]
    if not sheets.has_room(len(facts) * 5.2 + 14):
        sheets.add()
    sheets.put(LEFT, sheets.y, "Payment", size=10, is_bold=True, color=ACCENT)
    sheets.y += 5.6
    sheets.y = sheets.put_block(LEFT, sheets.y, RIGHT - LEFT, _terms(document)) + 0.8
    for label, value in facts:
        sheets.put(LEFT, sheets.y, label, color=QUIET)
        sheets.y = sheets.put_block(LEFT + 28, sheets.y, RIGHT - LEFT - 28, value) + 0.5
    sheets.y += 5


def _terms(document: Document) -> str:
    if document.is_credit_note or document.due_date is None or not document.totals.due_cents:
        return document.payment.terms
    return f"Please pay by {_day(document.due_date)}, by SEPA credit transfer, with the reference below."


def _draw_small_print(sheets: Sheets, document: Document) -> None:
    notes = []
    if document.note:
        notes.append(("Note", document.note))
    elif document.vat.exemption_text:
        notes.append(("VAT", document.vat.exemption_text))
    for supporting in document.supporting:
        inside = f" The file {supporting.attachment.filename} is attached." if supporting.attachment else ""
        notes.append(("Statement", f"{supporting.description}.{inside}"))
        notes.append(("SHA-256", supporting.reference))
    for label, text in notes:
        rows = sheets.lines_of(text, RIGHT - LEFT - 28, size=8)
        if not sheets.has_room(len(rows) * leading(8) + 1):
            sheets.add()
        sheets.put(LEFT, sheets.y, label, size=8, color=QUIET)
        for row in rows:
            sheets.put(LEFT + 28, sheets.y, row, size=8)
            sheets.y += leading(8)
        sheets.y += 0.8


def _draw_foot(sheets: Sheets, *, document: Document, total: int) -> None:
    y = BOTTOM + 6
    sheets.rule(y)
    contact = document.seller.contact
    reach = f"{contact.name} · {contact.phone} · {contact.email}" if contact is not None else ""
    name = document.seller.name if len(document.seller.name) <= 90 else f"{document.seller.name[:89]}…"
    sheets.put(LEFT, y + 2, name, size=7.5, color=QUIET)
    for offset, row in enumerate(sheets.lines_of(reach, 120, size=7.5)[:2]):
        sheets.put(LEFT, y + 5.8 + offset * 3.6, row, size=7.5, color=QUIET)
    page = f"{document.number} · page {sheets.count} of {total}"
    sheets.put(RIGHT, y + 2, page, size=7.5, color=QUIET, to_right=True)


def _kind(line: InvoiceLine) -> str:
    """What of the model's tokens a line is for: the name without the model, which stands above."""
    kind = line.name.removeprefix(f"{line.group}, ")
    return kind[:1].upper() + kind[1:]


def grouped(number: str) -> str:
    """A decimal number with its thousands apart and a true minus, as people read it."""
    whole, point, fraction = number.removeprefix("-").partition(".")
    groups: list[str] = []
    while len(whole) > 3:
        groups.insert(0, whole[-3:])
        whole = whole[:-3]
    return (_MINUS if number.startswith("-") else "") + _THIN.join([whole, *groups]) + point + fraction


def _fours(iban: str) -> str:
    return " ".join(iban[start : start + 4] for start in range(0, len(iban), 4))


def _period(first: date, last: date) -> str:
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day} {_TO} {_day(last)}" if first != last else _day(last)
    return f"{_day(first)} {_TO} {_day(last)}"


def _day(day: date) -> str:
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"
