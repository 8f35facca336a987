"""What an archive says of its records: index, readable statements, exports. Pure, and the same in every run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from p2pgrid.cells import harmless
from p2pgrid.proto.record import Role
from p2pgrid.settlement.books.accounts import AccountRole, account_name
from p2pgrid.settlement.books.archive_text import readme
from p2pgrid.settlement.books.book_set import BookSet
from p2pgrid.settlement.books.csv_export import csv_of
from p2pgrid.settlement.books.journal import Booking, totals_of
from p2pgrid.settlement.books.legal_years import TERMS, Kept, keep_until
from p2pgrid.settlement.books.personal import peer_id, personal_number
from p2pgrid.settlement.books.records import ChannelRecords
from p2pgrid.settlement.books.trial_balance import ChannelBalance, channel_balances, trial_balance
from p2pgrid.units import format_cents

FORMAT: Final = "p2pgrid-archive/1"
BALANCE_COLUMNS: Final = ("account", "account_name", "currency", "opening", "debit", "credit", "closing")


@dataclass(frozen=True, kw_only=True)
class Archived:
    """All that an archive is made of."""

    year: int
    closed_in: int
    """The calendar year in which its fiscal year ended: what is kept is counted from there."""
    channels: Sequence[ChannelRecords]
    bundles: Mapping[bytes, str]
    """By channel: the file with its records."""
    books: BookSet
    before: Sequence[Booking]
    """Bookings of earlier years."""
    documents: Mapping[bytes, Sequence[str]]
    """By the id of an Invoice record: its files."""
    country: str
    missing: Sequence[str] = field(default_factory=tuple)
    """What should be here and is not, in sentences."""


def contents_of(archived: Archived) -> dict[str, bytes]:
    """The files beside bundles and documents, by name. Raises Unbalanced."""
    index = index_of(archived)
    files = {
        "index.json": as_json(index),
        "README.md": readme(index).encode(),
        "mapping.json": as_json(_mapping(archived.books)),
        "exports/bookings.csv": csv_of(archived.books),
        "exports/trial-balance.csv": balance_csv(archived.books, archived.before),
    }
    for records in archived.channels:
        for one in records.statements:
            if records.day(one.message.stated_ms, one.id) in archived.books.span:
                shown = {"id": one.id.hex(), **plain_of(one.message)}
                files[_statement_file(records, one.message.statement_number)] = as_json(shown)
    return files


def index_of(archived: Archived) -> dict[str, Any]:
    """`index.json`."""
    books, span = archived.books, archived.books.span
    country = archived.country if archived.country in TERMS else ""
    balances = channel_balances(archived.channels, [*archived.before, *books.bookings], span.last)
    return {
        "format": FORMAT,
        "year": archived.year,
        "first_day": span.first.isoformat(),
        "last_day": span.last.isoformat(),
        "own_peers": sorted({peer_id(one.own_key) for one in archived.channels}),
        "country": archived.country,
        "keep_until": {one.value: keep_until(country, one, archived.closed_in).isoformat() for one in Kept}
        if country
        else {},
        "channels": [
            {
                "channel": one.id.hex(),
                "side": one.side.value,
                "counterparty": peer_id(one.counterparty),
                "name": books.names.get((one.side, one.counterparty), ""),
                "bundle": archived.bundles[one.id],
                "balance": _balance(balance),
            }
            for one, balance in zip(archived.channels, balances, strict=True)
        ],
        "statements": [one for records in archived.channels for one in _statements(records, books)],
        "invoices": [one for records in archived.channels for one in _invoices(records, archived)],
        "payments": [one for records in archived.channels for one in _payments(records, books)],
        "set_offs": [one for records in archived.channels for one in _set_offs(records, books)],
        "totals": {
            currency: {"debit_cents": debit, "credit_cents": credit}
            for currency, (debit, credit) in totals_of(books.bookings).items()
        },
        "missing": list(archived.missing),
    }


def _balance(balance: ChannelBalance) -> dict[str, Any]:
    return {
        "currency": balance.currency,
        "books_cents": balance.books_cents,
        "closing_cents": balance.closing_cents,
        "not_invoiced_cents": balance.not_invoiced_cents,
        "payments_not_stated_cents": balance.payments_not_stated_cents,
        "set_off_not_stated_cents": balance.set_off_not_stated_cents,
        "carried_cents": balance.carried_cents,
        "difference_cents": balance.difference_cents,
    }


def _statements(records: ChannelRecords, books: BookSet) -> Iterable[dict[str, Any]]:
    for one in records.statements:
        message = one.message
        if (day := records.day(message.stated_ms, one.id)) in books.span:
            yield {
                "id": one.id.hex(),
                "channel": records.id.hex(),
                "statement_number": message.statement_number,
                "date": day.isoformat(),
                "first_receipt": message.first_receipt,
                "last_receipt": message.last_receipt,
                "net_cents": message.net_cents,
                "gross_cents": message.gross_cents,
                "closing_cents": message.closing_cents,
                "currency": message.currency,
                "file": _statement_file(records, message.statement_number),
            }


def _invoices(records: ChannelRecords, archived: Archived) -> Iterable[dict[str, Any]]:
    for one in records.invoices:
        message = one.message
        if (day := records.day(message.issued_ms, message.statement)) in archived.books.span:
            yield {
                "id": one.id.hex(),
                "channel": records.id.hex(),
                "statement": message.statement.hex(),
                "invoice_number": message.invoice_number,
                "type_code": int(message.type_code),
                "date": day.isoformat(),
                "net_cents": message.net_cents,
                "vat_cents": message.vat_cents,
                "gross_cents": message.gross_cents,
                "currency": message.currency,
                "document_sha256": message.document_sha256.hex(),
                "files": list(archived.documents.get(one.id, ())),
            }


def _payments(records: ChannelRecords, books: BookSet) -> Iterable[dict[str, Any]]:
    for one in records.payments:
        message = one.message
        if (day := records.day(message.booked_ms, message.statement)) in books.span:
            yield {
                "id": one.id.hex(),
                "channel": records.id.hex(),
                "statement": message.statement.hex(),
                "invoice_number": message.invoice_number,
                "kind": message.kind.value,
                "date": day.isoformat(),
                "amount_cents": message.amount_cents,
                "currency": message.currency,
                "reference": message.reference,
                "entry": message.entry.hex(),
            }


def _set_offs(records: ChannelRecords, books: BookSet) -> Iterable[dict[str, Any]]:
    for leg in records.set_offs:
        if (day := records.day(leg.set_off_ms, leg.statement)) in books.span:
            yield {
                "id": leg.record.hex(),
                "channel": records.id.hex(),
                "statement": leg.statement.hex(),
                "invoice_number": leg.invoice_number,
                "date": day.isoformat(),
                "amount_cents": leg.amount_cents,
                "currency": leg.currency,
            }


def balance_csv(books: BookSet, before: Sequence[Booking]) -> bytes:
    """The trial balance as CSV."""
    written = io.StringIO()
    rows = csv.writer(written, delimiter=";", lineterminator="\r\n")
    rows.writerow(BALANCE_COLUMNS)
    for row in trial_balance(books, before):
        amounts = (row.opening_cents, row.debit_cents, row.credit_cents, row.closing_cents)
        rows.writerow((row.number, harmless(row.name), row.currency, *map(format_cents, amounts)))
    return written.getvalue().encode()


def _mapping(books: BookSet) -> dict[str, Any]:
    """Account numbers by role, and who stands behind the personal ones."""
    length = books.chart.account_length
    return {
        "chart": books.chart.name,
        "accounts": {role.value: [books.chart.number(role), account_name(role)] for role in AccountRole},
        "counterparties": [
            {
                "side": side.value,
                "peer": peer_id(key),
                "account": personal_number(number, length),
                "name": books.names.get((side, key), ""),
                "vat_id": books.vat_ids.get((side, key), ""),
            }
            for (side, key), number in sorted(books.personal.items(), key=lambda one: (one[0][0].value, one[1]))
        ],
    }


def _statement_file(records: ChannelRecords, number: int) -> str:
    return f"statements/{records.id.hex()[:16]}-{number:06}.json"


def bundle_file(channel: bytes, side: Role) -> str:
    """The name says whose export it is, as an audit reads it."""
    return f"bundles/{side.value}-{channel.hex()[:16]}.jsonl"


def as_json(value: Any) -> bytes:
    """JSON for people: keys in the order in which they were set, two blanks deep."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def plain_of(message: msgspec.Struct) -> dict[str, Any]:
    """A message's fields, bytes in hex."""

    def hexed(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, dict):
            return {key: hexed(one) for key, one in value.items()}
        return [hexed(one) for one in value] if isinstance(value, list | tuple) else value

    return {name: hexed(_built(getattr(message, name))) for name in message.__struct_fields__}


def _built(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _built(getattr(value, name)) for name in value.__struct_fields__}
    return [_built(one) for one in value] if isinstance(value, tuple) else value
