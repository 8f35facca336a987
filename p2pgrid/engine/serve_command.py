"""The command line and environment of a managed `vllm serve`: pure functions of the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from p2pgrid.engine.install import QUIET_VARIABLES

MAX_SOCKET_PATH_BYTES: Final = 103
"""Longest unix socket path that every system takes (Linux 107, macOS 103; `unix(7)`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """What the operator chooses; everything else about the command is the metering's to choose."""

    model: Path
    served_name: str
    context_tokens: int | None = None
    """Window of the model on offer; None: the model's own."""
    max_running: int | None = None
    """Most requests computed at once; None: vLLM's choice."""
    max_waiting: int | None = None
    """Most requests in vLLM's queue before it refuses; None: no bound."""
    kv_cache_gib: int = 1
    """Memory of the KV cache on a CPU, in whole GiB; on a GPU see `gpu_memory_share`."""
    cpu_threads: int | None = None
    """Threads that compute on a CPU. None: vLLM takes and pins all cores, so give each a number where two share one."""
    gpu_memory_share: float | None = None
    """Share of each GPU's memory, 0 to 1; None: vLLM's choice."""
    tensor_parallel: int = 1
    enforce_eager: bool | None = None
    """Do not compile, and start in half a minute instead of two. None: on a CPU."""
    tool_call_parser: str | None = None
    """vLLM's parser for tool calls, e.g. `hermes`; None: no tool calls."""
    drain_timeout_s: int = 30
    """How long a stopping engine may finish what runs."""
    extra_arguments: tuple[str, ...] = ()
    """More of `vllm serve`'s own, last."""


def serve_arguments(settings: VllmSettings, *, device: Literal["cuda", "cpu"], socket_path: Path) -> list[str]:
    """The arguments after `vllm`."""
    arguments = ["serve", str(settings.model), "--served-model-name", settings.served_name, "--uds", str(socket_path)]
    arguments += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    arguments += ["--shutdown-timeout", str(settings.drain_timeout_s)]
    arguments += ["--tensor-parallel-size", str(settings.tensor_parallel)]
    if settings.enforce_eager if settings.enforce_eager is not None else device == "cpu":
        arguments.append("--enforce-eager")
    if settings.tool_call_parser is not None:
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_call_parser]
    optional = (
        ("--max-model-len", settings.context_tokens),
        ("--max-num-seqs", settings.max_running),
        ("--max-num-queued-reqs", settings.max_waiting),
        ("--gpu-memory-utilization", settings.gpu_memory_share if device == "cuda" else None),
    )
    for flag, value in optional:
        if value is not None:
            arguments += [flag, str(value)]
    return [*arguments, *settings.extra_arguments]


def serve_variables(settings: VllmSettings, *, device: Literal["cuda", "cpu"], folder: Path) -> dict[str, str]:
    """Environment variables on top of the node's own. `folder` is short and private: vLLM puts sockets there too."""
    variables = dict(QUIET_VARIABLES)
    variables["VLLM_RPC_BASE_PATH"] = str(folder)
    variables["VLLM_LOGGING_COLOR"] = "0"
    if device == "cpu":
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gib)
        if settings.cpu_threads is not None:
            # Unbound, or two engines would both pin themselves to the first cores; and they must not spin while idle.
            variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            variables["OMP_NUM_THREADS"] = str(settings.cpu_threads)
            variables["KMP_BLOCKTIME"] = "5"
    return variables
