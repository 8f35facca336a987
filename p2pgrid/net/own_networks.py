"""The networks that this node is in, open and closed, and who else is in the closed ones. No libp2p here.

One object for the life of a process, used from the thread of asyncio and from that of trio: everything in it is read
and replaced as a whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.clock import unix_ms
from p2pgrid.errors import Refused, UsageError
from p2pgrid.net.lookup_keys import check_network_name
from p2pgrid.net.member_books import MemberBook
from p2pgrid.proto.closed_network import ClosedNetwork
from p2pgrid.proto.credentials import MAX_CREDENTIALS, Credential, Meeting, Side

REFRESH_INTERVAL_S: Final = 1.0
"""How often files are looked at: so long a member that was taken off a list is still dealt with."""
MAX_REMEMBERED: Final = 20_000
"""Peers of which it is kept where they were found."""


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """One network that this node is in."""

    name: str
    bootstrap: tuple[str, ...] = ()
    """Multiaddrs of the peers that introduce to it, each with `/p2p/<peer id>`."""
    book: MemberBook | None = None
    """Who is in it; None for an open network, in which everybody is."""
    sells: bool = True
    """Whether this node sells there, if it sells at all."""

    @property
    def closed(self) -> ClosedNetwork | None:
        """What the network is derived from; None for an open one."""
        return self.book.network if self.book is not None else None

    @property
    def kind(self) -> str:
        """`open`, or what closes it."""
        return self.book.network.kind.value if self.book is not None else "open"

    @property
    def scope(self) -> str:
        """What stands for the network in protocol ids and DHT keys: the name, where it is open."""
        return self.book.network.scope if self.book is not None else self.name


class OwnNetworks:
    """All of them."""

    def __init__(self, networks: Sequence[OwnNetwork], *, now_ms: Callable[[], int] = unix_ms) -> None:
        """`now_ms`: Unix time. Raises UsageError: none, a bad name, two of one name, more closed ones than 16."""
        for network in networks:
            check_network_name(network.name)
        self.all: Final = tuple(networks)
        self.names: Final = tuple(network.name for network in networks)
        self.closed: Final = frozenset(network.name for network in networks if network.book is not None)
        self.open: Final = frozenset(self.names) - self.closed
        self.selling: Final = frozenset(network.name for network in networks if network.sells)
        if not networks:
            raise UsageError("no network is named.", hint='Name one: network = "main" in config.toml.')
        if len(set(self.names)) != len(networks):
            raise UsageError(f"two networks have one name: {', '.join(sorted(self.names))}.", hint="Leave one of them.")
        if len(self.closed) > MAX_CREDENTIALS:
            raise UsageError(f"{len(self.closed)} closed networks; one node may be in {MAX_CREDENTIALS}.")
        self.now_ms: Final = now_ms
        self._books: Final = {network.name: network.book for network in networks if network.book is not None}
        self._found: dict[str, frozenset[str]] = {}
        self._lock = threading.Lock()
        self._refresh_s = 0.0

    def __getitem__(self, name: str) -> OwnNetwork:
        return next(network for network in self.all if network.name == name)

    # -- who is a member --------------------------------------------------------------------------------------------

    def holds(self, name: str, peer_id: str) -> bool:
        """True while a peer that was once admitted to the network is a member of it; always, of an open one."""
        book = self._books.get(name)
        return book is None or book.holds(peer_id, self.now_ms())

    def still(self, names: Iterable[str], peer_id: str) -> frozenset[str]:
        """Those of the networks that the peer is still a member of."""
        return frozenset(name for name in names if self.holds(name, peer_id))

    def refresh(self) -> None:
        """Look at the files, unless that was done within the second."""
        with self._lock:
            now_s = time.monotonic()
            if now_s < self._refresh_s:
                return
            self._refresh_s = now_s + REFRESH_INTERVAL_S
            for book in self._books.values():
                book.refresh(self.now_ms())

    # -- proofs -----------------------------------------------------------------------------------------------------

    def credentials(self, meeting: Meeting, side: Side, names: Iterable[str]) -> tuple[Credential, ...]:
        """Our credentials for these networks; one in which we are no member ourselves is left out."""
        books = [self._books[name] for name in sorted(names)]
        shown = [(book.network, book.own_membership) for book in books]
        return meeting.issue(((network, own) for network, own in shown if own is not None), side)

    def judge(
        self, meeting: Meeting, side: Side, credentials: Sequence[Credential], names: Iterable[str]
    ) -> tuple[frozenset[str], list[Refused]]:
        """Those of the networks in which the other side, which is `side`, is a member; and why not in others."""
        peer = meeting.caller if side is Side.CALLER else meeting.called
        admitted, faults = set(), []
        for network, shown in meeting.recognise(
            credentials, (self._books[name].network for name in sorted(names)), side
        ):
            try:
                self._books[network.name].admit(peer, shown, self.now_ms())
            except Refused as refusal:
                faults.append(refusal)
            else:
                admitted.add(network.name)
        return frozenset(admitted), faults

    def why_not_us(self, names: Iterable[str]) -> str:
        """What may be wrong where another does not take us for a member of these networks: a sentence or more."""
        return " ".join(dict.fromkeys(self._books[name].why_not_us() for name in sorted(names)))

    # -- where a peer was found -------------------------------------------------------------------------------------

    def note_found(self, peer_id: str, names: Iterable[str]) -> None:
        """A look-up in these networks led to the peer."""
        self._found.pop(peer_id, None)
        self._found[peer_id] = frozenset(names)
        while len(self._found) > MAX_REMEMBERED:
            try:
                self._found.pop(next(iter(self._found)), None)
            except (StopIteration, RuntimeError):  # the other thread was here in between
                break

    def found_in(self, peer_id: str) -> frozenset[str]:
        """Where the peer was found last; all of ours, if that is not known."""
        return self._found.get(peer_id) or frozenset(self.names)


def open_network(name: str, bootstrap: Sequence[str] = ()) -> OwnNetworks:
    """For a node that is in one open network. Raises UsageError for a bad name."""
    return OwnNetworks([OwnNetwork(name, tuple(bootstrap))])
