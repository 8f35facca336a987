"""What `p2pgrid settle --list` shows: every statement with its state, its invoices, and what is open of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from p2pgrid.desk.statements import StatementView, signed_view, view_of
from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import M, Record, Signed, parse_message
from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.open_items import OpenItem, open_items
from p2pgrid.settlement.set_offs import set_off_shares
from p2pgrid.settlement.statements.calendar import OffersLedger, days_of


class StatementsLedger(OffersLedger, Protocol):
    """What of a ledger is needed here: any reader has it."""

    def channels(self) -> list[Signed[Channel]]: ...

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...


class ListedStatement(msgspec.Struct, frozen=True, kw_only=True):
    """One statement with what became of it."""

    statement: StatementView
    invoices: tuple[str, ...]
    invoiced_cents: int
    paid_cents: int
    """For its invoices; what was returned or refunded taken off."""
    open_cents: int
    """What of its invoices is left to pay (`open_items.OpenItem.left_cents`)."""


def list_statements(
    ledger: StatementsLedger, ours: Sequence[PublicKey], agreed: Iterable[Record] = ()
) -> list[ListedStatement]:
    """Those of all channels of one of our keys, by channel and number. `agreed`: drafts that were agreed to.

    Raises LedgerError.
    """
    own = {key.raw for key in ours}
    drafts: dict[bytes, list[Statement]] = defaultdict(list)
    for record in agreed:
        try:
            draft = parse_message(record, Statement)
        except InvalidRecord:
            continue  # of another version of p2pgrid
        drafts[draft.channel].append(draft)
    listed = []
    for channel in ledger.channels():
        terms = channel.message
        key = next((one for one in (terms.provider, terms.client) if one in own), None)
        if key is not None:
            listed += _of_channel(ledger, terms, key, drafts[terms.channel])
    return listed


def _of_channel(
    ledger: StatementsLedger, terms: Channel, ours: bytes, drafts: Sequence[Statement]
) -> list[ListedStatement]:
    signed = sorted(ledger.settlement(Statement, terms.channel), key=lambda one: one.message.statement_number)
    items: dict[bytes, list[OpenItem]] = defaultdict(list)
    for item in open_items(ledger, [terms.channel], set_off=set_off_shares(ledger, [terms.channel])):
        items[item.invoice.statement].append(item)
    listed = [
        ListedStatement(
            statement=signed_view(statement, terms, ours, ledger),
            invoices=tuple(one.number for one in items[statement.id]),
            invoiced_cents=sum(one.gross_cents for one in items[statement.id]),
            paid_cents=sum(one.paid_cents for one in items[statement.id]),
            open_cents=sum(one.left_cents for one in items[statement.id]),
        )
        for statement in signed
    ]
    numbers = {one.message.statement_number for one in signed}
    for draft in drafts:
        if draft.statement_number not in numbers:
            view = view_of(draft, terms, ours, days=days_of(ledger, draft), state="drafted")
            listed.append(ListedStatement(statement=view, invoices=(), invoiced_cents=0, paid_cents=0, open_cents=0))
    return listed
