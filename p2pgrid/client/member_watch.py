"""Providers that are no members any more: bought from no longer, within seconds (docs/spec/network.md, rule 20)."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Self

from p2pgrid.client.background import log_end
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.sessions import Sessions
from p2pgrid.net.own_networks import OwnNetworks

log = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 1.0


class MemberWatch:
    """Ends the session with a provider that has left the networks by which its link was made."""

    def __init__(self, networks: OwnNetworks, sessions: Sessions, book: OfferBook) -> None:
        self._networks = networks
        self._sessions = sessions
        self._book = book
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._networks.closed:
            self._task = asyncio.create_task(self._watch(), name="members")
            self._task.add_done_callback(log_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            self._networks.refresh()
            for peer_id, session in list(self._sessions.items()):
                link = session.link
                if link is None or not link.member_of or self._networks.found_in(peer_id) & self._networks.open:
                    continue
                if not self._networks.still(link.member_of, peer_id):
                    log.info("%s is no member of %s any more", peer_id, ", ".join(sorted(link.member_of)))
                    self._book.forget(peer_id)
                    if peer_id in self._sessions:
                        await self._sessions.end(peer_id)
