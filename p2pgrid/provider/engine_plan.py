"""From the configuration's models to engines: attached by URL, or vLLM run by the node itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from p2pgrid.config import ModelConfig
from p2pgrid.data_folder import DataFolder
from p2pgrid.engine.base import Engine
from p2pgrid.engine.environment import MODELS, EngineEnvironment, engine_environment
from p2pgrid.engine.http import HttpEngine
from p2pgrid.engine.process import ManagedVllm
from p2pgrid.engine.serve_command import VllmSettings
from p2pgrid.errors import UsageError
from p2pgrid.provider.engines import EnginePlan

log = logging.getLogger(__name__)


def plan_engines(models: Sequence[ModelConfig], data: DataFolder) -> list[EnginePlan]:
    """An engine for every model; models with one URL share one. Nothing is started.

    Raises UsageError for a model with neither a URL nor a path, EngineError for an engine or a model that is not
    installed.
    """
    attached: dict[str, HttpEngine] = {}
    plans = []
    for model in models:
        if model.engine_url is not None:
            engine: Engine = attached.setdefault(model.engine_url, HttpEngine(model.engine_url))
        elif model.model_path is not None:
            engine = _managed(model, model.model_path, data)
        else:
            raise UsageError(
                f"the model {model.name!r} has no engine.",
                hint="Set its model-path, for vLLM run by the node, or its engine-url, for one that runs already.",
            )
        plans.append(EnginePlan(model, engine))
    return plans


def _managed(model: ModelConfig, path: str, data: DataFolder) -> ManagedVllm:
    environment = engine_environment()
    environment.require()
    name = model.name
    settings = VllmSettings(
        model=_model_folder(path, environment),
        served_name=name,
        context_tokens=model.context_tokens,
        max_running=model.concurrency,
        kv_cache_gib=model.kv_cache_gib,
        cpu_threads=model.cpu_threads,
        gpu_memory_share=model.gpu_memory_share,
        tensor_parallel=model.tensor_parallel,
        tool_call_parser=model.tool_call_parser,
        extra_arguments=model.engine_arguments,
    )
    log_name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return ManagedVllm(
        settings,
        environment,
        log_path=data.logs / f"engine-{log_name}.log",
        on_progress=lambda line: log.info("engine: %s: %s", name, line),
    )


def _model_folder(path: str, environment: EngineEnvironment) -> Path:
    """A folder, or the folder of a model that `p2pgrid engine install` made, by its short name."""
    if path in MODELS:
        return environment.require_model(path)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"there is no model at {folder}.",
            hint=f"Give a folder, or one of {', '.join(MODELS)} to run what is installed.",
        )
    return folder
