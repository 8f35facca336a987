from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.cli import settling
from tests.settlement.paying.scene import Scene


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = Scene(tmp_path)
    monkeypatch.setattr(settling, "open_details", lambda _: made.details)
    return made
