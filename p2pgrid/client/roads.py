"""From an offer's addresses to a link, on the fastest road that is open.

The direct road is dialled first, the libp2p road as soon as that fails, or after a short head start, and behind both,
in the same way, libp2p through a relay: the first link to be ready is kept. With a provider that was last reached over
a slower road (`road_memory`), that one and all faster ones start at once, so that a port that swallows packets costs
nothing any more, and one that is open again is used again.

A link that came up on a slower road is brought to a faster one when that is possible (`better_road`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from p2pgrid.client.background import log_end
from p2pgrid.client.better_road import Way, improve, punch
from p2pgrid.client.road_memory import RoadMemory
from p2pgrid.errors import Unreachable
from p2pgrid.net import direct
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.net.road import Road
from p2pgrid.proto.keys import PublicKey, SecretKey

log = logging.getLogger(__name__)

_HOSTS: Final = ("ip4", "ip6", "dns", "dns4", "dns6")
_MAX_DIALLED: Final = 4
_RANKS: Final = {road: rank for rank, road in enumerate(Road)}
DIAL_TIMEOUT_S: Final = 5.0
HEAD_START_S: Final = 0.25
"""What a dial may take before the next road is tried beside it."""

Dialler = Callable[[Sequence[str], PublicKey, SecretKey], Awaitable[LinkConnection]]
"""A link to the provider at one of the multiaddrs, or RemoteError."""


class Libp2pDialler(Protocol):
    """Who dials over libp2p: `p2pgrid.net.network.Network` does."""

    async def dial_link(
        self,
        provider: PublicKey,
        addresses: Sequence[str],
        *,
        timeout_s: float = 10.0,
        direct_only: bool = False,
        continues: LinkConnection | None = None,
    ) -> LinkConnection:
        """A link that is ready; with `direct_only`, not through a relay. Raises RemoteError.

        With `continues`, that link, which goes on over a road that was dialled for it.
        """
        ...

    async def agree_on_hole(self, provider: PublicKey, *, timeout_s: float = 12.0) -> PunchPlan:
        """Where and when to punch a hole. Raises RemoteError."""
        ...


class ProviderRoads:
    """Dials providers, each at once over the road that worked the last time."""

    def __init__(
        self,
        libp2p: Libp2pDialler | None = None,
        *,
        head_start_s: float = HEAD_START_S,
        punches: bool = True,
        addresses_of: Callable[[PublicKey], Sequence[str]] | None = None,
        networks: OwnNetworks | None = None,
        memory: RoadMemory | None = None,
    ) -> None:
        """Without `libp2p` the direct road is the only one. `punches`: whether holes are punched through NATs.

        `addresses_of`: where a provider says now that it is, for links that are to be improved; left out, where it was
        dialled. `networks`: those we are in, where any is closed. `memory`: left out, it ends with this.
        """
        self._networks = networks
        self._libp2p = libp2p
        self._head_start_s = head_start_s
        self._punches = punches
        self._addresses_of = addresses_of
        self._memory = RoadMemory() if memory is None else memory
        self._improving: set[asyncio.Task[None]] = set()

    async def dial(self, addresses: Sequence[str], provider: PublicKey, secret_key: SecretKey) -> LinkConnection:
        """A link to the provider. Raises Unreachable where no road leads there.

        What the provider itself says on one road (Refused, ProtocolViolation) holds for all: raised at once.
        """
        peer_id = provider.peer_id
        ways = self._ways(addresses, provider, secret_key)
        last = self._memory.road_to(peer_id)
        at_once = max(sum(_RANKS[road] <= _RANKS[last] for road in ways), 1)
        dials = list(ways.values()) or [partial(dial_direct, (), provider, secret_key)]
        link = await _race(dials, at_once=at_once, head_start_s=self._head_start_s)
        if last is not link.road:
            log.info("%s is reached over the %s road", peer_id, link.road)
        self._memory.worked(peer_id, link.road)
        if link.road is not Road.DIRECT:
            self._improve(link, addresses, provider, secret_key)
        return link

    def _improve(
        self, link: LinkConnection, addresses: Sequence[str], provider: PublicKey, secret_key: SecretKey
    ) -> None:
        def ways() -> Mapping[Road, Way]:
            now = (self._addresses_of(provider) if self._addresses_of is not None else ()) or addresses
            found = self._ways(now, provider, secret_key)
            if self._libp2p is not None and self._punches and link.road is Road.RELAYED:
                agree = self._libp2p.agree_on_hole
                found[Road.PUNCHED] = lambda _: punch(agree, provider, secret_key, link)
            return {road: found[road] for road in Road if road in found}

        task = asyncio.get_running_loop().create_task(improve(link, ways), name=f"a better road to {provider}")
        self._improving.add(task)
        task.add_done_callback(self._improving.discard)
        task.add_done_callback(log_end)
        link.closed.add_done_callback(lambda _: task.cancel())

    def _ways(self, addresses: Sequence[str], provider: PublicKey, secret_key: SecretKey) -> dict[Road, Way]:
        """How to dial over each road that the addresses name, the fastest first."""
        ways: dict[Road, Way] = {}
        if at := direct_addresses(addresses):
            ways[Road.DIRECT] = partial(dial_direct, at, provider, secret_key, networks=self._networks)
        if self._libp2p is not None:
            dial_link = self._libp2p.dial_link
            if plain := libp2p_addresses(addresses, provider.peer_id):
                ways[Road.LIBP2P] = lambda link: dial_link(
                    provider, plain, timeout_s=DIAL_TIMEOUT_S, direct_only=True, continues=link
                )
            if circuits := circuit_addresses(addresses, provider.peer_id):
                ways[Road.RELAYED] = lambda link: dial_link(
                    provider, circuits, timeout_s=DIAL_TIMEOUT_S, continues=link
                )
        return ways


def direct_addresses(multiaddrs: Sequence[str]) -> list[tuple[str, int]]:
    """Host and port of each `/ip4|ip6|dns.../<host>/tcp/<port>/tls` (`/p2p/...` may follow); others are passed over."""
    found: list[tuple[str, int]] = []
    for text in multiaddrs:
        parts = text.split("/")
        if len(parts) in (6, 8) and parts[5] == "tls" and (place := _host_and_port(parts)) and place not in found:
            found.append(place)
    return found


def libp2p_addresses(multiaddrs: Sequence[str], peer_id: str) -> list[str]:
    """Each `/ip4|ip6|dns.../<host>/tcp/<port>/p2p/<peer_id>`, once; others are passed over."""
    found: dict[str, None] = {}
    for text in multiaddrs:
        parts = text.split("/")
        if len(parts) == 7 and parts[5:] == ["p2p", peer_id] and _host_and_port(parts):
            found[text] = None
    return list(found)


def circuit_addresses(multiaddrs: Sequence[str], peer_id: str) -> list[str]:
    """Each `/ip4|ip6|dns.../<host>/tcp/<port>/p2p/<relay>/p2p-circuit/p2p/<peer_id>`, once; others are passed over."""
    found: dict[str, None] = {}
    for text in multiaddrs:
        parts = text.split("/")
        is_circuit = len(parts) == 10 and parts[5] == "p2p" and parts[7:] == ["p2p-circuit", "p2p", peer_id]
        if is_circuit and parts[6] not in ("", peer_id) and _host_and_port(parts):
            found[text] = None
    return list(found)


def roads_of(multiaddrs: Sequence[str], peer_id: str) -> list[Road]:
    """The roads that a provider's addresses offer, the fastest first."""
    offered = {
        Road.DIRECT: direct_addresses(multiaddrs),
        Road.LIBP2P: libp2p_addresses(multiaddrs, peer_id),
        Road.RELAYED: circuit_addresses(multiaddrs, peer_id),
    }
    return [road for road, addresses in offered.items() if addresses]


async def dial_direct(
    addresses: Sequence[tuple[str, int]],
    provider: PublicKey,
    secret_key: SecretKey,
    continues: LinkConnection | None = None,
    *,
    networks: OwnNetworks | None = None,
) -> LinkConnection:
    """Dial the addresses one after the other, at most four. Raises the last RemoteError.

    With `continues`, that link, which goes on over a road that was dialled for it.
    """
    error = Unreachable(f"{provider} gives no address that this machine can dial.")
    for host, port in addresses[:_MAX_DIALLED]:
        try:
            return await direct.dial(
                host,
                port,
                provider,
                secret_key,
                timeout_s=DIAL_TIMEOUT_S,
                continues=continues,
                networks=networks,
            )
        except Unreachable as unreachable:
            error = unreachable
    raise error


def _host_and_port(parts: Sequence[str]) -> tuple[str, int] | None:
    host, port = parts[2], parts[4]
    is_good = parts[0] == "" and parts[1] in _HOSTS and parts[3] == "tcp" and host and port.isascii()
    return (host, int(port)) if is_good and port.isdigit() and 0 < int(port) < 65536 else None


async def _race(dials: Sequence[Way], *, at_once: int, head_start_s: float) -> LinkConnection:
    """The link of whichever dial is ready first, the earlier in the row where several are; the others are closed.

    `at_once` begin now. Each other begins when one has failed, or `head_start_s` after the one before it.
    Raises Unreachable if all do, and any other error of one as it comes.
    """
    waiting = list(dials)
    tasks: list[asyncio.Future[LinkConnection]] = []
    winner: asyncio.Future[LinkConnection] | None = None
    failures: list[str] = []
    n_due, running = at_once, set[asyncio.Future[LinkConnection]]()
    try:
        while True:
            for dial in waiting[:n_due]:
                tasks.append(asyncio.ensure_future(dial(None)))
                running.add(tasks[-1])
            del waiting[:n_due]
            if not running:
                raise Unreachable(" ".join(failures))
            done, running = await asyncio.wait(
                running, timeout=head_start_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in (one for one in tasks if one in done):
                error = task.exception()
                if not isinstance(error, Unreachable):
                    winner = task
                    return task.result()
                failures.append(error.message)
            n_due = 1
    finally:
        for task in tasks:
            if task is not winner:
                task.cancel()
                task.add_done_callback(_drop_link)


def _drop_link(dialling: asyncio.Future[LinkConnection]) -> None:
    """A dial that nobody waits for has ended."""
    if not dialling.cancelled() and dialling.exception() is None:
        dialling.result().abort()
