from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from p2pgrid.cli import bank_commands, pay, pay_choice, refunding, settling
from tests.settlement.paying.scene import Scene

TODAY = date(2026, 11, 20)
NOW_MS = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()) * 1000


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = Scene(tmp_path)
    monkeypatch.setattr(settling, "open_details", lambda _: made.details)
    monkeypatch.setattr(settling, "today", lambda: TODAY)
    for module in (settling, bank_commands, pay, pay_choice, refunding):
        monkeypatch.setattr(module, "unix_ms", lambda: NOW_MS)
    return made
