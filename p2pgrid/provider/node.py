"""A provider's node: ledger, engines, roads and the network, started in this order and stopped in the other.

    async with Provider(data, config, make_engines=plan_engines, networks=choose_networks(data, config)) as node:
        await stop.wait()

Importing this module imports libp2p, which takes one to two seconds.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

from p2pgrid import __version__
from p2pgrid.clock import unix_ms
from p2pgrid.commands.address import socket_path
from p2pgrid.commands.server import serve_commands
from p2pgrid.commands.wire import About
from p2pgrid.config import Config, ModelConfig, NetworkEntry, parse_host_port
from p2pgrid.data_folder import DataFolder
from p2pgrid.desk.asks import Repriced
from p2pgrid.desk.erasing import ErasesDaily
from p2pgrid.desk.evidence import EvidenceKeeper
from p2pgrid.desk.invoices import InvoiceDesk
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.errors import Refused, UsageError
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.log.service import LogService
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import DirectListener, listen
from p2pgrid.net.http_streams import HttpStreams
from p2pgrid.net.libp2p_road import SessionListener
from p2pgrid.net.link_membership import called
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import Health
from p2pgrid.net.reach_watch import ReachWatch
from p2pgrid.net.relay.use import parse_relay_use
from p2pgrid.net.road_move import LinksByName
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.networks.entries import own_networks
from p2pgrid.processes.workers import check_supported
from p2pgrid.proto.dispute_exchange import Said
from p2pgrid.proto.messages import DataTerms, Offer
from p2pgrid.proto.record import Signed
from p2pgrid.provider.addresses import (
    MAX_OFFERED,
    direct_multiaddr,
    offered_addresses,
    offered_libp2p_addresses,
)
from p2pgrid.provider.admission import Admission
from p2pgrid.provider.advertising import Advertiser
from p2pgrid.provider.bookkeeping import open_bookkeeping
from p2pgrid.provider.cards import OwnCards
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.client_credit import ClientCredit
from p2pgrid.provider.desk import PROVIDER_ASKS, ProviderDesk
from p2pgrid.provider.dispute_book import DisputeBook
from p2pgrid.provider.engines import EnginePlan, EngineSet
from p2pgrid.provider.exchange import Shop
from p2pgrid.provider.health import condition_of
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.links import ClientLinks
from p2pgrid.provider.offer_news import OfferNews
from p2pgrid.provider.offers import OfferBook, OfferTerms, batch_terms_of, terms_of
from p2pgrid.provider.own_log import erase_all_salts, open_log
from p2pgrid.provider.pages import pages_over_libp2p
from p2pgrid.provider.punched import PunchedLinks
from p2pgrid.provider.reach import watch_of
from p2pgrid.provider.relaying import relay_limits_of
from p2pgrid.provider.removals import Removals
from p2pgrid.provider.schedule import time_zone
from p2pgrid.provider.session import serve_streams
from p2pgrid.provider.shared_channels import SharedChannels
from p2pgrid.provider.statement_book import StatementBook
from p2pgrid.provider.tally import Tally
from p2pgrid.provider.witnessing import Witnessing, parse_witness
from p2pgrid.provider.workers import ProviderWorkers, check_engines
from p2pgrid.settlement.issuing import Issuer
from p2pgrid.settlement.wiring import Selling

log = logging.getLogger(__name__)

RESERVE_S: Final = 4.0
"""How long the first offer waits to name a relay, where this node is reached through one."""
SETTLE_S: Final = 3.0
"""How long orders that were ended by a shutdown may take to be countersigned."""

MakeEngines = Callable[[Sequence[ModelConfig], DataFolder], Sequence[EnginePlan]]


class Provider:
    """One operator's node."""

    def __init__(
        self,
        data: DataFolder,
        config: Config,
        *,
        make_engines: MakeEngines,
        network_name: str | None = None,
        bootstrap: Sequence[str] = (),
        networks: Sequence[NetworkEntry] = (),
        join_network: bool = True,
        gpus: Sequence[str] = (),
        limits: ProviderLimits | None = None,
        now_ms: Callable[[], int] = unix_ms,
        settles_with: Selling | None = None,
    ) -> None:
        """Nothing is started before `async with`. Raises UsageError: no key, no model, a bad price or address.

        `settles_with`: left out, what the data folder has.
        `networks`: those to join; or `network_name` and `bootstrap`, for one that is open.
        """
        self._data = data
        self._config = config.provider
        self._retention = config.retention
        self.key: Final = data.load_key()
        self._own_keys = (self.key, *data.load_retired_keys())
        """The node's, then those it had before."""
        if not self._config.models:
            raise UsageError(
                "no model is configured, so there is nothing to sell.",
                hint=f"Add one under [[provider.models]] in {data.config_file}, or give --model.",
            )
        if network_name is not None:
            networks = (NetworkEntry(name=network_name, bootstrap=tuple(bootstrap)),)
        self.entries: Final = tuple(networks)
        """The networks that it is in, as configured, with their bootstrap peers."""
        self.networks: Final = own_networks(self.entries, self.key.public_key, self._config.sell_in)
        self.network_name: Final = ", ".join(self.networks.names)
        """All their names, for people."""
        self.limits: Final = limits or ProviderLimits()
        self._tally: Final = Tally()
        self._links = ClientLinks(self.limits, self._tally)
        self.engines: Final = EngineSet(make_engines(self._config.models, data))
        self._join_network = join_network
        self._listen = parse_host_port(self._config.listen) if self._config.listen else None
        if self._listen is None and not (self._config.libp2p_listen and join_network):
            raise UsageError(
                "nobody could buy: neither the direct road nor libp2p listens.",
                hint="Give --listen, or --libp2p-listen (in config.toml: listen, libp2p-listen).",
            )
        check_supported(self._config.processes)
        if self._config.processes > 1 and self._listen is None:
            raise UsageError(
                "several processes share the direct road's links, and it does not listen.",
                hint="Give --listen, or leave --processes at 1.",
            )
        self._witnesses = [
            parse_witness(text, self.key, lambda: self._network, self.networks) for text in self._config.witnesses
        ]
        self._gpus = tuple(gpus)
        self._zone = time_zone(self._config.time_zone)
        self._relay_use = parse_relay_use(self._config.relay_through if self._config.libp2p_listen else ())
        self._relaying = relay_limits_of(config.relay) if self._config.relay else None
        self.cards: Final = OwnCards(data.card_file, self.key.public_key, now_ms)
        self._now_ms = now_ms
        self._news = OfferNews()
        self._settles_with = settles_with
        self._stack = AsyncExitStack()
        self._is_drained = False
        self.is_serving = False
        """True once all is started."""
        self._network: Network | None = None
        self.reach: ReachWatch | None = None
        """Whether strangers reach the node; None where the network was not joined."""
        self._listener: DirectListener | None = None
        self.ledger: SqliteLedger
        self.issuer: Issuer
        self._workers: ProviderWorkers | None = None
        self._sessions: SessionListener
        self._punched: PunchedLinks
        self._offers: OfferBook
        self._advertiser: Advertiser
        self._admission: Admission
        self.channels: Channels
        self.credit: ClientCredit
        self.disputes: DisputeBook
        self.statements: StatementBook
        self.log: LogService

    async def __aenter__(self) -> Self:
        """Start all. Returns when the node serves and is advertised. Raises P2pgridError with advice."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Withdraw, let running orders finish for `drain-s`, then stop all. Cancelled, it hurries."""
        await self._stack.aclose()

    # -- what a node says of itself ---------------------------------------------------------------------------------

    @property
    def peer_id(self) -> str:
        """The node's name, `12D3KooW...`."""
        return self.key.public_key.peer_id

    @property
    def offer(self) -> Signed[Offer] | None:
        """What is on sale; None while nothing is."""
        return self._offers.current

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients reach the direct road."""
        listener = self._listener or self._workers
        return offered_addresses(listener.addresses, self._config.announce) if listener is not None else ()

    @property
    def offered_addresses(self) -> tuple[str, ...]:
        """Where the offer says that clients reach this node, over either road."""
        return (*self.addresses[:MAX_OFFERED], *offered_libp2p_addresses(self.libp2p_addresses))

    @property
    def libp2p_addresses(self) -> tuple[str, ...]:
        """Full multiaddrs of the libp2p host."""
        return self._network.addresses if self._network is not None else ()

    @property
    def listening(self) -> tuple[str, ...]:
        """The ports that are open to clients, as multiaddrs; /tls behind those of the direct road."""
        direct = self._listener or self._workers
        ports = [direct_multiaddr(*one) for one in direct.addresses] if direct is not None else []
        return (*ports, *(self._network.listening if self._network is not None else ()))

    @property
    def tally(self) -> Tally:
        """What the node has done since it started, all of its processes together."""
        tally = self._tally.copy()
        if self._workers is not None:
            self._workers.add_tallies(tally)
        return tally

    @property
    def open_orders(self) -> int:
        """Orders accepted and not settled, in all of the node's processes."""
        return len(self.channels.live_orders) + (self._workers.live_orders if self._workers is not None else 0)

    @property
    def is_broken(self) -> bool:
        """True while the ledger has failed and not yet come back."""
        return self.channels.is_broken or (self._workers is not None and self._workers.is_broken)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run; none for a node of one process."""
        return list(self._workers.pids.values()) if self._workers is not None else []

    @property
    def worker_restarts(self) -> int:
        """Workers that ended unasked and were started again."""
        return self._workers.restarts if self._workers is not None else 0

    @property
    def links_by_road(self) -> dict[str, int]:
        """Links that have opened a stream, by what carries them."""
        return self._links.by_road()

    @property
    def network_health(self) -> Health | None:
        """How the network fares; None if it was not joined."""
        return self._network.health() if self._network is not None else None

    def page_names(self) -> set[str]:
        """Host names by which the pages are known: those of the configuration, and the domain on the card."""
        cards = self.cards.chain()
        domain = cards[-1].message.domain if cards else ""
        return {name.lower() for name in (*self._config.pages_names, domain) if name}

    @property
    def is_draining(self) -> bool:
        """True once the node was told to stop."""
        return self._admission.is_draining

    def _own_links(self) -> list[LinkConnection]:
        """The links of this process."""
        direct = self._listener.connections if self._listener is not None else ()
        return [link for link in (*direct, *self._sessions.connections) if link.ready.done()]

    # -- while it runs ----------------------------------------------------------------------------------------------

    async def reprice(self) -> Repriced:
        """Offer at the prices that config.toml has now. Offers that were shown are honoured until they end.

        Raises UsageError for a price that is none, and while the node starts or stops; LedgerError.
        """
        if not self.is_serving or self._admission.is_draining:
            raise UsageError("the node is starting, or stopping.", hint="It reads config.toml when it starts.")
        changed = self.engines.reprice(self._data.load_config().provider.models)
        if changed:
            log.info("new prices: %s", ", ".join(changed))
            await self._advertiser.publish()
        offer = self._offers.current
        return Repriced(models=changed, sequence=offer.message.sequence if offer is not None else 0)

    # -- start, in this order ---------------------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack) -> None:
        ledger = await self._open_books(stack)
        trusted = {witness.key for witness in self._witnesses}
        self.log = await open_log(stack, self._data, self.key, ledger, self.channels, trusted, self._now_ms)
        await self._check_port()
        stack.push_async_callback(self.engines.aclose)
        started = time.monotonic()
        await self.engines.start(self._config.engine_timeout_s)
        log.info(
            "engines: %d of %d models are up (%.1f s)",
            len(self.engines.entries),
            len(self.engines.models),
            time.monotonic() - started,
        )
        await self._open_roads(stack, ledger)
        self.statements.review()
        await self._advertiser.publish()
        await self._advertiser.advertise()
        stack.push_async_callback(self._drain)
        witnessing = Witnessing(self.log.log, self._witnesses)
        for name, work in (
            ("renew offers", self._advertiser.renew()),
            ("watch engines", self.engines.watch(self._advertiser.reoffer)),
            ("ask witnesses", witnessing.run()),
            ("close what is overdue", self.channels.watch()),
            ("tell what is free", self._news.run()),
            ("issue invoices", self.issuer.run()),
            ("tell which statements are due", self.statements.run()),
            *([("part from members that are none any more", self._removals.run())] if self._removals else []),
        ):
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(_report_end)
            stack.push_async_callback(_cancel, task)
        self.is_serving = True

    async def _open_books(self, stack: AsyncExitStack) -> SqliteLedger:
        books = await open_bookkeeping(
            stack,
            self._data,
            self._config,
            self._own_keys,
            limits=self.limits,
            zone=self._zone,
            now_ms=self._now_ms,
            settles_with=self._settles_with,
        )
        self.ledger, self.channels, self.issuer = books.ledger, books.channels, books.issuer
        self.disputes, self.statements, self.credit = books.disputes, books.statements, books.credit
        self._offers = self._offer_book(books.ledger)
        await self._take_commands(stack, books.ledger)
        return books.ledger

    def _offer_book(self, ledger: Ledger) -> OfferBook:
        config = self._config
        terms = OfferTerms(
            operator=config.operator,
            data_terms=DataTerms(country=config.country, prompt_retention_days=config.prompt_retention_days),
            terms=terms_of(config.terms),
            gpus=self._gpus,
            validity_ms=config.offer_minutes * 60_000,
            zone=self._zone,
            card_id=self.cards.offered_id,
            batch=batch_terms_of(config.terms),
        )
        return OfferBook(ledger, self.key, terms, self._now_ms)

    async def _take_commands(self, stack: AsyncExitStack, ledger: Ledger) -> None:
        """From now on, long before an engine is up: a command would find the ledger locked."""
        about = About(version=__version__, peer_id=self.peer_id, role="provider", pid=os.getpid())
        records = RecordsDesk(
            ledger,
            self._own_keys,
            self._now_ms,
            deliver=self._deliver_dispute,
            erase_salts=lambda ids: erase_all_salts(self._data, self.log.log, self.key, ids),
        )
        examine = functools.partial(condition_of, self)
        await stack.enter_async_context(ErasesDaily(records, is_on=self._retention.erase_keys_after_disputes))
        desk = ProviderDesk(
            ledger,
            self.key.public_key,
            self._links.is_connected,
            records,
            examine,
            self.reprice,
            statements=self.statements,
            invoices=InvoiceDesk(self.issuer),
        )
        await stack.enter_async_context(
            serve_commands(socket_path(self._data.path), about, PROVIDER_ASKS, desk.perform)
        )

    async def _deliver_dispute(self, signed: Said) -> bool:
        self.disputes.said(signed)
        return False  # it is the client who fetches it

    async def _check_port(self) -> None:
        """Learn now, and not after minutes of loading a model, that the port is taken. Raises LocalError."""
        if self._listen is not None:
            listener = await listen(*self._listen, self.key, on_stream=_nobody_yet)
            await listener.aclose(drain_s=0)

    async def _open_roads(self, stack: AsyncExitStack, ledger: SqliteLedger) -> None:
        """The shop, and both roads to it."""
        workers = self._make_workers(ledger)
        counters = workers.counters if workers is not None else None
        self._admission = Admission(self.engines.models, self.channels, self.limits, counters)
        self._advertiser = Advertiser(
            self._offers,
            self.engines,
            self._admission,
            self.cards,
            addresses=lambda: self.offered_addresses,
            country=self._config.country,
            has_bootstrap=any(network.bootstrap for network in self.networks.all),
            now_ms=self._now_ms,
            on_change=self._news.changed,
        )
        shop = Shop(
            key=self.key,
            ledger=ledger,
            offers=self._offers,
            channels=self.channels,
            admission=self._admission,
            links=self._links,
            tally=self._tally,
            evidence=EvidenceKeeper(ledger, self._now_ms),
            disputes=self.disputes,
            statements=self.statements,
            limits=self.limits,
            now_ms=self._now_ms,
            log=self.log,
            cards=self.cards.chain,
            news=self._news,
            credit=self.credit,
            claims=workers,
        )
        on_stream, movable = serve_streams(shop), LinksByName()
        membership = called(self.networks, self.key)
        self._removals = Removals(self.networks, membership, self.channels, self._own_links) if membership else None
        if workers is not None and self._listen is not None:
            stack.push_async_callback(self._close_workers, workers)
            await workers.serve(shop, *self._listen)
            self._workers = workers
            log.info("direct road: %d workers serve %s", workers.n, ", ".join(self.addresses))
        elif self._listen is not None:
            self._listener = await listen(
                *self._listen, self.key, on_stream=on_stream, movable=movable, membership=membership
            )
            stack.push_async_callback(self._close_listener, self._listener)
            log.info("direct road: listening at %s", ", ".join(self.addresses))
        self._sessions = SessionListener(self.key, on_stream=on_stream, movable=movable, membership=membership)
        if self._join_network:
            punched = DirectListener(self.key, on_stream=on_stream, movable=movable, membership=membership)
            self._punched = PunchedLinks(punched)
            await self._enter_network(stack)
            stack.push_async_callback(self._close_listener, self._sessions)
            stack.push_async_callback(self._close_listener, punched)
            stack.push_async_callback(self._punched.aclose)

    def _make_workers(self, ledger: SqliteLedger) -> ProviderWorkers | None:
        """None for a node of one process."""
        if not isinstance(self.channels, SharedChannels):
            return None
        check_engines(self.engines)
        return ProviderWorkers(
            self._config.processes,
            data=self._data,
            networks=self.entries,
            sell_in=self._config.sell_in,
            ledger=ledger,
            channels=self.channels,
            engines=self.engines,
            limits=self.limits,
            now_ms=self._now_ms,
        )

    async def _enter_network(self, stack: AsyncExitStack) -> None:
        started, config = time.monotonic(), self._config
        pages, page = pages_over_libp2p(self)
        stack.push_async_callback(pages.aclose, 1.0)
        self._network = Network(
            self.key,
            self.networks,
            listen=config.libp2p_listen,
            announce=config.libp2p_announce,
            serve_dht=bool(config.libp2p_listen),
            offer=self._advertiser.shown_offer,
            log=self.log.answer_call,
            cards=self._advertiser.shown_cards,
            capacity=self._advertiser.shown_capacity,
            sessions=self._sessions if config.libp2p_listen else None,
            http=HttpStreams(page) if config.libp2p_listen else None,
            relay=self._relay_use,
            relaying=self._relaying,
            punched=self._punched.begin if config.punch else None,
        )
        await stack.enter_async_context(self._network)
        self._advertiser.network = self._network
        await self._network.wait_reserved(RESERVE_S)
        log.info(
            "network %s: %s (%.1f s)", self.network_name, ", ".join(self.libp2p_addresses), time.monotonic() - started
        )
        self.reach = watch_of(self, self._network)
        await stack.enter_async_context(self.reach)

    # -- stop -------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Take nothing new, let what runs finish for a while, then end it as failed, for which nothing is owed."""
        self._admission.is_draining = True
        await self._advertiser.withdraw()
        if self._workers is not None:
            await self._workers.drain()
        live = self.open_orders
        if live:
            log.info("stopping: %d orders run; they have %d s", live, self._config.drain_s)
        if not await self._wait_settled(self._config.drain_s):
            for order in self.channels.live_orders:
                order.fail()
            if self._workers is not None:
                self._workers.fail_orders()
            await self._wait_settled(SETTLE_S)
        self._is_drained = True

    async def _close_listener(self, listener: DirectListener | SessionListener) -> None:
        # After a drain that came to its end, a client may still be saying its last word; after one that was cut short
        # nobody waits.
        await listener.aclose(drain_s=SETTLE_S if self._is_drained else 0)

    async def _close_workers(self, workers: ProviderWorkers) -> None:
        await workers.aclose(SETTLE_S if self._is_drained else 0)

    async def _wait_settled(self, timeout_s: float) -> bool:
        """True once no order is live. Looks ten times a second, which is nobody's hot path."""
        deadline = time.monotonic() + timeout_s
        while self.open_orders:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.1)
        return True


def _nobody_yet(_: Stream) -> StreamHandler:
    raise Refused("withdrawn", "this provider is starting.")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%r ended; restart the node", task.get_name(), exc_info=error)
