"""The engines behind a provider's models: started, checked, watched.

A model is up while its engine is well and its answers can be counted. What is up is offered; an order for what is
not is refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from p2pgrid.config import ModelConfig
from p2pgrid.engine.base import Engine, EngineHealth
from p2pgrid.errors import EngineError, P2pgridError
from p2pgrid.proto.messages import ModelOffer
from p2pgrid.provider.admission import ServedModel
from p2pgrid.provider.metering import metered_endpoints
from p2pgrid.provider.offers import tariff_of
from p2pgrid.provider.schedule import schedule_of

log = logging.getLogger(__name__)

HEALTH_INTERVAL_S: Final = 2.0
RESTART_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """A model of the configuration, and the engine that is to answer for it. Models may share an engine."""

    model: ModelConfig
    engine: Engine


class EngineSet:
    """All engines of a node. `models` is what admission works with."""

    def __init__(self, plans: Sequence[EnginePlan], *, health_interval_s: float = HEALTH_INTERVAL_S) -> None:
        """Raises UsageError for a price that is none."""
        self.plans: Final = tuple(plans)
        self._tariffs = {plan.model.name: (tariff_of(plan.model), schedule_of(plan.model)) for plan in plans}
        self._entries: dict[str, ModelOffer] = {}
        self._health: dict[str, EngineHealth] = {}
        self._interval_s = health_interval_s
        self.models: Final = {
            plan.model.name: ServedModel(name=plan.model.name, engine=plan.engine, concurrency=plan.model.concurrency)
            for plan in plans
        }

    @property
    def entries(self) -> tuple[ModelOffer, ...]:
        """What can be offered now: the models that are up, in the order of the configuration."""
        return tuple(self._entries[name] for name, model in self.models.items() if model.is_up)

    @property
    def health(self) -> dict[str, EngineHealth]:
        """The last look at each model's engine."""
        return dict(self._health)

    def reprice(self, models: Sequence[ModelConfig]) -> tuple[str, ...]:
        """Sell at the prices that these models have, by name, from the next offer on; whose are others than before.

        Models that are not sold here are passed over. Raises UsageError for a price that is none: then all stay.
        """
        found = {model.name: (tariff_of(model), schedule_of(model)) for model in models if model.name in self._tariffs}
        changed = tuple(name for name, prices in found.items() if prices != self._tariffs[name])
        for name in changed:
            tariff, schedule = self._tariffs[name] = found[name]
            if name in self._entries:
                self._entries[name] = replace(self._entries[name], tariff=tariff, schedule=schedule)
        return changed

    async def start(self, timeout_s: float) -> None:
        """Start every engine and check every model. Raises the first error if no model is up in the end.

        One that fails while another is up is logged, and tried again by `watch`.
        """
        outcomes = await asyncio.gather(
            *(self._bring_up(plan, timeout_s) for plan in self.plans), return_exceptions=True
        )
        errors = [one for one in outcomes if isinstance(one, BaseException)]
        for error in errors:
            if not isinstance(error, P2pgridError):
                raise error
        if errors and not self.entries:
            raise errors[0]
        for error in errors:
            log.error("a model is not offered: %s", error)

    async def watch(self, on_change: Callable[[], Awaitable[None]]) -> None:
        """Look at the engines for ever, and await `on_change` whenever a model goes down or comes back."""
        while True:
            await asyncio.sleep(self._interval_s)
            changes = await asyncio.gather(*(self._look_at(plan) for plan in self.plans))
            if any(changes):
                await on_change()

    async def aclose(self) -> None:
        """Let go of every engine; managed ones stop."""
        for model in self.models.values():
            model.is_up = False
        engines = {id(plan.engine): plan.engine for plan in self.plans}
        for outcome in await asyncio.gather(*(e.aclose() for e in engines.values()), return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.error("an engine did not stop in order", exc_info=outcome)

    async def _look_at(self, plan: EnginePlan) -> bool:
        """One look. True if the model went down or came back."""
        model = self.models[plan.model.name]
        health = self._health[model.name] = await plan.engine.health()
        if model.is_up and not health.is_healthy:
            model.is_up = False
            log.error("the engine of %s is down (%s); the model is withdrawn", model.name, health.detail)
            return True
        if not model.is_up and health.is_healthy:
            try:
                await self._bring_up(plan, RESTART_TIMEOUT_S)
            except EngineError as error:
                log.error("%s stays withdrawn: %s", model.name, error)
                return False
            return True
        return False

    async def _bring_up(self, plan: EnginePlan, timeout_s: float) -> None:
        config, started = plan.model, time.monotonic()
        await plan.engine.ready(timeout_s)
        served = {model.name: model.context_tokens for model in plan.engine.models()}
        if config.name not in served:
            raise EngineError(
                f"the engine does not serve {config.name!r}; it serves {', '.join(map(repr, served)) or 'nothing'}.",
                hint="Give the model that name with vLLM's --served-model-name, or use one of its names.",
            )
        endpoints = await metered_endpoints(plan.engine, config.name)
        # Requests without max_tokens run as far as the engine's own window, so that is what is sold.
        context_tokens = served[config.name] or config.context_tokens
        if context_tokens != config.context_tokens:
            log.info("%s: the engine's context is %d tokens; that is what is offered", config.name, context_tokens)
        tariff, schedule = self._tariffs[config.name]
        self._entries[config.name] = ModelOffer(
            model=config.name,
            tariff=tariff,
            schedule=schedule,
            most_tokens_per_s=config.most_tokens_per_s,
            context_tokens=context_tokens,
            concurrency=config.concurrency,
            endpoints=endpoints,
            engine="vllm",
            quantization=config.quantization,
        )
        self._health[config.name] = EngineHealth(is_healthy=True)
        self.models[config.name].is_up = True
        log.info("engine: %s is up and metered (%.1f s)", config.name, time.monotonic() - started)
