"""Whether the provider takes one more order now: draining, the ledger, the engine, slots, room for bodies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from p2pgrid.engine.base import Engine
from p2pgrid.errors import Refused
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


@dataclass(slots=True, kw_only=True)
class ServedModel:
    """A model of the configuration, and the engine that answers for it."""

    name: str
    engine: Engine
    concurrency: int
    is_up: bool = False
    """False while the engine is away or not yet checked."""
    running: int = 0
    """Orders whose engine work is not over."""


class Admission:
    """Slots and room, counted."""

    def __init__(self, models: Mapping[str, ServedModel], channels: Channels, limits: ProviderLimits) -> None:
        self.is_draining = False
        """True once the node shuts down: running orders go on, new ones are refused."""
        self._models = models
        self._channels = channels
        self._limits = limits
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
        if served.running >= served.concurrency:
            raise Refused("busy", f"{served.running} orders for {model!r} are running, as many as are served at once.")
        return served

    def reserve_body(self, client: PublicKey, n_bytes: int) -> None:
        """Make room for a body. Raises Refused (`busy`). Give it back with `release_body`."""
        limits = self._limits
        if (
            self._body_bytes + n_bytes > limits.body_bytes
            or self._body_bytes_by_client[client.raw] + n_bytes > limits.body_bytes_per_client
        ):
            raise Refused("busy", "too many bytes of requests are on their way to this provider.")
        self._body_bytes += n_bytes
        self._body_bytes_by_client[client.raw] += n_bytes

    def release_body(self, client: PublicKey, n_bytes: int) -> None:
        """The body has been dealt with."""
        self._body_bytes -= n_bytes
        self._body_bytes_by_client[client.raw] -= n_bytes
        if not self._body_bytes_by_client[client.raw]:
            del self._body_bytes_by_client[client.raw]
