"""The DHT of one network: who provides what. Kademlia on the protocol id `/p2pgrid/<network>/kad/1.0.0`.

The rules are those of `p2pgrid/proto/kademlia/`: the routing table, whom a look-up asks, whose word counts for how
much. Here they are carried out over libp2p. A look-up always asks the network. A peer enters the routing table when it
has answered a request of ours under this protocol id: so no client does, and nobody of another network.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from p2pgrid.net.address_proof import AddressProof
from p2pgrid.net.addresses import full_multiaddr, host_of, usable_addresses
from p2pgrid.net.kad_query import ASK_TIMEOUT_S, Answer, Contact, KadQuery, contact_of, node_of, own_record
from p2pgrid.net.kad_server import KadServer
from p2pgrid.net.listen_addresses import listen_addresses
from p2pgrid.net.newcomers import Newcomers, tell_changed
from p2pgrid.net.pace import Pace
from p2pgrid.net.peer_address import OnFound, PeerAddress
from p2pgrid.net.reach_dial import dial_back
from p2pgrid.net.reach_wire import Outcome, RoadName
from p2pgrid.proto.kademlia.claims import Address, Claim
from p2pgrid.proto.kademlia.member import MAINTENANCE_INTERVAL_S, SEEDS_INTERVAL_S, Member
from p2pgrid.proto.kademlia.places import Node
from p2pgrid.proto.kademlia.records import ProviderRecord
from p2pgrid.proto.kademlia.replicas import Request
from p2pgrid.proto.kademlia.walk import HAND_ON_INTERVAL_S, Walk
from p2pgrid.proto.keys import parse_peer_id

logger = logging.getLogger(__name__)

MAX_HOLDERS: Final = 256
PROOF_TIMEOUT_S: Final = 5.0

_Question = Callable[[Contact, bytes], Awaitable[Answer]]


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
        self.protocol: Final = f"/p2pgrid/{network_name}/kad/1.0.0"
        self.member = Member(host.get_id().to_bytes(), random.random)
        self._proof = AddressProof(self._is_at)
        self.server = KadServer(host, self.protocol, self.member, self._proof)
        self._query = KadQuery(host, self.protocol, ask_timeout_s)
        self._is_one_of_us = is_one_of_us
        self._serve = serve
        self._announcing = Pace()
        self.holders: dict[ID, Contact] = {}
        """The servers that may have one of our records; whoever empties it tells them that we are gone."""
        self._background: trio.Nursery | None = None
        self._is_unreachable = False

    @property
    def size(self) -> int:
        """How many servers the routing table knows."""
        return len(self.member.table)

    async def is_server(self, peer: Contact) -> bool:
        """True if the peer answers, now, as a server of this network."""
        return await self._is_there(_node(peer))

    def servers(self) -> list[Contact]:
        """The servers that the routing table knows."""
        return [contact_of(node) for node in self.member.table]

    def decide(self, reachable: bool | None) -> None:
        """Whether strangers reach us, None where nobody knows. Whom they do not reach is a client, and answers nobody.

        The servers that it is connected to are told, both ways. Others drop it when they next ask it, and get to know
        it when it connects to them.
        """
        was_unreachable, self._is_unreachable = self._is_unreachable, reachable is False
        if self._serve and self._background is not None and was_unreachable != self._is_unreachable:
            if self._is_unreachable:
                self.server.stop()
            else:
                self.server.start(self._background)
            self._background.start_soon(self._tell_who_serves)

    async def join(self, seeds: Sequence[Contact]) -> int:
        """Get to know the neighbourhood through `seeds`, which are kept for later. Returns the table's size."""
        self.member.seeds = tuple(map(_node, seeds))
        await self._look_around(self.member.joining(trio.current_time()))
        return self.size

    async def announce(self, key: bytes) -> int:
        """Leave our provider record for `key` with the servers that should hold it; how many took it."""
        addresses = tuple(address.to_bytes() for address in self._host.get_addrs())
        if self._serve:
            record = ProviderRecord(self.member.own, addresses, "", own_record(self._host), trio.current_time())
            self.member.records.add(key, record)
        walk = self.member.looking_for_holders(key, trio.current_time())
        try:
            await self._carry_out(walk, self._query.find_node)
        finally:
            self.member.ended(walk)
        accepted: set[bytes] = set()

        async def tell(server: Node, replica: bytes) -> None:
            await self._announcing.wait_for(server.peer)
            contact = contact_of(server)
            self._note_holder(contact)
            if await _attempt(self._query.add_provider, contact, replica) is not _FAILED:
                accepted.add(server.peer)

        async with trio.open_nursery() as nursery:
            for replica, server in self.member.holders(walk):
                nursery.start_soon(tell, server, replica)
        return len(accepted)

    def forget_own_records(self) -> None:
        """Stop giving out our own provider records from here. Other servers' copies end within the hour."""
        self.member.records.withdraw(self.member.own)

    def forget_records_of(self, peer_id: str) -> None:
        """Give out nothing any more that a provider left here."""
        self.member.records.withdraw(ID.from_base58(peer_id).to_bytes())

    async def find_providers(
        self, key: bytes, limit: int, timeout_s: float, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        """At most `limit` providers of `key`, the most credible first; after `timeout_s`, what was found by then."""
        walk = self.member.looking_for_providers(key, trio.current_time())
        if self._serve:
            records = self.member.records.of(key, trio.current_time(), random.random)
            walk.knows([_claim(record) for record in records])
        async with trio.open_nursery() as nursery:
            if on_found is not None:
                nursery.start_soon(self._hand_on, walk, limit, on_found)
            with trio.move_on_after(timeout_s):
                await self._carry_out(walk, self._query.get_providers)
            nursery.cancel_scope.cancel()
        self.member.ended(walk)
        return self._providers(walk, limit)

    async def _hand_on(self, walk: Walk, limit: int, on_found: OnFound) -> None:
        found: list[PeerAddress] = []
        while True:
            await trio.sleep(HAND_ON_INTERVAL_S if found else HAND_ON_INTERVAL_S / 4)
            if found := self._providers(walk, limit):
                on_found(found)

    def _providers(self, walk: Walk, limit: int) -> list[PeerAddress]:
        found = []
        for provider in walk.providers(limit, random.random):
            peer_id = str(ID(provider.peer))
            usable = usable_addresses((address.raw for address in provider.addresses), peer_id, circuits=True)
            found.append(PeerAddress(peer_id, tuple(full_multiaddr(address, peer_id) for address in usable)))
        return found

    async def run(self) -> None:
        """Keep the routing table and the records fresh, and get to know who connects. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            self._background = nursery
            try:
                if self._serve:
                    if not self._is_unreachable:
                        self.server.start(nursery)
                    Newcomers(self._host, nursery, on_new=self._probe, on_changed=self._probe_again)
                nursery.start_soon(self._host.get_peerstore().start_cleanup_task)
                nursery.start_soon(self._keep_asking_seeds)
                while True:
                    await trio.sleep(MAINTENANCE_INTERVAL_S)
                    await self.refresh()
            finally:
                self._background = None

    async def refresh(self) -> None:
        """One round of maintenance: ask who has been silent, look around, drop old records."""
        now_s = trio.current_time()
        self.member.records.expire(now_s)
        for node in self.member.silent(now_s):
            if not await self._is_there(node):
                self.member.table.failed(node)
        for key in self.member.refreshed(now_s, os.urandom(16)):
            await self._look_around(self.member.looking_around(key, trio.current_time()))

    async def _keep_asking_seeds(self) -> None:
        while True:
            await trio.sleep(SEEDS_INTERVAL_S * random.uniform(0.8, 1.2))  # noqa: S311 (no secret)
            await self.ask_seeds()

    async def ask_seeds(self) -> None:
        """Join again if one of them knows somebody close to us whom we do not: the network may have been cut in two."""

        async def one(seed: Node) -> None:
            answer = await self._ask(seed, self.member.own, self._query.find_node)
            if answer is not None:
                await self._admit(answer.sender)
                news.append(self.member.is_news(answer.closer))

        news: list[bool] = []
        async with trio.open_nursery() as nursery:
            for seed in self.member.seeds:
                nursery.start_soon(one, seed)
        if any(news):
            await self._look_around(self.member.joining(trio.current_time()))

    async def _look_around(self, walk: Walk) -> None:
        await self._carry_out(walk, self._query.find_node)
        self.member.looked_around(walk)

    async def _carry_out(self, walk: Walk, question: _Question) -> None:
        """Make the walk's requests until it is over."""
        heard = trio.Event()

        async def one(request: Request) -> None:
            answer = await self._ask(request.node, request.key, question)
            if answer is None:
                walk.silent(request)
            else:
                node = await self._admit(answer.sender) or request.node
                walk.answered(request, node, answer.closer, answer.providers)
            heard.set()

        async with trio.open_nursery() as nursery:
            while True:
                for request in walk.due(trio.current_time()):
                    nursery.start_soon(one, request)
                if walk.is_over:
                    nursery.cancel_scope.cancel()
                    return
                with trio.move_on_at(walk.wakes_at_s):
                    await heard.wait()
                heard = trio.Event()

    async def _ask(self, node: Node, key: bytes, question: _Question) -> Answer | None:
        answer = await _attempt(question, contact_of(node), key)
        return answer if isinstance(answer, Answer) else None

    async def _is_there(self, node: Node) -> bool:
        answer = await self._ask(node, self.member.own, self._query.find_node)
        if answer is not None:
            await self._admit(answer.sender)
        return answer is not None

    async def _admit(self, server: Contact) -> Node | None:
        """It answered: keep it in the routing table, with those of its addresses that may be told to others.

        Not one without an address: nobody who hears of it could ask it.
        """
        peer = server.peer_id.to_bytes()
        addresses = tuple(address.to_bytes() for address in server.addresses or await self._identified(server.peer_id))
        met_at = self._met_at(server.peer_id)
        known = self._proof.known(peer, addresses, met_at)
        if self._proof.needs_proof(addresses, known) and self._background is not None:
            self._background.start_soon(self._admit_when_proven, peer, addresses, met_at)
        return self._keep(peer, known)

    async def _admit_when_proven(self, peer: bytes, addresses: tuple[bytes, ...], met_at: str) -> None:
        self._keep(peer, await self._proof.prove(peer, addresses, met_at))

    def _keep(self, peer: bytes, addresses: tuple[bytes, ...]) -> Node | None:
        if not addresses:
            return None
        node = node_of(peer, addresses)
        self.member.answered(node, trio.current_time())
        return node

    async def _probe(self, peer_id: ID) -> None:
        """A peer connected to us: if it answers as a server, others should hear of it."""
        node = node_of(peer_id.to_bytes(), ())
        if self.member.table.has_room(node) and (self._is_one_of_us is None or await self._is_one_of_us(peer_id)):
            await self._is_there(node)

    async def _probe_again(self, peer_id: ID) -> None:
        """A peer says that it is something else now: a server perhaps, or none any more."""
        known = self.member.table.get(node_of(peer_id.to_bytes(), ()))
        if known is None:
            await self._probe(peer_id)
        elif not await self._is_there(known):
            self.member.table.failed(known)

    async def _tell_who_serves(self) -> None:
        """That we serve from now on, or do no more. Who serves is met by its neighbours when it asks them."""
        await tell_changed(self._host, self._connected_servers())
        if not self._is_unreachable:
            await self._look_around(self.member.joining(trio.current_time()))

    def _connected_servers(self) -> set[ID]:
        """Those that the table knows; where everybody may know of us, those that say so in identify too."""
        connected, store = set(self._host.get_connected_peers()), self._host.get_peerstore()
        servers = {ID(node.peer) for node in self.member.table}
        if self._is_one_of_us is None:
            servers |= {one for one in connected if self.protocol in _protocols_of(store, one)}
        return servers & connected

    def _met_at(self, peer_id: ID) -> str:
        """The IP address at the other end of our connection to a peer; empty if there is none."""
        for connection in self._host.get_network().get_connections(peer_id):
            remote = connection.muxed_conn.get_remote_address()
            if remote:
                return str(remote[0])
        return ""

    async def _identified(self, peer_id: ID) -> tuple[Multiaddr, ...]:
        """What a peer that signs no record tells in identify: other implementations do not sign."""
        try:
            return await listen_addresses(self._host, peer_id)
        except Exception as error:  # noqa: BLE001 (a peer's fault of any kind, and what libp2p makes of it)
            logger.debug("%s told no addresses: %r", peer_id, error)
            return ()

    def _note_holder(self, server: Contact) -> None:
        self.holders.pop(server.peer_id, None)
        self.holders[server.peer_id] = server
        if len(self.holders) > MAX_HOLDERS:
            del self.holders[next(iter(self.holders))]

    async def _is_at(self, peer: bytes, address: bytes) -> bool:
        """True if a fresh connection to the address meets the peer, which proves its key."""
        peer_id = str(ID(peer))
        for usable in usable_addresses([address], peer_id):
            port = int(usable.value_for_protocol("tcp"))
            key, swarm = parse_peer_id(peer_id), self._host.get_network()
            outcome = await dial_back(swarm, key, host_of(address), port, RoadName.LIBP2P, timeout_s=PROOF_TIMEOUT_S)
            return outcome is Outcome.REACHED
        return False


def _node(contact: Contact) -> Node:
    return node_of(contact.peer_id.to_bytes(), [address.to_bytes() for address in contact.addresses])


def _claim(record: ProviderRecord) -> Claim:
    return Claim(record.peer, tuple(Address(host_of(address), address) for address in record.addresses))


def _protocols_of(store: Any, peer_id: ID) -> list[str]:
    try:
        return list(store.get_protocols(peer_id))
    except PeerStoreError:
        return []


_FAILED: Final = object()


async def _attempt(ask: Callable[[Contact, bytes], Awaitable[Any]], server: Contact, key: bytes) -> Any:
    """What `ask` returns, or _FAILED: a server that is away or misbehaves is passed over, however it does it."""
    try:
        return await ask(server, key)
    except Exception as error:  # noqa: BLE001 (a peer's fault of any kind, and what libp2p makes of it)
        logger.debug("%s did not answer: %r", server.peer_id, error)
        return _FAILED
