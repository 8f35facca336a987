"""Looking ahead: what would be stated now, from the ledger alone. In a running node, or beside it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import date
from typing import Protocol

from p2pgrid.clock import unix_ms
from p2pgrid.desk.standing import Books, require_channels
from p2pgrid.desk.statements import Settle, Settled, SettledChannelView, preview_of
from p2pgrid.errors import UsageError
from p2pgrid.proto.keys import PublicKey, parse_peer_id
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed
from p2pgrid.settlement.hooks import Details
from p2pgrid.settlement.statements.drafting import Draft, draft
from p2pgrid.settlement.statements.position import StatedLedger
from p2pgrid.settlement.statements.refused import NotStated

LookAhead = Callable[[Signed[Channel], int], Awaitable[Draft]]
"""The next statement of a channel, up to a day (`date.toordinal`; 0: now). Raises NotStated, LedgerError."""


class SettledBooks(Books, StatedLedger, Protocol):
    """What of a ledger is needed here: any reader has it."""


def looking_ahead(ledger: StatedLedger, details: Details) -> LookAhead:
    """By this ledger. The provider's days are those of its offers."""

    async def look(channel: Signed[Channel], until_day: int) -> Draft:
        now_ms = unix_ms()
        day = date.fromordinal(until_day) if until_day else None
        return await draft(ledger, channel, details, now_ms=now_ms, is_wanted=True, until_day=day, looks_ahead=True)

    return look


async def preview(channel: Signed[Channel], ask: Settle, look: LookAhead, ours: bytes) -> SettledChannelView:
    """What would be stated of a channel, for the party whose key is `ours`. Raises LedgerError."""
    name = channel.message.channel.hex()
    try:
        found = await look(channel, ask.until_day)
    except NotStated as error:
        return SettledChannelView(channel=name, nothing_code=error.code, nothing=str(error))
    return SettledChannelView(channel=name, statements=(preview_of(found, channel.message, ours),))


async def look_ahead(ledger: SettledBooks, ours: PublicKey, details: Details, ask: Settle) -> Settled:
    """What would be stated with a peer, on whichever side we are. Raises UsageError, LedgerError."""
    peer = parse_peer_id(ask.peer)
    try:
        channels, role = require_channels(ledger, ours, peer, Role.CLIENT), Role.CLIENT
    except UsageError:
        channels, role = require_channels(ledger, ours, peer, Role.PROVIDER), Role.PROVIDER
    look = looking_ahead(ledger, details)
    views = [await preview(one, ask, look, ours.raw) for one in chosen(channels, ask.channel)]
    return Settled(peer=peer.peer_id, role=role.value, dry_run=True, channels=tuple(views))


def only_clients_accept() -> UsageError:
    """The error for a provider that is to accept when a statement is due: it has signed that itself."""
    return UsageError("it is the client that accepts when a statement is due.", hint="Leave out --accept-due.")


def chosen(channels: Sequence[Signed[Channel]], prefix: str) -> list[Signed[Channel]]:
    """Those whose id begins so; all without a prefix. Raises UsageError where none does."""
    found = [one for one in channels if one.message.channel.hex().startswith(prefix.lower())]
    if channels and not found:
        raise UsageError(
            f"no channel with that peer has an id that begins with {prefix[:64]!r}.",
            hint="`p2pgrid settle --list` shows the channels.",
        )
    return found
