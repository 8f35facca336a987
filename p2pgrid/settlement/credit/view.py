"""How credit stands between this node and its peers, for `p2pgrid credit show`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import PARTIES, M, Role, Signed
from p2pgrid.proto.restore import ChannelRecords, restore_books
from p2pgrid.proto.settled import PayingHistory, history_of
from p2pgrid.proto.statement import Payment, Statement
from p2pgrid.settlement.open_items import open_items
from p2pgrid.settlement.set_offs import set_off_cents, set_off_shares


class CreditLedger(ChannelRecords, Protocol):
    """What of a ledger is read here: any reader has it."""

    def channels(self) -> list[Signed[Channel]]: ...

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...


class OpenInvoice(msgspec.Struct, frozen=True, kw_only=True):
    """What is left to pay of one invoice, as `p2pgrid pay` sees it."""

    channel: str
    statement_number: int
    invoice_number: str
    open_cents: int
    due_ms: int
    overdue: bool
    """Its day, and the days of grace, are over."""


class ChannelCreditView(msgspec.Struct, frozen=True, kw_only=True):
    """One channel's limit and what is used of it."""

    channel: str
    expires_ms: int
    expired: bool
    limit_pico: int
    used_pico: int
    """Signed and unpaid, and what orders that are open may cost; below zero where more is paid ahead."""
    left_pico: int
    unpaid_cents: int
    """Of its statements; below zero: paid ahead."""


class PeerCredit(msgspec.Struct, frozen=True, kw_only=True):
    """All channels with one peer in one role."""

    peer: str
    role: str
    """Ours: `provider` lends, `client` borrows."""
    currency: str
    limit_pico: int
    """Of the newest channel that is in force; 0 without one."""
    used_pico: int
    """In all channels that are in force."""
    unpaid_cents: int
    overdue_cents: int
    stated_cents: int
    on_time_cents: int
    late_cents: int
    statements: int
    channels: tuple[ChannelCreditView, ...]
    open_invoices: tuple[OpenInvoice, ...]


def credit_of(
    ledger: CreditLedger, ours: Iterable[PublicKey], *, now_ms: int, grace_ms: int, peer: PublicKey | None = None
) -> list[PeerCredit]:
    """How credit stands with every peer, or with one; who owes us first. Raises LedgerError."""
    own = {key.raw for key in ours}
    groups: dict[tuple[bytes, Role, str], list[Signed[Channel]]] = {}
    for channel in ledger.channels():
        message = channel.message
        role = Role.PROVIDER if message.provider in own else Role.CLIENT
        other = message.client if role is Role.PROVIDER else message.provider
        if peer is None or peer.raw == other:
            groups.setdefault((other, role, message.currency), []).append(channel)
    found = [_peer_credit(ledger, *key, channels, now_ms, grace_ms) for key, channels in groups.items()]
    return sorted(found, key=lambda one: (one.role != Role.PROVIDER.value, -one.overdue_cents, one.peer))


def _peer_credit(
    ledger: CreditLedger,
    other: bytes,
    role: Role,
    currency: str,
    channels: list[Signed[Channel]],
    now_ms: int,
    grace_ms: int,
) -> PeerCredit:
    views = []
    history, used, limit = PayingHistory(), 0, 0
    for channel in channels:
        books = restore_books(ledger, channel, role)
        is_expired = books.is_expired(now_ms)
        view = ChannelCreditView(
            channel=books.id.hex(),
            expires_ms=books.terms.expires_ms,
            expired=is_expired,
            limit_pico=books.terms.credit_limit_pico,
            used_pico=-books.paid_ahead_pico(),
            left_pico=books.credit_left_pico(),
            unpaid_cents=books.credit.unpaid_cents,
        )
        views.append(view)
        if not is_expired:
            used, limit = used + view.used_pico, view.limit_pico
        statements = [one.message for one in ledger.settlement(Statement, books.id) if set(PARTIES) <= set(one.signers)]
        payments = [one.message for one in ledger.settlement(Payment, books.id)]
        cents = set_off_cents(ledger, books.id)
        one = history_of(statements, payments, now_ms=now_ms, grace_ms=grace_ms, set_off_cents=cents)
        history = history.plus(one)
    invoices = _open_invoices(ledger, [one.message.channel for one in channels], now_ms - grace_ms)
    history = history._replace(overdue_cents=sum(one.open_cents for one in invoices if one.overdue))
    return PeerCredit(
        peer=parse_public_key(other).peer_id,
        role=role.value,
        currency=currency,
        limit_pico=limit,
        used_pico=used,
        channels=tuple(views),
        open_invoices=tuple(invoices),
        **history._asdict(),
    )


def _open_invoices(ledger: CreditLedger, channels: Sequence[bytes], due_before_ms: int) -> list[OpenInvoice]:
    items = open_items(ledger, channels, set_off=set_off_shares(ledger, channels))
    return [
        OpenInvoice(
            channel=one.channel.hex(),
            statement_number=one.statement_number,
            invoice_number=one.number,
            open_cents=one.left_cents,
            due_ms=one.due_ms,
            overdue=one.due_ms < due_before_ms,
        )
        for one in items
        if one.left_cents > 0
    ]
