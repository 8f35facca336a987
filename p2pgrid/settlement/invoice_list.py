"""Invoices for people: issued and received, what is open of each, where its files are, and statements without one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date
from pathlib import Path
from typing import Final, Protocol

import msgspec

from p2pgrid.errors import LedgerError, LocalError, UsageError
from p2pgrid.ledger.base import DisputeRow
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import M, Role, Signed
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.documents import Documents
from p2pgrid.settlement.issue_book import IssueBook, State
from p2pgrid.settlement.issued_files import SUFFIXES
from p2pgrid.settlement.issued_rows import find_document
from p2pgrid.settlement.making import needs_document
from p2pgrid.settlement.open_items import OpenItem, open_items
from p2pgrid.settlement.set_offs import set_off_shares
from p2pgrid.settlement.standing import Standing, standing
from p2pgrid.settlement.statements.calendar import OffersLedger, days_of, offset_of
from p2pgrid.settlement.statements.days import LocalDays, StatementDays

ISSUED: Final = "issued"
RECEIVED: Final = "received"


class Reader(OffersLedger, Protocol):
    """What of a ledger is needed here: any reader has it."""

    def channels(self) -> list[Signed[Channel]]: ...

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...

    def disputes(self, *, channel: bytes | None = None, unanswered: bool = False) -> list[DisputeRow]: ...


class InvoiceView(msgspec.Struct, frozen=True, kw_only=True):
    """An invoice, or a statement that waits for one."""

    direction: str
    """`issued` or `received`."""
    status: str
    """`pending`, `issued`, `sent`, `received`, `missing`, `refused`, `part-paid`, `paid`, `overpaid`, `covered`,
    `overdue`, `cancelled`, `cancellation` (docs/settlement/issuing.md, section 5)."""
    number: str
    """Empty while it is pending."""
    type_code: int
    """0 while it is pending."""
    peer: str
    peer_name: str
    """By its billing details; empty if they are not known."""
    channel: str
    statement: str
    statement_number: int
    currency: str
    net_cents: int
    vat_cents: int
    gross_cents: int
    paid_cents: int
    left_cents: int
    """Still to be paid."""
    issued_ms: int
    due_ms: int
    issued_day: str
    """By the provider's calendar, like `2027-01-31`; empty while it is pending."""
    due_day: str
    """By the provider's calendar."""
    cancels: str
    cancelled_by: str
    files: tuple[str, ...]
    """Paths; none where the document is not here."""
    code: str
    """Why it is pending, or its document refused."""
    reason: str
    hint: str


class InvoiceList:
    """All of a node."""

    def __init__(
        self, ledger: Reader, keys: Iterable[PublicKey], book: IssueBook, documents: Documents, details: DetailsBook
    ) -> None:
        """`keys`: the node's, those too that it had before."""
        self._ledger: Final = ledger
        self._keys: Final = {key.raw for key in keys}
        self._book: Final = book
        self._documents: Final = documents
        self._details: Final = details

    def views(self, *, at_ms: int, direction: str | None = None) -> list[InvoiceView]:
        """Invoices by the time of issue, then what is pending. Raises LedgerError."""
        found: list[InvoiceView] = []
        for signed in self._ledger.channels():
            terms = signed.message
            is_issued = terms.provider in self._keys
            if not is_issued and terms.client not in self._keys:
                continue
            if direction is None or (direction == ISSUED) is is_issued:
                found += self._of_channel(terms, is_issued=is_issued, at_ms=at_ms)
        return sorted(found, key=lambda view: (not view.number, view.issued_ms, view.number))

    def find(self, name: str, *, at_ms: int, peer: str = "") -> InvoiceView:
        """The one of that number, of that peer (id). Raises UsageError: there is none, or several have used it."""
        found = [view for view in self.views(at_ms=at_ms) if view.number == name and peer in ("", view.peer)]
        if len(found) == 1:
            return found[0]
        if found:
            peers = ", ".join(f"{view.peer} ({view.direction})" for view in found)
            raise UsageError(
                f"several invoices have the number {name!r}: {peers}.", hint="Say whose you mean: --peer PEER."
            )
        raise UsageError(f"there is no invoice {name[:70]!r}.", hint="`p2pgrid invoices list` shows them all.")

    def _of_channel(self, terms: Channel, *, is_issued: bool, at_ms: int) -> list[InvoiceView]:
        statements = {s.id: s for s in self._ledger.settlement(Statement, terms.channel) if Role.CLIENT in s.signers}
        invoices = self._ledger.settlement(Invoice, terms.channel)
        shares = set_off_shares(self._ledger, [terms.channel])
        items = {item.invoice_id: item for item in open_items(self._ledger, [terms.channel], set_off=shares)}
        peer = terms.client if is_issued else terms.provider
        name = _name(self._details.of(peer, Role.CLIENT if is_issued else Role.PROVIDER))
        made = [
            self._view(one, items[one.invoice.id], terms, name, is_issued=is_issued, at_ms=at_ms)
            for one in standing(invoices)
        ]
        billed = {one.message.statement for one in invoices}
        held = {s.id: s.message.held_pico for s in statements.values()}
        waiting = [
            self._pending(s, terms, name, is_issued=is_issued)
            for s in statements.values()
            if s.id not in billed and needs_document(s.message, held.get(s.message.previous, 0))
        ]
        return [*made, *sorted(waiting, key=lambda view: view.statement_number)]

    def _view(
        self, one: Standing, item: OpenItem, terms: Channel, name: str, *, is_issued: bool, at_ms: int
    ) -> InvoiceView:
        message = one.invoice.message
        files, mail, code, reason = self._document(one.invoice, is_issued=is_issued)
        issued, due = self._days(item)
        money = str(item.state(at_ms))
        if one.cancelled_by or one.cancels:
            status = "cancelled" if one.cancelled_by else "cancellation"
        else:
            status = mail if money == "open" or mail == "refused" else money
        return InvoiceView(
            direction=ISSUED if is_issued else RECEIVED,
            status=status,
            number=message.invoice_number,
            type_code=message.type_code.value,
            peer=_peer(terms, is_issued=is_issued),
            peer_name=name,
            channel=terms.channel.hex(),
            statement=message.statement.hex(),
            statement_number=item.statement_number,
            currency=message.currency,
            net_cents=message.net_cents,
            vat_cents=message.vat_cents,
            gross_cents=message.gross_cents,
            paid_cents=item.paid_cents + item.set_off_cents,
            left_cents=item.left_cents,
            issued_ms=message.issued_ms,
            due_ms=item.due_ms,
            issued_day=issued.isoformat(),
            due_day=due.isoformat(),
            cancels=one.cancels,
            cancelled_by=one.cancelled_by,
            files=tuple(str(path) for path in files),
            code=code,
            reason=reason,
            hint="",
        )

    def _days(self, item: OpenItem) -> tuple[date, date]:
        """When it was issued, and when it is due: the last day on which it is paid in time."""
        if item.statement is None:
            day = LocalDays(UTC).of(item.invoice.issued_ms)
            return day, day
        statement = item.statement.message
        offset = offset_of(self._ledger, statement)
        issued = LocalDays.at_offset(offset or 0).of(item.invoice.issued_ms)
        return issued, StatementDays.of(statement, offset).due

    def _document(self, invoice: Signed[Invoice], *, is_issued: bool) -> tuple[Sequence[Path], str, str, str]:
        """Files, how far the document has come, and what is wrong with it: a code and a sentence."""
        if not is_issued:
            received = self._documents.received(invoice.id)
            if received is None:
                return (), "missing", "", ""
            return received.files, "refused" if received.is_refused else "received", received.code, received.message
        row = self._book.row(invoice.message.invoice_number)
        if row is None or row.state is State.ADOPTED:
            written = self._documents.received(invoice.id)  # by the client itself
            return (written.files, "received", "", "") if written is not None else ((), "missing", "", "")
        folder = self._documents.issued_folder / str(row.number.year)
        files = [path for suffix in SUFFIXES if (path := folder / f"{row.number}{suffix}").exists()]
        if row.state is State.PUBLISHED and not files:
            return (), "missing", "files", "they are not in the folder any more."
        try:
            find_document(self._book, self._documents.issued_folder, invoice)
        except LedgerError:
            raise
        except LocalError as error:
            return files, "missing", "files", error.message
        return files, "sent" if row.sent_ms is not None else "issued", "", ""

    def _pending(self, statement: Signed[Statement], terms: Channel, name: str, *, is_issued: bool) -> InvoiceView:
        message = statement.message
        why = self._book.not_issued().get(statement.id) if is_issued else None
        return InvoiceView(
            direction=ISSUED if is_issued else RECEIVED,
            status="pending",
            number="",
            type_code=0,
            peer=_peer(terms, is_issued=is_issued),
            peer_name=name,
            channel=terms.channel.hex(),
            statement=statement.id.hex(),
            statement_number=message.statement_number,
            currency=message.currency,
            net_cents=message.net_cents,
            vat_cents=message.gross_cents - message.net_cents,
            gross_cents=message.gross_cents,
            paid_cents=0,
            left_cents=message.gross_cents,
            issued_ms=0,
            due_ms=message.due_ms,
            issued_day="",
            due_day=days_of(self._ledger, message).due.isoformat(),
            cancels="",
            cancelled_by="",
            files=(),
            code=why.code if why is not None else "",
            reason=why.message if why is not None else "",
            hint=why.hint if why is not None else "",
        )


def _peer(terms: Channel, *, is_issued: bool) -> str:
    return parse_public_key(terms.client if is_issued else terms.provider).peer_id


def _name(details: Signed[BillingDetails] | None) -> str:
    return details.message.legal_name if details is not None else ""
