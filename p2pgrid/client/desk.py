"""What a running gateway does when its owner asks, through the command socket."""

from __future__ import annotations

from typing import Any, Final

from p2pgrid.client.purchaser import Purchaser
from p2pgrid.desk.asks import Allowed, AllowPeer
from p2pgrid.errors import UsageError

CLIENT_ASKS: Final = AllowPeer


class ClientDesk:
    """The owner's desk of a client."""

    def __init__(self, purchaser: Purchaser) -> None:
        self._purchaser = purchaser

    async def perform(self, ask: Any) -> Any:
        """Do what was asked. Raises P2pgridError."""
        match ask:
            case AllowPeer(peer=peer):
                return await self._allow(peer)
        raise UsageError(f"a gateway cannot do {type(ask).__name__}.")

    async def _allow(self, peer: str) -> Allowed:
        held = await self._purchaser.allow(peer)
        if held is None:
            return Allowed(peer=peer, was_held=False)
        return Allowed(peer=peer, was_held=True, reason=held.reason, since_ms=held.since_ms)
