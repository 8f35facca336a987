"""A statement becomes a numbered, validated, signed document, all at once or not at all. Blocking: for a thread."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Record, Role, Signed, encode_payload, parse_message, sign_message
from p2pgrid.proto.statement import Invoice, InvoiceType, Statement
from p2pgrid.settlement.clock import Days
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.issue_book import Draft, IssueBook, IssuedRow, Number, NumberTaken, Purpose
from p2pgrid.settlement.making import Inputs, paid_ahead
from p2pgrid.settlement.rendering import Rendered, Renderer

MAX_TRIES: Final = 100
"""Each time, another process was quicker and took a number: so somebody gets on."""
MAX_CLOCK_BACK_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A statement that wants its document, and what the ledger says around it."""

    channel: Channel
    statement: Signed[Statement]
    held_before_pico: int
    preceding: tuple[tuple[str, date], ...]
    """Invoices that a credit note would correct: number and day."""
    seller: Signed[BillingDetails]
    buyer: Signed[BillingDetails]
    is_self_billed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """How documents are numbered, dated and signed."""

    prefix: str
    key: SecretKey | None
    """The provider's; None where the client writes the document, and the provider signs later."""
    days: Days
    now_ms: Callable[[], int]


class Drafter:
    """Makes documents and has them numbered."""

    def __init__(self, book: IssueBook, renderer: Renderer) -> None:
        self._book: Final = book
        self._renderer: Final = renderer

    def invoice(self, case: Case, series: Series) -> None:
        """The statement's invoice or credit note, numbered; durable when this returns.

        Raises InvoiceRefused, LocalError; then no number was taken.
        """
        self._until_numbered(case.statement, lambda: self._drafts(case, series))

    def again(self, case: Case, series: Series, cancelled: IssuedRow, reason: str) -> None:
        """Take back a document and write the statement's anew, by the details of today. Raises as `invoice` does."""
        self._until_numbered(case.statement, lambda: self._pair(case, series, cancelled, reason))

    def _until_numbered(self, statement: Signed[Statement], make: Callable[[], Sequence[Draft]]) -> None:
        for _ in range(MAX_TRIES):
            drafts = make()
            if not drafts:
                return
            try:
                self._book.allot(drafts)
            except NumberTaken:
                continue
            return
        raise InvoiceRefused("number", f"{MAX_TRIES} times another process took the next number first; try again.")

    def _drafts(self, case: Case, series: Series) -> list[Draft]:
        if self._book.of_statement(case.statement.id):
            return []  # another process was quicker
        issued_ms = self._time(series)
        number = self._book.next_number(series.prefix, series.days(issued_ms).year)
        inputs = self._inputs(case, series, number, issued_ms)
        return [self._draft(case, series, number, issued_ms, inputs, round_=0)]

    def _pair(self, case: Case, series: Series, cancelled: IssuedRow, reason: str) -> list[Draft]:
        rows = self._book.of_statement(case.statement.id)
        if any(row.cancels == str(cancelled.number) for row in rows):
            raise InvoiceRefused("cancel", f"{cancelled.number} was taken back already.")
        # Later than what it takes back, in another series and after the clock was set back, too: `standing` goes by it.
        issued_ms = max(self._time(series), cancelled.issued_ms + 1)
        day = series.days(issued_ms)
        first = self._book.next_number(series.prefix, day.year)
        second = first._replace(sequence=first.sequence + 1)
        back = Inputs(
            number=str(first), issue_date=day, note=f"Cancels {cancelled.number}: {reason}", cancels=cancelled.inputs
        )
        anew = self._inputs(case, series, second, issued_ms, note=f"Replaces {cancelled.number}")
        return [
            self._draft(case, series, first, issued_ms, back, round_=cancelled.round, cancels=str(cancelled.number)),
            self._draft(case, series, second, issued_ms, anew, round_=cancelled.round + 1),
        ]

    def _time(self, series: Series) -> int:
        """Now; not before the last document of the series, so that numbers and days rise together."""
        now, last = series.now_ms(), self._book.last_issued_ms(series.prefix)
        if now < last - MAX_CLOCK_BACK_MS:
            raise InvoiceRefused(
                "clock",
                f"the last document of the series {series.prefix} is dated {series.days(last)}, later than now.",
                hint="Set the clock. If that date is wrong, go on with another invoice-prefix.",
            )
        return max(now, last)

    def _inputs(self, case: Case, series: Series, number: Number, issued_ms: int, note: str = "") -> Inputs:
        statement, days = case.statement.message, series.days
        day = days(issued_ms)
        return Inputs(
            number=str(number),
            issue_date=day,
            due_date=max(days(statement.due_ms), day),
            period_first=days(statement.from_ms),
            period_last=days(statement.until_ms - 1),
            seller=case.seller.record.to_bytes(),
            buyer=case.buyer.record.to_bytes(),
            held_before_pico=case.held_before_pico,
            paid_cents=paid_ahead(statement),
            profile=case.buyer.message.profile,
            is_self_billed=case.is_self_billed,
            preceding=case.preceding if statement.net_cents < 0 else (),
            note=note,
        )

    def _draft(
        self,
        case: Case,
        series: Series,
        number: Number,
        issued_ms: int,
        inputs: Inputs,
        *,
        round_: int,
        cancels: str = "",
    ) -> Draft:
        made = self._renderer.render(inputs, case.statement)
        message = _invoice_of(made, case, issued_ms)
        return Draft(
            number=number,
            message=message,
            record=_record_of(message, series.key),
            round=round_,
            purpose=Purpose.CANCELLATION if cancels else Purpose.STATEMENT,
            cancels=cancels,
            inputs=inputs.encoded(),
            files=tuple((f"{number}{suffix}", content) for suffix, content in made.files),
        )


def _invoice_of(made: Rendered, case: Case, issued_ms: int) -> Invoice:
    net_cents, vat_cents, gross_cents = made.signed_cents
    return Invoice(
        channel=case.channel.channel,
        statement=case.statement.id,
        invoice_number=made.number,
        type_code=InvoiceType(made.type_code),
        currency=made.currency,
        net_cents=net_cents,
        vat_cents=vat_cents,
        gross_cents=gross_cents,
        document_sha256=hashlib.sha256(dict(made.files)[made.main]).digest(),
        issued_ms=issued_ms,
    )


def _record_of(message: Invoice, key: SecretKey | None) -> Record:
    if key is not None:
        return sign_message(message, Role.PROVIDER, key).record
    record = Record(message.payload_type, encode_payload(message), ())
    parse_message(record, Invoice)
    return record
