"""The process that draws: the same bytes as here, and one that dies or hangs costs a try and no number."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from datetime import date
from pathlib import Path

import pytest

from p2pgrid.errors import LocalError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.issuing import Issuer
from p2pgrid.settlement.making import Inputs
from p2pgrid.settlement.rendering import Renderer, RenderHere, RenderProcess
from tests.factories import PROVIDER
from tests.settlement.issuing.scene import BUYER, SELLER, Scene, details


async def stated(folder: Path) -> tuple[Scene, MemoryLedger, Signed[Statement]]:
    ledger = MemoryLedger()
    scene = await Scene(folder, ledger).opened()
    return scene, ledger, await scene.stated(5_000_000)


def inputs(number: str = "INV-2027-000001") -> Inputs:
    return Inputs(
        number=number,
        issue_date=date(2027, 1, 16),
        due_date=date(2027, 1, 30),
        period_first=date(2027, 1, 15),
        period_last=date(2027, 1, 15),
        seller=details(SELLER, PROVIDER, Role.PROVIDER).record.to_bytes(),
        buyer=details(BUYER).record.to_bytes(),
    )


def test_the_same_bytes_here_and_there_and_again(tmp_path: Path) -> None:
    _, _, statement = asyncio.run(stated(tmp_path))
    here, there = RenderHere(), RenderProcess()
    try:
        made = here.render(inputs(), statement)
        assert there.render(inputs(), statement) == made
        assert {suffix for suffix, _ in made.files} == {".pdf", ".cii.xml", ".ubl.xml"}
        with pytest.raises(InvoiceRefused) as refused:
            there.render(inputs("no/../number?"), statement)
        assert refused.value.code == "number"
        pid = there.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LocalError, match="failed"):
            there.render(inputs(), statement)
        assert there.render(inputs(), statement) == made
        assert there.pid != pid
    finally:
        here.close()
        there.close()
    assert there.pid is None


def script(folder: Path, text: str) -> str:
    """Something that is started in Python's place."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("text", "timeout_s", "why"),
    [
        ("exec sleep 60", 0.5, "no answer in 0.5 s"),
        ("echo no such thing >&2; exit 3", 60, "no such thing"),
        ("head -c 8 >/dev/null; printf '\\377\\377\\377\\377\\377\\377\\377\\377'; sleep 60", 60, "an answer of"),
        ("head -c 8 >/dev/null; printf '\\0\\0\\0\\0\\0\\0\\0\\001x'; sleep 60", 60, "got `int`"),
    ],
)
def test_one_that_hangs_dies_or_talks_nonsense_is_a_reason_to_wait(
    tmp_path: Path, text: str, timeout_s: float, why: str
) -> None:
    async def run() -> None:
        scene, ledger, statement = await stated(tmp_path)
        made: list[Renderer] = []
        broken = script(tmp_path, text)

        def renderer() -> Renderer:
            made.append(RenderProcess(timeout_s=timeout_s, python=broken))
            return made[-1]

        now_ms = statement.message.stated_ms + 5000
        issuer = Issuer(scene.data, ledger, [PROVIDER], now_ms=lambda: now_ms, renderer=renderer)
        (waiting,) = (await issuer.issue_pending()).refused
        assert waiting.code == "this-machine"
        assert "failed" in waiting.message and why in waiting.message
        await issuer.aclose()
        assert made[0].pid is None  # type: ignore[attr-defined]
        issuer = Issuer(scene.data, ledger, [PROVIDER], now_ms=lambda: now_ms)
        assert (await issuer.issue_pending()).issued == ("INV-2027-000001",)
        await issuer.aclose()

    asyncio.run(run())
