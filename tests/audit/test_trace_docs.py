"""What docs/settlement/trace.md shows is what the command prints."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from p2pgrid.cli.trace import references_of, trace
from p2pgrid.proto.dispute import Decision
from tests.audit.months import Month, new_month

PAGE = Path(__file__).parents[2] / "docs" / "settlement" / "trace.md"


def documented() -> Month:
    """A month of 660 receipts in two statements. Of the second, one receipt is disputed, and a part is paid."""
    month = new_month(Random(2026))
    month.sell(310)
    first = month.state(rate_bp=2100)
    invoice = month.invoice(first)
    month.pay(invoice, invoice.message.gross_cents, reference=references_of(first.id)[0])
    month.sell(350)
    dearest = max(month.stated[310:], key=lambda one: one.receipt.amount_pico)
    month.dispute(dearest, month.grid.now_ms + 100, Decision.ACCEPTED, month.grid.now_ms + 200)
    second = month.state(rate_bp=2100)
    month.pay(month.invoice(second), 1240, reference=references_of(second.id)[0])
    return month


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for bundle in documented().bundles():
        Path(bundle.source).write_bytes(b"\n".join(bundle.lines) + b"\n")
    page = PAGE.read_text("utf-8")
    commands = [line.removeprefix("$ p2pgrid trace ") for line in page.splitlines() if line.startswith("$ p2pgrid ")]
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(trace, command.split())
        assert result.exit_code == 0, result.output
        shown = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
        assert f"```\n$ p2pgrid trace {command}\n{shown}\n```" in page
