"""The tables of docs/spec are those of the code, and say of everything what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.proto import wire
from tests.proto.spec_tables import FRAMES, has_gaps, pages


def test_every_payload_of_the_link_has_a_table() -> None:
    frames = {each for each in vars(wire).values() if isinstance(each, type) and issubclass(each, wire.Frame)}
    assert frames - {wire.Frame} == set(FRAMES)


@pytest.mark.parametrize(("page", "text"), pages().items(), ids=lambda value: getattr(value, "name", ""))
def test_the_tables_are_current(page: Path, text: str) -> None:
    assert page.read_text() == text, "run scripts/make_vectors"
    assert not has_gaps(text), "say what it means, in the row's last column"
