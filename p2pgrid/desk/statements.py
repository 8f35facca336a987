"""What a person asks about statements, and what is shown of them: `p2pgrid settle`, on either side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from p2pgrid.desk.asks import Ask
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.wire.settlement import StatementDifference
from p2pgrid.settlement.statements.calendar import OffersLedger, days_of
from p2pgrid.settlement.statements.days import StatementDays
from p2pgrid.settlement.statements.drafting import Draft
from p2pgrid.settlement.statements.position import StatedLedger

SIGNED_BY_BOTH: Final = "signed by both"
SIGNED_BY_PROVIDER: Final = "signed by provider"


class Settle(Ask, frozen=True, kw_only=True, tag="settle"):
    """Settle with a peer: make the next statements and sign them; or show what they would be."""

    peer: str
    channel: str = ""
    """The first hex digits of one channel's id; left out, all."""
    until_day: int = 0
    """The period's last day by the provider's calendar, as `date.toordinal` has it; 0: up to now."""
    dry_run: bool = False
    accept_due: bool = False
    """Sign also what the provider had signed before and is due within a day, or has been due already."""


class StatementLineView(msgspec.Struct, frozen=True, kw_only=True):
    """The receipts of one model at one tariff."""

    model: str
    receipts: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    input_upm: int
    cached_input_upm: int
    output_upm: int
    amount_pico: int


class StatementVatView(msgspec.Struct, frozen=True, kw_only=True):
    """The VAT of one category and rate."""

    category: str
    rate_bp: int
    net_cents: int
    vat_cents: int


class StatementView(msgspec.Struct, frozen=True, kw_only=True):
    """A statement, as it is shown."""

    id: str
    """Empty where nobody has signed it."""
    channel: str
    peer: str
    role: str
    """What we are in its channel: `provider` or `client`."""
    state: str
    """`preview`, `drafted`, `signed by provider`, `signed by both`."""
    statement_number: int
    first_receipt: int
    last_receipt: int
    currency: str
    lines: tuple[StatementLineView, ...]
    total_pico: int
    credits_pico: int
    held_pico: int
    net_cents: int
    vat: tuple[StatementVatView, ...]
    gross_cents: int
    payments_cents: int
    set_off_cents: int
    opening_cents: int
    closing_cents: int
    from_ms: int
    until_ms: int
    due_ms: int
    stated_ms: int
    first_day: str
    """The period's first day, its last, and the last on which it is to be paid, by the provider's calendar, as in ISO
    8601: `2027-01-31`."""
    last_day: str
    due_day: str
    note: str = ""
    """What is still to be known: why its VAT is not there, which receipt keeps later ones out."""


class DifferenceView(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the two sides state differently."""

    field: str
    about: str
    receipt_number: int
    """0 where it is about no receipt."""
    receipt: str
    """The id of our receipt with that number; empty where there is none."""
    client: str
    provider: str


class SettledChannelView(msgspec.Struct, frozen=True, kw_only=True):
    """What settling one channel came to."""

    channel: str
    statements: tuple[StatementView, ...] = ()
    """Signed by both since this was asked for, by whatever in this node, or what would be stated."""
    differences: tuple[DifferenceView, ...] = ()
    drafted: StatementView | None = None
    """What the provider states, where this side states something else."""
    nothing_code: str = ""
    nothing: str = ""
    """Why there is no (further) statement."""
    waiting: tuple[str, ...] = ()
    """Why something that came was not kept."""
    invoices: tuple[str, ...] = ()
    """Invoices whose files came."""
    records_taken: int = 0
    records_sent: int = 0


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What `Settle` came to."""

    peer: str
    role: str
    dry_run: bool
    channels: tuple[SettledChannelView, ...] = ()
    waits_for_client: bool = False
    """True on the provider's side: it is the client who comes."""
    is_connected: bool = False
    notes: tuple[str, ...] = ()


def view_of(
    statement: Statement, channel: Channel, ours: bytes, *, days: StatementDays, state: str, record_id: bytes = b""
) -> StatementView:
    """A statement as it is shown to one of the channel's parties, whose key is `ours`."""
    is_provider = channel.provider == ours
    return StatementView(
        id=record_id.hex(),
        channel=channel.channel.hex(),
        peer=parse_public_key(channel.client if is_provider else channel.provider).peer_id,
        role=(Role.PROVIDER if is_provider else Role.CLIENT).value,
        state=state,
        statement_number=statement.statement_number,
        first_receipt=statement.first_receipt,
        last_receipt=statement.last_receipt,
        currency=statement.currency,
        lines=tuple(
            StatementLineView(**{name: getattr(line, name) for name in StatementLineView.__struct_fields__})
            for line in statement.lines
        ),
        total_pico=statement.total_pico,
        credits_pico=statement.credits_pico,
        held_pico=statement.held_pico,
        net_cents=statement.net_cents,
        vat=tuple(
            StatementVatView(
                category=line.category, rate_bp=line.rate_bp, net_cents=line.net_cents, vat_cents=line.vat_cents
            )
            for line in statement.vat
        ),
        gross_cents=statement.gross_cents,
        payments_cents=statement.payments_cents,
        set_off_cents=statement.set_off_cents,
        opening_cents=statement.opening_cents,
        closing_cents=statement.closing_cents,
        from_ms=statement.from_ms,
        until_ms=statement.until_ms,
        due_ms=statement.due_ms,
        stated_ms=statement.stated_ms,
        first_day=days.first.isoformat(),
        last_day=days.last.isoformat(),
        due_day=days.due.isoformat(),
    )


def preview_of(draft: Draft, channel: Channel, ours: bytes) -> StatementView:
    """What would be stated."""
    notes = []
    if draft.vat_missing is not None:
        notes.append(f"VAT is not known: {draft.vat_missing}")
    if draft.ends is not None:
        notes.append(f"receipt {draft.ends.receipt_number} {draft.ends.reason}: it goes to a later statement")
    view = view_of(draft.statement, channel, ours, days=draft.days, state="preview")
    return msgspec.structs.replace(view, note="; ".join(notes))


def signed_view(signed: Signed[Statement], channel: Channel, ours: bytes, ledger: OffersLedger) -> StatementView:
    """A statement on record. Raises LedgerError."""
    state, days = (
        SIGNED_BY_BOTH if Role.CLIENT in signed.signers else SIGNED_BY_PROVIDER,
        days_of(ledger, signed.message),
    )
    return view_of(signed.message, channel, ours, days=days, state=state, record_id=signed.id)


def difference_views(
    found: Iterable[StatementDifference], ledger: StatedLedger, channel: bytes
) -> tuple[DifferenceView, ...]:
    """Differences, each with our receipt's id, so that a person can dispute it. Raises LedgerError."""
    views = []
    for one in found:
        receipt = ledger.receipt(channel, one.receipt_number) if one.receipt_number else None
        views.append(
            DifferenceView(
                field=one.field,
                about=one.about,
                receipt_number=one.receipt_number,
                receipt=receipt.id.hex() if receipt is not None else "",
                client=one.client,
                provider=one.provider,
            )
        )
    return tuple(views)
