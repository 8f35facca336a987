"""The deciding half of a look-up in the DHT: whom to ask next, whom to believe, how fast to tell. No network here."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Final

import trio
from libp2p.peer.id import ID

from p2pgrid.net.addresses import MAX_ADDRESSES_PER_PEER, full_multiaddr
from p2pgrid.net.kad_query import Answer, Contact, ProviderClaim
from p2pgrid.net.kad_server import ADD_PROVIDER_WINDOW_S, MAX_ADD_PROVIDER_PER_WINDOW
from p2pgrid.net.peer_address import PeerAddress

REPLICATION: Final = 20
"""k of Kademlia: how many servers hold a record."""
MAX_ASKS_PER_WALK: Final = 80


class Route:
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


class Sightings:
    """Providers as reported by many servers, some of which may lie."""

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        self._reports: Counter[str] = Counter()
        self._signed: dict[str, tuple[int, list[str]]] = {}
        self._hearsay: dict[str, Counter[str]] = {}

    def add(self, claims: Iterable[ProviderClaim]) -> None:
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


class Pace:
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
