"""What a provider does when its operator asks: in the running node through the command socket, or in a command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from p2pgrid.desk.asks import (
    AllowPeer,
    Condition,
    DeskAsk,
    Examine,
    Reconcile,
    Reprice,
    Repriced,
)
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.desk.standing import Books, Reconciled, changes_since, require_channels, standing_of
from p2pgrid.errors import UsageError
from p2pgrid.proto.keys import PublicKey, parse_peer_id
from p2pgrid.proto.record import Role

PROVIDER_ASKS: Final = AllowPeer | Reconcile | Examine | Reprice | DeskAsk


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
    ) -> None:
        """`is_connected` tells whether a client has a link now. Without `records` nothing is signed or erased.

        `examine` looks the node over and `reprice` offers at the prices of config.toml, where a node runs.
        """
        self._examine = examine
        self._reprice = reprice
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
            case _ if self._records is not None and isinstance(ask, DeskAsk):
                return await self._records.perform(ask)
        raise UsageError(f"a provider cannot do {type(ask).__name__}.")

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
