"""What a provider does when its operator asks: in the running node through the command socket, or in a command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from p2pgrid.desk.asks import (
    AllowPeer,
    BookPayments,
    Condition,
    DeskAsk,
    Examine,
    KeepSetOffs,
    Reconcile,
    Reprice,
    Repriced,
)
from p2pgrid.desk.invoices import AcceptInvoice, CancelInvoice, InvoiceAsk, InvoiceDesk, IssueInvoices
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.desk.set_offs import channels_of
from p2pgrid.desk.settling import chosen, only_clients_accept, preview
from p2pgrid.desk.standing import Books, Reconciled, changes_since, require_channels, standing_of
from p2pgrid.desk.statements import Settle, Settled, difference_views
from p2pgrid.errors import UsageError
from p2pgrid.proto.keys import PublicKey, parse_peer_id
from p2pgrid.proto.record import Role
from p2pgrid.provider.statement_book import StatementBook
from p2pgrid.settlement.statements.drafting import NOTHING_HAPPENED

PROVIDER_ASKS: Final = AllowPeer | Reconcile | Examine | Reprice | Settle | DeskAsk | InvoiceAsk


class ProviderDesk:
    """The operator's desk of a provider."""

    def __init__(
        self,
        ledger: Books,
        ours: PublicKey,
        is_connected: Callable[[PublicKey], bool],
        records: RecordsDesk | None = None,
        examine: Callable[[Examine], Awaitable[Condition]] | None = None,
        reprice: Callable[[], Awaitable[Repriced]] | None = None,
        statements: StatementBook | None = None,
        invoices: InvoiceDesk | None = None,
    ) -> None:
        """`is_connected` tells whether a client has a link now. Without `records` nothing is signed or erased.

        `examine` looks the node over, `reprice` offers at the prices of config.toml, and `statements` are what clients
        come for, where a node runs.
        """
        self._examine = examine
        self._reprice = reprice
        self._invoices = invoices
        self._statements = statements
        self._records = records
        self._ledger = ledger
        self._ours = ours
        self._is_connected = is_connected

    async def perform(self, ask: Any) -> Any:
        """Do what was asked. Raises P2pgridError."""
        match ask:
            case Reconcile(peer=peer):
                return self._reconcile(parse_peer_id(peer))
            case Examine() if self._examine is not None:
                return await self._examine(ask)
            case Reprice() if self._reprice is not None:
                return await self._reprice()
            case Settle() if self._statements is not None:
                return await self._settle(ask, self._statements)
            case BookPayments(groups=groups) if self._records is not None:
                booked = await self._records.perform(ask)
                if self._statements is not None:
                    for channel in {one.channel for group in groups for one in group}:
                        self._statements.news(channel)
                return booked
            case KeepSetOffs() if self._records is not None:
                kept = await self._records.perform(ask)
                if self._statements is not None:
                    for channel in channels_of(ask):
                        self._statements.news(channel)
                return kept
            case _ if self._records is not None and isinstance(ask, DeskAsk):
                return await self._records.perform(ask)
            case IssueInvoices() | CancelInvoice() | AcceptInvoice() if self._invoices is not None:
                return await self._invoices.perform(ask)
        raise UsageError(f"a provider cannot do {type(ask).__name__}.")

    async def _settle(self, ask: Settle, book: StatementBook) -> Settled:
        """What would be stated with the client, and what it last had against it. It is told to come."""
        client = parse_peer_id(ask.peer)
        if ask.accept_due:
            raise only_clients_accept()
        known = [one for one in self._ledger.channels() if one.message.client == client.raw and book.sells_in(one)]
        channels = chosen(known, ask.channel)
        if not channels:
            require_channels(self._ledger, self._ours, client, Role.PROVIDER)
        views, waits_for_client = [], False
        for channel in channels:
            view = await preview(channel, ask, book.look_ahead, channel.message.provider)
            differs = book.differences.get(channel.message.channel)
            if differs is not None:
                found = difference_views(differs.differences, book.ledger, channel.message.channel)
                view = msgspec.structs.replace(view, differences=found)
            views.append(view)
            if not ask.dry_run and view.nothing_code != NOTHING_HAPPENED:
                waits_for_client = True
                book.want(channel.message.channel, ask.until_day)
        return Settled(
            peer=client.peer_id,
            role=Role.PROVIDER.value,
            dry_run=ask.dry_run,
            channels=tuple(views),
            waits_for_client=waits_for_client,
            is_connected=self._is_connected(client),
        )

    def _reconcile(self, client: PublicKey) -> Reconciled:
        """What is open with the client: it is the client who connects, and then all is settled by itself."""
        ledger = self._ledger
        channels = [c.message.channel for c in require_channels(ledger, self._ours, client, Role.PROVIDER)]
        changes = tuple(changes_since(ledger, channel, standing_of(ledger, channel)) for channel in channels)
        return Reconciled(
            peer=client.peer_id,
            role=Role.PROVIDER.value,
            changed=False,
            channels=changes,
            waits_for_client=True,
            is_connected=self._is_connected(client),
        )
