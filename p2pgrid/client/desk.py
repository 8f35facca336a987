"""What a client does when its owner asks: in the running gateway through the command socket, or in a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from p2pgrid.client.purchaser import Purchaser
from p2pgrid.client.statement_exchange import ChannelSettled
from p2pgrid.desk.asks import (
    Allowed,
    AllowPeer,
    Condition,
    DeskAsk,
    Examine,
    KeepSetOffs,
    Reconcile,
)
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.desk.set_offs import channels_of
from p2pgrid.desk.settling import chosen, looking_ahead, preview
from p2pgrid.desk.standing import (
    NOTHING,
    Reconciled,
    changes_since,
    channels_with,
    require_channels,
    standing_of,
    with_earlier,
)
from p2pgrid.desk.statements import (
    SIGNED_BY_PROVIDER,
    Settle,
    Settled,
    SettledChannelView,
    difference_views,
    signed_view,
    view_of,
)
from p2pgrid.errors import Unreachable, UsageError
from p2pgrid.proto.keys import PublicKey, parse_peer_id
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed
from p2pgrid.settlement.statements.calendar import days_of

CLIENT_ASKS: Final = AllowPeer | Reconcile | Examine | Settle | DeskAsk


class ClientDesk:
    """The owner's desk of a client."""

    def __init__(
        self,
        purchaser: Purchaser,
        ours: PublicKey,
        records: RecordsDesk | None = None,
        condition: Callable[[], Condition] | None = None,
    ) -> None:
        """Without `records` nothing is signed or erased."""
        self._condition = condition
        self._records = records
        self._purchaser = purchaser
        self._ours = ours

    async def perform(self, ask: Any) -> Any:
        """Do what was asked. Raises P2pgridError."""
        match ask:
            case AllowPeer(peer=peer):
                return await self._allow(peer)
            case Reconcile(peer=peer):
                return await self._reconcile(parse_peer_id(peer))
            case Settle():
                return await self._settle(ask)
            case Examine() if self._condition is not None:
                return self._condition()
            case KeepSetOffs() if self._records is not None:
                kept = await self._records.perform(ask)
                self._purchaser.sessions.settle_soon(channels_of(ask))
                return kept
            case _ if self._records is not None and isinstance(ask, DeskAsk):
                return await self._records.perform(ask)
        raise UsageError(f"a gateway cannot do {type(ask).__name__}.")

    async def _allow(self, peer: str) -> Allowed:
        held = await self._purchaser.sessions.allow(peer)
        if held is None:
            return Allowed(peer=peer, was_held=False)
        return Allowed(peer=peer, was_held=True, reason=held.reason, since_ms=held.since_ms)

    async def _reconcile(self, provider: PublicKey) -> Reconciled:
        ledger = self._purchaser.ledger
        if channels_with(ledger, self._ours, provider):
            require_channels(ledger, self._ours, provider, Role.CLIENT)
        before = {
            one.message.channel: standing_of(ledger, one.message.channel)
            for one in channels_with(ledger, self._ours, provider)
        }
        earlier = self._purchaser.sessions.earlier.of(provider.peer_id)
        try:
            done, lifted = await self._purchaser.sessions.reconcile(provider)
        except Unreachable:
            require_channels(ledger, self._ours, provider, Role.CLIENT)  # more telling for a stranger
            raise
        # What a link that had to be made first brought by itself belongs to this, too.
        meanwhile = [one for one in self._purchaser.sessions.earlier.of(provider.peer_id) if one not in earlier]
        # Not those of before alone: a ledger that was lost has them back now.
        channels = [c.message.channel for c in require_channels(ledger, self._ours, provider, Role.CLIENT)]
        changes = tuple(
            with_earlier(
                changes_since(
                    ledger, channel, before.get(channel, NOTHING), [one for one in done if one.channel == channel]
                ),
                meanwhile,
            )
            for channel in channels
        )
        return Reconciled(
            peer=provider.peer_id,
            role=Role.CLIENT.value,
            changed=any(one.is_changed for one in changes) or lifted is not None,
            channels=changes,
            earlier=earlier,
            quarantine_lifted=lifted.reason if lifted is not None else "",
        )

    async def _settle(self, ask: Settle) -> Settled:
        sessions, ledger, ours = self._purchaser.sessions, self._purchaser.ledger, self._ours
        buying, provider = sessions.buying, parse_peer_id(ask.peer)
        if buying is None:
            raise UsageError("this client settles by no statements.")
        if ask.dry_run:
            known = require_channels(ledger, ours, provider, Role.CLIENT)
            look = looking_ahead(ledger, buying.details)
            views = [await preview(one, ask, look, ours.raw) for one in chosen(known, ask.channel)]
            return Settled(peer=provider.peer_id, role=Role.CLIENT.value, dry_run=True, channels=tuple(views))
        try:
            settled, notes = await sessions.settle(
                provider, ask.channel.lower(), ask.until_day, accepts_due=ask.accept_due
            )
        except Unreachable:
            require_channels(ledger, ours, provider, Role.CLIENT)  # more telling for a stranger
            raise
        return Settled(
            peer=provider.peer_id,
            role=Role.CLIENT.value,
            dry_run=False,
            channels=tuple(self._settled_view(channel, done) for channel, done in settled),
            notes=tuple(notes),
        )

    def _settled_view(self, channel: Signed[Channel], done: ChannelSettled) -> SettledChannelView:
        terms, ours, ledger = channel.message, self._ours.raw, self._purchaser.ledger
        drafted = None
        if done.drafted is not None:
            state = SIGNED_BY_PROVIDER if done.is_drafted_signed else "drafted"
            drafted = view_of(done.drafted, terms, ours, days=days_of(ledger, done.drafted), state=state)
        return SettledChannelView(
            channel=terms.channel.hex(),
            statements=tuple(signed_view(one, terms, ours, ledger) for one in done.statements),
            differences=difference_views(done.differences, ledger, terms.channel),
            drafted=drafted,
            nothing_code=done.nothing.code if done.nothing is not None else "",
            nothing=done.nothing.message if done.nothing is not None else "",
            waiting=tuple(done.waiting),
            invoices=tuple(done.documents),
            records_taken=done.taken,
            records_sent=done.sent,
        )
