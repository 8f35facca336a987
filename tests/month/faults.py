"""What tests of faults begin with, and how they read a verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.record import Signed
from p2pgrid.proto.verdict import Verdict
from p2pgrid.proto.wire.settlement import StatementDifference
from tests.month.scene import ALICE, VILNIUS
from tests.month.settled import Deal, Month, Mutual

NUMBER, GROSS = "VS-2026-000001", 588
"""What Vilnius bills Alice for the month: 4.86 and 21 % VAT."""


@pytest.fixture(scope="session")
def month(tmp_path_factory: pytest.TempPathFactory) -> Month:
    return asyncio.run(Month(tmp_path_factory.mktemp("month")).make())


@pytest.fixture
def deal(month: Month) -> Deal:
    """Vilnius sells to Alice. A copy, and nothing is wrong with it yet."""
    made = month.deal(VILNIUS, ALICE)
    assert made.gross_cents == GROSS
    return made


def faults(verdict: Verdict) -> list[tuple[str, str, int | None]]:
    """Code, party, and by how many cents."""
    return [(one.code, one.party, one.difference_cents) for one in verdict.findings]


def notes(verdict: Verdict, *codes: str) -> list[tuple[str, str, int | None]]:
    return [(one.code, one.party, one.difference_cents) for one in verdict.notes if one.code in codes]


def said(found: Iterable[StatementDifference], field: str) -> list[tuple[str, str]]:
    """What the client has for it, and what the provider states."""
    return [(one.client, one.provider) for one in found if one.field == field]


async def ledger_of(*records: Signed[Any], without: bytes = b"") -> MemoryLedger:
    ledger = MemoryLedger()
    await ledger.append(*(one for one in records if one.id != without))
    return ledger


async def unstated(deal: Deal) -> Deal:
    """Before the month was stated."""
    deal.provider, deal.client = await ledger_of(*deal.past.provider_has), await ledger_of(*deal.past.client_has)
    return deal


def first(verdict: Verdict) -> str:
    return verdict.findings[0].sentence


@pytest.fixture
def mutual(month: Month) -> Mutual:
    return Mutual(month)
