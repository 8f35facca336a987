"""The main process of a gateway with several: it accepts programs' connections and hands them to workers.

The ledger, the network, the quarantine and the owner's commands stay here. Workers dial the direct road themselves;
over libp2p this process does, and passes the bytes on. See docs/decisions/several-processes.md.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Self

import msgspec

from p2pgrid import __version__
from p2pgrid.client.channel_shares import ChannelShares
from p2pgrid.client.client import wishes_of
from p2pgrid.client.desk import CLIENT_ASKS
from p2pgrid.client.gateway import SERVER_LIMITS, SHUTDOWN_S
from p2pgrid.client.late_network import LateNetwork
from p2pgrid.client.quarantine import Quarantine
from p2pgrid.client.worker import COLUMNS
from p2pgrid.client.worker_calls import (
    NETWORK_ASKS,
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
from p2pgrid.commands.address import socket_path
from p2pgrid.commands.server import serve_commands
from p2pgrid.commands.wire import About
from p2pgrid.config import ClientConfig, NetworkEntry
from p2pgrid.data_folder import DataFolder
from p2pgrid.desk.asks import Allowed, AllowPeer, DeskAsk, KeepSetOffs, Reconcile
from p2pgrid.desk.erasing import ErasesDaily
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.desk.set_offs import channels_of
from p2pgrid.desk.settling import look_ahead
from p2pgrid.desk.standing import ChannelChanges, Reconciled
from p2pgrid.desk.statements import Settle, Settled
from p2pgrid.errors import LocalError, Unreachable, UsageError
from p2pgrid.http.server import OWN_ADDRESSES
from p2pgrid.ledger.service import LedgerService
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.log.erasing import LogFiles, check_all_known, erase_salts
from p2pgrid.net.limits import Allowance, Seats
from p2pgrid.net.passed_road import pass_on
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.road import Road
from p2pgrid.networks.entries import own_networks
from p2pgrid.processes.accepting import Acceptor, ConnectionGone, Handed, hand_over
from p2pgrid.processes.bus import Bus
from p2pgrid.processes.counters import SharedCounters, make_memory
from p2pgrid.processes.workers import WorkerEnds, WorkerSet, check_supported
from p2pgrid.proto.dispute_exchange import Said
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Message, Signed
from p2pgrid.settlement.wiring import kept_details

_MAIN_ROW: Final = 0


class GatewayWorkers(WorkerSet):
    """The workers of a gateway."""

    def __init__(
        self,
        n: int,
        *,
        data: DataFolder,
        networks: tuple[NetworkEntry, ...],
        config: ClientConfig,
        api_key: str | None,
        ledger: SqliteLedger,
        finder: LateNetwork,
        quarantine: Quarantine,
    ) -> None:
        super().__init__("p2pgrid.client.worker", n)
        self._data = data
        self._networks = networks
        self._config = config
        self._api_key = api_key
        self._ledger = ledger
        self._finder = finder
        self._quarantine = quarantine
        self._shares = ChannelShares((one.message for one in ledger.channels()), n)
        self._calls: dict[int, Calls] = {}
        self._all_buses: dict[int, Bus] = {}
        self._givers: dict[int, socket.socket] = {}
        self._memory = make_memory(n + 1, len(COLUMNS))
        self._counters = SharedCounters(self._memory, n + 1, COLUMNS, _MAIN_ROW)
        most = Allowance(total=SERVER_LIMITS.connections * n, per_address=SERVER_LIMITS.connections_per_address * n)
        self._acceptor = Acceptor(Seats(most, uncapped=OWN_ADDRESSES))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where programs connect: host and port."""
        return self._acceptor.addresses

    async def serve(self, host: str, port: int) -> None:
        """Have the port, start the workers, and accept. Raises LocalError."""
        try:
            await self._acceptor.listen(host, port)
        except OSError as error:
            raise LocalError(
                f"cannot listen on {host}:{port}: {error.strerror or error}.",
                hint="Stop the program that uses it, or choose another address with --listen.",
            ) from None
        await self.start()
        self._acceptor.start()

    async def aclose(self) -> None:
        """Accept no more, let answers under way end for a while, end the workers."""
        await self._acceptor.stop()
        await self.stop(SHUTDOWN_S)
        os.close(self._memory)

    async def reconcile(self, peer: str) -> Reconciled:
        """All channels with a provider, each by the worker that has it. Raises P2pgridError, the first of any."""
        return merge(
            await asyncio.gather(*(calls.ask(ReconcileWith(peer), Reconciled) for calls in self._ready_calls()))
        )

    async def settle(self, ask: Settle) -> Settled:
        """All channels with a provider, each by the worker that has it. Raises P2pgridError, the first of any."""
        asked = SettleWith(ask.peer, ask.channel, ask.until_day, ask.accept_due)
        parts = await asyncio.gather(*(calls.ask(asked, Settled) for calls in self._ready_calls()))
        return msgspec.structs.replace(
            parts[0],
            channels=tuple(one for part in parts for one in part.channels),
            notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        )

    async def deliver(self, said: Said) -> bool:
        """Have the worker that has the channel tell the provider; True if that has it on record now."""
        calls = self._calls.get(self._shares.owner(said.message.channel))
        if calls is None:
            return False
        try:
            return await calls.ask(Deliver(said.id), bool)
        except LocalError:
            return False  # the worker has just ended: it is told on the next link

    def settle_soon(self, channels: Collection[bytes]) -> None:
        """Have the workers bring these channels' records of settlement together with their providers."""
        for bus in self._all_buses.values():
            bus.send(SettleSoon(tuple(channels)))

    def allow(self, peer: str) -> Allowed:
        """Lift a provider's quarantine everywhere. Raises LocalError."""
        held = self._quarantine.lift(peer)
        self._tell_others(0, Lifted(peer))
        if held is None:
            return Allowed(peer=peer, was_held=False)
        return Allowed(peer=peer, was_held=True, reason=held.reason, since_ms=held.since_ms)

    # -- workers ----------------------------------------------------------------------------------------------------

    def inherited(self) -> Sequence[int]:
        return (self._memory,)

    def prepare(self, worker: int, bus: Bus, ends: WorkerEnds) -> None:
        self._all_buses[worker] = bus
        on_append = functools.partial(self._appending, worker, bus)
        LedgerService(self._ledger, bus, ends.settling, on_append=on_append)
        self._givers[worker] = ends.giver
        self._calls[worker] = Calls(bus, NETWORK_ASKS, functools.partial(self._perform, worker))
        bus.on(Quarantined, functools.partial(self._quarantined, worker))
        bus.on(Lifted, functools.partial(self._lifted, worker))
        bus.on(ConnectionGone, lambda message: self._acceptor.gone(worker, message.number))
        bus.send(
            BeginGateway(
                data=str(self._data.path),
                networks=self._networks,
                config=self._config,
                api_key=self._api_key,
                channels=tuple(self._shares.of(worker)),
                quarantine=dict(self._quarantine.peers),
                processes=self.n + 1,
            )
        )

    def ready(self, worker: int, bus: Bus, ends: WorkerEnds) -> None:
        self._acceptor.add_worker(worker, ends.giver)

    def gone(self, worker: int) -> None:
        self._all_buses.pop(worker, None)
        self._givers.pop(worker, None)
        self._calls.pop(worker, None)
        self._acceptor.remove_worker(worker)
        self._counters.clear_row(worker)

    def _ready_calls(self) -> list[Calls]:
        if not self.buses:
            raise LocalError("no worker is there.", hint="Try again in a moment.")
        return [self._calls[worker] for worker in sorted(self.buses)]

    def _appending(self, worker: int, bus: Bus, signed: Sequence[Signed[Message]]) -> None:
        for one in signed:
            if isinstance(one.message, Channel) and self._shares.came_from(worker, one.message.channel):
                bus.send(HasChannel(one.message.channel))

    async def _perform(
        self,
        worker: int,
        ask: FindProviders | FetchOffer | FetchCapacity | FetchCards | DialRoad | AgreeOnHole,
    ) -> object:
        match ask:
            case AgreeOnHole(provider, timeout_s):
                return await self._finder.agree_on_hole(parse_public_key(provider), timeout_s=timeout_s)
            case DialRoad():
                return await self._dial_road(worker, ask)
            case FindProviders(key, limit, timeout_s, look_up):
                on_found = functools.partial(self._tell_found, worker, look_up) if look_up else None
                return await self._finder.find_providers(key, limit=limit, timeout_s=timeout_s, on_found=on_found)
            case FetchOffer(peer, timeout_s):
                return await self._finder.fetch_offer(peer, timeout_s=timeout_s)
            case FetchCapacity(peer, timeout_s):
                return await self._finder.fetch_capacity(peer, timeout_s=timeout_s)
            case FetchCards(peer, timeout_s):
                return await self._finder.fetch_cards(peer, timeout_s=timeout_s)

    def _tell_found(self, worker: int, look_up: int, peers: Sequence[PeerAddress]) -> None:
        bus = self._all_buses.get(worker)
        if bus is not None:
            bus.send(FoundSoFar(look_up, tuple(peers)))

    async def _dial_road(self, worker: int, ask: DialRoad) -> Road:
        """Dial over libp2p, and pass on what comes. Raises Unreachable."""
        provider = parse_public_key(ask.provider)
        road = await self._finder.dial_road(
            provider, ask.addresses, timeout_s=ask.timeout_s, direct_only=ask.direct_only
        )
        kind = Road.LIBP2P if road.get_extra_info("relay") is None else Road.RELAYED
        ours, theirs = socket.socketpair()
        with theirs:
            await pass_on(road, ours)
            try:
                hand_over(self._givers[worker], Handed(-ask.token, provider.peer_id), theirs)
            except (OSError, KeyError) as error:
                road.abort()
                raise Unreachable(f"worker {worker} takes no road: {error}.") from None
        return kind

    def _quarantined(self, worker: int, message: Quarantined) -> None:
        self._quarantine.add(message.peer, message.reason, message.since_ms)
        self._tell_others(worker, message)

    def _lifted(self, worker: int, message: Lifted) -> None:
        self._quarantine.lift(message.peer)
        self._tell_others(worker, message)

    def _tell_others(self, worker: int, message: Quarantined | Lifted) -> None:
        for other, bus in self._all_buses.items():
            if other != worker:
                bus.send(message)


class GatewayNode:
    """The whole gateway. Use it with `async with`."""

    def __init__(
        self,
        data: DataFolder,
        *,
        networks: Sequence[NetworkEntry],
        config: ClientConfig,
        api_key: str | None,
        host: str,
        port: int,
    ) -> None:
        """Raises UsageError."""
        check_supported(config.processes)
        wishes_of(config)
        self.data: Final = data
        self.networks: Final = tuple(networks)
        self.network_name: Final = ", ".join(one.name for one in networks)
        self.bootstrap: Final = tuple(dict.fromkeys(peer for one in networks for peer in one.bootstrap))
        self.peer_id = ""
        self._config = config
        self._api_key = api_key
        self._address = host, port
        self._stack = AsyncExitStack()
        self._workers: GatewayWorkers
        self._ledger: SqliteLedger

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where programs connect: host and port."""
        return self._workers.addresses

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return list(self._workers.pids.values())

    async def __aenter__(self) -> Self:
        """Start all. Raises UsageError, LocalError."""
        self.data.make()
        key = self.data.load_or_create_key()
        self.peer_id = key.public_key.peer_id
        async with AsyncExitStack() as stack:
            ledger = await asyncio.to_thread(SqliteLedger.open, self.data.ledger_file)
            stack.push_async_callback(ledger.aclose)
            self._ledger = ledger
            own = own_networks(self.networks, key.public_key)
            finder = await stack.enter_async_context(LateNetwork(key, own))
            self._workers = workers = GatewayWorkers(
                self._config.processes,
                data=self.data,
                networks=self.networks,
                config=self._config,
                api_key=self._api_key,
                ledger=ledger,
                finder=finder,
                quarantine=Quarantine(self.data.quarantine_file),
            )
            stack.push_async_callback(workers.aclose)
            self._records = RecordsDesk(
                ledger,
                [key, *self.data.load_retired_keys()],
                unix_ms,
                deliver=workers.deliver,
                erase_salts=self._erase_salts,
            )
            is_on = self.data.load_config().retention.erase_keys_after_disputes
            await stack.enter_async_context(ErasesDaily(self._records, is_on=is_on))
            about = About(version=__version__, peer_id=self.peer_id, role="client", pid=os.getpid())
            await stack.enter_async_context(
                serve_commands(socket_path(self.data.path), about, CLIENT_ASKS, self._perform)
            )
            await workers.serve(*self._address)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _perform(self, ask: Any) -> Any:
        match ask:
            case AllowPeer(peer=peer):
                return self._workers.allow(peer)
            case Reconcile(peer=peer):
                return await self._workers.reconcile(peer)
            case Settle(dry_run=True):
                return await self._look_ahead(ask)
            case Settle():
                return await self._workers.settle(ask)
            case KeepSetOffs():
                kept = await self._records.perform(ask)
                self._workers.settle_soon(channels_of(ask))
                return kept
            case _ if isinstance(ask, DeskAsk):
                return await self._records.perform(ask)
        raise UsageError(f"a gateway cannot do {type(ask).__name__}.")

    async def _look_ahead(self, ask: Settle) -> Settled:
        return await look_ahead(self._ledger, self.data.load_key().public_key, kept_details(self.data), ask)

    async def _erase_salts(self, record_ids: Sequence[bytes]) -> int:
        logs = self.data.logs_of_own_keys()
        check_all_known([LogFiles(*one) for one in logs], self.data.log_files)
        return await asyncio.to_thread(erase_salts, [LogFiles(*one) for one in logs], record_ids)


def merge(parts: Sequence[Reconciled]) -> Reconciled:
    """What several workers did with one provider, each with its own channels, as one."""
    channels: dict[str, ChannelChanges] = {}
    for part in parts:
        for change in part.channels:
            if change.channel not in channels or change.is_changed:
                channels[change.channel] = change
    return Reconciled(
        peer=parts[0].peer,
        role=parts[0].role,
        changed=any(part.changed for part in parts),
        channels=tuple(channels.values()),
        earlier=tuple(sorted((one for part in parts for one in part.earlier), key=lambda one: one.at_ms)),
        quarantine_lifted=next((part.quarantine_lifted for part in parts if part.quarantine_lifted), ""),
    )
