"""Many entries, and texts made to be slow: the work stays in proportion."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from p2pgrid.settlement.payments.decisions import Kind
from p2pgrid.settlement.payments.entries import with_keys
from p2pgrid.settlement.payments.matching import match
from tests.pace import slowness
from tests.settlement.payments.makers import ALICE, entry, invoice

A = invoice("LT-2026-000001", 1_000_000)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """CPU time, of the machine that limits are for."""
    before = slowness()
    started = time.process_time()
    yield
    spent_s = time.process_time() - started
    assert spent_s / max(before, slowness()) < seconds


def test_many_returns_of_many_payments() -> None:
    invoices = [invoice(f"LT-2026-{n:06d}", 100 + n) for n in range(3_000)]
    came = match([entry(i.gross_cents, end_to_end_id=i.reference) for i in invoices], invoices)
    paid = [replace(one, paid_cents=one.gross_cents) for one in invoices]
    went = [
        entry(-one.gross_cents, day=5, end_to_end_id=one.reference, bank=f"R{n}", is_return=True)
        for n, one in enumerate(invoices[:500])
    ]
    with within(4):
        assert {one.kind for one in match(went, paid, earlier=came)} == {Kind.RETURNED}


def test_many_equal_payments_of_one_day() -> None:
    """Each costs its sender a cent."""
    one = entry(1, end_to_end_id=A.reference)
    told = with_keys([replace(one, bank_reference=f"X{n}") for n in range(4_000)])
    with within(4):
        assert all(decision.is_booked for decision in match(told, [A]))


def test_many_names() -> None:
    invoices = [invoice(f"LT-2026-{n:06d}", 100, debtor_name=f"Client number {n:06d}") for n in range(5_000)]
    told = [entry(99, counterparty_name=f"Stranger number {n}") for n in range(2_000)]
    with within(5):
        assert {one.kind for one in match(told, invoices)} == {Kind.UNRELATED}
    (one,) = match([entry(100, counterparty_name="Client Number 000123 Oy")], invoices)
    assert [booking.invoice_number for booking in one.bookings] == ["LT-2026-000123"]
    (several,) = match([entry(100, counterparty_name="CLIENT NUMBER 00012")], invoices)
    assert several.candidates == tuple(f"LT-2026-{n:06d}" for n in range(120, 130))


@pytest.mark.parametrize("text", [(A.reference[:8] + "7") * 2_200, "A " * 500_000, "1A" * 10_000])
def test_texts_that_are_made_to_be_slow(text: str) -> None:
    told = [entry(n, remittance_text=text, counterparty_iban=ALICE) for n in range(1, 9)]
    with within(4):
        match(told, [A])
