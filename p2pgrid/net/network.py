"""The network, for the asyncio programs of this project: provider, client, bootstrap peer and command line.

    async with Network(secret_key, "main", listen=["/ip4/0.0.0.0/tcp/4001"], bootstrap=peers, serve_dht=True) as net:
        await net.advertise([lookup_keys.PROVIDER])
        for peer in await net.find_providers("model/qwen3-8b", timeout_s=5):
            offer = await net.fetch_offer(peer, timeout_s=5)

Importing this module imports libp2p, which takes one to two seconds: import it where the network is really joined.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self

from p2pgrid.clock import unix_ms
from p2pgrid.errors import InvalidRecord, LocalError, Unreachable, UsageError
from p2pgrid.net.addresses import parse_announce_address, parse_listen_address
from p2pgrid.net.bridge import TrioThread
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.host import HostLimits
from p2pgrid.net.http_streams import PROTOCOL as HTTP
from p2pgrid.net.http_streams import HttpStreams
from p2pgrid.net.libp2p_road import PROTOCOL as SESSION
from p2pgrid.net.libp2p_road import SessionListener, road_of, verify_listener
from p2pgrid.net.link_membership import calling
from p2pgrid.net.link_writer import WRITE_STALL_S
from p2pgrid.net.lookup_keys import check_key
from p2pgrid.net.offer_exchange import CAPACITY, CARDS, OFFER, Document
from p2pgrid.net.own_networks import OwnNetworks, open_network
from p2pgrid.net.peer_address import BootstrapState, Health, NetworkHealth, OnFound, PeerAddress
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.net.reach_wire import Outcome, RoadName
from p2pgrid.net.reachability import Reachability
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.use import NO_RELAY, RelayUse
from p2pgrid.net.road_move import new_dialler
from p2pgrid.net.service import NetworkConfig, NetworkService
from p2pgrid.net.stream import OnStream
from p2pgrid.net.stream_road import StreamRoad
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_peer_id
from p2pgrid.proto.link_events import LinkLimits

_GRACE_S: Final = 2.0
"""How much longer than its own time limit a call may take before it is given up from this side."""


class Network:
    """One's own place in a network: a libp2p host in a thread, which restarts if it crashes."""

    def __init__(
        self,
        secret_key: SecretKey,
        networks: str | OwnNetworks,
        *,
        listen: Sequence[str] = (),
        bootstrap: Sequence[str] = (),
        serve_dht: bool = False,
        offer: Callable[[], bytes | None] | None = None,
        log: Callable[[bytes, str], Awaitable[bytes]] | None = None,
        cards: Callable[[], bytes | None] | None = None,
        capacity: Callable[[], bytes | None] | None = None,
        announce: Sequence[str] = (),
        sessions: SessionListener | None = None,
        http: HttpStreams | None = None,
        limits: HostLimits | None = None,
        relay: RelayUse = NO_RELAY,
        relaying: RelayLimits | None = None,
        punched: Callable[[PunchPlan, str], None] | None = None,
        now_ms: Callable[[], int] = unix_ms,
    ) -> None:
        """Nothing is started before `async with`.

        networks: those that we are in, with their bootstrap peers; or the name of one that is open.
        listen: multiaddrs `/ip4|ip6/<address>/tcp/<port>`; none for a client that nobody dials.
        bootstrap: where one name was given: multiaddrs with `/p2p/<peer id>`; one's own is left out, so that a list
        can be shared.
        serve_dht: answer look-ups for others; only for a peer that others can dial.
        offer: called on the asyncio loop whenever a peer asks for our offer; at most 64 KiB, None for none.
        log: called on the asyncio loop with every request about our log and the asker's proven peer id; its answer, at
        most 64 KiB.
        cards: the same for our chain of cards.
        capacity: the same for what we have free.
        announce: what to tell others instead of the addresses listened on.
        sessions: takes the links that others dial over libp2p.
        http: answers requests of HTTP/1.1 over libp2p.
        relay: whether to be reached through relays.
        relaying: relay for others, within these limits; only for a peer that others can dial.
        punched: called on the asyncio loop, with the plan and the peer's id, when a peer that came through a relay
        and we begin to punch a hole (`punching.Hole`); None: none are punched.
        now_ms: the clock that peers are told, and theirs are compared with.

        Raises UsageError for a bad name or multiaddr.
        """
        own = open_network(networks, bootstrap) if isinstance(networks, str) else networks
        self.networks: Final = own
        """Those that we are in."""
        self.peer_id: Final = secret_key.public_key.peer_id
        self._secret_key = secret_key
        if serve_dht and not listen:
            raise UsageError("a peer that serves the DHT must listen.", hint="Give an address to listen on.")
        self._log = log
        self._service = NetworkService(
            NetworkConfig(
                secret_key=secret_key,
                networks=own,
                listen=tuple(map(parse_listen_address, listen)),
                announce=tuple(map(parse_announce_address, announce)),
                serve_dht=serve_dht,
                limits=limits or HostLimits(),
                relay=relay,
                relaying=relaying,
                now_ms=now_ms,
            ),
            self._asking(offer) if offer is not None else None,
            self._asking(cards) if cards is not None else None,
            self._answer_log if log is not None else None,
            sessions,
            self._asking(capacity) if capacity is not None else None,
            self._begin_to_punch if punched is not None else None,
            http,
        )
        self._punched = punched
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = TrioThread(self._service.run, name="the libp2p host")

    async def __aenter__(self) -> Self:
        """Start. Raises LocalError where an address cannot be listened on; an absent bootstrap peer is no failure."""
        self._loop = asyncio.get_running_loop()
        await self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.stop()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Full multiaddrs under which others may dial us now, `/p2p/` included, those through relays last.

        Empty for a client that does not listen.
        """
        return self._service.addresses

    async def set_reachable(self, reachable: bool | None) -> None:
        """Say whether strangers can dial us, None for nobody knows: with `relay` at auto, relays are used if not."""
        await self._thread.call(self._service.set_reachable, reachable)

    async def wait_reserved(self, timeout_s: float) -> None:
        """Return once we are reached through a relay, if that is wanted now and one is found.

        After `timeout_s` in any case.
        """
        await self._thread.call(self._service.wait_reserved, timeout_s)

    @property
    def listening(self) -> tuple[str, ...]:
        """The multiaddrs listened on, without `/p2p/`: ports are those that were bound, wildcards are as they are."""
        return self._service.listening

    async def advertise(self, keys: Sequence[str], *, timeout_s: float = 10.0) -> int:
        """Be found under `keys` (see `lookup_keys`) and no others, from now on, renewed three times an hour; in every
        network where we sell.

        Returns how many servers hold the record of the key held by the fewest; 0 if after `timeout_s` a network is
        not joined yet, or nobody took one: that is tried on in the background. A key left out is forgotten within
        the hour.
        Raises UsageError for a bad key.
        """
        for key in keys:
            check_key(key)
        return await self._thread.call(self._service.advertise, tuple(keys), timeout_s)

    async def withdraw(self, record: bytes | None = None) -> int:
        """Advertise nothing any more. Servers that are not told forget within the hour.

        record: our signed Withdrawal; with it the servers that hold our records are told, which takes up to 4 s.
        Returns how many have forgotten us.
        """
        return await self._thread.call(self._service.withdraw, record)

    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        """Peers said to provide `key`, each once, without ourselves, the most credible first.

        Asks all our networks afresh. A record is no proof: believe a provider when its signed offer says so. After
        `timeout_s`, what was found by then. Raises Unreachable if by then no bootstrap peer of any network answered,
        UsageError for a bad key.

        on_found: called with all that was found so far, the most credible first, five times a second while the look-up
        goes on. Among liars, and in a large network, it ends long after it has found everybody.
        """
        check_key(key)
        hand_on = None if on_found is None else lambda peers: self._thread.tell_asyncio(on_found, peers)
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                return await self._thread.call(self._service.find_providers, key, limit, timeout_s, hand_on)
        except TimeoutError:
            raise Unreachable(f"the look-up of {key} did not end in {timeout_s:g} s.") from None

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """The raw bytes of the offer record of `peer`, from the peer itself: at most 64 KiB, and not yet verified.

        The handshake proves that it is `peer.peer_id` who answers. Raises Unreachable, Refused (`no-offer`) or
        ProtocolViolation; UsageError for what is no peer id.
        """
        return await self._fetch(OFFER, peer, timeout_s)

    async def fetch_cards(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """The raw bytes of the chain of cards of `peer` (`proto.card_chain.unpack_cards`), as `fetch_offer` has them.

        Raises Unreachable, Refused (`no-card`) or ProtocolViolation; UsageError for what is no peer id.
        """
        return await self._fetch(CARDS, peer, timeout_s)

    async def fetch_capacity(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """What `peer` says it has free (`proto.wire.offers.Capacity`), as `fetch_offer` has it.

        Raises Unreachable, Refused (`no-capacity`) or ProtocolViolation; UsageError for what is no peer id.
        """
        return await self._fetch(CAPACITY, peer, timeout_s)

    async def ask_log(self, peer: PeerAddress, request: bytes, *, timeout_s: float = 15.0) -> bytes:
        """The answer of `peer` to a request about its log (`proto.wire.log.LogCall`): at most 64 KiB, not yet parsed.

        Raises Unreachable, Refused (`no-log`) or ProtocolViolation; UsageError for what is no peer id.
        """
        try:
            parse_peer_id(peer.peer_id)
        except InvalidRecord as error:
            raise UsageError(str(error)) from error
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                return await self._thread.call(self._service.ask_log, peer, request, timeout_s)
        except TimeoutError:
            raise Unreachable(f"{peer.peer_id} did not answer about its log in {timeout_s:g} s.") from None

    async def reachability(self, direct: Sequence[str] = (), *, timeout_s: float = 12.0) -> Reachability:
        """Whether strangers reach our addresses: up to three peers of the network dial them back.

        direct: the announced addresses of the direct road, `/ip4/192.0.2.7/tcp/4801/tls`; those of libp2p are known.

        After `timeout_s`, the verdict by what was heard by then. Raises LocalError while the network is down.
        """
        own = [address.rpartition("/p2p/")[0] for address in self.addresses]
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                return await self._thread.call(self._service.reachability, (*direct, *own), timeout_s)
        except TimeoutError:
            raise LocalError(f"the network did not say within {timeout_s:g} s whether others reach us.") from None

    async def dial_back(
        self, peer: PublicKey, host: str, port: int, road: RoadName, *, timeout_s: float = 4.0
    ) -> Outcome:
        """Whether `peer` answers at that IP address and port, over a connection made for this. LocalError if down."""
        return await self._thread.call(self._service.dial_back, peer, host, port, road, timeout_s)

    async def check_bootstrap(self, *, timeout_s: float = 5.0) -> list[BootstrapState]:
        """Dial every bootstrap peer, and ask it as a server of the network. LocalError while the network is down."""
        return await self._thread.call(self._service.check_bootstrap, timeout_s)

    async def dial_link(
        self,
        provider: PublicKey,
        addresses: Sequence[str],
        *,
        timeout_s: float = 10.0,
        direct_only: bool = False,
        limits: LinkLimits | None = None,
        on_stream: OnStream | None = None,
        write_stall_s: float = WRITE_STALL_S,
        continues: LinkConnection | None = None,
    ) -> LinkConnection:
        """A link to `provider` over libp2p, ready for streams. `addresses` are multiaddrs; none, if it is connected.

        With `continues`, a link to the provider that there is goes on over the new road, and is returned.
        `direct_only`: not over a connection that leads through a relay.
        Raises Unreachable where it does not answer within `timeout_s`, or our own host is down; Refused where the
        provider turns us away; ProtocolViolation where it breaks the link's rules.
        """
        loop = asyncio.get_running_loop()
        road = StreamRoad(loop)
        membership = calling(self.networks, self._secret_key, provider, continues)
        try:
            async with asyncio.timeout(timeout_s):
                await self._open_road(road, provider, addresses, timeout_s, direct_only)
                connection = LinkConnection(
                    new_dialler(self._secret_key, provider, continues, limits, membership),
                    name=f"{provider} over libp2p",
                    on_stream=on_stream,
                    verify_road=functools.partial(verify_listener, provider),
                    write_stall_s=write_stall_s,
                    road=road_of(road),
                    membership=membership,
                )
                road.start(connection)
                await asyncio.shield(connection.ready)
        except TimeoutError:
            road.abort()
            raise Unreachable(f"{provider} did not answer over libp2p within {timeout_s:g} s.") from None
        except LocalError as error:
            road.abort()
            raise Unreachable(f"{provider} cannot be reached over libp2p: {error.message}", hint=error.hint) from error
        except BaseException:
            road.abort()
            raise
        if continues is None:
            return connection
        await continues.move_to(connection)
        return continues

    async def dial_road(
        self,
        provider: PublicKey,
        addresses: Sequence[str],
        *,
        timeout_s: float = 10.0,
        direct_only: bool = False,
        protocol: str = SESSION,
    ) -> StreamRoad:
        """A road to `provider` over libp2p, without a link on it: for another process of this node.

        `direct_only` is as for `dial_link`. Raises Unreachable.
        """
        road = StreamRoad(asyncio.get_running_loop())
        try:
            async with asyncio.timeout(timeout_s):
                await self._open_road(road, provider, addresses, timeout_s, direct_only, protocol)
            verify_listener(provider, road)
        except TimeoutError:
            road.abort()
            raise Unreachable(f"{provider} did not answer over libp2p within {timeout_s:g} s.") from None
        except LocalError as error:
            road.abort()
            raise Unreachable(f"{provider} cannot be reached over libp2p: {error.message}", hint=error.hint) from error
        except BaseException:
            road.abort()
            raise
        return road

    async def agree_on_hole(self, provider: PublicKey, *, timeout_s: float = 12.0) -> PunchPlan:
        """Agree with a provider, to which we have a link through a relay, on where to punch a hole.

        Returns at the moment to begin. Raises Unreachable or ProtocolViolation.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._thread.call(self._service.agree_on_hole, provider.peer_id)
        except TimeoutError:
            raise Unreachable(f"{provider} did not agree on a hole within {timeout_s:g} s.") from None
        except LocalError as error:
            raise Unreachable(f"no hole to {provider} can be agreed on: {error.message}", hint=error.hint) from error

    def _begin_to_punch(self, plan: PunchPlan, peer_id: str) -> None:
        """On the trio side: have the asyncio side begin."""
        if self._punched is not None and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._punched, plan, peer_id)
            except RuntimeError:
                pass  # the loop is closed: nobody is left to punch

    async def dial_http(self, peer: PublicKey, addresses: Sequence[str], *, timeout_s: float = 10.0) -> StreamRoad:
        """A stream of `/http/1.1` to `peer`, on which nothing was said: for one request. Raises Unreachable."""
        return await self.dial_road(peer, addresses, timeout_s=timeout_s, protocol=HTTP)

    async def _open_road(
        self,
        road: StreamRoad,
        provider: PublicKey,
        addresses: Sequence[str],
        timeout_s: float,
        direct_only: bool,
        protocol: str = SESSION,
    ) -> None:
        peer = PeerAddress(provider.peer_id, tuple(addresses))
        await self._thread.call(self._service.open_session, peer, road, timeout_s, direct_only, protocol)

    def health(self) -> Health:
        """How the network fares right now. Asks nobody."""
        service = self._service
        return Health(
            running=self._thread.running,
            connected_peers=service.connected_peers,
            routing_table_size=sum(part.routing_table_size for part in service.parts),
            bootstrap_reached=service.bootstrap_reached,
            advertised_keys=service.parts[0].advertised_keys,
            relay=service.relay_health,
            restarts=self._thread.restarts,
            stalled_s=self._thread.stalled_s,
            networks=tuple(
                NetworkHealth(
                    name=part.name,
                    kind=part.network.kind,
                    bootstrap_reached=part.bootstrap_reached,
                    routing_table_size=part.routing_table_size,
                )
                for part in service.parts
            ),
        )

    async def _fetch(self, document: Document, peer: PeerAddress, timeout_s: float) -> bytes:
        try:
            parse_peer_id(peer.peer_id)
        except InvalidRecord as error:
            raise UsageError(str(error)) from error
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                return await self._thread.call(self._service.fetch, document, peer, timeout_s)
        except TimeoutError:
            raise Unreachable(f"{peer.peer_id} did not give its {document.name} in {timeout_s:g} s.") from None

    async def _answer_log(self, request: bytes, asker: str) -> bytes:
        """On the trio side: have the asyncio side answer."""
        return await self._thread.call_asyncio(self._log_reply, request, asker)

    async def _log_reply(self, request: bytes, asker: str) -> bytes:
        if self._log is None:
            raise LocalError("there is no log to ask.")
        return await self._log(request, asker)

    def _asking(self, current: Callable[[], bytes | None]) -> Callable[[], Awaitable[bytes | None]]:
        """On the trio side: ask the asyncio side for the document as it is now."""

        async def on_asyncio() -> bytes | None:
            return current()

        async def ask() -> bytes | None:
            return await self._thread.call_asyncio(on_asyncio)

        return ask
