"""Books from a ledger: what was at risk before a restart is at risk after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.books import UNSIGNED_COUNTS_MS, risk_pico, unsigned_pico
from p2pgrid.proto.messages import Status, Usage
from p2pgrid.proto.record import Role
from p2pgrid.proto.restore import restore_books, tariff_of
from tests.factories import TARIFF, Dealings


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_open_orders_and_proposals_are_at_risk_again(kind: str, tmp_path: Path) -> None:
    ledger: Ledger = MemoryLedger() if kind == "memory" else SqliteLedger.open(tmp_path / "ledger.sqlite")
    d = Dealings()
    await ledger.append(d.offer, d.channel, *d.completed())
    suspended, proposed = d.order(), d.order()
    await ledger.append(suspended, proposed, d.proposal(proposed))
    books = restore_books(ledger, d.channel, Role.PROVIDER)
    (first, second) = (
        risk_pico(one.message, tariff_of(ledger, one.message), books.terms.window_tokens)
        for one in (suspended, proposed)
    )
    assert books.open_orders == 2
    assert books.is_open(suspended.message.order_number) and books.is_open(proposed.message.order_number)
    assert books.at_risk_pico() == first + second - max(first, second) > 0
    assert books.reserved_pico == suspended.message.max_amount_pico
    assert books.countersigned_pico == d.receipts[0].message.amount_pico > 0
    await ledger.aclose()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_was_broken_off_within_the_hour_is_at_risk_again(kind: str, tmp_path: Path) -> None:
    ledger: Ledger = MemoryLedger() if kind == "memory" else SqliteLedger.open(tmp_path / "ledger.sqlite")
    d = Dealings()
    await ledger.append(d.offer, d.channel)
    left_out = []
    for hour, status in enumerate((Status.INTERRUPTED, Status.UNACKNOWLEDGED, Status.CANCELLED, Status.INTERRUPTED)):
        order = d.order()
        issued_ms = order.message.ordered_ms + (0 if hour == 0 else UNSIGNED_COUNTS_MS)
        proposal = d.proposal(order, status=status, usage=Usage(prompt_tokens=10, output_tokens=8), issued_ms=issued_ms)
        await ledger.append(order, proposal)
        if hour < 3:
            await ledger.append(d.countersign(proposal))
        left_out.append(unsigned_pico(proposal.message, order.message, TARIFF, d.channel.message.window_tokens))
    assert left_out[2] == 0 < min(left_out[0], left_out[1])
    books = restore_books(ledger, d.channel, Role.PROVIDER)
    # The first is an hour older than the last; the last is open: its whole risk counts, and is the dearest.
    assert books.at_risk_pico() == left_out[1]
    assert books.at_risk_pico(now_ms=issued_ms + UNSIGNED_COUNTS_MS) == 0
    await ledger.aclose()


async def test_an_order_without_its_offer_has_no_price() -> None:
    ledger, d = MemoryLedger(), Dealings()
    await ledger.append(d.channel, d.order())
    with pytest.raises(LedgerError):
        restore_books(ledger, d.channel, Role.PROVIDER)
