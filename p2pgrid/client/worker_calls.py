"""What a gateway's main process and its workers ask of one another, and get an answer to; and what they tell.

worker -> main    who sells (the network is the main process's), what quarantine a provider is put under
main -> worker    what the owner asks for, what another worker has found out, whose a channel is
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec

from p2pgrid.client.quarantine import Held
from p2pgrid.commands.wire import Failure, error_of, failure_of
from p2pgrid.config import ClientConfig, NetworkEntry
from p2pgrid.errors import LocalError, P2pgridError
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.processes.bus import Bus, BusMessage

T = TypeVar("T")


class Ask(msgspec.Struct, array_like=True, frozen=True):
    """Base of what is asked."""


class FindProviders(Ask, frozen=True, tag="find"):
    """As `p2pgrid.client.offers.Finder.find_providers`; answered with peers."""

    key: str
    limit: int
    timeout_s: float
    look_up: int
    """The asker's number for it, in `FoundSoFar`; 0 where it wants none."""


class FetchOffer(Ask, frozen=True, tag="offer"):
    """A peer's raw offer."""

    peer: PeerAddress
    timeout_s: float


class FetchCapacity(Ask, frozen=True, tag="capacity"):
    """What a peer says it has free."""

    peer: PeerAddress
    timeout_s: float


class FetchCards(Ask, frozen=True, tag="cards"):
    """A peer's raw cards."""

    peer: PeerAddress
    timeout_s: float


class DialRoad(Ask, frozen=True, tag="road"):
    """A road to a provider over libp2p; its bytes come over a socket that is handed over as number -`token`.

    Answered with the road's name, which may be that of libp2p through a relay, if not `direct_only`.
    """

    token: int
    provider: bytes
    addresses: tuple[str, ...]
    timeout_s: float
    direct_only: bool


class AgreeOnHole(Ask, frozen=True, tag="hole"):
    """Agree with a provider that is reached through a relay on where to punch a hole; answered with the `PunchPlan`."""

    provider: bytes
    timeout_s: float


NETWORK_ASKS: Final = FindProviders | FetchOffer | FetchCapacity | FetchCards | DialRoad | AgreeOnHole


class ReconcileWith(Ask, frozen=True, tag="reconcile"):
    """Bring both books together, of the channels that this worker has; answered with `Reconciled`."""

    peer: str


class Deliver(Ask, frozen=True, tag="deliver"):
    """Something of ours about a receipt is on record: tell the provider. Answered with whether it has it now."""

    record_id: bytes


class SettleWith(Ask, frozen=True, tag="settle"):
    """Settle the channels that this worker has with a provider; answered with `Settled`."""

    peer: str
    channel: str
    until_day: int
    accept_due: bool = False


OWNER_ASKS: Final = ReconcileWith | Deliver | SettleWith


class Made(BusMessage, frozen=True):
    """A call."""

    NUMBER = 60

    number: int
    ask: bytes


class Answered(BusMessage, frozen=True):
    """Its answer."""

    NUMBER = 61

    number: int
    result: bytes
    failure: Failure | None


class BeginGateway(BusMessage, frozen=True):
    """The first message to a worker."""

    NUMBER = 62

    data: str
    """The data folder."""
    networks: tuple[NetworkEntry, ...]
    config: ClientConfig
    api_key: str | None
    channels: tuple[bytes, ...]
    """Those that the worker has."""
    quarantine: dict[str, Held]
    processes: int
    """Rows of the shared counters."""


class HasChannel(BusMessage, frozen=True):
    """A channel that was opened, or found again, is the worker's."""

    NUMBER = 63

    channel: bytes


class SettleSoon(BusMessage, frozen=True):
    """These channels have records of settlement that their providers lack."""

    NUMBER = 67

    channels: tuple[bytes, ...]


class Quarantined(BusMessage, frozen=True):
    """A provider is dealt with no more."""

    NUMBER = 64

    peer: str
    reason: str
    since_ms: int


class Lifted(BusMessage, frozen=True):
    """It is dealt with again."""

    NUMBER = 65

    peer: str


class FoundSoFar(BusMessage, frozen=True):
    """What a worker's look-up that still goes on has found, the most credible first."""

    NUMBER = 66

    look_up: int
    peers: tuple[PeerAddress, ...]


class Calls:
    """One end of a bus on which both ends ask."""

    def __init__(self, bus: Bus, asks: Any, perform: Callable[[Any], Awaitable[Any]]) -> None:
        """`asks`: the union of what may be asked of this end. `perform` answers, or raises P2pgridError."""
        self._bus = bus
        self._perform = perform
        self._decoder = msgspec.msgpack.Decoder(asks)
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        bus.on(Made, self._made)
        bus.on(Answered, self._answered)
        bus.closed.add_done_callback(self._closed)

    async def ask(self, what: Ask, result: type[T]) -> T:
        """Ask the other end. Raises what it raised; LocalError if it is gone."""
        if self._bus.closed.done():
            raise _gone(self._bus)
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self._bus.send(Made(number, msgspec.msgpack.encode(what)))
        try:
            return msgspec.msgpack.decode(await future, type=result)
        finally:
            self._asked.pop(number, None)

    def _made(self, made: Made) -> None:
        ask = self._decoder.decode(made.ask)
        task = asyncio.get_running_loop().create_task(self._answer(made.number, ask), name="call")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, ask: Any) -> None:
        try:
            result = msgspec.msgpack.encode(await self._perform(ask))
        except P2pgridError as error:
            self._bus.send(Answered(number, b"", failure_of(error)))
        except TimeoutError:
            self._bus.send(Answered(number, b"", Failure(type="Unreachable", message="nobody answered in time.")))
        else:
            self._bus.send(Answered(number, result, None))

    def _answered(self, answered: Answered) -> None:
        future = self._asked.get(answered.number)
        if future is None or future.done():
            return
        if answered.failure is not None:
            future.set_exception(error_of(answered.failure))
        else:
            future.set_result(answered.result)

    def _closed(self, _: object) -> None:
        for task in self._tasks:
            task.cancel()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(_gone(self._bus))


def _gone(bus: Bus) -> LocalError:
    return LocalError(f"{bus.name} is gone.", hint="Try again in a moment.")
