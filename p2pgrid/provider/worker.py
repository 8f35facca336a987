"""A provider's worker process: links on the direct road, resumes and orders. All else goes to the main process.

Started by `p2pgrid.provider.workers` as `python -m p2pgrid.provider.worker`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from p2pgrid.commands.wire import error_of
from p2pgrid.config import DataFolder
from p2pgrid.engine.http import HttpEngine
from p2pgrid.errors import InvalidRecord, LedgerError, P2pgridError, Refused
from p2pgrid.ledger.remote import RemoteLedger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import DirectListener
from p2pgrid.net.listening import ListenLimits
from p2pgrid.processes.accepting import ConnectionGone, Handed, receive_connections
from p2pgrid.processes.bus import Bus
from p2pgrid.processes.counters import SharedCounters
from p2pgrid.processes.worker import Inherited, run_worker
from p2pgrid.processes.workers import StopWorker, WorkerReady
from p2pgrid.proto.channel import verify_channel
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel, Offer
from p2pgrid.proto.record import Record, Role, Signed, parse_message
from p2pgrid.proto.restore import restore_books
from p2pgrid.provider import worker_messages as m
from p2pgrid.provider.admission import Admission, ServedModel
from p2pgrid.provider.channels import Channels, OpenChannel
from p2pgrid.provider.clock import unix_ms
from p2pgrid.provider.dispute_book import Watcher
from p2pgrid.provider.exchange import Shop
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.links import ClientLinks
from p2pgrid.provider.passed_streams import PassedOn, PassingDesk
from p2pgrid.provider.session import EXCHANGES, NEED_THE_CHANNEL, Exchanges, serve_streams
from p2pgrid.provider.tally import Tally
from p2pgrid.provider.worker_counters import BROKEN, LIVE_ORDERS

log = logging.getLogger(__name__)

TELL_INTERVAL_S: Final = 0.1
"""How often the counters that nobody's order waits for are written, and idle channels given back."""
TALLY_INTERVAL_S: Final = 0.5
_MOST_OFFERS: Final = 64


class LedgerOffers:
    """The node's offers as the ledger has them: they are durable before they are shown to anybody."""

    def __init__(self, ledger: RemoteLedger, key: PublicKey) -> None:
        self._ledger = ledger
        self._key = key
        self._found: OrderedDict[bytes, Signed[Offer]] = OrderedDict()

    @property
    def current(self) -> Signed[Offer] | None:
        """The main process shows it; a worker does not."""
        return None

    def find(self, offer_id: bytes) -> Signed[Offer] | None:
        """The offer of that id, if it is ours, whether or not it is in force. Raises Refused (`ledger-unavailable`)."""
        found = self._found.get(offer_id)
        if found is not None:
            return found
        try:
            offer = self._ledger.offer(offer_id)
        except LedgerError as error:
            log.error("the ledger cannot be read: %s", error)
            raise Refused("ledger-unavailable", "the provider's ledger cannot be read now.") from None
        if offer is None or offer.message.provider != self._key.raw:
            return None
        self._found[offer_id] = offer
        if len(self._found) > _MOST_OFFERS:
            self._found.popitem(last=False)
        return offer


class WorkerLinks(ClientLinks):
    """The worker's links. Which of them a client has too many of, or loses for its faults, the main process decides."""

    def __init__(self, bus: Bus, limits: ProviderLimits, tally: Tally) -> None:
        super().__init__(limits, tally)
        self._bus = bus
        self._numbers: dict[LinkConnection, int] = {}
        self._links: dict[int, LinkConnection] = {}
        self._next = itertools.count(1)
        bus.on(m.CloseLink, self._close)

    def note(self, connection: LinkConnection) -> None:
        if connection in self._numbers:
            return
        number = self._numbers[connection] = next(self._next)
        self._links[number] = connection
        self._bus.send(m.LinkOpened(number, connection.peer.raw, connection.name))
        connection.closed.add_done_callback(lambda _: self._lost(connection, number))

    def fault(self, connection: LinkConnection, fault: P2pgridError) -> None:
        self._bus.send(m.LinkFault(self._numbers[connection], fault.message))

    def number(self, connection: LinkConnection) -> int:
        """What the main process calls a link by."""
        return self._numbers[connection]

    def link(self, number: int) -> LinkConnection | None:
        """The link of that number, if it is there still."""
        return self._links.get(number)

    def _lost(self, connection: LinkConnection, number: int) -> None:
        del self._numbers[connection], self._links[number]
        self._bus.send(m.LinkClosed(number))

    def _close(self, message: m.CloseLink) -> None:
        if (connection := self._links.get(message.link)) is not None:
            self.close(connection, message.reason)


class WorkerChannels(Channels):
    """The channels that this process holds."""

    def __init__(
        self, bus: Bus, ledger: RemoteLedger, key: SecretKey, former: Sequence[SecretKey], limits: ProviderLimits
    ) -> None:
        super().__init__(ledger, key, limits, unix_ms, former)
        self._bus = bus
        self._remote = ledger
        bus.on(m.GiveUp, self._give_up)
        bus.on(m.HeldByBoth, self._held_by_both)
        bus.on(m.AnswerSaid, self._answer_said)

    def find(self, channel_id: bytes, client: PublicKey) -> OpenChannel:
        """The client's channel of that id. Raises Refused (`not-resumed`) for one that this process does not hold."""
        channel = self.get(channel_id)
        if channel is None or channel.books.client != client:
            raise Refused("not-resumed", "the channel was not resumed on this link.", hint="Resume it first.")
        return channel

    def adopt(
        self, record: Record, *, last_order_number: int, away_since_ms: int, link: LinkConnection | None = None
    ) -> OpenChannel:
        """Hold a channel from now on. Raises LedgerError."""
        named = parse_message(record, Channel)
        held = self.get(named.channel)
        if held is None:
            client = parse_public_key(named.client)
            signed = verify_channel(record, provider=self.own_key(named.provider), client=client)
            self._remote.hold(named.channel)
            try:
                books = restore_books(self._remote, signed, Role.PROVIDER)
            except LedgerError:
                self._remote.let_go(named.channel)
                self._bus.send(m.Released(named.channel, last_order_number, away_since_ms))
                raise
            held = self._add(OpenChannel(books, link, away_since_ms))
        held.books.last_order_number = max(held.books.last_order_number, last_order_number)
        return held

    def give_back_idle(self) -> None:
        """Give up every channel on which nothing runs, and whose client's link is gone."""
        for channel in [one for one in self if one.is_idle]:
            self._release(channel)

    def _give_up(self, message: m.GiveUp) -> None:
        channel = self.get(message.channel)
        if channel is not None:  # else it was given back just before, and that is on its way
            channel.give_up("the client resumed the channel on another link")
            self._release(channel)

    def _release(self, channel: OpenChannel) -> None:
        channel.is_held = False
        self._remove(channel)
        self._remote.let_go(channel.books.id)
        self._bus.send(m.Released(channel.books.id, channel.books.last_order_number, channel.away_since_ms))

    def _held_by_both(self, message: m.HeldByBoth) -> None:
        if (channel := self.get(message.channel)) is not None:
            self._try(lambda: self.note_held(channel, message.ids))

    def _answer_said(self, message: m.AnswerSaid) -> None:
        if (channel := self.get(message.channel)) is not None:
            self._try(lambda: self._note_said(channel, message.dispute))

    def _note_said(self, channel: OpenChannel, dispute: bytes) -> None:
        row = self._remote.dispute(dispute)
        if row is not None and row.answer is not None:
            self.note_answer(channel, row.dispute.message, row.answer.message)

    def _try(self, note: Callable[[], None]) -> None:
        try:
            note()
        except LedgerError as error:
            log.error("a dispute could not be looked into: %s", error)


class WorkerClaims:
    """Asks the main process for channels."""

    def __init__(self, bus: Bus, channels: WorkerChannels) -> None:
        self._bus = bus
        self._channels = channels
        self._asked: dict[int, asyncio.Future[OpenChannel]] = {}
        self._next = itertools.count(1)
        bus.on(m.Granted, self._granted)
        bus.on(m.ClaimFailed, lambda failed: self._asked.pop(failed.request).set_exception(error_of(failed.failure)))

    def claim(self, record: Record, named: Channel, link: LinkConnection) -> asyncio.Future[OpenChannel]:
        """As `p2pgrid.provider.exchange.Claims`."""
        request = next(self._next)
        future = self._asked[request] = asyncio.get_running_loop().create_future()
        self._bus.send(m.Claim(request, link.peer.raw, record))
        return future

    def _granted(self, granted: m.Granted) -> None:
        asked = self._asked.pop(granted.request)
        try:
            channel = self._channels.adopt(
                granted.channel,
                last_order_number=granted.last_order_number,
                away_since_ms=granted.away_since_ms,
            )
        except (LedgerError, InvalidRecord) as error:
            asked.set_exception(error)
        else:
            asked.set_result(channel)


class PassedDisputes:
    """Disputes are the main process's business."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def taken(self, dispute: Signed[Dispute]) -> None:
        """A client's dispute is on record."""
        self._bus.send(m.DisputeTaken(dispute.id))

    def watch(self, watcher: Watcher) -> None:
        """Streams that watch are passed on as a whole."""

    def unwatch(self, watcher: Watcher) -> None:
        """See `watch`."""


class PassedEvidence:
    """So is the bound on what is kept against peers."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def keep(self, peer: PublicKey, record: Record, reason: str) -> bool:
        """Hand it to the main process."""
        self._bus.send(m.EvidenceFound(peer.raw, record, reason))
        return True


class WorkerModels:
    """The models on sale, with connections of this process's own to their engines."""

    def __init__(self, bus: Bus, counters: SharedCounters) -> None:
        self.models: Final[dict[str, ServedModel]] = {}
        self._counters = counters
        self._engines: dict[str, HttpEngine] = {}
        bus.on(m.Models, self._set)

    def _set(self, message: m.Models) -> None:
        for one in message.models:
            engine = self._engines.get(one.engine_url)
            if engine is None:
                engine = self._engines[one.engine_url] = HttpEngine(one.engine_url)
            served = self.models.get(one.name)
            if served is None:
                served = self.models[one.name] = ServedModel(
                    name=one.name, engine=engine, concurrency=one.concurrency, counters=self._counters
                )
            served.engine, served.concurrency, served.is_up = engine, one.concurrency, one.is_up

    async def aclose(self) -> None:
        """Let go of the engines."""
        await asyncio.gather(*(engine.aclose() for engine in self._engines.values()))


class Worker:
    """Everything in this process."""

    def __init__(self, own: Inherited, begin: m.Begin) -> None:
        """Raises P2pgridError. Handlers are in their places when this returns."""
        data, bus = DataFolder(Path(begin.data)), own.bus
        self._bus = bus
        self.worker = own.worker
        key, former = data.load_key(), data.load_retired_keys()
        self._counters = SharedCounters(own.more[0], begin.processes, begin.columns, own.worker)
        self._ledger = RemoteLedger(data.ledger_file, bus, own.settling)
        self._channels = WorkerChannels(bus, self._ledger, key, former, begin.limits)
        self._models = WorkerModels(bus, self._counters)
        self._admission = Admission(self._models.models, self._channels, begin.limits, self._counters)
        self._tally = Tally()
        self._links = WorkerLinks(bus, begin.limits, self._tally)
        desk = PassingDesk(bus, self._links.number)
        self._shop = Shop(
            key=key,
            ledger=self._ledger,
            offers=LedgerOffers(self._ledger, key.public_key),
            channels=self._channels,
            admission=self._admission,
            links=self._links,
            tally=self._tally,
            evidence=PassedEvidence(bus),
            disputes=PassedDisputes(bus),
            limits=begin.limits,
            now_ms=unix_ms,
            claims=WorkerClaims(bus, self._channels),
        )
        exchanges: Exchanges = {
            kind: exchange if kind in NEED_THE_CHANNEL else lambda _, stream: PassedOn(desk, stream)
            for kind, exchange in EXCHANGES.items()
        }
        limits = ListenLimits()  # the main process has counted the callers
        self._listener = DirectListener(key, serve_streams(self._shop, exchanges), None, limits)
        self._giver = own.giver
        self._stopping: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._told = Tally()
        bus.on(m.Opened, self._opened)
        bus.on(m.Drain, self._drain)
        bus.on(m.FailOrders, self._fail_orders)
        bus.on(StopWorker, self._stop)

    async def run(self) -> None:
        """Serve until told to stop."""
        telling = asyncio.create_task(self._keep_telling(), name="telling")
        stop_taking = receive_connections(self._giver, self._take)
        self._bus.send(WorkerReady())
        drain_s = await self._stopping
        stop_taking()
        await self._listener.aclose(drain_s=drain_s)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await self._channels.aclose()
        await self._models.aclose()
        await self._ledger.aclose()
        self._tell()
        self._tell_tally()

    def _take(self, tcp: socket.socket, handed: Handed) -> None:
        task = self._listener.take(tcp, handed.name)
        task.add_done_callback(lambda _: self._bus.send(ConnectionGone(handed.number)))

    def _opened(self, message: m.Opened) -> None:
        link = self._links.link(message.link)
        try:
            self._channels.adopt(message.channel, last_order_number=0, away_since_ms=unix_ms(), link=link)
        except LedgerError as error:
            log.error("a channel that was opened is to be resumed: %s", error)

    def _drain(self, _: m.Drain) -> None:
        self._admission.is_draining = True
        self._tell()
        self._bus.send(m.Draining())

    def _fail_orders(self, _: m.FailOrders) -> None:
        for order in self._channels.live_orders:
            order.fail()

    def _stop(self, message: StopWorker) -> None:
        if not self._stopping.done():
            self._stopping.set_result(message.drain_s)

    async def _keep_telling(self) -> None:
        for n in itertools.count():
            await asyncio.sleep(TELL_INTERVAL_S)
            self._channels.give_back_idle()
            self._tell()
            if n % round(TALLY_INTERVAL_S / TELL_INTERVAL_S) == 0:
                self._tell_tally()

    def _tell(self) -> None:
        self._counters.set(LIVE_ORDERS, len(self._channels.live_orders))
        self._counters.set(BROKEN, int(self._channels.is_broken))

    def _tell_tally(self) -> None:
        if self._tally != self._told:
            self._told = self._tally.copy()
            self._bus.send(m.tally_message(self._told))


async def _main(own: Inherited) -> None:
    began: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()

    def begin(message: m.Begin) -> None:
        # At once: the next message may be for what is made here.
        began.set_result(Worker(own, message))

    own.bus.on(m.Begin, begin)
    own.bus.start()
    worker = await began
    log.info("worker %d (pid %d) serves", own.worker, os.getpid())
    await worker.run()


def main() -> None:
    """The process."""
    run_worker(_main)


if __name__ == "__main__":
    main()
