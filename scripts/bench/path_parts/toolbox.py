"""What the benchmark needs, made once under build/bench: two C programs, nginx, LiteLLM, matplotlib."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .process import BenchError, say

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[2]
BUILD: Final = ROOT / "build" / "bench"


class Missing(BenchError):
    """A peer cannot be had here. The run goes on without it, and says so."""


def compiled(name: str, build: Path = BUILD) -> Path:
    """`name`.c of this folder as a program. Raises BenchError: without a C compiler there is no benchmark."""
    source, program = HERE / f"{name}.c", build / name
    wanted, marker = hashlib.sha256(source.read_bytes()).hexdigest(), build / f"{name}.sha256"
    if program.exists() and marker.exists() and marker.read_text() == wanted:
        return program
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler was found. Install one (Debian: apt-get install gcc libc6-dev).")
    build.mkdir(parents=True, exist_ok=True)
    _run([compiler, "-O2", "-Wall", "-o", str(program), str(source)], f"compile {source.name}", BenchError)
    marker.write_text(wanted)
    return program


def nginx() -> Path:
    """The nginx program: that of the PATH, or Debian's package unpacked and not installed. Raises Missing."""
    installed, unpacked = shutil.which("nginx"), BUILD / "nginx" / "usr" / "sbin" / "nginx"
    if installed:
        return Path(installed)
    if not unpacked.exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise Missing("nginx is not installed, and this is no Debian to fetch its package from.")
        say("  .. Fetch nginx's package")
        packages = BUILD / "nginx-package"
        packages.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", "nginx"], "fetch nginx's package", Missing, folder=packages)
        found = sorted(packages.glob("nginx_*.deb"))
        if not found:
            raise Missing("nginx's package was not there after its download.")
        _run(["dpkg-deb", "-x", str(found[-1]), str(BUILD / "nginx")], "unpack nginx", Missing)
    _run([str(unpacked), "-v"], "run nginx", Missing)
    return unpacked


def litellm() -> Path:
    """The `litellm` program in an environment of its own, of the exact versions pinned. Raises Missing."""
    return _environment("litellm", "litellm[proxy]") / "bin" / "litellm"


def plot_python() -> Path:
    """A Python with matplotlib. Raises Missing."""
    return _environment("plot", "matplotlib") / "bin" / "python"


def versions() -> dict[str, str]:
    """What is compared, by version, as far as it is there."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    pins = (HERE / "constraints-litellm.txt").read_text().split()
    found["litellm"] = next(pin.partition("==")[2] for pin in pins if pin.startswith("litellm=="))
    for program in (shutil.which("nginx"), BUILD / "nginx" / "usr" / "sbin" / "nginx"):
        if program and Path(program).exists():
            shown = subprocess.run([str(program), "-v"], capture_output=True, text=True, check=False)
            found["nginx"] = (shown.stderr + shown.stdout).strip().rpartition("/")[2]
            break
    return found


def _environment(name: str, package: str) -> Path:
    pins, venv = HERE / f"constraints-{name}.txt", BUILD / name
    wanted, marker = hashlib.sha256(pins.read_bytes()).hexdigest(), venv / ".ready"
    if not (marker.exists() and marker.read_text() == wanted):
        say(f"  .. Make the environment of {package} in {venv.relative_to(ROOT)} (a minute or two)")
        marker.unlink(missing_ok=True)
        _run([sys.executable, "-m", "venv", str(venv)], "make an environment", Missing)
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--constraint", str(pins), package], f"install {package}", Missing)
        marker.write_text(wanted)
    return venv


def _run(command: Sequence[str], what: str, error: type[BenchError], folder: Path | None = None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise error("\n    ".join([f"could not {what}:", *(done.stdout + done.stderr).strip().splitlines()[-6:]]))
