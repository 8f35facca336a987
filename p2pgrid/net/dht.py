"""The DHT of one network: who provides what. Kademlia on the protocol id `/p2pgrid/<network>/kad/1.0.0`.

Look-ups always ask the network (libp2p's own answer from a local copy for two days), count a provider once however
often it is reported, and put those first whose addresses the provider itself signed. A peer enters the routing
table when it has answered a request of ours under this protocol id: so no client does, and nobody of another network.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.routing_table import gen_random_key_in_bucket
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from p2pgrid.net.kad_query import ASK_TIMEOUT_S, Answer, Contact, KadQuery, ProviderClaim
from p2pgrid.net.kad_server import KadServer
from p2pgrid.net.listen_addresses import listen_addresses
from p2pgrid.net.lookup import REPLICATION, Pace, Route, Sightings
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.relay.kind import is_relayed

logger = logging.getLogger(__name__)

PARALLEL_ASKS: Final = 8
MAINTENANCE_INTERVAL_S: Final = 300.0
_STALE_AFTER_S: Final = 600
_CONTACT_TTL_S: Final = 2 * 60 * 60
_MAX_PROBES: Final = 16
MAX_HOLDERS: Final = 256


class Dht:
    """One host's part in a network's DHT: it answers if `serve`, and looks up and announces in any case."""

    def __init__(
        self,
        host: BasicHost,
        network_name: str,
        *,
        serve: bool,
        ask_timeout_s: float = ASK_TIMEOUT_S,
        is_one_of_us: Callable[[ID], Awaitable[bool]] | None = None,
    ) -> None:
        """`is_one_of_us`: asked before a peer that connects is got to know; None where everybody is."""
        self._host = host
        self._own_id: ID = host.get_id()
        self.protocol: Final = f"/p2pgrid/{network_name}/kad/1.0.0"
        self.server = KadServer(host, self.protocol, serve=serve)
        self._query = KadQuery(host, self.protocol, ask_timeout_s)
        self._is_one_of_us = is_one_of_us
        self._serve = serve
        self._seeds: tuple[Contact, ...] = ()
        self._announcing = Pace()
        self.holders: dict[ID, Contact] = {}
        """The servers that may have one of our records; whoever empties it tells them that we are gone."""

    @property
    def size(self) -> int:
        """How many servers the routing table knows."""
        return int(self.server.routing_table.size())

    async def is_server(self, peer: Contact) -> bool:
        """True if the peer answers, now, as a server of this network."""
        return await self._ask(peer, self._own_id.to_bytes(), self._query.find_node) is not None

    def servers(self) -> list[Contact]:
        """The servers that the routing table knows."""
        return [Contact(info.peer_id, tuple(info.addrs)) for info in self.server.routing_table.get_peer_infos()]

    async def join(self, seeds: Sequence[Contact]) -> int:
        """Get to know the neighbourhood through `seeds`, which are kept for later. Returns the table's size."""
        self._seeds = tuple(seeds)
        await self._walk(self._own_id.to_bytes(), self._query.find_node)
        return self.size

    async def announce(self, key: bytes) -> int:
        """Leave our provider record for `key` with the servers closest to it; how many took it."""
        if self._serve:
            self.server.provider_store.add_provider(key, PeerInfo(self._own_id, self._host.get_addrs()))
        accepted = 0

        async def tell(server: Contact) -> None:
            nonlocal accepted
            await self._announcing.wait_for(str(server.peer_id))
            self.holders.pop(server.peer_id, None)
            self.holders[server.peer_id] = server
            if len(self.holders) > MAX_HOLDERS:
                del self.holders[next(iter(self.holders))]
            if await _attempt(self._query.add_provider, server, key) is not _FAILED:
                accepted += 1

        closest = await self._walk(key, self._query.find_node)
        async with trio.open_nursery() as nursery:
            for server in closest:
                nursery.start_soon(tell, server)
        return accepted

    def forget_own_records(self) -> None:
        """Stop giving out our own provider records from here. Other servers' copies end within the hour."""
        self.forget_records_of(str(self._own_id))

    def forget_records_of(self, peer_id: str) -> None:
        """Give out nothing any more that a provider left here."""
        self.server.provider_store.withdraw(peer_id)

    async def find_providers(self, key: bytes, limit: int, timeout_s: float) -> list[PeerAddress]:
        """At most `limit` providers of `key`, the most credible first; after `timeout_s`, what was found by then."""
        sightings = Sightings(str(self._own_id))
        if self._serve:
            local = self.server.provider_store.get_providers(key)
            sightings.add(ProviderClaim(Contact(p.peer_id, tuple(p.addrs)), None) for p in local)

        async def ask(server: Contact, key: bytes) -> Answer:
            answer = await self._query.get_providers(server, key)
            sightings.add(answer.providers)
            return answer

        with trio.move_on_after(timeout_s):
            await self._walk(key, ask)
        return sightings.ranked()[:limit]

    async def run(self) -> None:
        """Keep the routing table and the records fresh, and get to know who connects. Runs until cancelled."""
        limiter = trio.CapacityLimiter(_MAX_PROBES)
        async with trio.open_nursery() as nursery:
            if self._serve:
                self._host.get_network().register_notifee(_Newcomers(nursery, limiter, self._probe))
            nursery.start_soon(self._host.get_peerstore().start_cleanup_task)
            while True:
                await trio.sleep(MAINTENANCE_INTERVAL_S)
                await self.refresh()

    async def refresh(self) -> None:
        """One round of maintenance: ask who has been silent, look around, drop old records."""
        self.server.provider_store.cleanup_expired()
        table = self.server.routing_table
        for peer_id in table.get_stale_peers(_STALE_AFTER_S):
            await self._ask(self._known(peer_id), self._own_id.to_bytes(), self._query.find_node)
        await self._walk(self._own_id.to_bytes(), self._query.find_node)
        for bucket in list(table.buckets):
            if bucket.size():
                await self._walk(gen_random_key_in_bucket(bucket), self._query.find_node)

    async def _walk(self, key: bytes, ask: Callable[[Contact, bytes], Awaitable[Answer]]) -> list[Contact]:
        """Kademlia's look-up: ask ever closer servers until the `REPLICATION` closest known have answered."""
        route = Route(key, self._own_id, self._start(key))
        progress = trio.Event()
        asking = 0

        async def one(server: Contact) -> None:
            nonlocal asking, progress
            answer = await self._ask(server, key, ask)
            route.heard(server, answer)
            asking -= 1
            progress.set()

        async with trio.open_nursery() as nursery:
            while True:
                server = route.next() if asking < PARALLEL_ASKS else None
                if server is not None:
                    asking += 1
                    nursery.start_soon(one, server)
                elif asking:
                    await progress.wait()
                    progress = trio.Event()
                else:
                    return route.answered()

    async def _ask(
        self, server: Contact, key: bytes, ask: Callable[[Contact, bytes], Awaitable[Answer]]
    ) -> Answer | None:
        answer = await _attempt(ask, server, key)
        if isinstance(answer, Answer):
            await self._admit(await self._located(answer.sender))
            return answer
        self.server.routing_table.remove_peer(server.peer_id)
        return None

    async def _located(self, server: Contact) -> Contact:
        """With the addresses that it tells in identify, where it signed none: other implementations do not."""

        async def identify(server: Contact, _key: bytes) -> tuple[Multiaddr, ...]:
            return await listen_addresses(self._host, server.peer_id)

        if server.addresses or (told := await _attempt(identify, server, b"")) is _FAILED:
            return server
        return Contact(server.peer_id, told)

    async def _admit(self, server: Contact) -> None:
        """It answered: keep it in the routing table, with its newest addresses, for ourselves and for who asks us.

        Not one without an address: nobody who hears of it could ask it.
        """
        if not server.addresses:
            return
        table, peerstore = self.server.routing_table, self._host.get_peerstore()
        known = table.get_peer_info(server.peer_id)
        if known is not None and set(known.addrs) != set(server.addresses):
            table.remove_peer(server.peer_id)
        if known is None or set(known.addrs) != set(server.addresses):
            peerstore.clear_addrs(server.peer_id)
        peerstore.add_addrs(server.peer_id, list(server.addresses), _CONTACT_TTL_S)
        await table.add_peer(PeerInfo(server.peer_id, list(server.addresses)), skip_server_mode_check=True)

    async def _probe(self, peer_id: ID) -> None:
        """A peer connected to us: if it answers as a server, others should hear of it."""
        if self.server.routing_table.get_peer_info(peer_id) is not None:
            return
        if self._is_one_of_us is None or await self._is_one_of_us(peer_id):
            await self._ask(Contact(peer_id, ()), self._own_id.to_bytes(), self._query.find_node)

    def _start(self, key: bytes) -> list[Contact]:
        table = self.server.routing_table
        known = [self._known(peer_id) for peer_id in table.find_local_closest_peers(key, REPLICATION)]
        return known if len(known) >= REPLICATION else [*known, *self._seeds]

    def _known(self, peer_id: ID) -> Contact:
        info = self.server.routing_table.get_peer_info(peer_id)
        return Contact(peer_id, tuple(info.addrs) if info is not None else ())


_FAILED: Final = object()


async def _attempt(ask: Callable[[Contact, bytes], Awaitable[Any]], server: Contact, key: bytes) -> Any:
    """What `ask` returns, or _FAILED: a server that is away or misbehaves is passed over, however it does it."""
    try:
        return await ask(server, key)
    except Exception as error:  # noqa: BLE001 (a peer's fault of any kind, and what libp2p makes of it)
        logger.debug("%s did not answer: %r", server.peer_id, error)
        return _FAILED


class _Newcomers:
    """libp2p's notifee: starts a probe of every peer that connects."""

    def __init__(
        self, nursery: trio.Nursery, limiter: trio.CapacityLimiter, probe: Callable[[ID], Awaitable[None]]
    ) -> None:
        self._nursery, self._limiter, self._probe = nursery, limiter, probe

    async def connected(self, network: Any, connection: Any) -> None:
        # Who comes through a relay cannot be dialled, and serves nobody.
        if self._limiter.available_tokens and not is_relayed(connection):
            self._nursery.start_soon(self._run, connection.muxed_conn.peer_id)

    async def _run(self, peer_id: ID) -> None:
        async with self._limiter:
            await self._probe(peer_id)

    async def disconnected(self, network: Any, connection: Any) -> None: ...

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, address: Any) -> None: ...

    async def listen_close(self, network: Any, address: Any) -> None: ...
