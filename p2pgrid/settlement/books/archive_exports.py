"""An archive's readable parts, held against its records and against one another: bookings, trial balance, statements.

An accountant reads these and no record, so nothing in them may be other than what was signed.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.books.archive_contents import plain_of
from p2pgrid.settlement.books.archive_fault import SHOWN, ArchiveFault, content_of
from p2pgrid.settlement.books.archive_index import Index, StatementRow, Totals
from p2pgrid.settlement.books.archive_place import is_plain
from p2pgrid.settlement.payments.cents import NotAnAmount, cents_of, signed_cents_of

BOOKINGS: Final = "exports/bookings.csv"
BALANCE: Final = "exports/trial-balance.csv"
_UNREADABLE: Final = (OSError, UnicodeDecodeError, KeyError, TypeError, csv.Error, NotAnAmount)

Sums = dict[tuple[str, str], Counter[str]]
"""Of an account in a currency: debit and credit in cents."""


@dataclass(slots=True)
class _Booked:
    """What bookings.csv says."""

    debits: Counter[str] = field(default_factory=Counter)
    """Of each record."""
    debits_in: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of each record in each channel."""
    owed: dict[str, int] = field(default_factory=dict)
    """By record: its first line, which is the counterparty's. Above zero the client owes more than before."""
    accounts: Sums = field(default_factory=lambda: defaultdict(Counter))


def set_offs_of(index: Index) -> Counter[tuple[str, str]]:
    """What each takes off in a channel, by its record and the channel's id."""
    found: Counter[tuple[str, str]] = Counter()
    for one in index.set_offs:
        found[one.id, one.channel] += one.amount_cents
    return found


def check_exports(folder: Path, index: Index) -> Iterator[ArchiveFault]:
    """Does every record of the year stand in the bookings with its amount, and nothing else; and is the trial balance
    that of the bookings?"""
    try:
        booked = _booked(content_of(folder / BOOKINGS).decode())
    except _UNREADABLE as error:
        yield ArchiveFault(BOOKINGS, f"it cannot be read ({type(error).__name__}).")
        return
    yield from _check_totals(booked, index)
    yield from _check_amounts(booked, index)
    try:
        yield from _check_balance(booked, content_of(folder / BALANCE).decode())
    except _UNREADABLE as error:
        yield ArchiveFault(BALANCE, f"it cannot be read ({type(error).__name__}).")


def _booked(text: str) -> _Booked:
    booked = _Booked()
    for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=";"):
        record, account = str(row["record"]), (str(row["account"]), str(row["currency"]))
        cents = {side: cents_of(row[side]) if row[side] else 0 for side in ("debit", "credit")}
        booked.accounts[account].update(cents)
        booked.debits[record] += cents["debit"]
        booked.debits_in[record, str(row["channel"])] += cents["debit"]
        signed = cents["debit"] - cents["credit"]
        booked.owed.setdefault(record, signed if row["side"] == "provider" else -signed)
    return booked


def _check_totals(booked: _Booked, index: Index) -> Iterator[ArchiveFault]:
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for (_, currency), sums in booked.accounts.items():
        totals[currency].update(sums)
    for currency in sorted(totals.keys() | index.totals.keys()):
        sums = totals[currency]
        if sums["debit"] != sums["credit"] or index.totals.get(currency) != Totals(sums["debit"], sums["credit"]):
            yield ArchiveFault(
                BOOKINGS, f"debit and credit in {currency} are not the same, or not those of index.json."
            )


def _check_amounts(booked: _Booked, index: Index) -> Iterator[ArchiveFault]:
    # A purchase under reverse charge has its VAT on both sides besides, so an invoice's debits may be more.
    invoices = {one.id: one.gross_cents for one in index.invoices}
    payments = {one.id: -one.amount_cents for one in index.payments}
    for record, cents in sorted((invoices | payments).items()):
        debits = booked.debits[record]
        is_whole = debits >= abs(cents) if record in invoices else debits == abs(cents)
        if not is_whole or booked.owed.get(record, 0) != cents:
            yield ArchiveFault(BOOKINGS, f"record {record[:16]} is not booked with {abs(cents)} cents.")
    for (record, channel), cents in sorted(set_offs_of(index).items()):
        if booked.debits_in[record, channel] != cents:
            yield ArchiveFault(BOOKINGS, f"set-off {record[:16]} is not booked with {cents} cents.")
    for record in sorted(set(booked.debits) - set(invoices) - set(payments) - {one.id for one in index.set_offs}):
        yield ArchiveFault(BOOKINGS, f"record {record[:16]} is booked and not in index.json.")


def _check_balance(booked: _Booked, text: str) -> Iterator[ArchiveFault]:
    opening: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=";"):
        account = str(row["account"]), str(row["currency"])
        opened, debit, credit, closing = (
            signed_cents_of(row[name]) for name in ("opening", "debit", "credit", "closing")
        )
        opening[account[1]] += opened
        if closing != opened + debit - credit:
            what = f"account {account[0][:SHOWN]}: closing is not opening, debit and credit together."
            yield ArchiveFault(BALANCE, what)
        sums = booked.accounts.get(account, Counter())
        if account in seen or (debit, credit) != (sums["debit"], sums["credit"]):
            yield ArchiveFault(BALANCE, f"account {account[0][:SHOWN]} is not what is booked on it.")
        seen.add(account)
    for number, _ in sorted(account for account, sums in booked.accounts.items() if account not in seen and +sums):
        yield ArchiveFault(BALANCE, f"account {number[:SHOWN]} is not what is booked on it.")
    for currency, cents in sorted(opening.items()):
        if cents:
            yield ArchiveFault(BALANCE, f"opening balances in {currency[:SHOWN]} are not nothing together.")


def check_statement(folder: Path, row: StatementRow, statement: Statement) -> Iterator[ArchiveFault]:
    """Does the readable statement say what was signed?"""
    if not is_plain(row.file) or not (folder / row.file).is_file():
        yield ArchiveFault(row.file[:SHOWN], f"statement {statement.statement_number} is not there.")
        return
    try:
        said = msgspec.json.decode(content_of(folder / row.file), type=dict[str, object])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        yield ArchiveFault(row.file, f"it cannot be read: {error}")
        return
    expected: Mapping[str, object] = {"id": row.id, **plain_of(statement)}
    for name, value in expected.items():
        # Compared as JSON: there 1 and true, or 1 and 1.0, are not the same.
        if msgspec.json.encode(said.get(name)) != msgspec.json.encode(value):
            yield ArchiveFault(row.file, f"it says {name} {str(said.get(name))[:SHOWN]!r}, its record does not.")
