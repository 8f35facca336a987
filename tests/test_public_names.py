"""`import p2pgrid` is free, and its names are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import p2pgrid


def test_every_public_name_is_there() -> None:
    for name in p2pgrid.__all__:
        assert getattr(p2pgrid, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        p2pgrid.nothing  # noqa: B018 - reading it is the test


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, p2pgrid; sys.exit(bool({'libp2p', 'aiohttp', 'nacl', 'msgspec'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
