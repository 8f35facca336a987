"""Providers that broke the rules stay out until somebody lets them in again."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from p2pgrid.client.quarantine import MAX_QUARANTINED, Held, Quarantine
from p2pgrid.errors import LocalError


def test_it_is_remembered_with_the_first_reason(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.json"
    first = Quarantine(path)
    assert not path.exists()
    first.add("a", "wrong-count: it\nlied", 1)
    first.add("a", "again", 2)
    again = Quarantine(path)
    assert dict(again.peers) == {"a": Held(since_ms=1, reason="wrong-count: it?lied")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "a" in again and again.reason("b") == ""


def test_lifting_is_remembered_too(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.json"
    quarantine = Quarantine(path)
    quarantine.add("a", "x", 1)
    assert quarantine.lift("a") == Held(since_ms=1, reason="x")
    assert quarantine.lift("a") is None
    assert not Quarantine(path).peers


def test_what_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gone" / "quarantine.json"
    quarantine = Quarantine(path)
    quarantine.add("a", "x", 1)
    assert "a" in quarantine and "forgotten" in caplog.text
    with pytest.raises(LocalError):
        quarantine.lift("a")
    assert "a" in quarantine


def test_a_damaged_file_lets_nobody_off(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.json"
    path.write_text('{"peers": {"a": 1}}')
    with pytest.raises(LocalError, match="quarantine"):
        Quarantine(path)


def test_it_is_bounded() -> None:
    quarantine = Quarantine()
    for number in range(MAX_QUARANTINED + 1):
        quarantine.add(str(number), "x", number)
    assert len(quarantine.peers) == MAX_QUARANTINED
    assert "0" not in quarantine
