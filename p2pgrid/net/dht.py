"""The DHT of one network: who provides what. Kademlia on the protocol id `/p2pgrid/<network>/kad/1.0.0`.

Look-ups always ask the network (libp2p's own answer from a local copy for two days), count a provider once however
often it is reported, and put those first whose addresses the provider itself signed. A peer enters the routing
table when it has answered a request of ours under this protocol id: so no client does, and nobody of another network.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.routing_table import gen_random_key_in_bucket
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from p2pgrid.net.addresses import MAX_ADDRESSES_PER_PEER, full_multiaddr
from p2pgrid.net.kad_query import ASK_TIMEOUT_S, Answer, Contact, KadQuery, ProviderClaim
from p2pgrid.net.kad_server import ADD_PROVIDER_WINDOW_S, MAX_ADD_PROVIDER_PER_WINDOW, KadServer
from p2pgrid.net.peer_address import PeerAddress

logger = logging.getLogger(__name__)

REPLICATION: Final = 20
"""k of Kademlia: how many servers hold a record."""
PARALLEL_ASKS: Final = 8
MAX_ASKS_PER_WALK: Final = 80
MAINTENANCE_INTERVAL_S: Final = 300.0
_STALE_AFTER_S: Final = 600
_CONTACT_TTL_S: Final = 2 * 60 * 60
_MAX_PROBES: Final = 16


class Dht:
    """One host's part in a network's DHT: it answers if `serve`, and looks up and announces in any case."""

    def __init__(
        self, host: BasicHost, network_name: str, *, serve: bool, ask_timeout_s: float = ASK_TIMEOUT_S
    ) -> None:
        self._host = host
        self._own_id: ID = host.get_id()
        protocol = f"/p2pgrid/{network_name}/kad/1.0.0"
        self.server = KadServer(host, protocol, serve=serve)
        self._query = KadQuery(host, protocol, ask_timeout_s)
        self._serve = serve
        self._seeds: tuple[Contact, ...] = ()
        self._announcing = _Pace()

    @property
    def size(self) -> int:
        """How many servers the routing table knows."""
        return int(self.server.routing_table.size())

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
            if await _attempt(self._query.add_provider, server, key) is not _FAILED:
                accepted += 1

        closest = await self._walk(key, self._query.find_node)
        async with trio.open_nursery() as nursery:
            for server in closest:
                nursery.start_soon(tell, server)
        return accepted

    def forget_own_records(self) -> None:
        """Stop giving out our own provider records from here. Other servers' copies end within the hour."""
        self.server.provider_store.withdraw(str(self._own_id))

    async def find_providers(self, key: bytes, limit: int, timeout_s: float) -> list[PeerAddress]:
        """At most `limit` providers of `key`, the most credible first; after `timeout_s`, what was found by then."""
        sightings = _Sightings(str(self._own_id))
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
        route = _Route(key, self._own_id, self._start(key))
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
            await self._admit(answer.sender)
            return answer
        self.server.routing_table.remove_peer(server.peer_id)
        return None

    async def _admit(self, server: Contact) -> None:
        """It answered: keep it in the routing table, with its newest addresses, for ourselves and for who asks us."""
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
        if self.server.routing_table.get_peer_info(peer_id) is None:
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


class _Route:
    """The state of one look-up, without I/O: whom to ask next, who has answered."""

    def __init__(self, key: bytes, own_id: ID, start: Sequence[Contact]) -> None:
        self._target = int.from_bytes(hashlib.sha256(key).digest())
        self._own_id = own_id
        self._contacts: dict[ID, Contact] = {}
        self._distance: dict[ID, int] = {}
        self._asked: set[ID] = set()
        self._failed: set[ID] = set()
        self._answered: set[ID] = set()
        for contact in start:
            self._learn(contact)

    def next(self) -> Contact | None:
        """The closest peer not asked yet among the closest that have not failed; None if there is none."""
        if len(self._asked) >= MAX_ASKS_PER_WALK:
            return None
        candidates = sorted(self._contacts.keys() - self._failed, key=self._distance.__getitem__)
        for peer_id in candidates[:REPLICATION]:
            if peer_id not in self._asked:
                self._asked.add(peer_id)
                return self._contacts[peer_id]
        return None

    def heard(self, server: Contact, answer: Answer | None) -> None:
        """Take in an answer, or that there was none."""
        if answer is None:
            self._failed.add(server.peer_id)
            return
        self._answered.add(server.peer_id)
        for contact in answer.closer:
            if contact.addresses:
                self._learn(contact)

    def answered(self) -> list[Contact]:
        """The closest that answered, closest first."""
        return [self._contacts[p] for p in sorted(self._answered, key=self._distance.__getitem__)[:REPLICATION]]

    def _learn(self, contact: Contact) -> None:
        if contact.peer_id != self._own_id and contact.peer_id not in self._contacts:
            self._contacts[contact.peer_id] = contact
            digest = hashlib.sha256(contact.peer_id.to_bytes()).digest()
            self._distance[contact.peer_id] = int.from_bytes(digest) ^ self._target


class _Sightings:
    """Providers as reported by many servers, some of which may lie."""

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        self._reports: Counter[str] = Counter()
        self._signed: dict[str, tuple[int, list[str]]] = {}
        self._hearsay: dict[str, Counter[str]] = {}

    def add(self, claims: Any) -> None:
        """Take in one server's claims."""
        for peer_id, claim in {str(claim.contact.peer_id): claim for claim in claims}.items():
            if peer_id == self._own_id:
                continue
            self._reports[peer_id] += 1
            addresses = [full_multiaddr(address, peer_id) for address in claim.contact.addresses]
            if claim.signed_at is None:
                self._hearsay.setdefault(peer_id, Counter()).update(addresses)
            elif claim.signed_at > self._signed.get(peer_id, (-1, []))[0]:
                self._signed[peer_id] = (claim.signed_at, addresses)

    def ranked(self) -> list[PeerAddress]:
        """Signed before hearsay, then by how many servers said so; a provider's addresses in the same order."""
        order = sorted(self._reports, key=lambda p: (p not in self._signed, -self._reports[p]))
        return [PeerAddress(peer_id, tuple(self._addresses(peer_id))) for peer_id in order]

    def _addresses(self, peer_id: str) -> list[str]:
        hearsay = [address for address, _ in self._hearsay.get(peer_id, Counter()).most_common()]
        unique = dict.fromkeys([*self._signed.get(peer_id, (0, []))[1], *hearsay])
        return list(unique)[:MAX_ADDRESSES_PER_PEER]


class _Pace:
    """Keeps our ADD_PROVIDERs to one server well under what it takes; over that, it drops them without a word."""

    def __init__(self, per_window: int = MAX_ADD_PROVIDER_PER_WINDOW // 2) -> None:
        self._per_window = per_window
        self._sent: dict[str, deque[float]] = {}

    async def wait_for(self, server: str) -> None:
        """Return when another may be sent to `server`."""
        sent = self._sent.setdefault(server, deque())
        sent.append(
            max(trio.current_time(), sent[-self._per_window] + ADD_PROVIDER_WINDOW_S)
            if len(sent) >= self._per_window
            else trio.current_time()
        )
        due = sent[-1]
        while len(sent) > self._per_window:
            sent.popleft()
        if len(self._sent) > 1000:
            self._sent = {s: times for s, times in self._sent.items() if times[-1] > due - ADD_PROVIDER_WINDOW_S}
        await trio.sleep_until(due)


class _Newcomers:
    """libp2p's notifee: starts a probe of every peer that connects."""

    def __init__(
        self, nursery: trio.Nursery, limiter: trio.CapacityLimiter, probe: Callable[[ID], Awaitable[None]]
    ) -> None:
        self._nursery, self._limiter, self._probe = nursery, limiter, probe

    async def connected(self, network: Any, connection: Any) -> None:
        if self._limiter.available_tokens:
            self._nursery.start_soon(self._run, connection.muxed_conn.peer_id)

    async def _run(self, peer_id: ID) -> None:
        async with self._limiter:
            await self._probe(peer_id)

    async def disconnected(self, network: Any, connection: Any) -> None: ...

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, address: Any) -> None: ...

    async def listen_close(self, network: Any, address: Any) -> None: ...
