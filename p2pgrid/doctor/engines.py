"""The engines of the models on sale: do they answer, or is what they need installed?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from p2pgrid.config import ModelConfig
from p2pgrid.data_folder import DataFolder
from p2pgrid.doctor.check import Check, fault, of_error, ok, skipped
from p2pgrid.engine.gpu import list_gpus
from p2pgrid.engine.http import HttpEngine
from p2pgrid.errors import P2pgridError
from p2pgrid.provider.engine_plan import plan_engines

ENGINE_TIMEOUT_S: Final = 3.0


async def check_engines(
    models: Sequence[ModelConfig], data: DataFolder, running: Mapping[str, Any] | None
) -> list[Check]:
    """`running`: what the running node says of its models (`/health`); None if none runs."""
    if running is not None:
        return [_check_running(name, model, data) for name, model in running.items()]
    if not models:
        return [skipped("engine", "no model is configured.")]
    return list(await asyncio.gather(*(_check(model, data) for model in models)))


def _check_running(name: str, model: Mapping[str, Any], data: DataFolder) -> Check:
    if model.get("is_up"):
        return ok("engine", f"{name} is up: {model.get('running')} of {model.get('concurrency')} requests.")
    detail = str(model.get("detail") or "it has not come up")
    return fault(
        "engine",
        f"{name} is down, and not offered: {detail.rstrip('.')}.",
        f"See the node's log and {data.logs}; the node offers it again by itself once its engine answers.",
    )


async def _check(model: ModelConfig, data: DataFolder) -> Check:
    try:
        [plan] = plan_engines([model], data)
    except P2pgridError as error:
        return of_error("engine", error, f"Mend {model.name} in {data.config_file}.")
    if not isinstance(plan.engine, HttpEngine):
        gpus = list_gpus()
        on = ", ".join(gpu.name for gpu in gpus) or "the CPU"
        return ok("engine", f"{model.name}: vLLM and the model are installed; it would run on {on}.")
    engine = plan.engine
    try:
        async with asyncio.timeout(ENGINE_TIMEOUT_S + 1):
            await engine.ready(ENGINE_TIMEOUT_S)
    except TimeoutError:
        return fault("engine", f"{engine.url} takes connections and does not answer.", "See its log; restart it.")
    except P2pgridError as error:
        return of_error("engine", error, f"Start it, or mend engine-url in {data.config_file}.")
    finally:
        await engine.aclose()
    served = [one.name for one in engine.models()]
    if model.name not in served:
        return fault(
            "engine",
            f"{engine.url} does not serve {model.name!r}; it serves {', '.join(map(repr, served[:8])) or 'nothing'}.",
            "Give the model that name with vLLM's --served-model-name, or use one of its names in config.toml.",
        )
    return ok("engine", f"{model.name} answers at {engine.url}.")
