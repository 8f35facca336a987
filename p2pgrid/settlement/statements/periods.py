"""When a statement is due, and where its period ends (docs/spec/settlement.md, section 2). Pure."""

from __future__ import annotations

from datetime import timedelta

from p2pgrid.settlement.invoices.vat_rates import rate_changes
from p2pgrid.settlement.statements.days import LocalDays, period_days


def due_until(*, from_ms: int, event_ms: int, settlement_days: int, days: LocalDays) -> int:
    """The end of the first period of `settlement_days` in which something happened.

    Periods follow one another from `from_ms`, and end with a local day; those in which nothing happened are passed
    over. `event_ms`: when the first thing happened that is in no statement yet.
    """
    first = days.of(from_ms)
    passed = max((days.of(event_ms) - first).days, 0) // settlement_days
    end = days.begin_ms(first + timedelta(days=(passed + 1) * settlement_days))
    # A day may begin later than by the clock before it: summer time.
    return (
        end if end > max(from_ms, event_ms) else days.begin_ms(first + timedelta(days=(passed + 2) * settlement_days))
    )


def cut_at_rate_change(from_ms: int, until_ms: int, country: str, days: LocalDays) -> int:
    """The end of the period, or the beginning of the first day in it on which the seller's VAT rate changes."""
    changes = rate_changes(country, *period_days(from_ms, until_ms, days))
    return days.begin_ms(changes[0]) if changes else until_ms
