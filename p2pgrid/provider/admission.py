"""Whether the provider takes one more order now: draining, the ledger, the engine, slots, room for bodies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from p2pgrid.engine.base import Engine
from p2pgrid.errors import Refused
from p2pgrid.processes.counters import SharedCounters
from p2pgrid.proto.keys import PublicKey
from p2pgrid.provider.channels import Channels
from p2pgrid.provider.limits import ProviderLimits

RETRY_AFTER_MS: Final[dict[str, int]] = {
    "busy": 1_000,
    "too-many-open-orders": 1_000,
    "engine-unavailable": 5_000,
    "ledger-unavailable": 5_000,
}
"""What a refusal tells the client, by its code; 0 for others: the same order would be refused again."""
BODY_BYTES: Final = "body bytes"
"""A column of `SharedCounters`."""


def running_column(model: str) -> str:
    """The column of `SharedCounters` for a model's orders that the engine works on."""
    return f"running {model}"


class ServedModel:
    """A model of the configuration, and the engine that answers for it."""

    def __init__(
        self,
        *,
        name: str,
        engine: Engine,
        concurrency: int,
        is_up: bool = False,
        counters: SharedCounters | None = None,
    ) -> None:
        """`counters`: where several processes count together, in `running_column`."""
        self.name: Final = name
        self.engine = engine
        self.concurrency = concurrency
        self.is_up = is_up
        """False while the engine is away or not yet checked."""
        self.counters = counters
        self._running = 0

    @property
    def running(self) -> int:
        """This process's orders whose engine work is not over. Whoever changes it tells the other processes."""
        return self._running

    @running.setter
    def running(self, running: int) -> None:
        self._running = running
        if self.counters is not None:
            self.counters.set(running_column(self.name), running)

    @property
    def running_in_all(self) -> int:
        """Orders of all of the node's processes whose engine work is not over."""
        return self._running + (self.counters.others(running_column(self.name)) if self.counters is not None else 0)


class Admission:
    """Slots and room, counted: over all of a node's processes where it has several (`counters`).

    Then a limit may be passed by one order for each further process: see `SharedCounters`. What one client's bodies may
    take is counted by each process alone.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        channels: Channels,
        limits: ProviderLimits,
        counters: SharedCounters | None = None,
    ) -> None:
        self.is_draining = False
        """True once the node shuts down: running orders go on, new ones are refused."""
        self._models = models
        self._channels = channels
        self._limits = limits
        self._counters = counters
        self._body_bytes = 0
        self._body_bytes_by_client: Counter[bytes] = Counter()

    def check(self, model: str) -> ServedModel:
        """The model, if one more order for it can be taken now.

        Raises Refused: `withdrawn`, `ledger-unavailable`, `unknown-model`, `engine-unavailable`, `busy`.
        """
        if self.is_draining:
            raise Refused("withdrawn", "this provider is shutting down.", hint="Ask another.")
        if self._channels.is_broken:
            raise Refused("ledger-unavailable", "the provider's ledger cannot be written to now.")
        served = self._models.get(model)
        if served is None:
            raise Refused("unknown-model", f"the model {model!r} is not served here.")
        if not served.is_up:
            raise Refused("engine-unavailable", f"the engine of {model!r} does not answer now.")
        if (running := served.running_in_all) >= served.concurrency:
            raise Refused("busy", f"{running} orders for {model!r} are running, as many as are served at once.")
        return served

    def free(self, model: str) -> int:
        """How many orders for the model would pass `check` now, one after the other."""
        served = self._models.get(model)
        if served is None or not served.is_up or self.is_draining or self._channels.is_broken:
            return 0
        return max(served.concurrency - served.running_in_all, 0)

    def reserve_body(self, client: PublicKey, n_bytes: int) -> None:
        """Make room for a body. Raises Refused (`busy`). Give it back with `release_body`."""
        limits = self._limits
        if (
            self._body_bytes_in_all + n_bytes > limits.body_bytes
            or self._body_bytes_by_client[client.raw] + n_bytes > limits.body_bytes_per_client
        ):
            raise Refused("busy", "too many bytes of requests are on their way to this provider.")
        self._count_body_bytes(n_bytes)
        self._body_bytes_by_client[client.raw] += n_bytes

    def release_body(self, client: PublicKey, n_bytes: int) -> None:
        """The body has been dealt with."""
        self._count_body_bytes(-n_bytes)
        self._body_bytes_by_client[client.raw] -= n_bytes
        if not self._body_bytes_by_client[client.raw]:
            del self._body_bytes_by_client[client.raw]

    @property
    def _body_bytes_in_all(self) -> int:
        return self._body_bytes + (self._counters.others(BODY_BYTES) if self._counters is not None else 0)

    def _count_body_bytes(self, more: int) -> None:
        self._body_bytes += more
        if self._counters is not None:
            self._counters.set(BODY_BYTES, self._body_bytes)
