"""The main process of a provider with several: it accepts links, hands them to workers, and says who holds a channel.

The ledger, the network, offers, engines, the log, disputes and new channels stay here. See
docs/decisions/several-processes.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from p2pgrid.commands.wire import failure_of
from p2pgrid.config import NetworkEntry
from p2pgrid.data_folder import DataFolder
from p2pgrid.engine.http import HttpEngine
from p2pgrid.engine.process import ManagedVllm
from p2pgrid.errors import InvalidRecord, LedgerError, LocalError, P2pgridError, Refused
from p2pgrid.ledger.service import LedgerService
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.ledger.writer import resolve
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import cannot_listen
from p2pgrid.net.limits import Seats
from p2pgrid.net.listening import ListenLimits, caller_of
from p2pgrid.processes.accepting import Acceptor, ConnectionGone
from p2pgrid.processes.bus import Bus
from p2pgrid.processes.counters import SharedCounters, make_memory
from p2pgrid.processes.workers import WorkerEnds, WorkerSet
from p2pgrid.proto.channel import verify_channel
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Record, parse_message
from p2pgrid.provider import worker_messages as m
from p2pgrid.provider.admission import BODY_BYTES, running_column
from p2pgrid.provider.claims import MAIN, ClaimTable
from p2pgrid.provider.engines import EngineSet
from p2pgrid.provider.exchange import Shop
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.open_channel import OpenChannel
from p2pgrid.provider.passed_streams import RemoteLink, RemoteStreams
from p2pgrid.provider.session import serve_streams
from p2pgrid.provider.shared_channels import SharedChannels
from p2pgrid.provider.tally import Tally
from p2pgrid.provider.worker_counters import BROKEN, LIVE_ORDERS

log = logging.getLogger(__name__)

GIVE_UP_TIMEOUT_S: Final = 5.0
"""How long a worker may take to give up a channel, which is a matter of milliseconds."""
MODELS_INTERVAL_S: Final = 0.25
"""How often workers are told of models that went down, came back, or moved."""
DRAIN_TIMEOUT_S: Final = 2.0


class ProviderWorkers(WorkerSet):
    """The workers of a provider, and the port they serve."""

    def __init__(
        self,
        n: int,
        *,
        data: DataFolder,
        networks: tuple[NetworkEntry, ...],
        sell_in: tuple[str, ...],
        ledger: SqliteLedger,
        channels: SharedChannels,
        engines: EngineSet,
        limits: ProviderLimits,
        now_ms: Callable[[], int],
    ) -> None:
        super().__init__("p2pgrid.provider.worker", n)
        self._data = data
        self._networks = networks
        self._sell_in = sell_in
        self._ledger = ledger
        self._channels = channels
        self._engines = engines
        self._limits = limits
        self._now_ms = now_ms
        self._columns = (LIVE_ORDERS, BROKEN, BODY_BYTES, *map(running_column, engines.models))
        self._memory = make_memory(n + 1, len(self._columns))
        self.counters: Final = SharedCounters(self._memory, n + 1, self._columns, MAIN)
        most = ListenLimits(max_connections=ListenLimits().max_connections * n)
        connects, loop = most.connects(), asyncio.get_running_loop()
        self._acceptor = Acceptor(
            Seats(most.allowance()),
            caller_of=caller_of,
            may_connect=lambda caller: connects.take(caller, loop.time()),
        )
        self._claims = ClaimTable(self._give_up)
        self._shop: Shop
        self._streams: dict[int, RemoteStreams] = {}
        self._tallies: dict[int, Tally] = {}
        self._ended = Tally()
        """Of workers that have ended."""
        self._models: tuple[m.Model, ...] = ()
        self._draining: dict[int, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_draining = False
        self._giving_up: dict[bytes, asyncio.TimerHandle] = {}
        """Channels that a worker was told to give up, and when it is killed if it does not."""
        self._all_buses: dict[int, Bus] = {}
        channels.share(self)
        for model in engines.models.values():
            model.counters = self.counters

    # -- for the node -----------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where links are accepted: host and port."""
        return self._acceptor.addresses

    @property
    def live_orders(self) -> int:
        """Orders of the workers that are accepted and not settled."""
        return self.counters.others(LIVE_ORDERS)

    @property
    def is_broken(self) -> bool:
        """True while the ledger has failed for a worker and not yet come back."""
        return self.counters.others(BROKEN) > 0

    def add_tallies(self, tally: Tally) -> None:
        """Add what workers have done, those that have ended too."""
        for one in (self._ended, *self._tallies.values()):
            tally.add(one)

    async def serve(self, shop: Shop, host: str, port: int) -> None:
        """Have the port, start the workers, and accept links. Raises LocalError."""
        self._shop = shop
        try:
            await self._acceptor.listen(host, port)
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        await self.start()
        self._acceptor.start()
        self._spawn(self._keep_models(), "models for workers")

    async def drain(self) -> None:
        """Let no worker accept an order any more; returns when `live_orders` says what is left."""
        self._is_draining = True
        loop = asyncio.get_running_loop()
        self._draining = {worker: loop.create_future() for worker in self.buses}
        for bus in self.buses.values():
            bus.send(m.Drain())
        if self._draining:
            await asyncio.wait(self._draining.values(), timeout=DRAIN_TIMEOUT_S)

    def fail_orders(self) -> None:
        """End what runs as failed."""
        for bus in self.buses.values():
            bus.send(m.FailOrders())

    async def aclose(self, drain_s: float) -> None:
        """Accept no more, let streams finish for a while, end the workers."""
        await self._acceptor.stop()
        for task in self._tasks:
            task.cancel()
        await self.stop(drain_s)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        os.close(self._memory)

    # -- channels ---------------------------------------------------------------------------------------------------

    def claim(self, record: Record, named: Channel, link: LinkConnection) -> asyncio.Future[OpenChannel]:
        """For a resume in this process, over libp2p: as `p2pgrid.provider.exchange.Claims`."""
        return self._spawn(self._claim_here(record, named, link.peer), "claim")

    def holder_of(self, channel: OpenChannel) -> Bus | None:
        """The bus of the worker that holds the channel; None where this process does."""
        return self._all_buses.get(self._claims.holder(channel.books.id))

    def give(self, channel: OpenChannel, link: RemoteLink) -> None:
        """A channel was opened on a worker's link: nobody else can know of it."""
        worker = next((w for w, streams in self._streams.items() if streams.links.get(link.number) is link), None)
        if worker is None:
            return  # the worker ended meanwhile

        def granted() -> None:
            channel.is_held = False
            self._all_buses[worker].send(m.Opened(channel.books.signed.record, link.number))
            self._all_buses[worker].send(m.credit_news(channel.books))

        self._claims.claim(channel.books.id, worker, granted)

    async def _find_or_open(self, record: Record, peer: PublicKey) -> OpenChannel:
        """The channel that a client resumes. One that it signed, and that a crash kept from our ledger, is opened:
        our signature stands. Raises Refused, InvalidRecord, LedgerError."""
        channels, named = self._channels, parse_message(record, Channel)
        try:
            return channels.find(named.channel, peer)
        except Refused:
            signed = verify_channel(record, provider=channels.own_key(named.provider), client=peer)
            channels.check_room(peer)
            await self._ledger.append(signed)
            return channels.open(signed)

    async def _claim_here(self, record: Record, named: Channel, peer: PublicKey) -> OpenChannel:
        channel = await self._find_or_open(record, peer)
        granted = asyncio.get_running_loop().create_future()
        self._claims.claim(named.channel, MAIN, lambda: resolve([(granted, None)]))
        await granted
        return channel

    def _claimed(self, worker: int, bus: Bus, claim: m.Claim) -> None:
        """At once for a channel that is known: a worker's later words must find its claim in the table."""
        peer = parse_public_key(claim.peer)
        try:
            channel = self._channels.find(parse_message(claim.record, Channel).channel, peer)
        except Refused:
            self._spawn(self._claim_unknown(worker, bus, claim, peer), "claim")
        else:
            self._enter_claim(worker, bus, claim, channel)

    async def _claim_unknown(self, worker: int, bus: Bus, claim: m.Claim, peer: PublicKey) -> None:
        try:
            channel = await self._find_or_open(claim.record, peer)
        except (Refused, InvalidRecord, LedgerError) as error:
            bus.send(m.ClaimFailed(claim.request, failure_of(error)))
            return
        if self._all_buses.get(worker) is bus:  # else it has ended meanwhile
            self._enter_claim(worker, bus, claim, channel)

    def _enter_claim(self, worker: int, bus: Bus, claim: m.Claim, channel: OpenChannel) -> None:
        def granted() -> None:
            channel.is_held = False
            books = channel.books
            bus.send(m.Granted(claim.request, books.signed.record, books.last_order_number, channel.away_since_ms))
            bus.send(m.credit_news(books))

        self._claims.claim(channel.books.id, worker, granted)

    def _give_up(self, holder: int, channel_id: bytes) -> None:
        if holder == MAIN:
            channel = self._channels.get(channel_id)
            if channel is not None:
                channel.give_up("the client resumed the channel on another link")
            self._claims.released(channel_id, MAIN)
            return
        self._all_buses[holder].send(m.GiveUp(channel_id))
        self._giving_up[channel_id] = asyncio.get_running_loop().call_later(
            GIVE_UP_TIMEOUT_S, self.kill, holder, f"it did not give up a channel within {GIVE_UP_TIMEOUT_S:g} s"
        )

    def _given_up(self, channel_id: bytes) -> None:
        if (timer := self._giving_up.pop(channel_id, None)) is not None:
            timer.cancel()

    def _released(self, worker: int, message: m.Released) -> None:
        self._given_up(message.channel)
        channel = self._channels.get(message.channel)
        if channel is not None:
            self._take_back(channel, message.last_order_number, message.away_since_ms)
        self._claims.released(message.channel, worker)

    def _take_back(self, channel: OpenChannel, last_order_number: int, away_since_ms: int) -> None:
        channel.is_held, channel.link = True, None
        channel.books.last_order_number = max(channel.books.last_order_number, last_order_number)
        channel.away_since_ms = away_since_ms

    # -- workers ----------------------------------------------------------------------------------------------------

    def inherited(self) -> Sequence[int]:
        return (self._memory,)

    def prepare(self, worker: int, bus: Bus, ends: WorkerEnds) -> None:
        self._all_buses[worker] = bus
        LedgerService(self._ledger, bus, ends.settling)
        on_stream = serve_streams(self._shop)
        self._streams[worker] = RemoteStreams(bus, on_stream, on_link=self._shop.links.note)
        bus.on(m.LinkFault, functools.partial(self._fault, worker))
        bus.on(m.Claim, functools.partial(self._claimed, worker, bus))
        bus.on(m.Released, functools.partial(self._released, worker))
        bus.on(m.DisputeTaken, self._dispute_taken)
        bus.on(m.EvidenceFound, self._evidence_found)
        bus.on(m.TallySoFar, functools.partial(self._tally_came, worker))
        bus.on(m.Draining, lambda _: self._drained(worker))
        bus.on(ConnectionGone, lambda message: self._acceptor.gone(worker, message.number))
        bus.send(m.Begin(str(self._data.path), self._networks, self._sell_in, self._limits, self.n + 1, self._columns))
        bus.send(m.Models(self._models_now()))
        if self._is_draining:
            bus.send(m.Drain())

    def ready(self, worker: int, bus: Bus, ends: WorkerEnds) -> None:
        self._acceptor.add_worker(worker, ends.giver)

    def gone(self, worker: int) -> None:
        self._all_buses.pop(worker, None)
        self._acceptor.remove_worker(worker)
        self._ended.add(self._tallies.pop(worker, Tally()))
        self.counters.clear_row(worker)
        self._drained(worker)
        now_ms = self._now_ms()
        for channel_id in self._claims.held_by(worker):
            self._given_up(channel_id)
            if (channel := self._channels.get(channel_id)) is not None:
                self._take_back(channel, 0, now_ms)
        if (streams := self._streams.pop(worker, None)) is not None:
            streams.worker_gone()
        self._claims.gone(worker)

    def _tally_came(self, worker: int, message: m.TallySoFar) -> None:
        self._tallies[worker] = m.tally_of(message)

    def _drained(self, worker: int) -> None:
        if (draining := self._draining.get(worker)) is not None and not draining.done():
            draining.set_result(None)

    def _fault(self, worker: int, message: m.LinkFault) -> None:
        if (link := self._streams[worker].links.get(message.link)) is not None:
            self._shop.links.fault(link, P2pgridError(message.message))

    def _dispute_taken(self, message: m.DisputeTaken) -> None:
        try:
            row = self._ledger.dispute(message.dispute)
        except LedgerError as error:
            log.error("a dispute could not be looked into: %s", error)
            return
        if row is not None:
            self._shop.disputes.taken(row.dispute)

    def _evidence_found(self, message: m.EvidenceFound) -> None:
        self._shop.evidence.keep(parse_public_key(message.peer), message.record, message.reason)

    def _models_now(self) -> tuple[m.Model, ...]:
        models = []
        for plan in self._engines.plans:
            served = self._engines.models[plan.model.name]
            engine = plan.engine
            url = engine.url if isinstance(engine, HttpEngine | ManagedVllm) else None
            models.append(m.Model(served.name, url or "", served.concurrency, served.is_up and bool(url)))
        return tuple(one for one in models if one.engine_url)

    async def _keep_models(self) -> None:
        while True:
            models = self._models_now()
            if models != self._models:
                self._models = models
                for bus in self._all_buses.values():
                    bus.send(m.Models(models))
            await asyncio.sleep(MODELS_INTERVAL_S)

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def check_engines(engines: EngineSet) -> None:
    """Raise LocalError for engines that live in this process alone."""
    with contextlib.suppress(StopIteration):
        odd = next(plan for plan in engines.plans if not isinstance(plan.engine, HttpEngine | ManagedVllm))
        raise LocalError(f"the engine of {odd.model.name!r} cannot be reached from another process.")
