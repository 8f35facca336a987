"""Clients that are no members any more: parted from within seconds, with nothing left unbilled (network.md, rule 20).

A member that was taken off a list, or whose membership has ended, gets no new stream on its links. What runs may end
by itself for a moment; then it is broken off as `interrupted`, which bills what the client has acknowledged, and the
link is closed once the receipts are signed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.link_membership import CalledMembership
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.open_channel import LiveOrder

log = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 1.0
DRAIN_S: Final = 2.0
"""How long orders of a client that is no member any more may run on."""
SETTLE_S: Final = 3.0
"""How long their receipts may take to be signed."""
_POLL_S: Final = 0.05


class Removals:
    """Watches the links of one process. `run` is a task for its life."""

    def __init__(
        self,
        networks: OwnNetworks,
        membership: CalledMembership,
        channels: Channels,
        links: Callable[[], Iterable[LinkConnection]],
    ) -> None:
        self._networks = networks
        self._membership = membership
        self._channels = channels
        self._links = links
        self._parting: dict[LinkConnection, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                await asyncio.sleep(LOOK_INTERVAL_S)
                self._networks.refresh()
                for link in list(self._links()):
                    if link not in self._parting and link.member_of and not self._is_admitted(link):
                        self._parting[link] = asyncio.create_task(self._part(link), name=f"part from {link.name}")
                        self._parting[link].add_done_callback(functools.partial(self._parted, link))
        finally:
            for task in list(self._parting.values()):
                task.cancel()

    def _is_admitted(self, link: LinkConnection) -> bool:
        return self._membership.still_admits(link.peer.peer_id, link.member_of)

    def _parted(self, link: LinkConnection, task: asyncio.Task[None]) -> None:
        del self._parting[link]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s ended with an error", task.get_name(), exc_info=error)

    async def _part(self, link: LinkConnection) -> None:
        gone = ", ".join(sorted(link.member_of))
        log.info("%s is no member of %s any more: %d orders run", link.name, gone, len(self._orders_on(link)))
        reason = f"you are no member of {gone} any more"
        link.retire(reason)
        await self._wait_settled(link, DRAIN_S, until_admitted=True)
        if self._is_admitted(link):
            return  # by a newer membership, on a newer link: what runs here may go on, and nothing new begins here
        for order in self._orders_on(link):
            order.stop()
        await self._wait_settled(link, SETTLE_S)
        await link.aclose(reason)

    async def _wait_settled(self, link: LinkConnection, timeout_s: float, *, until_admitted: bool = False) -> None:
        until_s = time.monotonic() + timeout_s
        while self._orders_on(link) and not link.closed.done():
            if time.monotonic() >= until_s or (until_admitted and self._is_admitted(link)):
                return
            await asyncio.sleep(_POLL_S)

    def _orders_on(self, link: LinkConnection) -> list[LiveOrder]:
        return [order for order in self._channels.live_orders if order.connection is link]
