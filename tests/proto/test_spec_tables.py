"""The tables of docs/spec are those of the code, and say of everything what it means."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from p2pgrid.proto import wire
from p2pgrid.proto.wire.base import Frame
from tests.proto.spec_tables import FRAMES, has_gaps, pages


def test_every_payload_of_the_link_has_a_table() -> None:
    modules = [import_module(f"{wire.__name__}.{found.name}") for found in iter_modules(wire.__path__)]
    named = [each for module in modules for each in vars(module).values()]
    assert {each for each in named if isinstance(each, type) and issubclass(each, Frame)} - {Frame} == set(FRAMES)


@pytest.mark.parametrize(("page", "text"), pages().items(), ids=lambda value: getattr(value, "name", ""))
def test_the_tables_are_current(page: Path, text: str) -> None:
    assert page.read_text() == text, "run scripts/make_vectors"
    assert not has_gaps(text), "say what it means, in the row's last column"
