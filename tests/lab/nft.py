"""The `nft` program: that of the PATH, or the distribution's packages unpacked and not installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.lab.namespaces import Unavailable

CACHE: Final = Path(__file__).resolve().parents[2] / "build" / "lab"
_PACKAGES: Final = (
    *("nftables", "libnftables1", "libnftnl11", "libmnl0", "libxtables12"),
    *("libjansson4", "libedit2", "libgmp10"),
)
_SBIN: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def nft_command(cache: Path = CACHE) -> list[str]:
    """What runs `nft`, up to its own arguments. Raises Unavailable."""
    installed = shutil.which("nft", path=_SBIN)
    if installed:
        return [installed]
    program = cache / "nft" / "usr" / "sbin" / "nft"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs that begin together fetch it once
        if not program.exists():
            _unpack(cache)
    libraries = ":".join(sorted({str(found.parent) for found in (cache / "nft").rglob("lib*.so.*")}))
    command = ["env", f"LD_LIBRARY_PATH={libraries}", str(program)]
    _run([*command, "--version"], "run the nft that was fetched")
    return command


def _unpack(cache: Path) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise Unavailable("nft is not installed, and this is no Debian to fetch its packages from")
    packages, unpacked = cache / "packages", cache / "nft.part"
    shutil.rmtree(packages, ignore_errors=True)
    shutil.rmtree(unpacked, ignore_errors=True)
    packages.mkdir()
    _run(["apt-get", "download", *_PACKAGES], "fetch nft's packages", folder=packages)
    for package in sorted(packages.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(unpacked)], f"unpack {package.name}")
    unpacked.rename(cache / "nft")


def _run(command: list[str], what: str, folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"could not {what}: {error}") from error
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise Unavailable(f"could not {what}: {' '.join(last)}")
