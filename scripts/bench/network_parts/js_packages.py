"""js-libp2p with docs/examples/js: the packages of its lock file from npm, kept for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import platformdirs
from path_parts.process import say
from path_parts.toolbox import ROOT, Missing

EXAMPLE: Final = ROOT / "docs" / "examples" / "js"
HERE: Final = Path(__file__).resolve().parent / "js"
OLDEST_NODE: Final = (20, 19)
_INSTALL_S: Final = 300


def node() -> str:
    """The program `node`. Raises Missing."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        raise Missing("node and npm are not on the PATH.")
    version = _node_version(found)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_NODE:
        raise Missing(f"node {version} is older than {'.'.join(map(str, OLDEST_NODE))}.")
    return found


def programs(folder: Path) -> Path:
    """A new folder in `folder` with the example, the benchmark's own modules and their packages. Raises Missing."""
    made = folder / "js"
    made.mkdir(parents=True)
    for module in [*EXAMPLE.glob("*.mjs"), *HERE.glob("*.mjs")]:
        shutil.copy(module, made)
    (made / "node_modules").symlink_to(_packages())
    return made


def versions() -> dict[str, str]:
    """What is compared."""
    return {"node": _node_version(node()), "js-libp2p": _pinned("libp2p"), "kad-dht (js)": _pinned("@libp2p/kad-dht")}


def _pinned(package: str) -> str:
    pins: dict[str, str] = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]
    return pins[package]


def _node_version(program: str) -> str:
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return shown.strip().removeprefix("v")


def _packages() -> Path:
    """`node_modules`, in the cache that tests/interop has too. A folder that is there is whole: one rename made it."""
    pins = (EXAMPLE / "package-lock.json").read_bytes() + (EXAMPLE / "package.json").read_bytes()
    home = Path(os.environ.get("P2PGRID_JS_HOME") or Path(platformdirs.user_cache_dir("p2pgrid")) / "js")
    wanted = home / hashlib.sha256(pins).hexdigest()[:16]
    if not wanted.is_dir():
        say("  .. Fetch js-libp2p from npm")
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as making:
            folder = Path(making) / "packages"
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(EXAMPLE / name, folder)
            _install(folder)
            if not wanted.is_dir():
                folder.rename(wanted)
    return wanted / "node_modules"


def _install(folder: Path) -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        raise Missing(f"npm ci took over {_INSTALL_S} s.") from None
    if done.returncode:
        raise Missing("\n    ".join(["npm ci failed:", *(done.stderr or done.stdout).strip().splitlines()[:6]]))
