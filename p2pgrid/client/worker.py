"""A gateway's worker process: programs' connections, and links and channels of its own with providers.

Started by `p2pgrid.client.workers` as `python -m p2pgrid.client.worker`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from p2pgrid.client.ask_schedule import ASKS_PER_S
from p2pgrid.client.cards import CardBook
from p2pgrid.client.client import wishes_of
from p2pgrid.client.desk import ClientDesk
from p2pgrid.client.domains import DomainChecker
from p2pgrid.client.gateway import SERVER_LIMITS, Gateway
from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.log_watch import LogWatch
from p2pgrid.client.member_watch import MemberWatch
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.client.quarantine import Held, Quarantine
from p2pgrid.client.road_memory import RoadMemory
from p2pgrid.client.roads import ProviderRoads
from p2pgrid.client.worker_calls import (
    OWNER_ASKS,
    AgreeOnHole,
    BeginGateway,
    Calls,
    Deliver,
    DialRoad,
    FetchCapacity,
    FetchCards,
    FetchOffer,
    FindProviders,
    FoundSoFar,
    HasChannel,
    Lifted,
    Quarantined,
    ReconcileWith,
    SettleSoon,
    SettleWith,
)
from p2pgrid.clock import unix_ms
from p2pgrid.data_folder import DataFolder
from p2pgrid.desk.asks import Reconcile
from p2pgrid.desk.statements import Settle
from p2pgrid.errors import LocalError, Unreachable, UsageError
from p2pgrid.http.connection import Connection
from p2pgrid.http.server import Server
from p2pgrid.ledger.remote import RemoteLedger
from p2pgrid.log.witness import WitnessStore
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.lookup_keys import PROVIDER, country_key
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.net.passed_road import dial_over
from p2pgrid.net.peer_address import OnFound, PeerAddress
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.net.road import Road
from p2pgrid.networks.entries import own_networks
from p2pgrid.processes.accepting import ConnectionGone, Handed, receive_connections
from p2pgrid.processes.bus import Bus
from p2pgrid.processes.counters import SharedCounters
from p2pgrid.processes.worker import Inherited, run_worker
from p2pgrid.processes.workers import StopWorker, WorkerReady
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.settlement.wiring import buying

log = logging.getLogger(__name__)

READY_LINKS: Final = "ready links"
COLUMNS: Final = (READY_LINKS,)
TELL_INTERVAL_S: Final = 0.25
KEEPER: Final = 1
"""The worker that watches logs and keeps the caches of offers and roads: one is enough."""


class MainNetwork:
    """The network, which the main process has joined."""

    def __init__(self, calls: Calls, networks: OwnNetworks, bus: Bus) -> None:
        self._calls = calls
        self._networks = networks
        self._numbers = itertools.count(1)
        self._looking: dict[int, OnFound] = {}
        bus.on(FoundSoFar, self._found_so_far)

    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        """As `Network.find_providers`."""
        look_up = 0
        if on_found is not None:
            look_up = next(self._numbers)
            self._looking[look_up] = on_found
        try:
            found = await self._calls.ask(FindProviders(key, limit, timeout_s, look_up), list[PeerAddress])
        finally:
            self._looking.pop(look_up, None)
        self._note(found)
        return found

    def _found_so_far(self, news: FoundSoFar) -> None:
        self._note(news.peers)
        on_found = self._looking.get(news.look_up)
        if on_found is not None:
            on_found(news.peers)

    def _note(self, found: Sequence[PeerAddress]) -> None:
        for peer in found:
            self._networks.note_found(peer.peer_id, peer.networks)

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """As `Network.fetch_offer`."""
        return await self._calls.ask(FetchOffer(peer, timeout_s), bytes)

    async def fetch_capacity(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """As `Network.fetch_capacity`."""
        return await self._calls.ask(FetchCapacity(peer, timeout_s), bytes)

    async def fetch_cards(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        """As `Network.fetch_cards`."""
        return await self._calls.ask(FetchCards(peer, timeout_s), bytes)


class MainRoads:
    """Dials over libp2p through the main process (`p2pgrid.client.roads.Libp2pDialler`)."""

    def __init__(self, calls: Calls, key: SecretKey, networks: OwnNetworks) -> None:
        self._calls = calls
        self._key = key
        self._networks = networks
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[socket.socket]] = {}

    async def agree_on_hole(self, provider: PublicKey, *, timeout_s: float = 12.0) -> PunchPlan:
        """As `Network.agree_on_hole`."""
        return await self._calls.ask(AgreeOnHole(provider.raw, timeout_s), PunchPlan)

    async def dial_link(
        self,
        provider: PublicKey,
        addresses: Sequence[str],
        *,
        timeout_s: float = 10.0,
        direct_only: bool = False,
        continues: LinkConnection | None = None,
    ) -> LinkConnection:
        """A link that is ready; with `direct_only`, not through a relay. Raises RemoteError."""
        token = next(self._tokens)
        came = self._waiting[token] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                ask = DialRoad(token, provider.raw, tuple(addresses), timeout_s, direct_only)
                road = await self._calls.ask(ask, Road)
                return await dial_over(
                    await came, provider, self._key, road=road, continues=continues, networks=self._networks
                )
        except TimeoutError:
            raise Unreachable(f"{provider} did not answer over libp2p within {timeout_s:g} s.") from None
        except LocalError as error:
            raise Unreachable(f"{provider} cannot be reached over libp2p: {error.message}") from error
        finally:
            del self._waiting[token]

    def take(self, end: socket.socket, handed: Handed) -> None:
        """A road has come; if nobody waits for it any more, it is closed."""
        came = self._waiting.get(-handed.number)
        if came is None or came.done():
            end.close()
        else:
            came.set_result(end)


class SharedQuarantine(Quarantine):
    """What one worker finds out, all know."""

    def __init__(self, bus: Bus, held: dict[str, Held]) -> None:
        super().__init__()
        self._bus = bus
        self._peers.update(held)

    def add(self, peer_id: str, reason: str, now_ms: int) -> None:
        if peer_id not in self:
            super().add(peer_id, reason, now_ms)
            self._bus.send(Quarantined(peer_id, self.reason(peer_id), now_ms))

    def lift(self, peer_id: str) -> Held | None:
        held = super().lift(peer_id)
        if held is not None:
            self._bus.send(Lifted(peer_id))
        return held

    def heard(self, peer_id: str, reason: str, since_ms: int) -> None:
        """Another worker put the provider under quarantine."""
        super().add(peer_id, reason, since_ms)

    def heard_lifted(self, peer_id: str) -> None:
        """It was lifted elsewhere."""
        super().lift(peer_id)


class WorkerServer(Server):
    """A server whose connections are accepted elsewhere."""

    def __init__(self, gateway: Gateway, bus: Bus) -> None:
        super().__init__(gateway, SERVER_LIMITS)
        self._bus = bus
        self._numbers: dict[Connection, int] = {}
        self._taking: set[asyncio.Task[None]] = set()

    def take(self, tcp: socket.socket, handed: Handed) -> None:
        """Serve a connection."""
        task = asyncio.get_running_loop().create_task(self._take(tcp, handed.number))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    def closed(self, connection: Connection) -> None:
        super().closed(connection)
        number = self._numbers.pop(connection, None)
        if number is not None:
            self._bus.send(ConnectionGone(number))

    async def _take(self, tcp: socket.socket, number: int) -> None:
        def make() -> Connection:
            connection = Connection(self)
            self._numbers[connection] = number
            return connection

        try:
            await self.loop.connect_accepted_socket(make, tcp)
        except OSError as error:
            log.info("a connection could not be taken over: %s", error)
            self._bus.send(ConnectionGone(number))


class Worker:
    """Everything in this process."""

    def __init__(self, own: Inherited, begin: BeginGateway) -> None:
        """Raises P2pgridError. Handlers are in their places when this returns."""
        self._own, self._begin, self._bus = own, begin, own.bus
        self._data = DataFolder(Path(begin.data))
        self._key = self._data.load_key()
        self._networks = own_networks(begin.networks, self._key.public_key)
        self._channels = set(begin.channels)
        self._ledger = RemoteLedger(self._data.ledger_file, own.bus, own.settling)
        for channel in begin.channels:
            self._ledger.hold(channel)
        self._quarantine = SharedQuarantine(own.bus, begin.quarantine)
        self._calls = Calls(own.bus, OWNER_ASKS, self._perform)
        self._counters = SharedCounters(own.more[0], begin.processes, COLUMNS, own.worker)
        self._stopping: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._purchaser: Purchaser | None = None
        self._roads = MainRoads(self._calls, self._key, self._networks)
        self._server: WorkerServer | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        own.bus.on(HasChannel, self._has_channel)
        own.bus.on(SettleSoon, self._settle_soon)
        own.bus.on(Quarantined, lambda one: self._quarantine.heard(one.peer, one.reason, one.since_ms))
        own.bus.on(Lifted, self._lifted)
        own.bus.on(StopWorker, self._stop)

    async def run(self) -> None:
        """Serve until told to stop."""
        config, data = self._begin.config, self._data
        finder = MainNetwork(self._calls, self._networks, self._own.bus)
        is_keeper = self._own.worker == KEEPER
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._ledger.aclose)
            stack.callback(receive_connections(self._own.giver, self._take, self._lost))
            book = OfferBook(
                finder,
                now_ms=unix_ms,
                keys=[PROVIDER, *map(country_key, config.countries)],
                cache=data.offers_file if is_keeper else None,
                asks_per_s=ASKS_PER_S / max(self._begin.processes - 1, 1),
            )
            cards = CardBook(
                finder,
                now_ms=unix_ms,
                domains=DomainChecker(unix_ms) if config.verify_domains else None,
                folder=data.cards_folder,
            )
            stack.push_async_callback(cards.aclose)
            purchaser = Purchaser(
                self._key,
                self._ledger,
                book,
                wishes=wishes_of(config),
                limits=SessionLimits(
                    queue_timeout_s=config.slot_timeout_s, first_token_timeout_s=config.first_token_timeout_s
                ),
                dial=ProviderRoads(
                    self._roads,
                    punches=config.punch,
                    addresses_of=book.addresses_of,
                    networks=self._networks,
                    memory=await stack.enter_async_context(RoadMemory(data.roads_file, writes=is_keeper)),
                ).dial,
                cards=cards,
                quarantine=self._quarantine,
                has_channel=self._channels.__contains__,
                buying=buying(data, self._ledger, [self._key, *data.load_retired_keys()]),
            )
            await stack.enter_async_context(book)
            self._purchaser = await stack.enter_async_context(purchaser)
            await stack.enter_async_context(MemberWatch(self._networks, purchaser.sessions, book))
            if is_keeper:
                seen = await asyncio.to_thread(WitnessStore, data.witness_file)
                stack.callback(seen.close)
                watch = LogWatch(self._key, seen, lambda: purchaser.sessions, forks=data.forks, now_ms=unix_ms)
                await stack.enter_async_context(watch)
            gateway = Gateway(
                purchaser,
                network=", ".join(self._networks.names),
                api_key=self._begin.api_key,
                n_links=lambda: self._counters.total(READY_LINKS),
            )
            await self._serve(WorkerServer(gateway, self._bus), purchaser)

    def _take(self, tcp: socket.socket, handed: Handed) -> None:
        if handed.number < 0:
            self._roads.take(tcp, handed)
        elif self._server is not None:
            self._server.take(tcp, handed)
        else:
            tcp.close()
            self._lost(handed)

    def _lost(self, handed: Handed) -> None:
        if handed.number > 0:
            self._bus.send(ConnectionGone(handed.number))

    async def _serve(self, server: WorkerServer, purchaser: Purchaser) -> None:
        self._server = server
        telling = asyncio.create_task(self._keep_telling(purchaser), name="telling")
        self._bus.send(WorkerReady())
        log.info("worker %d (pid %d) serves", self._own.worker, os.getpid())
        drain_s = await self._stopping
        await server.aclose(drain_s)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    async def _keep_telling(self, purchaser: Purchaser) -> None:
        while True:
            self._counters.set(READY_LINKS, purchaser.sessions.n_ready)
            await asyncio.sleep(TELL_INTERVAL_S)

    async def _perform(self, ask: ReconcileWith | Deliver | SettleWith) -> object:
        if self._purchaser is None:
            raise UsageError("the worker is starting.")
        if isinstance(ask, SettleWith):
            wanted = Settle(peer=ask.peer, channel=ask.channel, until_day=ask.until_day, accept_due=ask.accept_due)
            return await ClientDesk(self._purchaser, self._key.public_key).perform(wanted)
        if isinstance(ask, ReconcileWith):
            return await ClientDesk(self._purchaser, self._key.public_key).perform(Reconcile(peer=ask.peer))
        row = self._ledger.dispute(ask.record_id)
        if row is None:
            raise UsageError("there is no such dispute on record.")
        said = row.answer if row.answer is not None and row.answer.id == ask.record_id else row.dispute
        return await self._purchaser.sessions.deliver_dispute(said)

    def _settle_soon(self, message: SettleSoon) -> None:
        if self._purchaser is not None:  # else it is settled on the first link
            self._purchaser.sessions.settle_soon(message.channels)

    def _has_channel(self, message: HasChannel) -> None:
        self._channels.add(message.channel)
        self._ledger.hold(message.channel)

    def _lifted(self, message: Lifted) -> None:
        self._quarantine.heard_lifted(message.peer)
        if self._purchaser is not None:
            task: asyncio.Task[object] = asyncio.ensure_future(self._purchaser.sessions.allow(message.peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _stop(self, message: StopWorker) -> None:
        if not self._stopping.done():
            self._stopping.set_result(message.drain_s)


async def _main(own: Inherited) -> None:
    began: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()

    def begin(message: BeginGateway) -> None:
        # At once: the next message may be for what is made here.
        began.set_result(Worker(own, message))

    own.bus.on(BeginGateway, begin)
    own.bus.start()
    await (await began).run()


if __name__ == "__main__":
    run_worker(_main)
