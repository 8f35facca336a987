"""What docs/audit.md shows is what the command prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from p2pgrid.cli.audit import audit
from tests.proto.audit_cases import overcharged

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for bundle in overcharged():
        Path(bundle.source).write_bytes(b"\n".join(bundle.lines) + b"\n")
    page = PAGE.read_text("utf-8")
    commands = [line.removeprefix("$ p2pgrid ").split() for line in page.splitlines() if line.startswith("$ p2pgrid ")]
    assert [command[0] for command in commands] == ["audit", "audit"]
    for command, exit_code in zip(commands, (1, 0), strict=True):
        result = CliRunner().invoke(audit, command[1:])
        assert result.exit_code == exit_code
        assert f"```\n$ p2pgrid {' '.join(command)}\n{result.stdout.strip()}\n```" in page
