"""A provider's worker process: links on the direct road, resumes and orders. All else goes to the main process.

Started by `p2pgrid.provider.workers` as `python -m p2pgrid.provider.worker`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from pathlib import Path
from typing import Final

from p2pgrid.clock import unix_ms
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import LedgerError
from p2pgrid.ledger.remote import RemoteLedger
from p2pgrid.net.direct import DirectListener
from p2pgrid.net.link_membership import called
from p2pgrid.net.listening import ListenLimits
from p2pgrid.networks.entries import own_networks
from p2pgrid.processes.accepting import ConnectionGone, Handed, receive_connections
from p2pgrid.processes.counters import SharedCounters
from p2pgrid.processes.worker import Inherited, run_worker
from p2pgrid.processes.workers import StopWorker, WorkerReady
from p2pgrid.provider import worker_messages as m
from p2pgrid.provider.admission import Admission
from p2pgrid.provider.exchange import Shop
from p2pgrid.provider.passed_streams import PassedOn, PassingDesk
from p2pgrid.provider.removals import Removals
from p2pgrid.provider.session import EXCHANGES, FOR_THE_MAIN_PROCESS, Exchanges, serve_streams
from p2pgrid.provider.tally import Tally
from p2pgrid.provider.worker_channels import WorkerChannels, WorkerClaims
from p2pgrid.provider.worker_counters import BROKEN, LIVE_ORDERS
from p2pgrid.provider.worker_shop import LedgerOffers, PassedDisputes, PassedEvidence, WorkerLinks, WorkerModels

log = logging.getLogger(__name__)

TELL_INTERVAL_S: Final = 0.1
"""How often the counters that nobody's order waits for are written, and idle channels given back."""
TALLY_INTERVAL_S: Final = 0.5


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
            kind: (lambda _, stream: PassedOn(desk, stream)) if kind in FOR_THE_MAIN_PROCESS else exchange
            for kind, exchange in EXCHANGES.items()
        }
        networks = own_networks(begin.networks, key.public_key, begin.sell_in)
        membership = called(networks, key)
        limits = ListenLimits()  # the main process has counted the callers
        on_stream = serve_streams(self._shop, exchanges)
        self._listener = DirectListener(key, on_stream=on_stream, limits=limits, membership=membership)
        own_links = self._listener.connections.copy
        self._removals = Removals(networks, membership, self._channels, own_links) if membership else None
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
        tasks = [telling]
        if self._removals is not None:
            tasks.append(asyncio.create_task(self._removals.run(), name="removals"))
        stop_taking = receive_connections(self._giver, self._take, self._gone)
        self._bus.send(WorkerReady())
        drain_s = await self._stopping
        stop_taking()
        await self._listener.aclose(drain_s=drain_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channels.aclose()
        await self._models.aclose()
        await self._ledger.aclose()
        self._tell()
        self._tell_tally()

    def _take(self, tcp: socket.socket, handed: Handed) -> None:
        task = self._listener.take(tcp, handed.name)
        task.add_done_callback(lambda _: self._gone(handed))

    def _gone(self, handed: Handed) -> None:
        self._bus.send(ConnectionGone(handed.number))

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
