"""The network, joined in the background: a gateway takes requests before libp2p, whose import alone takes a second."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Self

from p2pgrid.client.background import log_end
from p2pgrid.errors import LocalError, Unreachable
from p2pgrid.net.addresses import parse_peer_multiaddr
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.own_networks import OwnNetworks, open_network
from p2pgrid.net.peer_address import Health, OnFound, PeerAddress
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.proto.keys import PublicKey, SecretKey

if TYPE_CHECKING:
    from p2pgrid.net.network import Network
    from p2pgrid.net.stream_road import StreamRoad


class LateNetwork:
    """A client's `Network`. Whoever asks it for something waits until it is joined; nothing else does."""

    def __init__(self, key: SecretKey, networks: str | OwnNetworks, *, bootstrap: Sequence[str] = ()) -> None:
        """As `Network`. Raises UsageError for a bad name or multiaddr."""
        self._key: Final = key
        for address in bootstrap:
            parse_peer_multiaddr(address)
        self.networks: Final = open_network(networks, bootstrap) if isinstance(networks, str) else networks
        self._joining: asyncio.Task[Network] | None = None

    async def __aenter__(self) -> Self:
        self._joining = asyncio.create_task(self._join(), name="joining the network")
        self._joining.add_done_callback(log_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._joining is not None
        self._joining.cancel()
        (network,) = await asyncio.gather(self._joining, return_exceptions=True)
        if not isinstance(network, BaseException):
            await network.__aexit__(None, None, None)

    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        """As `Network.find_providers`."""
        network = await self.joined()
        return await network.find_providers(key, limit=limit, timeout_s=timeout_s, on_found=on_found)

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """As `Network.fetch_offer`."""
        return await (await self.joined()).fetch_offer(peer, timeout_s=timeout_s)

    async def fetch_capacity(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """As `Network.fetch_capacity`."""
        return await (await self.joined()).fetch_capacity(peer, timeout_s=timeout_s)

    async def fetch_cards(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """As `Network.fetch_cards`."""
        return await (await self.joined()).fetch_cards(peer, timeout_s=timeout_s)

    async def dial_link(
        self,
        provider: PublicKey,
        addresses: Sequence[str],
        *,
        timeout_s: float = 10.0,
        direct_only: bool = False,
        continues: LinkConnection | None = None,
    ) -> LinkConnection:
        """As `Network.dial_link`. The time that joining takes counts."""
        try:
            async with asyncio.timeout(timeout_s):
                network = await self.joined()
        except TimeoutError:
            raise Unreachable(f"the network was not joined within {timeout_s:g} s.") from None
        return await network.dial_link(
            provider, addresses, timeout_s=timeout_s, direct_only=direct_only, continues=continues
        )

    async def dial_road(
        self, provider: PublicKey, addresses: Sequence[str], *, timeout_s: float = 10.0, direct_only: bool = False
    ) -> StreamRoad:
        """As `Network.dial_road`. The time that joining takes counts."""
        try:
            async with asyncio.timeout(timeout_s):
                network = await self.joined()
        except TimeoutError:
            raise Unreachable(f"the network was not joined within {timeout_s:g} s.") from None
        return await network.dial_road(provider, addresses, timeout_s=timeout_s, direct_only=direct_only)

    async def agree_on_hole(self, provider: PublicKey, *, timeout_s: float = 12.0) -> PunchPlan:
        """As `Network.agree_on_hole`. The time that joining takes counts."""
        try:
            async with asyncio.timeout(timeout_s):
                network = await self.joined()
        except TimeoutError:
            raise Unreachable(f"the network was not joined within {timeout_s:g} s.") from None
        return await network.agree_on_hole(provider, timeout_s=timeout_s)

    def health(self) -> Health | None:
        """How the network fares; None while it is being joined, or where it could not be."""
        joining = self._joining
        if joining is None or not joining.done() or joining.cancelled() or joining.exception() is not None:
            return None
        return joining.result().health()

    async def joined(self) -> Network:
        """The network, once it is joined. Raises Unreachable where the network could not be joined."""
        assert self._joining is not None, "used outside of `async with`"
        try:
            return await asyncio.shield(self._joining)
        except LocalError as error:
            raise Unreachable(f"the network could not be joined: {error.message}", hint=error.hint) from error

    async def _join(self) -> Network:
        module = await asyncio.to_thread(importlib.import_module, "p2pgrid.net.network")
        network: Network = module.Network(self._key, self.networks)
        return await network.__aenter__()
