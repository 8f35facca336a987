"""The tables of docs/spec are those of the code, and say of everything what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proto.spec_tables import has_gaps, pages


@pytest.mark.parametrize(("page", "text"), pages().items(), ids=lambda value: getattr(value, "name", ""))
def test_the_tables_are_current(page: Path, text: str) -> None:
    assert page.read_text() == text, "run scripts/make_vectors"
    assert not has_gaps(text), "say what it means, in the row's last column"
