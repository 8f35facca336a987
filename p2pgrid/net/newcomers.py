"""Peers that are worth a question: those that connect, and those that say they are something else now than before.

The second is libp2p's identify/push (https://github.com/libp2p/specs/blob/master/identify/README.md): what a peer says
of itself there is believed by nobody here, but that it says something is a reason to ask. Who begins to serve a DHT, or
ceases to, pushes to the servers that it is connected to: other implementations take it into their tables, or drop it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import push_identify_to_peer
from libp2p.peer.id import ID

from p2pgrid.net.limits import Rates
from p2pgrid.net.relay.kind import is_relayed

MAX_AT_ONCE: Final = 16
CHANGES_BURST: Final = 3
CHANGES_PER_S: Final = 1 / 60
"""Of one peer; what it says beyond that is not heeded. It is found out when it is next asked for another reason."""
TELLING_AT_ONCE: Final = 8
TELL_TIMEOUT_S: Final = 30.0

Ask = Callable[[ID], Awaitable[None]]


class Newcomers:
    """libp2p's notifee, and who hears of pushes: starts a question to a peer, a few at a time."""

    def __init__(self, host: BasicHost, nursery: trio.Nursery, *, on_new: Ask, on_changed: Ask) -> None:
        """`on_new` asks who has just connected, `on_changed` who says that something has changed."""
        self._network = host.get_network()
        self._nursery = nursery
        self._on_new, self._on_changed = on_new, on_changed
        self._limiter = trio.CapacityLimiter(MAX_AT_ONCE)
        self._changes = Rates(CHANGES_BURST, CHANGES_PER_S)
        self._network.register_notifee(self)
        host.on_pushed.append(self.changed)

    def changed(self, peer_id: ID) -> None:
        """The peer has pushed what it is."""
        is_direct = any(not is_relayed(connection) for connection in self._network.get_connections(peer_id))
        if is_direct and self._changes.take(str(peer_id), trio.current_time()):
            self._start(self._on_changed, peer_id)

    async def connected(self, network: Any, connection: Any) -> None:
        # Who comes through a relay cannot be dialled, and serves nobody.
        if not is_relayed(connection):
            self._start(self._on_new, connection.muxed_conn.peer_id)

    def _start(self, ask: Ask, peer_id: ID) -> None:
        if self._limiter.available_tokens:
            self._nursery.start_soon(self._run, ask, peer_id)

    async def _run(self, ask: Ask, peer_id: ID) -> None:
        async with self._limiter:
            await ask(peer_id)

    async def disconnected(self, network: Any, connection: Any) -> None: ...

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, address: Any) -> None: ...

    async def listen_close(self, network: Any, address: Any) -> None: ...


async def tell_changed(host: BasicHost, peers: Collection[ID]) -> None:
    """Push what this host is now to peers that it is connected to. Who does not take it is passed over."""
    limiter = trio.CapacityLimiter(TELLING_AT_ONCE)  # libp2p's own is shared by all hosts, in whatever thread
    with trio.move_on_after(TELL_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for peer_id in peers:
                nursery.start_soon(push_identify_to_peer, host, peer_id, None, limiter)
