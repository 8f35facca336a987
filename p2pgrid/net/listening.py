"""What every listener does alike, whatever its road: caps on callers, and an end that lets streams finish."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.limits import Allowance, Rates, TimeShare
from p2pgrid.net.link_writer import WRITE_STALL_S
from p2pgrid.net.rest import Spend
from p2pgrid.proto.link_events import LinkLimits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenLimits:
    """What a listener lets strangers do."""

    link: LinkLimits = field(default_factory=LinkLimits)
    max_connections: int = 1024
    max_connections_per_address: int = 64
    """An IPv6 caller counts by its /64, which is what one household or server is given."""
    max_connections_per_peer: int = 8
    """Counted where the road has proven the caller's key: on the libp2p road."""
    connects_burst: int = 512
    connects_per_s: float = 32.0
    """How often an address may connect on the direct road, after a burst: TLS costs a millisecond each time."""
    write_stall_s: float = WRITE_STALL_S
    time_share: float = 0.5
    """Of the loop's time, what comes from one address may take, after `time_burst_s`.

    A node that sells to one client as fast as it can spends a quarter of its time so."""
    time_burst_s: float = 2.0

    def allowance(self, *, by_peer: bool = False) -> Allowance:
        """Of links at once. Once half of all are taken, an address may have an eighth of its share."""
        return Allowance(
            total=self.max_connections,
            per_address=self.max_connections_per_address,
            per_peer=self.max_connections_per_peer if by_peer else None,
            crowded_per_address=max(1, self.max_connections_per_address // 8),
        )

    def connects(self) -> Rates:
        """How often an address may connect."""
        return Rates(self.connects_burst, self.connects_per_s)

    def shares(self) -> Callable[[str], Spend]:
        """By caller: what its links spend."""
        share = TimeShare(self.time_share, self.time_burst_s)
        return lambda caller: lambda took_s: share.spend(caller, time.monotonic(), took_s)


def caller_of(host: str) -> str:
    """What connections are counted by: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


async def close_links(connections: Collection[LinkConnection], drain_s: float, message: str) -> None:
    """Let the links take no new streams, give open ones `drain_s` to finish, then close all links."""
    live = list(connections)
    for connection in live:
        connection.retire(message)
    try:
        async with asyncio.timeout(drain_s):
            await asyncio.gather(*(connection.wait_idle() for connection in live))
    except TimeoutError:
        log.warning("%d streams were still open after %g s", sum(c.n_streams for c in live), drain_s)
    await asyncio.gather(*(connection.aclose(message) for connection in live))
