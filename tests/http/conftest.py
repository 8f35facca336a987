"""The server is tested on both loops that p2pgrid runs on: their transports differ in what a Protocol can see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """pytest-asyncio's hook: a test runs once for every factory."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
