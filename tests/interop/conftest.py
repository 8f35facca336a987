"""docs/examples/js, with its packages from the registry: installed once, into a cache outside of the tree."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "js"
HOME_VARIABLE = "P2PGRID_JS_HOME"
REQUIRE_VARIABLE = "P2PGRID_REQUIRE_JS"
OLDEST_NODE = (20, 19)
INSTALL_TIMEOUT_S = 240


@dataclass(frozen=True)
class Ended:
    """What a run of the program came to."""

    code: int
    output: str
    errors: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.output, self.errors
        read: dict[str, Any] = json.loads(self.output)
        return read


@dataclass(frozen=True)
class Program:
    """The example in a folder of its own, with its packages beside it."""

    node: str
    folder: Path

    async def run(self, *arguments: str, deadline_s: float = 60.0) -> Ended:
        """`node ARGUMENTS...` to its end."""
        async with self.running(*arguments) as process, asyncio.timeout(deadline_s):
            output, errors = await process.communicate()
        assert process.returncode is not None
        return Ended(process.returncode, output.decode(), errors.decode())

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """The process, which does not outlive the block."""
        process = await asyncio.create_subprocess_exec(
            self.node,
            *arguments,
            cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture(scope="session")
def js(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program, or a skip that says what is not there (P2PGRID_REQUIRE_JS=1 makes it a failure)."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        _not_there("node and npm are not on the PATH")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(int(part) for part in version.removeprefix("v").split(".")[:2]) < OLDEST_NODE:
        _not_there(f"node {version} is older than {'.'.join(map(str, OLDEST_NODE))}")
    folder = tmp_path_factory.mktemp("js")
    for module in [*EXAMPLE.glob("*.mjs"), *Path(__file__).parent.glob("*.mjs")]:
        shutil.copy(module, folder)
    (folder / "node_modules").symlink_to(_packages(npm))
    return Program(node, folder)


def _packages(npm: str) -> Path:
    """The `node_modules` of the example's lock file. A folder that is there is whole: it came by one rename."""
    pins = (EXAMPLE / "package-lock.json").read_bytes() + (EXAMPLE / "package.json").read_bytes()
    default = Path(platformdirs.user_cache_dir("p2pgrid")) / "js"
    home = Path(os.environ.get(HOME_VARIABLE) or default)
    wanted = home / hashlib.sha256(pins).hexdigest()[:16]
    if not wanted.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as making:
            folder = Path(making) / "packages"
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(EXAMPLE / name, folder)
            _install(npm, folder)
            if not wanted.is_dir():  # else another run was faster
                folder.rename(wanted)
    return wanted / "node_modules"


def _install(npm: str, folder: Path) -> None:
    """`npm ci`: what the lock file says, each package held against its hash; none of their scripts is run."""
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _not_there(f"npm ci took over {INSTALL_TIMEOUT_S} s")
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        _not_there(f"npm ci failed: {said[0] if said else done.returncode}")


def _not_there(reason: str) -> None:
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(reason)
    pytest.skip(f"{reason} ({REQUIRE_VARIABLE}=1 makes this a failure)")
