"""The rail `manual`: a list of transfers for a person to make, and a list of movements that a person typed.

    date;amount;currency;account;name;iban;reference;text
    2026-11-02;12.40;EUR;LT121000011101001000;Alice GmbH;DE89370400440532013000;L5G4...;Invoice LT-2026-000001

Amounts have a point, and a minus if money went out. An eighth column after these, `bank_reference`, may hold the bank's
own number of the movement: with it, two equal payments of one day are told apart for good.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO, Final

from p2pgrid.cells import harmless
from p2pgrid.settlement.payments.accounts import NotAnAccount, checked_iban
from p2pgrid.settlement.payments.cents import MAX_CENTS, NotAnAmount, signed_cents_of
from p2pgrid.settlement.payments.days import day_of
from p2pgrid.settlement.payments.entries import BookedEntry, is_given, with_keys
from p2pgrid.settlement.payments.orders import PaymentBatch, PaymentOrder
from p2pgrid.settlement.payments.rail_files import RailFile
from p2pgrid.settlement.payments.reference import creditor_reference_of, is_reference
from p2pgrid.settlement.payments.refusals import BankFileError
from p2pgrid.settlement.payments.statements import BankFile, BankStatement
from p2pgrid.units import format_cents

MAX_FILE_BYTES: Final = 10 * 1024 * 1024
MAX_FIELD_CHARS: Final = 1_000
KIND: Final = "manual"

_COLUMNS: Final = ("date", "amount", "currency", "account", "name", "iban", "reference", "text")
_MORE: Final = "bank_reference"
_SHOWN: Final = 40


class ManualRail:
    """Transfers made and movements typed by hand."""

    name = KIND

    def write(self, batch: PaymentBatch, *, created: datetime) -> tuple[RailFile, ...]:
        """A text to make the transfers from, and the same as CSV."""
        stem = f"transfers-{batch.message_id}"
        return (
            RailFile(f"{stem}.txt", _as_text(batch, created).encode()),
            RailFile(f"{stem}.csv", _as_csv(batch).encode()),
        )

    def read(self, file: BinaryIO, name: str) -> BankFile:
        """The movements of a list, those of one account as one statement, in the list's order.

        Raises BankFileError for the first line that is not as it should be; then nothing was read.
        """
        data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BankFileError(name, 0, f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise BankFileError(name, line, "this is not UTF-8; save the list as CSV in UTF-8") from None
        entries = list(_entries(text, name))
        accounts = dict.fromkeys(entry.account_iban for entry in entries)
        statements = (_statement([e for e in entries if e.account_iban == iban]) for iban in accounts)
        return BankFile(name=name, kind=KIND, message_id="", statements=tuple(statements))


def _entries(text: str, name: str) -> Iterator[BookedEntry]:
    rows = _rows(text, name)
    line, header = next(rows, (1, []))
    columns = [column.strip().lower() for column in header]
    if columns not in ([*_COLUMNS], [*_COLUMNS, _MORE]):
        raise BankFileError(
            name,
            line,
            f"the first line is {';'.join(header)[:80]!r}; expected {';'.join(_COLUMNS)}, semicolons between",
        )
    for line, row in rows:
        if len(row) != len(columns):
            raise BankFileError(name, line, f"the line has {len(row)} columns; expected {len(columns)}")
        yield _entry(dict(zip(columns, (field.strip() for field in row), strict=True)), name, line)


def _rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with its line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";", strict=True)
    start = 1
    try:
        for row in reader:
            if any(len(field) > MAX_FIELD_CHARS for field in row):
                raise BankFileError(name, start, f"a column is longer than {MAX_FIELD_CHARS} characters")
            if any(field.strip() for field in row):
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise BankFileError(name, start, f"the line is no CSV: {error}") from None


def _entry(fields: dict[str, str], name: str, line: int) -> BookedEntry:
    try:
        cents = signed_cents_of(fields["amount"])
        day = day_of(fields["date"])
        account = checked_iban(fields["account"])
        other = checked_iban(fields["iban"]) if fields["iban"] else ""
    except NotAnAmount as error:
        raise BankFileError(name, line, str(error)) from None
    except NotAnAccount as error:
        raise BankFileError(name, line, error.message.rstrip(".")) from None
    except ValueError:
        raise BankFileError(
            name, line, f"{fields['date'][:_SHOWN]!r} is no date; expected one like 2026-11-27"
        ) from None
    if not cents:
        raise BankFileError(name, line, f"the amount is 0; expected up to {format_cents(MAX_CENTS)}")
    currency = fields["currency"]
    if not (len(currency) == 3 and currency.isascii() and currency.isalpha() and currency.isupper()):
        raise BankFileError(
            name, line, f"the currency {currency[:_SHOWN]!r} is no ISO 4217 code; expected one like EUR"
        )
    reference, bank_reference = fields["reference"], fields.get(_MORE, "")
    return BookedEntry(
        account_iban=account,
        source_kind=KIND,
        statement_id=KIND,
        line=line,
        amount_cents=cents,
        currency=currency,
        booking_date=day,
        end_to_end_id=reference if is_given(reference) else "",
        bank_reference=bank_reference if is_given(bank_reference) else "",
        remittance_text=fields["text"],
        counterparty_name=fields["name"],
        counterparty_iban=other,
    )


def _statement(entries: list[BookedEntry]) -> BankStatement:
    return BankStatement(
        account_iban=entries[0].account_iban,
        statement_id=KIND,
        sequence_number="",
        line=entries[0].line,
        currency="",
        opening_cents=None,
        closing_cents=None,
        is_balanced=False,
        entries=with_keys(entries),
        pending=(),
    )


def _as_text(batch: PaymentBatch, created: datetime) -> str:
    lines = [
        f"Transfers to make from {_one_line(batch.payer.name)}, {_grouped(batch.payer.iban)}",
        f"on {batch.execution_date.isoformat()}: {len(batch.orders)} in all, {format_cents(batch.total_cents)} EUR",
        f"List {batch.message_id}, written {created.isoformat(timespec='minutes')}",
        "Copy the references exactly: by them the payee's books find the invoice.",
    ]
    for number, order in enumerate(batch.orders, start=1):
        payee = order.payee
        lines += [
            "",
            f"{number}. {format_cents(order.amount_cents)} EUR{' (instant)' if batch.instant else ''}",
            f"   to         {_one_line(payee.name)}",
            f"   IBAN       {_grouped(payee.iban)}",
            *([f"   BIC        {payee.bic}"] if payee.bic else []),
            *([f"   reference  {_grouped(_typed_reference(order))}"] if _typed_reference(order) else []),
            *([f"   text       {_one_line(order.remittance_text)}"] if order.remittance_text else []),
            f"   end-to-end {order.end_to_end_id}  (where the bank asks for one)",
        ]
    return "\n".join(lines) + "\n"


def _as_csv(batch: PaymentBatch) -> str:
    written = io.StringIO()
    rows = csv.writer(written, delimiter=";", lineterminator="\n")
    rows.writerow(
        ["date", "amount", "currency", "payer_iban", "name", "iban", "bic", "reference", "text", "end_to_end"]
    )
    for order in batch.orders:
        rows.writerow(
            [
                batch.execution_date.isoformat(),
                format_cents(order.amount_cents),
                "EUR",
                batch.payer.iban,
                harmless(order.payee.name),
                order.payee.iban,
                order.payee.bic,
                _typed_reference(order),
                harmless(order.remittance_text),
                order.end_to_end_id,
            ]
        )
    return written.getvalue()


def _typed_reference(order: PaymentOrder) -> str:
    """The short reference, which the bank checks as it is typed."""
    if order.creditor_reference:
        return order.creditor_reference
    return creditor_reference_of(order.end_to_end_id) if is_reference(order.end_to_end_id) else ""


def _one_line(text: str) -> str:
    """Who chose the text must not add a transfer to the list, nor turn a line round."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _grouped(text: str) -> str:
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))
