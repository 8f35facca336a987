"""The rooms import one way (docs/architecture.md), and the core does no I/O."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "p2pgrid"

MAY_IMPORT = {
    "errors": set(),
    "units": {"errors"},
    "proto": {"errors", "units"},
    "http": {"errors"},
    "config": {"errors", "units", "proto"},
    "data_folder": {"errors", "proto", "config"},
    "cells": set(),
    "clock": set(),
    "printable": set(),
    "sockets": set(),
    "processes": {"errors", "sockets"},
    "ledger": {"errors", "clock", "units", "proto", "processes"},
    "engine": {"errors", "units", "proto"},
    "net": {"errors", "clock", "units", "printable", "proto", "sockets"},
    "networks": {"errors", "clock", "proto", "config", "data_folder", "net"},
    "log": {"errors", "clock", "units", "proto", "ledger"},
    "commands": {"errors", "http"},
    "settlement": {"errors", "clock", "units", "cells", "printable", "proto", "config", "data_folder", "ledger"},
    "desk": {"errors", "clock", "units", "proto", "config", "ledger", "settlement"},
    "provider": {
        "errors",
        "clock",
        "units",
        "proto",
        "config",
        "data_folder",
        "ledger",
        "log",
        "engine",
        "net",
        "networks",
        "commands",
        "desk",
        "settlement",
        "http",
        "processes",
    },
    "client": {
        "errors",
        "clock",
        "units",
        "printable",
        "proto",
        "config",
        "data_folder",
        "ledger",
        "log",
        "net",
        "networks",
        "commands",
        "desk",
        "settlement",
        "http",
        "processes",
    },
    "audit": {"errors", "units", "cells", "printable", "proto", "ledger"},
    "doctor": {
        "errors",
        "clock",
        "proto",
        "config",
        "data_folder",
        "sockets",
        "ledger",
        "engine",
        "net",
        "networks",
        "commands",
        "desk",
        "provider",
        "client",
    },
    "demo": {"errors", "units"},
    "cli": {
        "errors",
        "clock",
        "units",
        "printable",
        "proto",
        "config",
        "data_folder",
        "ledger",
        "log",
        "engine",
        "net",
        "networks",
        "commands",
        "desk",
        "provider",
        "client",
        "audit",
        "settlement",
        "demo",
        "doctor",
        "processes",
    },
}
"""Each room, and the rooms below it. A room may always import itself and the package's version."""

IO_MODULES = {"asyncio", "trio", "socket", "ssl", "sqlite3", "os", "time", "random", "secrets", "libp2p", "aiohttp"}


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__main__.py",) and p.parent != PACKAGE)
MODULES += [PACKAGE / f"{name}.py" for name in ("errors", "units", "config", "data_folder", "printable", "sockets")]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "p2pgrid" and len(parts) > 1 and parts[1] != room:
            assert parts[1] in MAY_IMPORT[room], f"{room} imports {name}"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "proto").rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix()
)
def test_the_core_does_no_io(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & IO_MODULES


def test_every_room_is_listed() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert rooms <= set(MAY_IMPORT)
