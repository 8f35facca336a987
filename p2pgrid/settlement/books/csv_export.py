"""Bookings as CSV: UTF-8, a row for every line of a booking (docs/settlement/books.md, section 3)."""

from __future__ import annotations

import csv
import io
from typing import Final

from p2pgrid.cells import harmless
from p2pgrid.settlement.books.book_set import BookSet
from p2pgrid.settlement.books.journal import Booking, totals_of
from p2pgrid.settlement.books.personal import peer_id
from p2pgrid.units import format_cents

COLUMNS: Final = (
    "date",
    "document",
    "kind",
    "account",
    "account_name",
    "contra_account",
    "debit",
    "credit",
    "currency",
    "vat_category",
    "vat_rate",
    "counterparty",
    "peer",
    "vat_id",
    "text",
    "due",
    "supply_from",
    "supply_to",
    "side",
    "channel",
    "record",
)


def csv_of(books: BookSet) -> bytes:
    """The file. The same bookings give the same bytes. Raises Unbalanced."""
    totals_of(books.bookings)
    written = io.StringIO()
    rows = csv.writer(written, delimiter=";", lineterminator="\r\n")
    rows.writerow(COLUMNS)
    for booking in books.bookings:
        for one in booking.lines:
            account, contra = books.account(booking, one), books.account(booking, booking.contra_of(one))
            rows.writerow(
                (
                    booking.day.isoformat(),
                    harmless(booking.document_number),
                    booking.kind.value,
                    account.number,
                    harmless(account.name),
                    contra.number,
                    format_cents(one.debit_cents) if one.debit_cents else "",
                    format_cents(one.credit_cents) if one.credit_cents else "",
                    booking.currency,
                    one.vat_category,
                    format_cents(one.vat_rate_bp) if one.vat_category else "",
                    harmless(books.name(booking)),
                    peer_id(booking.counterparty),
                    harmless(books.vat_ids.get((booking.side, booking.counterparty), "")),
                    harmless(booking.text),
                    booking.due.isoformat() if booking.due is not None else "",
                    *_supply(booking),
                    booking.side.value,
                    booking.channel.hex(),
                    booking.record.hex(),
                )
            )
    return written.getvalue().encode()


def _supply(booking: Booking) -> tuple[str, str]:
    span = booking.supply
    return (span.first.isoformat(), span.last.isoformat()) if span is not None else ("", "")
