"""The GPUs of this machine, through NVIDIA's management library (nvidia-ml-py)."""

from __future__ import annotations

from dataclasses import dataclass

import pynvml


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as the driver names it, e.g. `NVIDIA H100 80GB HBM3`."""

    name: str
    memory_bytes: int


def list_gpus() -> tuple[Gpu, ...]:
    """Every NVIDIA GPU the driver shows, in its order; empty without a driver, and where the driver will not answer."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_describe(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _describe(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    return Gpu(
        name=name.decode() if isinstance(name, bytes) else str(name),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
    )
