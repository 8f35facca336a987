"""What a worker's exchanges with clients stand on, where it is not the same as in a node of one process."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict
from typing import Final

from p2pgrid.engine.http import HttpEngine
from p2pgrid.errors import LedgerError, P2pgridError, Refused
from p2pgrid.ledger.remote import RemoteLedger
from p2pgrid.net.connection import LinkConnection
from p2pgrid.processes.bus import Bus
from p2pgrid.processes.counters import SharedCounters
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.withdrawal import Withdrawal
from p2pgrid.provider import worker_messages as m
from p2pgrid.provider.admission import ServedModel
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.links import ClientLinks
from p2pgrid.provider.tally import Tally
from p2pgrid.provider.watchers import Watcher

log = logging.getLogger(__name__)

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

    @property
    def withdrawal(self) -> Signed[Withdrawal] | None:
        """See `current`."""
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
        self._bus.send(m.LinkOpened(number, connection.peer.raw, connection.name, connection.caller))
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
