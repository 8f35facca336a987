"""The answering half of the DHT: libp2p 0.8.1's Kademlia, bounded, under the network's own protocol id.

| fault | here |
|---|---|
| the protocol id is fixed to `/ipfs/kad/1.0.0` | `_Renamed` shows the library a host on which that name means ours |
| whoever asks enters the routing table, clients too | nobody does by asking; `dht.py` admits who answered |
| 12 streams at once with no time limit, so that 12 idle ones block the DHT | 256, 8 for a peer (doors.py), timed |
| requests on one stream are answered as fast as they come | 50 a second for an address, after a burst |
| values of up to 1 MiB are stored for anyone, without validation | none are: the validator knows no namespace |
| requests of up to 4 MiB are read | 16 KiB |
| a request for one peer is answered with what the host knows of it, from other networks too | `hide_strangers` |
| 10 provider records in 10 s from one peer, the rest silently dropped | 100 |
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import libp2p.kad_dht.kad_dht as kad_dht_module
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.common import PROTOCOL_ID as LIBRARY_PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.records.validator import NamespacedValidator

from p2pgrid.net.doors import KAD_ALLOWANCE
from p2pgrid.net.provider_store import BoundedProviderStore

IDLE_TIMEOUT_S: Final = 15.0
STREAM_LIFETIME_S: Final = 120.0
MAX_REQUEST_BYTES: Final = 16 * 1024
ADD_PROVIDER_WINDOW_S: Final = 10.0
MAX_ADD_PROVIDER_PER_WINDOW: Final = 100

kad_dht_module.MAX_DHT_MESSAGE_SIZE = MAX_REQUEST_BYTES  # read by the library at each request; its answers are longer


class KadServer(KadDHT):  # type: ignore[misc]
    """Answers requests if `serve`; holds the routing table and the provider records either way. It is never `run`."""

    idle_timeout_s: float = IDLE_TIMEOUT_S

    def __init__(self, host: BasicHost, protocol: str, *, serve: bool) -> None:
        super().__init__(
            _Renamed(host, protocol),
            DHTMode.SERVER if serve else DHTMode.CLIENT,
            validator=NamespacedValidator({}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
            enable_values=False,
        )
        self.provider_store = BoundedProviderStore(host)
        self._inbound_limiter = trio.CapacityLimiter(KAD_ALLOWANCE.total)  # the door lets no more in
        self._provider_rate_window = ADD_PROVIDER_WINDOW_S
        self._provider_rate_max = MAX_ADD_PROVIDER_PER_WINDOW
        self._pace = host.doors.pace
        self._hides_strangers = False

    def hide_strangers(self) -> None:
        """From now on tell of peers in this network's routing table alone: the host is in other networks too."""
        self._hides_strangers = True

    async def handle_stream(self, stream: Any) -> None:
        with trio.move_on_after(STREAM_LIFETIME_S) as lifetime:
            await super().handle_stream(_Impatient(stream, self.idle_timeout_s, self._pace))
        if lifetime.cancelled_caught:
            await stream.reset()

    def _add_closer_peers_to_response(
        self, response: Any, closest_peers: Sequence[ID], exclude_peer_id: ID | None = None
    ) -> None:
        if self._hides_strangers:
            known = self.routing_table.get_peer_info
            closest_peers = [one for one in closest_peers if one == self.local_peer_id or known(one) is not None]
        super()._add_closer_peers_to_response(response, closest_peers, exclude_peer_id)

    async def add_peer(self, peer_id: Any, *, skip_server_mode_check: bool = False) -> bool:
        """What the library calls when a peer asks; asking shows nothing."""
        return False


class _Renamed:
    """A host as the library should see it: its protocol's name stands for ours."""

    def __init__(self, host: BasicHost, protocol: str) -> None:
        self._host = host
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def set_stream_handler(self, protocol: str, handler: Any) -> None:
        self._host.set_stream_handler(self._ours(protocol), handler)

    def remove_stream_handler(self, protocol: str) -> None:
        self._host.remove_stream_handler(self._ours(protocol))

    async def new_stream(self, peer_id: Any, protocols: list[str]) -> Any:
        return await self._host.new_stream(peer_id, [self._ours(protocol) for protocol in protocols])

    def _ours(self, protocol: str) -> str:
        return self._protocol if protocol == LIBRARY_PROTOCOL_ID else protocol


class _Impatient:
    """A stream whose reads end in trio.TooSlowError when the peer is silent; the library then resets it.

    An answer, which is one write, goes out when one more is due.
    """

    def __init__(self, stream: Any, timeout_s: float, pace: Callable[[Any], Awaitable[None]]) -> None:
        self._stream = stream
        self._timeout_s = timeout_s
        self._pace = pace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, n: int | None = None) -> bytes:
        with trio.fail_after(self._timeout_s):
            data: bytes = await self._stream.read(n)
        return data

    async def write(self, data: bytes) -> None:
        await self._pace(self._stream)
        await self._stream.write(data)
